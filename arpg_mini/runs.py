"""A run folder: its description, and how its tokenizer and its ids come to be.

The one idea: everything a run depends on is written down in its `config.json` before work starts,
and every step of the preparation looks first at what is already there. So starting, resuming after
a kill and resuming on another number of processes are the same code.
"""

import json
import math
import signal
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from . import checkpoint, data, distributed, folders, pretrained, training
from .config import TokenizerConfig, TrainConfig, UserError
from .control import edges
from .ids import MARGIN, IdFiles, Ids, crops, encode_parts, id_files, put_together, vouched
from .tokenizer import VQTokenizer

try:
    import fcntl
except ImportError:                             # not on Windows
    fcntl = None

PARTS = "train", "val"
held: list = []                                 # open files whose locks this process holds


def load_pictures(run: dict) -> list[data.Pictures]:
    """Training and held-out pictures of a run, or ids that somebody else extracted."""
    if run["data"] == "shapes":
        seed = 2 * run["seed"]
        return [data.shapes_pictures(40_000, seed), data.shapes_pictures(2000, seed + 1)]
    if run["data"] == "fashion-mnist":
        return [data.fashion_pictures("train"), data.fashion_pictures("t10k")]
    folder = Path(run["data"])
    if list(folder.glob("train-images-idx3-ubyte*")):
        return [data.fashion_pictures(split, folder) for split in ("train", "t10k")]
    return folders.folder_pictures(folder, run["side"])


