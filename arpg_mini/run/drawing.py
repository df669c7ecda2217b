"""Load a model as sample_mini.py's flags say, and draw pictures with it.

The one idea: picture i depends on its seed and class alone, so any process may draw any part.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .. import UserError, pretrained
from ..config import ModelConfig
from ..control import edges
from ..data import images
from ..data.colours import plain_picture
from ..editing import complete_steps, plan_windows, to_pixels
from ..model import ARPG
from ..sampling import Settings
from ..tokenizer import VQTokenizer, to_device
from . import checkpoint, plan, processes, replay
from .request import settle

# The paper's, by layers (ARPG-L, -XL, -XXL) and steps.
BEST_GUIDANCE = {24: {32: 5.4, 64: 5.1}, 36: {32: 6.6, 64: 5.3}, 48: {32: 6.5, 64: 6.3}}
MOST_LARGER = 64                                # a grid may have this many times the trained tokens


def check_settings(**settings) -> None:
    """UserError names the flag whose value `decode` does not accept."""
    try:
        Settings(**settings)
    except ValueError as error:
        raise UserError(f"--{str(error).replace('_', '-', 1)}") from None


@dataclass
class Drawer:
    """A model, its tokenizer, and the settings to draw with."""

    model: ARPG
    tokenizer: VQTokenizer
    names: list[str]                            # of the classes
    settings: dict                              # for `editing.complete_steps`

    def pixels(self, ids: Tensor) -> Tensor:
        """(B, h, w) ids -> (B, 3, height, width). On a GPU, in the model's precision."""
        half = ids.is_cuda and self.model.head.weight.dtype == torch.bfloat16
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=half):
            return to_pixels(self.tokenizer, ids, self.model.config.grid).float()

    @property
    def stride(self) -> int:
        return self.tokenizer.config.stride

    def steps(self, known: Tensor) -> int | None:
        """How many steps it takes to fill (1, h, w) ids, -1 where unknown. None: nobody knows."""
        if "exact" in self.settings:
            return None
        size = tuple(min(n, t) for n, t in zip(known.shape[1:], self.model.config.grid))
        size = size if self.settings["positions"] == "windows" else tuple(known.shape[1:])
        usual = self.model.config.grid[0] * self.model.config.grid[1]
        return sum(few for *_, few in plan_windows((known[0] >= 0).cpu().numpy(), size,
                                                   self.settings["steps"], usual))


