"""Edit a picture file of any size: inpaint it, change its class, or outpaint it.

The one idea: a picture is scaled to the model's size (its shorter side to the model's, its longer
side to a whole number of tokens) and edited there. The result is scaled back and laid over the
original. Outside the mask every pixel stays the same.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from .. import UserError
from ..data import images
from ..editing import complete_steps, composite, known_ids, place
from ..tokenizer import to_device
from . import plan
from .drawing import Drawer, Passes, check_animation, check_grid, open_picture, save_animation


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
    """A picture to edit, at the model's size and at its own. B = 1 throughout."""

    known: Tensor                               # (1, h, w) ids, -1 where to draw
    fitted: Tensor                              # (1, 3, height, width), the model's size
    fitted_mask: Tensor                         # (1, height, width) bool, True where to draw
    whole: Tensor                               # (1, 3, …) and (1, …): the same two, at the size
    mask: Tensor                                # of the result


def make_task(options, drawer: Drawer, device: torch.device) -> Task:
    """Fit the picture that the flags name to the model, and find which tokens are known."""
    flag, path = options.job, getattr(options, options.job)
    picture = open_picture(f"--{flag}", path)
    trained, s = min(drawer.model.config.grid), drawer.stride
    scale = trained * s / min(picture.size)
    width, height = (max(trained, round(n * scale / s)) * s for n in picture.size)
    check_grid(f"--{flag} {path}", (height // s, width // s), drawer)
    pixels, hidden = np.array(picture), None
    if flag != "outpaint":                      # scaling must not mix hidden pixels into the rest
        hidden = read_mask(options, picture.size)
        pixels[hidden] = pixels[~hidden].mean(axis=0) if not hidden.all() else 128
    small = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
    fitted, whole = (to_device(np.array(p)[None], device) for p in (small, picture))
    if flag != "outpaint":
        mask = torch.from_numpy(hidden)[None].to(device)
        # A fitted pixel is drawn if any of the picture's pixels that it covers is.
        reduced = F.adaptive_max_pool2d(mask[None].float(), (height, width))[0] > 0
        return Task(known_ids(drawer.tokenizer, fitted, reduced), fitted, reduced, whole, mask)
    check_grid("--grid", options.grid, drawer)
    spare = [g - n // s for g, n in zip(options.grid, (height, width))]
    at = options.at or tuple(n // 2 for n in spare)
    if min(spare) < 0 or any(a > n for a, n in zip(at, spare)):
        raise UserError(f"--grid {options.grid[0]}x{options.grid[1]}: {path} is {height // s}x"
                        f"{width // s} tokens, which do not fit at {at[0]},{at[1]}")
    known, canvas, reduced = place(drawer.tokenizer, fitted, options.grid, at)
    # A token covers as many pixels in the result as in the picture, which stays as it is.
    left, top = (round(a * s * n / m) for a, n, m in zip(at[::-1], picture.size, (width, height)))
    size = [max(at + n, round(g * s * n / m)) for at, g, n, m in
            zip((top, left), options.grid, picture.size[::-1], (height, width))]
    result, mask = whole.new_zeros(1, 3, *size), torch.ones(1, *size, dtype=torch.bool,
                                                            device=device)
    inner = np.s_[..., top:top + picture.height, left:left + picture.width]
    result[inner], mask[inner] = whole, False
    return Task(known, canvas, reduced, result, mask)


def edit(drawer: Drawer, options, device: torch.device) -> None:
    """Edit one picture: --count results, a strip of before and after, and an animation."""
    task, n = make_task(options, drawer, device), options.count
    small_zoom = check_animation(options, n, tuple(task.fitted.shape[2:]))
    no_class = [drawer.model.null_label]
    classes = options.classes or no_class
    if classes == no_class:
        if options.guidance not in (None, 1):
            raise UserError(f"--guidance {options.guidance}: needs --classes to guide towards")
        drawer.settings["guidance"] = 1         # without a class there is nothing to guide towards
    if options.was:
        drawer.settings["against"] = [options.was[i % len(options.was)] for i in range(n)]
    labels = [classes[i % len(classes)] for i in range(n)]

    def shown(ids: Tensor) -> np.ndarray:
        made = images.to_uint8(drawer.pixels(ids.clamp(min=0)))
        made = to_device(images.cover_unknown(made, (ids >= 0).cpu().numpy()), device)
        return images.to_uint8(composite(task.fitted, made, task.fitted_mask))

    frames = [shown(task.known).repeat(n, axis=0)]
    known, passes = task.known.expand(n, -1, -1), Passes(drawer)
    steps = plan.in_memory(
        complete_steps(drawer.model, known, labels, [options.seed + i for i in range(n)],
                       **drawer.settings), f"--count {n}", lambda: "ask for half as many")
    for ids in tqdm(passes.count(known, steps), "edit", drawer.steps(task.known), unit="step"):
        if options.gif:
            frames.append(shown(ids))
    passes.tell()
    strip = [images.to_uint8(task.whole.masked_fill(task.mask[:, None], 0))]
    *outs, strip_out = options.results
    for i, out in enumerate(outs):              # one at a time, because a photo has many pixels
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