def check_sizes(run: dict, pictures: data.Pictures, stride: int) -> int:
    """How many ids a picture gives. UserError unless the pictures can be read and cut into ids of
    `stride` pixels a side."""
    _, sample = pictures.load(range(min(64, len(pictures))))
    if not len(sample):
        raise UserError(f"{next(iter(pictures.bad))}: no readable picture, nor are the next 63")
    if sample.shape[1] % stride:
        raise UserError(f"--side {sample.shape[1]}: must be a multiple of the tokenizer's stride, "
                        f"{stride}")
    if run["views"] == "ten-crop" and not isinstance(pictures, folders.FolderPictures):
        raise UserError("--views ten-crop: needs pictures that come larger, from a folder")
    side = run["side"] if run["views"] == "ten-crop" else sample.shape[1]
    return (side // stride)**2


def side_of(tokens: int, run: dict) -> int:
    """Tokens a side of a square picture. UserError if it is none."""
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise UserError(f"--data {run['data']}: has {tokens} ids to a picture, which is no square")
    return side


def control_of(run: dict, tokenizer: VQTokenizer, grid: tuple[int, int]):
    """The function from tokens (b, N) to the condition maps a run trains with, or None."""
    if not run["control"]:
        return None
    few = max(1, 2**21 // (grid[0] * grid[1] * tokenizer.config.stride**2))

    def maps(tokens: torch.Tensor) -> torch.Tensor:
        return torch.cat([edges(tokenizer.decode(part.view(-1, *grid)))
                          for part in tokens.split(few)])
    return maps


def named_tokenizer(run: dict, out: Path) -> VQTokenizer | None:
    """The tokenizer a run was told to use: from its own folder once it is there."""
    if not run["tokenizer_file"]:
        return None
    mine = out / "tokenizer.pt"
    file = mine if mine.exists() else Path(run["tokenizer_file"])
    tokenizer, saved = pretrained.load_any_tokenizer(file)
    if saved.get("step", 0) < saved.get("steps", 0):
        raise UserError(f"--tokenizer {file}: is only half trained")
    return tokenizer


def train_tokenizer(run: dict, options, pictures: data.Pictures, stop, device) -> VQTokenizer:
    """The run folder's tokenizer, trained to its end."""
    path, config = options.out / "tokenizer.pt", TrainConfig(**run["train"])
    torch.manual_seed(run["seed"])
    tokenizer, start, state = VQTokenizer(TokenizerConfig(**run["tokenizer"])), 0, None
    if path.exists():
        tokenizer, saved = checkpoint.load_tokenizer(path)
        start, state = saved["step"], saved.get("optimizer")
    tokenizer.to(device)
    optimizer = training.make_optimizer(tokenizer, 0.0, config.betas)
    if state:
        optimizer.load_state_dict(state)
    bar = tqdm(training.train_tokenizer(tokenizer, pictures, config, run["seed"], optimizer, start),
               "tokenizer", config.tokenizer_steps, initial=start, unit="step")
    save_every = options.save_every or max(1, config.tokenizer_steps // 10)
    for step, losses in enumerate(bar, start + 1):
        if step % 20 == 0:
            bar.set_postfix({k: f"{v.item():.4f}" for k, v in losses.items()})
        last = step == config.tokenizer_steps
        if last or stop.signal or step % save_every == 0:
            checkpoint.save_tokenizer(path, tokenizer, step=step, steps=config.tokenizer_steps,
                                      **({} if last else {"optimizer": optimizer.state_dict()}))
        if stop.signal:
            raise SystemExit(leave(options.out, f"step {step} of the tokenizer", stop))
    return tokenizer.eval()


def leave(out: Path, after: str, stop) -> int:
    if distributed.rank() == 0:
        print(f"stopped by a signal after {after}, saved; go on with: "
              f"python train_mini.py --resume --out {out}", file=sys.stderr)
    return 128 + (stop.signal or signal.SIGTERM)    # another process may have got the signal


def begin(run: dict, options, stop, device) -> list[data.Pictures] | None:
    """In the first process: leave `config.json` and `tokenizer.pt` in the run folder.

    Returns what is still to be encoded, or None if the run's ids are all there.
    """
    out, folder = options.out, Path(run["data"])
    if (out / "config.json").exists() and not options.resume:
        raise UserError(f"--out {out}: already holds a run; add --resume to go on with it")
    lock(out)
    for place in (out, *(out / "ids" / f"{part}.parts" for part in PARTS)):
        checkpoint.sweep(place)
    tokenizer = named_tokenizer(run, out)
    ready = folder / "ids" if (folder / "ids" / "train.json").exists() else folder
    if (ready / "train.json").exists():
        source, said = None, [vouched(ready / part) for part in PARTS]
        mark, tokens = said[0]["made_of"]["tokenizer"], Ids(ready / "train").ids.shape[2]
        if tokenizer is None or mark not in ("", checkpoint.fingerprint(tokenizer)):
            raise UserError(f"--tokenizer {run['tokenizer_file']}: must be the one that the ids in "
                            f"{ready} were encoded with")
        classes = said[0]["classes"]
    elif run.get("classes") and (said := finished(out, tokenizer)):
        source, classes, tokens = None, said["classes"], Ids(out / "ids" / "train").ids.shape[2]
    else:
        source = tokenizer and id_files(folder, tokenizer.config.codebook_size)
        if source is None:
            source = load_pictures(run)
            stride = (tokenizer.config if tokenizer else TokenizerConfig(**run["tokenizer"])).stride
            tokens = check_sizes(run, source[0], stride)
        else:
            tokens = source[0].sizes[1]
        classes = source[0].classes
    if run.get("classes", classes) != classes:
        raise UserError(f"--data {run['data']}: its classes are no longer those that the run in "
                        f"{out} was started with")
    run["classes"], side = classes, side_of(tokens, run)
    if tokenizer:
        run["tokenizer"] = asdict(tokenizer.config)
    of = TokenizerConfig(**run["tokenizer"])
    run["model"] |= {"num_classes": len(classes), "grid": (side, side),
                     "vocab_size": of.codebook_size,
                     "control_stride": of.stride if run["control"] else 0}
    if not (out / "config.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(run, indent=1).encode()
        checkpoint.write_whole(out / "config.json", lambda file: file.write(text))
        lock(out)
    if tokenizer and not (out / "tokenizer.pt").exists():
        checkpoint.save_tokenizer(out / "tokenizer.pt", tokenizer)
    if tokenizer is None and source:
        train_tokenizer(run, options, source[0], stop, device)
    if (ready / "train.json").exists():
        (out / "ids").mkdir(exist_ok=True)
        for file in [f for part in PARTS for f in ready.glob(f"{part}.*") if f.is_file()]:
            checkpoint.also_as(file, out / "ids" / file.name)
    return source


def lock(out: Path) -> None:
    """Hold the run folder until this process ends. UserError if another process does."""
    if fcntl is None or not (out / "config.json").exists():
        return
    try:
        held.append(open(out / "config.json"))
        fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"--out {out}: another process is at work there") from None
    except OSError:
        pass                                    # a disk that knows no locks


def finished(out: Path, tokenizer: VQTokenizer | None) -> dict | None:
    """What vouches for the run's ids, if they are whole and of its (finished) tokenizer."""
    try:
        said = [vouched(out / "ids" / part) for part in PARTS]
        if tokenizer is None:
            tokenizer, saved = checkpoint.load_tokenizer(out / "tokenizer.pt")
        mark = said[0]["made_of"]["tokenizer"]
        return said[0] if mark in ("", checkpoint.fingerprint(tokenizer)) else None
    except UserError as error:
        if (out / "ids" / "val.json").exists():
            print(f"{error}; making the ids anew", file=sys.stderr)
        return None


def prepare(run: dict, options, stop, device) -> None:
    """In every process: leave the run folder with a tokenizer and vouched-for files of ids."""
    sources = distributed.from_first(partial(begin, run, options, stop, device))
    if sources is None:
        return
    out = options.out
    tokenizer, _ = checkpoint.load_tokenizer(out / "tokenizer.pt")
    tokenizer.to(device)
    for part, source in zip(PARTS, sources):
        views = run["views"] if part == "train" else "center"
        made_of = {"pictures": source.fingerprint, "views": views,
                   "tokenizer": checkpoint.fingerprint(tokenizer)}
        encode, side = partial(encode_views, tokenizer, device, run["side"], views), 0
        if isinstance(source, IdFiles):
            made_of |= {"tokenizer": "", "views": f"{source.sizes[0]} as found"}
            encode = np.asarray
        elif views == "ten-crop":
            side = math.ceil(MARGIN * run["side"])
        stem, first = out / "ids" / part, distributed.rank() == 0
        load = partial(source.load, side=side)
        with tqdm(total=1.0, desc=f"encode {part}", disable=not first, bar_format="{l_bar}{bar}| "
                  "{elapsed}<{remaining}") as bar:
            for share in encode_parts(source, load, encode, stem, made_of, distributed.rank(),
                                      distributed.world()):
                bar.update(share - bar.n)
                if stop.signal:
                    raise SystemExit(leave(out, f"a part of the ids, {share:.0%} of them", stop))
            bar.update(1 - bar.n)
        distributed.barrier()
        said = distributed.from_first(partial(put_together, source, stem, made_of))
        if first:
            tell_left_out(said["left_out"], stem.with_suffix(".json"))


def encode_views(tokenizer: VQTokenizer, device, side: int, views: str,
                 pictures: np.ndarray) -> np.ndarray:
    """(n, s, s, 3) uint8 pictures -> (n, views, N) ids, a bounded number of pixels at a time."""
    few = max(1, 2**21 // pictures.shape[1]**2)
    each = [np.concatenate([
        tokenizer.encode(training.to_device(view[i:i + few], device)).flatten(1).cpu().numpy()
        for i in range(0, len(view), few)])
        for view in crops(pictures, views, min(side, pictures.shape[1]))]
    return np.stack(each, axis=1)


def tell_left_out(bad: dict[str, str], file: Path, most: int = 20) -> None:
    for name in list(bad)[:most]:
        print(f"left out: {name}: {bad[name]}", file=sys.stderr)
    if len(bad) > most:
        print(f"left out: {len(bad) - most} more, all named in {file}", file=sys.stderr)
