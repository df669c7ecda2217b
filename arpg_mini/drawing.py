"""What `sample_mini.py` does: load a model, draw pictures, edit pictures that people have.

The one idea of editing a file: the model's pictures have one size, people's have any. So a picture
is fitted (its shorter side to the model's, its longer to a whole number of tokens), edited there,
and what was made is scaled back and laid over the original, which stays as it is, pixel for pixel,
wherever nothing was to change.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from . import checkpoint, distributed, images, pretrained, replay
from .config import UserError
from .control import edges
from .decoding import Settings
from .editing import (
    complete_steps,
    composite,
    known_ids,
    place,
    plan_windows,
    to_pixels,
)
from .folders import plain_picture
from .model import ARPG
from .tokenizer import VQTokenizer
from .training import to_device

MOST_LARGER = 64                                # trained grids that a grid may be as large as


def pick_classes(text: str | None, names: list[str]) -> list[int]:
    """The class numbers of --classes, given by number or name."""
    if text is None:
        return list(range(len(names)))
    picked = []
    for word in text.split(","):
        if word.strip() in names:
            picked.append(names.index(word.strip()))
        elif word.strip().isdecimal() and len(word) < 9 and int(word) < len(names):
            picked.append(int(word))
        else:
            known = ", ".join(names[:12]) + (" …" if len(names) > 12 else "")
            raise UserError(f"--classes {word.strip()!r}: must be 0 to {len(names) - 1} "
                            f"or a name ({known})")
    return picked


@dataclass
class Drawer:
    """A model, its tokenizer, and how the flags say to draw with them."""

    model: ARPG
    tokenizer: VQTokenizer
    names: list[str]                            # of the classes
    settings: dict                              # for `editing.complete_steps`

    def pixels(self, ids: Tensor) -> Tensor:
        """(B, h, w) ids -> (B, 3, height, width)."""
        return to_pixels(self.tokenizer, ids, self.model.config.grid)

    @property
    def stride(self) -> int:
        return self.tokenizer.config.stride

    def steps(self, known: Tensor) -> int:
        """How many steps (1, h, w) ids, -1 where unknown, take."""
        size = tuple(min(n, t) for n, t in zip(known.shape[1:], self.model.config.grid))
        size = size if self.settings["positions"] == "windows" else tuple(known.shape[1:])
        usual = self.model.config.grid[0] * self.model.config.grid[1]
        return sum(few for *_, few in plan_windows((known[0] >= 0).cpu().numpy(), size,
                                                   self.settings["steps"], usual))


def load(options, device: torch.device) -> Drawer:
    """What the flags ask for. UserError names the flag or file that won't do."""
    half = device.type == "cuda" and options.released
    dtype = getattr(torch, options.precision or ("bfloat16" if half else "float32"))
    if options.released:
        tokenizer = pretrained.load_any_tokenizer(options.tokenizer)[0].to(device)
        model = pretrained.load_released_arpg(options.released, dtype=dtype, device=device)
        names, schedule = list(map(str, range(model.config.num_classes))), "linear"
    else:
        run, file = options.run, options.run / "model.pt"
        if run.is_file():                       # best.pt, say
            run, file = run.parent, run
        if not run.is_dir():
            raise UserError(f"{run}: no such run folder; make one with train_mini.py")
        model, saved = checkpoint.load_model(file, options.weights)
        tokenizer = checkpoint.load_tokenizer(run / "tokenizer.pt")[0].to(device)
        model.to(device, dtype)
        names, schedule = saved["classes"], saved["guidance_schedule"]
    if tokenizer.config.codebook_size != model.config.vocab_size:
        raise UserError(f"{options.tokenizer or options.run / 'tokenizer.pt'}: has "
                        f"{tokenizer.config.codebook_size} ids; the model draws "
                        f"{model.config.vocab_size}")
    n = model.config.grid[0] * model.config.grid[1]
    steps = max(1, n // 4) if options.steps is None else options.steps
    if not 1 <= steps <= n:
        raise UserError(f"--steps {steps}: these images have {n} tokens, so it must be 1 to {n}")
    usual = pretrained.best_guidance(model.config, steps) if options.released else saved["guidance"]
    settings = dict(schedule=options.schedule,
                    guidance=usual if options.guidance is None else options.guidance,
                    guidance_schedule=options.guidance_schedule or schedule,
                    temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
                    within_step=options.within_step)
    try:
        Settings(steps=steps, **settings, positions="extrapolate"
                 if options.positions == "windows" else options.positions)
    except ValueError as error:
        raise UserError(f"--{error.args[0].replace('_', '-', 1)}") from None
    settings |= dict(steps=steps, positions=options.positions, order=options.order)
    if options.compile:
        replay.speed_up(model, device)
    return Drawer(model, tokenizer, names, settings)


def check_grid(flag: str, grid: tuple[int, int], drawer: Drawer) -> None:
    trained = drawer.model.config.grid
    if grid[0] * grid[1] > MOST_LARGER * trained[0] * trained[1]:
        raise UserError(f"{flag}: {grid[0]}x{grid[1]} tokens are more than {MOST_LARGER} times the "
                        f"trained {trained[0]}x{trained[1]}")


def draw(options, device: torch.device) -> None:
    """Draw all images, in every process: each its part of every batch; process 0 writes."""
    drawer = load(options, device)
    classes = pick_classes(options.classes, drawer.names)
    grid = options.grid or tuple((options.expand or 1) * g for g in drawer.model.config.grid)
    check_grid("--grid" if options.grid else f"--expand {options.expand}", grid, drawer)
    side = tuple(g * drawer.stride for g in grid)
    if options.control:
        if drawer.model.control is None:
            raise UserError(f"--control {options.control}: needs a run trained with --control "
                            "edges")
        picture = open_picture("--control", options.control)
        maps = edges(to_device(np.array(picture.resize(side[::-1]))[None], device))
        grown = max(1, min(side) / min(picture.size))   # scaled up, an edge is as much flatter
        drawer.settings["control"] = (maps * grown).clamp(max=1)
    few = min(100, max(1, 2**20 // (side[0] * side[1])))   # as many as fit in memory at once
    zoom = check_animation(options, min(options.count, few), side)
    options.columns = min(options.columns, options.count)
    at_a_time = options.batch_size or few
    starts, rank, world = (range(0, options.count, at_a_time), distributed.rank(),
                           distributed.world())
    nothing = torch.full((1, *grid), -1, device=device)
    bar = tqdm(total=(len(starts) + bool(options.gif)) * drawer.steps(nothing), desc="draw",
               unit="step", disable=rank > 0)

    def pictures(rows: range, frames: list | None = None) -> np.ndarray:
        labels = [classes[i % len(classes)] for i in rows]
        for ids in complete_steps(drawer.model, nothing.expand(len(rows), -1, -1), labels,
                                  [options.seed + i for i in rows], **drawer.settings):
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
            parts = distributed.gather(part)
            if rank == 0:
                yield np.concatenate([p for p in parts if p is not None])

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


def check_animation(options, count: int, side: tuple[int, int]) -> int:
    """How much to enlarge pictures of `side` so that they can be seen. UserError if a --gif of
    `count` of them would be larger than the format allows."""
    zoom, columns = max(1, 64 // max(side)), min(options.columns, count)
    height, width = (n * (s * zoom + 2) for n, s in zip((-(-count // columns), columns), side))
    if options.gif and max(height, width) > 65535:
        raise UserError(f"--gif {options.gif}: would be {width}x{height} pixels; the format holds "
                        "65535 a side; take other --columns or a smaller --count")
    return zoom


def save_animation(options, frames: list[np.ndarray], zoom: int) -> None:
    """--gif of grids of pictures, a frame each."""
    images.save_gif(options.gif, [images.grid(f, options.columns, zoom) for f in frames])
    print(options.gif)


def open_picture(flag: str, path: Path, ground: str = "white") -> Image.Image:
    """A picture file as RGB. UserError names one that can't be read."""
    try:
        with Image.open(path) as image:
            return plain_picture(image, ground)
    except Exception as error:                  # a codec may raise anything
        raise UserError(f"{flag} {path}: no readable picture ({type(error).__name__}: {error})"
                        ) from None


def read_mask(options, size: tuple[int, int]) -> np.ndarray:
    """--mask or --box -> (height, width) bool, True where to fill. size: (width, height)."""
    if options.mask:
        mask = open_picture("--mask", options.mask, ground="black").convert("L")
        if mask.size != size:
            raise UserError(f"--mask {options.mask}: is {mask.width}x{mask.height}, the picture "
                            f"{size[0]}x{size[1]}")
        mask = np.asarray(mask) >= 128
        if not mask.any():
            raise UserError(f"--mask {options.mask}: has no light pixel, so nothing to fill")
        return mask
    x0, y0, x1, y1 = options.box
    if not (x0 < x1 <= size[0] and y0 < y1 <= size[1]):
        raise UserError(f"--box {','.join(map(str, options.box))}: must be x0 < x1 <= {size[0]} "
                        f"and y0 < y1 <= {size[1]}")
    mask = np.zeros(size[::-1], bool)
    mask[y0:y1, x0:x1] = True
    return mask


@dataclass
class Task:
    """A picture to edit, at the model's size and at its own; B = 1 throughout."""

    known: Tensor                               # (1, h, w) ids, -1 where to draw
    fitted: Tensor                              # (1, 3, height, width), the model's size
    fitted_mask: Tensor                         # (1, height, width) bool, True where to draw
    whole: Tensor                               # the same two at the size of the result
    mask: Tensor


def make_task(options, drawer: Drawer, device: torch.device) -> Task:
    """Fit the picture of the flags, and say what of it is known."""
    flag = "inpaint" if options.inpaint else "edit" if options.edit else "outpaint"
    path = getattr(options, flag)
    picture = open_picture(f"--{flag}", path)
    trained, s = min(drawer.model.config.grid), drawer.stride
    scale = trained * s / min(picture.size)
    width, height = (max(trained, round(n * scale / s)) * s for n in picture.size)
    check_grid(f"--{flag} {path}", (height // s, width // s), drawer)
    pixels, hidden = np.array(picture), None
    if flag != "outpaint":                      # what is to go must not reach what scaling mixes
        hidden = read_mask(options, picture.size)
        pixels[hidden] = pixels[~hidden].mean(axis=0) if not hidden.all() else 128
    small = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
    fitted, whole = (to_device(np.array(p)[None], device) for p in (small, picture))
    if flag != "outpaint":
        mask = torch.from_numpy(hidden)[None].to(device)
        # A pixel of the fitted picture is to be drawn if any that it stands for is.
        reduced = F.adaptive_max_pool2d(mask[None].float(), (height, width))[0] > 0
        return Task(known_ids(drawer.tokenizer, fitted, reduced), fitted, reduced, whole, mask)
    check_grid("--grid", options.grid, drawer)
    spare = [g - n // s for g, n in zip(options.grid, (height, width))]
    at = options.at or tuple(n // 2 for n in spare)
    if min(spare) < 0 or any(a > n for a, n in zip(at, spare)):
        raise UserError(f"--grid {options.grid[0]}x{options.grid[1]}: {path} is {height // s}x"
                        f"{width // s} tokens, which do not fit at {at[0]},{at[1]}")
    known, canvas, reduced = place(drawer.tokenizer, fitted, options.grid, at)
    # The result's pixels to a token are the picture's own, so that it can stay as it is.
    left, top = (round(a * s * n / m) for a, n, m in zip(at[::-1], picture.size, (width, height)))
    size = [max(at + n, round(g * s * n / m)) for at, g, n, m in
            zip((top, left), options.grid, picture.size[::-1], (height, width))]
    result, mask = whole.new_zeros(1, 3, *size), torch.ones(1, *size, dtype=torch.bool,
                                                            device=device)
    inner = np.s_[..., top:top + picture.height, left:left + picture.width]
    result[inner], mask[inner] = whole, False
    return Task(known, canvas, reduced, result, mask)


def edit(options, device: torch.device) -> None:
    """Edit one picture: --count results, a strip of before and after, and an animation."""
    drawer = load(options, device)
    task, n = make_task(options, drawer, device), options.count
    small_zoom = check_animation(options, n, tuple(task.fitted.shape[2:]))
    unsaid = [drawer.model.null_label]
    classes = pick_classes(options.classes, drawer.names) if options.classes else unsaid
    if classes == unsaid:
        if options.guidance not in (None, 1):
            raise UserError(f"--guidance {options.guidance}: needs --classes to guide towards")
        drawer.settings["guidance"] = 1         # towards no class there is nothing to guide
    if options.was:
        was = pick_classes(options.was, drawer.names)
        drawer.settings["against"] = [was[i % len(was)] for i in range(n)]
    labels = [classes[i % len(classes)] for i in range(n)]

    def shown(ids: Tensor) -> np.ndarray:
        made = images.to_uint8(drawer.pixels(ids.clamp(min=0)))
        made = to_device(images.cover_unknown(made, (ids >= 0).cpu().numpy()), device)
        return images.to_uint8(composite(task.fitted, made, task.fitted_mask))

    frames = [shown(task.known).repeat(n, axis=0)]
    for ids in tqdm(complete_steps(drawer.model, task.known.expand(n, -1, -1), labels,
                                   [options.seed + i for i in range(n)], **drawer.settings),
                    "edit", drawer.steps(task.known), unit="step"):
        if options.gif:
            frames.append(shown(ids))
    strip = [images.to_uint8(task.whole.masked_fill(task.mask[:, None], 0))]
    *outs, strip_out = options.results
    for i, out in enumerate(outs):              # one at a time: a photo has many pixels
        made = drawer.pixels(ids[i:i + 1])
        if task.whole.shape != task.fitted.shape:
            made = F.interpolate(made, task.whole.shape[2:], mode="bicubic", antialias=True)
        strip.append(images.to_uint8(composite(task.whole, made.clamp(-1, 1), task.mask,
                                               options.feather)))
        images.save_png(out, Image.fromarray(strip[-1][0]))
        print(out)
    columns = n + 1 if n <= 8 else math.ceil(math.sqrt(n + 1))
    zoom, options.columns = max(1, 64 // max(task.whole.shape[2:])), min(n, options.columns)
    images.save_png(strip_out, images.grid(np.concatenate(strip), columns, zoom))
    print(f"{strip_out}: what is known, then the results")
    if options.gif:
        save_animation(options, frames, small_zoom)
