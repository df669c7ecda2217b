"""Prepare a run folder: its description, its tokenizer and its files of ids.

The one idea: `config.json` stores everything a run depends on before work starts, and every step of
the preparation first looks at what is already there. So starting a run, resuming it after a kill
and resuming it on another number of processes are the same code.
"""

import contextlib
import json
import math
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from .. import UserError, training
from ..config import ModelConfig, TokenizerConfig, TrainConfig
from ..data import builtin, folders
from ..data.files import also_as, sweep, write_whole
from ..data.ids import (
    MARGIN,
    IdFiles,
    Ids,
    crops,
    encode_parts,
    holds_ids,
    id_files,
    put_together,
    verified,
)
from ..tokenizer import VQTokenizer, to_device
from . import checkpoint, processes, tokenizing

try:
    import fcntl
except ImportError:                             # not on Windows
    fcntl = None

PARTS, LOCK = ("train", "val"), ".lock"
held: list = []                                 # open files whose locks this process holds


class Ready(NamedTuple):
    """What training starts from."""

    ids: Ids                                    # to train on
    held_out: Ids
    tokenizer: VQTokenizer                      # on the device
    model: ModelConfig                          # sizes that fit the ids


def load_pictures(run: dict) -> list[builtin.Pictures]:
    """Training and held-out pictures of a run."""
    if run["data"] == "shapes":
        seed = 2 * run["seed"]
        return [builtin.shapes_pictures(40_000, seed), builtin.shapes_pictures(2000, seed + 1)]
    if run["data"] == "fashion-mnist":
        return [builtin.fashion_pictures("train"), builtin.fashion_pictures("t10k")]
    folder = Path(run["data"])
    if list(folder.glob("train-images-idx3-ubyte*")):
        return [builtin.fashion_pictures(split, folder) for split in ("train", "t10k")]
    return folders.folder_pictures(folder, run["side"])