def load(options, device: torch.device) -> Drawer:
    """The model that the flags name. UserError names the flag or file that is wrong."""
    dtype = processes.pick_precision(options.precision, device)
    if options.released:
        tokenizer = checkpoint.load_any_tokenizer(options.tokenizer)[0].to(device)
        model = pretrained.load_released_arpg(options.released, dtype=dtype, device=device)
        names, schedule = list(map(str, range(model.config.num_classes))), "linear"
    else:
        run, file = options.run, options.run / "model.pt"
        if run.is_file():                       # such as best.pt
            run, file = run.parent, run
        if not run.is_dir():
            raise UserError(f"{run}: no such run folder; make one with train_mini.py")
        model, saved = checkpoint.load_model(file, options.weights)
        tokenizer = checkpoint.load_tokenizer(run / "tokenizer.pt")[0].to(device)
        model.to(device, dtype)
        checkpoint.described(file, saved, "classes", "guidance", "guidance_schedule")
        names, schedule = saved["classes"], saved["guidance_schedule"]
    if tokenizer.config.codebook_size != model.config.vocab_size:
        raise UserError(f"{options.tokenizer or options.run / 'tokenizer.pt'}: has "
                        f"{tokenizer.config.codebook_size} ids; the model draws "
                        f"{model.config.vocab_size}")
    settle(options, names)
    n = model.config.grid[0] * model.config.grid[1]
    steps = max(1, n // 4) if options.steps is None else options.steps
    if not 1 <= steps <= n:
        raise UserError(f"--steps {steps}: these images have {n} tokens, so it must be 1 to {n}")
    usual = best_guidance(model.config, steps) if options.released else saved["guidance"]
    settings = dict(guidance=usual if options.guidance is None else options.guidance,
                    guidance_schedule=options.guidance_schedule or schedule,
                    temperature=options.temperature, top_k=options.top_k, top_p=options.top_p)
    if not options.exact:
        settings |= dict(schedule=options.schedule or "arccos",
                         within_step=options.within_step or "block")
    check_settings(steps=steps, **settings, positions="extrapolate"
                   if options.positions == "windows" else options.positions)
    if options.exact:
        settings["exact"] = options.window or 16
    settings |= dict(steps=steps, positions=options.positions, order=options.order)
    if options.compile:
        replay.speed_up(model, device)
    return Drawer(model, tokenizer, names, settings)


def best_guidance(config: ModelConfig, steps: int) -> float:
    """The paper's best linear guidance for a released size, at the nearest number of steps."""
    by_steps = BEST_GUIDANCE.get(config.content_layers + config.query_layers, {64: 4.0})
    return by_steps[min(by_steps, key=lambda known: abs(known - steps))]


def most_at_once(side: tuple[int, int], device: torch.device) -> int:
    """How many pictures of `side` pixels a process draws at once, unless --batch-size says it. A
    GPU is idle with few; a CPU is not, and has less memory for them."""
    return min(100, max(1, (2**22 if device.type == "cuda" else 2**20) // (side[0] * side[1])))


def check_grid(flag: str, grid: tuple[int, int], drawer: Drawer) -> None:
    trained = drawer.model.config.grid
    if grid[0] * grid[1] > MOST_LARGER * trained[0] * trained[1]:
        raise UserError(f"{flag}: {grid[0]}x{grid[1]} tokens are more than {MOST_LARGER} times the "
                        f"trained {trained[0]}x{trained[1]}")


def draw(drawer: Drawer, options, device: torch.device) -> None:
    """In every process: draw a part of every batch. Process 0 writes the files."""
    classes = options.classes or range(len(drawer.names))
    grid = options.grid or tuple((options.expand or 1) * g for g in drawer.model.config.grid)
    check_grid("--grid" if options.grid else f"--expand {options.expand}", grid, drawer)
    side = tuple(g * drawer.stride for g in grid)
    if options.control:
        if drawer.model.control is None:
            raise UserError(f"--control {options.control}: needs a run trained with --control "
                            "edges")
        picture = open_picture("--control", options.control)
        maps = edges(to_device(np.array(picture.resize(side[::-1]))[None], device))
        grown = max(1, min(side) / min(picture.size))   # enlarging makes an edge flatter
        drawer.settings["control"] = (maps * grown).clamp(max=1)
    few = most_at_once(side, device)
    zoom = check_animation(options, min(options.count, few), side)
    options.columns = min(options.columns, options.count)
    rank, world = processes.rank(), processes.world()
    at_a_time = (options.batch_size or few) * world         # a batch for each process
    starts = range(0, options.count, at_a_time)
    nothing = torch.full((1, *grid), -1, device=device)
    steps, passes = drawer.steps(nothing), Passes(drawer)
    bar = tqdm(total=steps and (len(starts) + bool(options.gif)) * steps, desc="draw",
               unit="step", disable=rank > 0)

    def pictures(rows: range, frames: list | None = None) -> np.ndarray:
        labels = [classes[i % len(classes)] for i in rows]
        known = nothing.expand(len(rows), -1, -1)
        steps = complete_steps(drawer.model, known, labels, [options.seed + i for i in rows],
                               **drawer.settings)
        for ids in passes.count(known, plan.in_memory(
                steps, f"--batch-size {len(rows)}", lambda: "try half of it")):
            bar.update()
            if frames is not None:
                shown = images.to_uint8(drawer.pixels(ids.clamp(min=0)))
                frames.append(images.cover_unknown(shown, (ids >= 0).cpu().numpy()))
        return images.to_uint8(drawer.pixels(ids))

    def batches():
        for start in starts:
            size = min(at_a_time, options.count - start)
            mine = range(start + rank * size // world, start + (rank + 1) * size // world)
            part = pictures(mine) if len(mine) else None
            parts = processes.gather(part)
            if rank == 0:
                yield np.concatenate([p for p in parts if p is not None])
        passes.tell()

    kept, done = [], batches()
    if options.out:
        kept = list(done)
        done = iter(kept)
        if rank == 0:
            images.save_png(options.out, images.grid(np.concatenate(kept), options.columns, zoom))
            print(options.out)
    shape = (options.count, *side, 3)
    labels = np.resize(np.array(classes, np.int64), options.count)
    if options.npz and rank == 0:
        images.save_npz(options.npz, done, shape, labels, options.seed)
        print(f"{options.npz}: arr_0 {shape} uint8, arr_1 {labels.shape} int64")
    else:
        for _ in done:
            pass
    if options.gif and rank == 0:
        frames: list = [np.full((min(options.count, few), *shape[1:]), 128, np.uint8)]
        pictures(range(len(frames[0])), frames)
        save_animation(options, frames, zoom)
    bar.close()


class Passes:
    """Counts the passes that exact decoding takes for each picture. In every pass in which a
    picture takes part, at least one of its tokens becomes final."""

    def __init__(self, drawer: Drawer):
        self.exact, self.took, self.tokens = "exact" in drawer.settings, [], 0

    def count(self, known: Tensor, steps: Iterator[Tensor]) -> Iterator[Tensor]:
        """Pass on (B, h, w) ids after every step that fills the `known` ones."""
        before = first = (known >= 0).sum((1, 2))
        took = torch.zeros_like(before)
        for ids in steps:
            now = (ids >= 0).sum((1, 2))
            took, before = took + (now > before), now
            yield ids
        self.took += took.tolist()
        self.tokens += int((before - first).sum())

    def tell(self) -> None:
        """In every process: gather and print the counts of all."""
        parts = processes.gather((self.took, self.tokens)) if self.exact else []
        took = [count for part, _ in parts for count in part]
        if took:
            print(f"exact: {sum(tokens for _, tokens in parts) / len(took):.4g} tokens a picture "
                  f"in {sum(took) / len(took):.1f} passes ({min(took)} to {max(took)})")


def check_animation(options, count: int, side: tuple[int, int]) -> int:
    """How many times to enlarge pictures of `side` pixels so that people can see them. UserError if
    a --gif of `count` of them would be larger than the format allows."""
    zoom, columns = max(1, 64 // max(side)), min(options.columns, count)
    height, width = (n * (s * zoom + 2) for n, s in zip((-(-count // columns), columns), side))
    if options.gif and max(height, width) > 65535:
        raise UserError(f"--gif {options.gif}: would be {width}x{height} pixels; the format allows "
                        "65535 per side; change --columns or take a smaller --count")
    return zoom


def save_animation(options, frames: list[np.ndarray], zoom: int) -> None:
    """Write --gif: a grid of pictures per frame."""
    images.save_gif(options.gif, [images.grid(f, options.columns, zoom) for f in frames])
    print(options.gif)


def open_picture(flag: str, path: Path, ground: str = "white") -> Image.Image:
    """A picture file as RGB. UserError names one that can't be read."""
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        with Image.open(path) as image:
            return plain_picture(image, ground)
    except Exception as error:                  # a codec may raise anything
        raise UserError(f"{flag} {path}: no readable picture ({type(error).__name__}: {error})"
                        ) from None