def check_sizes(run: dict, pictures: builtin.Pictures, stride: int) -> int:
    """How many ids a picture becomes. UserError unless the pictures can be cut into ids of `stride`
    pixels per side."""
    if pictures.side % stride:
        raise UserError(f"--side {pictures.side}: must be a multiple of the tokenizer's stride, "
                        f"{stride}")
    if run["views"] == "ten-crop" and not isinstance(pictures, folders.FolderPictures):
        raise UserError("--views ten-crop: needs larger pictures, from a folder")
    return (pictures.side // stride)**2


def named_tokenizer(run: dict, out: Path) -> VQTokenizer | None:
    """The tokenizer named by --tokenizer. Once the run folder has a copy, that copy is used."""
    if not run["tokenizer_file"]:
        return None
    mine = out / "tokenizer.pt"
    file = mine if mine.exists() else Path(run["tokenizer_file"])
    tokenizer, saved = checkpoint.load_any_tokenizer(file)
    step, steps = (saved.get(name, 0) for name in ("step", "steps"))
    if not isinstance(step, int) or not isinstance(steps, int) or step < steps:
        raise UserError(f"--tokenizer {file}: its training is not finished")
    return tokenizer


def train_tokenizer(run: dict, options, pictures: builtin.Pictures,
                    stop: processes.Stop, device) -> None:
    """Train the run folder's tokenizer to the end."""
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
    steps = tokenizing.train_tokenizer(tokenizer, pictures, config, run["seed"], optimizer, start)
    bar = tqdm(steps, "tokenizer", config.tokenizer_steps, initial=start, unit="step")
    save_every = options.save_every or max(1, config.tokenizer_steps // 10)
    for step, losses in enumerate(bar, start + 1):
        if step % 20 == 0:
            bar.set_postfix({k: f"{v.item():.4f}" for k, v in losses.items()})
        last = step == config.tokenizer_steps
        if last or stop.signal or step % save_every == 0:
            checkpoint.save_tokenizer(path, tokenizer, step=step, steps=config.tokenizer_steps,
                                      **({} if last else {"optimizer": optimizer.state_dict()}))
        if stop.signal:
            stop.leave(options.out, f"step {step} of the tokenizer")


def begin(run: dict, options, stop: processes.Stop, device) -> list[builtin.Pictures] | None:
    """In the first process: lock the run folder and fill it, see `fill`. A run that can't start
    leaves no folder."""
    out = options.out
    made = [place for place in (out, *out.parents) if not place.exists()]
    lock(out)
    try:
        return fill(run, options, stop, device)
    finally:
        if not (out / "config.json").exists():
            with contextlib.suppress(OSError):
                (out / LOCK).unlink()
                for place in made:
                    place.rmdir()


def lock(out: Path) -> None:
    """Make the run folder and lock it until this process ends. UserError if another process holds
    the lock, or if nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        held.append(open(out / LOCK, "ab"))
    except OSError as error:
        raise UserError(f"--out {out}: can't be made or written ({error.strerror})") from None
    try:
        if fcntl:
            fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(held[-1].fileno()).st_nlink == 0:   # the other one has just left
            raise BlockingIOError
    except BlockingIOError:
        raise UserError(f"--out {out}: another process is using it") from None
    except OSError:
        pass                                    # this disk has no locks


def fill(run: dict, options, stop: processes.Stop, device) -> list[builtin.Pictures] | None:
    """Leave `config.json` and `tokenizer.pt` in the run folder. Returns the pictures that must be
    encoded, or None if the run has all of its ids."""
    out, folder = options.out, Path(run["data"])
    if (out / "config.json").exists() and not options.resume:
        raise UserError(f"--out {out}: already holds a run; add --resume to continue it")
    for place in (out, *(out / "ids" / f"{part}.parts" for part in PARTS)):
        sweep(place)
    tokenizer = named_tokenizer(run, out)
    ready = folder / "ids" if (folder / "ids" / "train.json").exists() else folder
    if (ready / "train.json").exists():
        source, said = None, [verified(ready / part) for part in PARTS]
        mark, tokens = said[0]["made_of"]["tokenizer"], Ids(ready / "train").ids.shape[2]
        if tokenizer is None or mark not in ("", checkpoint.fingerprint(tokenizer)):
            raise UserError(f"--tokenizer {run['tokenizer_file'] or 'FILE'}: must be the one that "
                            f"encoded the ids in {ready}")
        classes = said[0]["classes"]
    elif run.get("classes") and (said := finished(out, tokenizer)):
        source, classes, tokens = None, said[0]["classes"], Ids(out / "ids" / "train").ids.shape[2]
    else:
        if tokenizer is None and holds_ids(folder):
            raise UserError(f"--data {folder}: holds ids; --tokenizer FILE must name the tokenizer "
                            "that made them")
        source = tokenizer and id_files(folder, tokenizer.config.codebook_size)
        if source is None:
            source = load_pictures(run)
            stride = (tokenizer.config if tokenizer else TokenizerConfig(**run["tokenizer"])).stride
            tokens = check_sizes(run, source[0], stride)
        else:
            tokens = source[0].sizes[1]
        classes = source[0].classes
        said = [{"pictures": len(part)} for part in source]
        tell_left_out(source[0].left_out, out / "ids" / "train.json")
    train, held_out = (part["pictures"] for part in said)
    print(f"{run['data']}: {len(classes)} class{'es' * (len(classes) != 1)} "
          f"({folders.short(classes)}), {train + held_out:,} pictures, {held_out:,} held out")
    if run.get("classes", classes) != classes:
        raise UserError(f"--data {run['data']}: its classes have changed since the run in {out} "
                        "was started")
    run["classes"], side = classes, math.isqrt(tokens)
    if side * side != tokens:
        raise UserError(f"--data {run['data']}: a picture has {tokens} ids, which is not a square")
    if tokenizer:
        run["tokenizer"] = asdict(tokenizer.config)
    of = TokenizerConfig(**run["tokenizer"])
    run["model"] |= {"num_classes": len(classes), "grid": (side, side),
                     "vocab_size": of.codebook_size,
                     "control_stride": of.stride if run["control"] else 0}
    if not (out / "config.json").exists():
        text = json.dumps(run, indent=1).encode()
        write_whole(out / "config.json", lambda file: file.write(text))
    if tokenizer and not (out / "tokenizer.pt").exists():
        checkpoint.save_tokenizer(out / "tokenizer.pt", tokenizer)
    if tokenizer is None and source:
        train_tokenizer(run, options, source[0], stop, device)
    if (ready / "train.json").exists():
        (out / "ids").mkdir(exist_ok=True)
        for file in [f for part in PARTS for f in ready.glob(f"{part}.*") if f.is_file()]:
            also_as(file, out / "ids" / file.name)
    return source


def finished(out: Path, tokenizer: VQTokenizer | None) -> list[dict] | None:
    """What describes both parts of the run's ids, if they are whole and its finished tokenizer made
    them."""
    try:
        said = [verified(out / "ids" / part) for part in PARTS]
        if tokenizer is None:
            tokenizer, saved = checkpoint.load_tokenizer(out / "tokenizer.pt")
        mark = said[0]["made_of"]["tokenizer"]
        return said if mark in ("", checkpoint.fingerprint(tokenizer)) else None
    except UserError as error:
        if (out / "ids" / "val.json").exists():
            print(f"{error}; encoding the pictures again", file=sys.stderr)
        return None


def prepare(run: dict, options, stop: processes.Stop, device) -> Ready:
    """In every process: fill the run folder with a tokenizer and files of ids, and open them."""
    sources, out = processes.from_first(partial(begin, run, options, stop, device)), options.out
    tokenizer = checkpoint.load_tokenizer(out / "tokenizer.pt")[0].to(device)
    for part, source in zip(PARTS, sources or []):
        encode_all(run, source, out / "ids" / part, tokenizer, stop, device)
    try:
        ids, held_out = Ids(out / "ids" / "train"), Ids(out / "ids" / "val")
    except (OSError, ValueError) as error:
        raise UserError(f"{out / 'ids'}: can't be read on this machine ({error}); every process "
                        "must see the run folder") from None
    stored = json.loads((out / "config.json").read_text(encoding="utf-8"))
    run["classes"] = stored["classes"]
    return Ready(ids, held_out, tokenizer, ModelConfig(**stored["model"]))


def encode_all(run: dict, source: builtin.Pictures, stem: Path, tokenizer: VQTokenizer,
               stop: processes.Stop, device) -> None:
    """In every process: encode a share of the pictures; the first then joins all parts."""
    first, side = processes.rank() == 0, 0
    views = run["views"] if stem.name == "train" else "center"
    made_of = {"pictures": source.fingerprint, "views": views,
               "tokenizer": checkpoint.fingerprint(tokenizer)}
    encode = partial(encode_views, tokenizer, device, source.side, views)
    if isinstance(source, IdFiles):
        made_of |= {"tokenizer": "", "views": f"{source.sizes[0]} as found"}
        encode = np.asarray
    elif views == "ten-crop":
        side = math.ceil(MARGIN * run["side"])
    with tqdm(total=1.0, desc=f"encode {stem.name}", disable=not first, bar_format="{l_bar}{bar}| "
              "{elapsed}<{remaining}") as bar:
        for share in encode_parts(source, partial(source.load, side=side), encode, stem, made_of,
                                  processes.rank(), processes.world()):
            bar.update(share - bar.n)
            if stop.signal:
                stop.leave(stem.parent.parent, f"a part of the ids, {share:.0%} of them")
        bar.update(1 - bar.n)
    processes.barrier()
    said = processes.from_first(partial(put_together, source, stem, made_of))
    if first:
        tell_left_out({name: why for name, why in said["left_out"].items()
                       if name not in source.left_out}, stem.with_suffix(".json"))


def encode_views(tokenizer: VQTokenizer, device, side: int, views: str,
                 pictures: np.ndarray) -> np.ndarray:
    """(n, s, s, 3) uint8 pictures -> (n, views, N) ids, a bounded number of pixels at a time."""
    few = max(1, 2**21 // pictures.shape[1]**2)
    each = [np.concatenate([
        tokenizer.encode(to_device(view[i:i + few], device)).flatten(1).cpu().numpy()
        for i in range(0, len(view), few)])
        for view in crops(pictures, views, min(side, pictures.shape[1]))]
    return np.stack(each, axis=1)


def tell_left_out(bad: dict[str, str], file: Path, most: int = 20) -> None:
    for name in list(bad)[:most]:
        print(f"left out: {name}: {bad[name]}", file=sys.stderr)
    if len(bad) > most:
        print(f"left out: {len(bad) - most} more, all named in {file}", file=sys.stderr)
