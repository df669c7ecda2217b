"""Without retraining: inpainting, outpainting, class editing, larger pictures (paper §4.3).

The one idea: a model that draws tokens in any order can be given some of them. The known tokens are
encoded first, as one step, and only unknown positions are decoded. This file finds out which
positions are known: those outside a mask, under a smaller picture, or shared with earlier windows.
The scripts call `complete_steps`; `inpaint` and the like are for use from Python.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .decoding import decode_steps
from .exact import exact_steps
from .model import ARPG
from .orders import WINDOW
from .tokenizer import VQTokenizer


def window_places(grid: tuple[int, int], size: tuple[int, int]) -> list[tuple[int, int]]:
    """Top left corners of windows that cover a grid, half a window apart; the last ends with it."""
    rows, columns = (sorted({*range(0, n - few, max(1, few // 2)), n - few})
                     for n, few in zip(grid, size))
    return [(r, c) for r in rows for c in columns]


def plan_windows(known: np.ndarray, size: tuple[int, int], steps: int,
                 usual: int) -> list[tuple[int, int, int]]:
    """Place windows of `size`, one after another, until no token of a grid is unknown.

    known: (h, w) bool. The next window is the one with the most known tokens, because it must agree
    with them. `steps` is the number of steps for `usual` unknown tokens.
    Returns (row, column, steps) of each window.
    """
    known, (a, b), plan = known.copy(), size, []
    places = window_places(known.shape, size)
    while not known.all():
        seen = {(r, c): int(known[r:r + a, c:c + b].sum()) for r, c in places}
        r, c = max((p for p in places if seen[p] < a * b), key=lambda p: (seen[p], -p[0], -p[1]))
        unknown = a * b - seen[r, c]
        plan.append((r, c, min(unknown, max(1, round(steps * unknown / usual)))))
        known[r:r + a, c:c + b] = True
    return plan


def complete_steps(model: ARPG, known: Tensor, labels, seeds: Sequence[int], steps: int = 64,
                   positions: str = "windows", order: str = "random",
                   control: Tensor | None = None, against=None, exact: int = 0,
                   **settings) -> Iterator[Tensor]:
    """Fill the unknown tokens of grids of any size. It yields the (B, h, w) ids after every step.

    known: (B, h, w) ids, -1 where unknown; masks may differ. labels, seeds: B of each.
    steps: the number for a picture of the trained size without known tokens. A larger picture takes
    proportionally more, one with known tokens fewer.
    positions: with "windows", windows of the trained size slide over a larger grid, and each keeps
    the tokens that are already there. So no query sees a distance that training did not have. The
    methods of `config.POSITIONS` take the whole grid as one window. order: a name of
    `config.ORDERS`. exact: the window of exact decoding, which takes the place of `steps`; it
    yields after every pass. The other arguments are those of `sampling.Settings`.
    A sample depends only on its own row.
    """
    canvas, (height, width) = known.clone(), known.shape[1:]
    usual = model.config.grid[0] * model.config.grid[1]
    size = tuple(min(n, t) for n, t in zip((height, width), model.config.grid))
    size, how = (size, "extrapolate") if positions == "windows" else ((height, width), positions)
    labels = torch.as_tensor(labels, device=canvas.device)
    against = None if against is None else torch.as_tensor(against, device=canvas.device)
    alike: dict[bytes, list[int]] = {}          # rows with the same mask are decoded together
    for row, mask in enumerate((canvas >= 0).cpu().numpy()):
        alike.setdefault(mask.tobytes(), []).append(row)
    for rows in alike.values():
        mask = (canvas[rows[0]] >= 0).cpu().numpy()
        at = torch.tensor(rows, device=canvas.device)       # once: a list would be copied each time
        for number, (r, c, few) in enumerate(plan_windows(mask, size, steps, usual)):
            window = np.s_[at, r:r + size[0], c:c + size[1]]
            decoder = partial(exact_steps, window=exact) if exact else partial(
                decode_steps, steps=few)
            part = decoder(
                model, labels[at], [window_seed(seeds[row], number) for row in rows],
                known=canvas[window].flatten(1), grid=size, positions=how,
                orders=order, control=cut_control(model, control, at, r, c, size),
                against=None if against is None else against[at], **settings)
            for ids in part:
                canvas[window] = ids.view(len(rows), *size)
                yield canvas
    if not alike or (known >= 0).all():
        yield canvas


def window_seed(seed: int, number: int) -> int:
    """The seed of a sample's window `number`. The first window is drawn like a single picture."""
    return int(np.random.default_rng([WINDOW, seed, number]).integers(2**62)) if number else seed


def cut_control(model: ARPG, control: Tensor | None, rows: Tensor, r: int, c: int,
                size: tuple[int, int]) -> Tensor | None:
    """The part of the samples' condition maps that lies under a window."""
    if control is None or not model.config.control_stride:
        return control
    s = model.config.control_stride
    maps = control if len(control) == 1 else control[rows]
    return maps[:, :, r * s:(r + size[0]) * s, c * s:(c + size[1]) * s]


def complete(model: ARPG, known: Tensor, labels, seeds: Sequence[int], **settings) -> Tensor:
    """The last result of `complete_steps`: (B, h, w) ids. The known ones have not changed."""
    for ids in complete_steps(model, known, labels, seeds, **settings):
        pass
    return ids


def to_pixels(tokenizer: VQTokenizer, ids: Tensor, trained: tuple[int, int]) -> Tensor:
    """(B, h, w) ids of any grid -> (B, 3, height, width).

    A decoder that attends over the whole picture changes the colours of pictures larger than those
    it was trained on. So larger pictures are blended from windows of the `trained` size, each
    fading out towards its sides.
    """
    (h, w), s = ids.shape[1:], tokenizer.config.stride
    size = a, b = min(h, trained[0]), min(w, trained[1])
    if size == (h, w):
        return tokenizer.decode(ids)
    fade = [torch.arange(1, n * s + 1).minimum(torch.arange(n * s, 0, -1)) for n in size]
    weight = (fade[0][:, None] * fade[1]).to(ids.device, torch.float32)        # (a·stride, …)
    total = torch.zeros(len(ids), 3, h * s, w * s, device=ids.device)
    weights = torch.zeros_like(total[:1])
    for r, c in window_places((h, w), size):
        here = np.s_[..., r * s:(r + a) * s, c * s:(c + b) * s]
        total[here] += weight * tokenizer.decode(ids[:, r:r + a, c:c + b])
        weights[here] += weight
    return total / weights


def token_mask(mask: Tensor, stride: int) -> Tensor:
    """(B, height, width) bool, True where unknown -> (B, h, w): a token is unknown if any of its
    pixels is."""
    return F.max_pool2d(mask[:, None].float(), stride)[:, 0] > 0


def known_ids(tokenizer: VQTokenizer, images: Tensor, mask: Tensor) -> Tensor:
    """(B, h, w) ids of pictures (B, 3, height, width), -1 where the mask touches.

    An encoder sees pixels beyond a token's own. So the masked pixels are first replaced by the mean
    colour of the known ones.
    """
    seen = ~mask[:, None]                                                      # (B, 1, …)
    mean = (images * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True).clamp(min=1)
    ids = tokenizer.encode(torch.where(seen, images, mean))
    return ids.masked_fill(token_mask(mask, tokenizer.config.stride), -1)


def composite(images: Tensor, made: Tensor, mask: Tensor, feather: int = 0) -> Tensor:
    """Take known pixels exactly from `images`, and the others from `made`.

    images, made: (B, 3, height, width). mask: (B, height, width) bool, True for `made`. `feather`:
    over this many pixels inside the mask the two are blended, so that no seam shows. The blend uses
    the known colours next to the mask, never the pixels that the mask hides.
    """
    hidden = mask[:, None]
    near, seen = images.masked_fill(hidden, 0), (~hidden).to(images.dtype)
    weight = hidden.to(images.dtype)                                           # of `made`
    for depth in range(1, feather + 1):         # known colours grow inwards, pixel by pixel
        around = F.avg_pool2d(seen, 3, stride=1, padding=1)
        grown = (around > 0) & (seen == 0)
        if not grown.any():
            break
        near = torch.where(grown, F.avg_pool2d(near, 3, stride=1, padding=1) / around, near)
        seen, weight = seen + grown, torch.where(grown, depth / (1 + feather), weight)
    return torch.where(hidden, near.lerp(made, weight), images)


def inpaint(model: ARPG, tokenizer: VQTokenizer, images: Tensor, mask: Tensor, labels,
            seeds: Sequence[int], feather: int = 0, **settings) -> Tensor:
    """Fill the masked part of pictures so that it fits the rest.

    images: (B, 3, height, width) in [-1, 1], sides multiples of the tokenizer's stride; or one
    picture, (1, …), to get one candidate per seed. mask: (B or 1, height, width) bool, True where
    to fill. labels: classes, or `model.null_label` where the class is unknown.
    Returns pictures. Every pixel outside the mask is exactly the given one.
    """
    images = images.expand(len(seeds), -1, -1, -1)
    mask = mask.expand(len(seeds), -1, -1)
    ids = complete(model, known_ids(tokenizer, images, mask), labels, seeds, **settings)
    return composite(images, to_pixels(tokenizer, ids, model.config.grid), mask, feather)


def edit_class(model: ARPG, tokenizer: VQTokenizer, images: Tensor, mask: Tensor, labels,
               seeds: Sequence[int], old=None, **settings) -> Tensor:
    """Turn the masked part of pictures into another class: inpaint with the new label. The tokens
    that stay may still show the `old` class. If `old` is given, guidance leads away from it, and
    not away from no class."""
    return inpaint(model, tokenizer, images, mask, labels, seeds, against=old, **settings)


def outpaint(model: ARPG, tokenizer: VQTokenizer, images: Tensor, grid: tuple[int, int],
             at: tuple[int, int], labels, seeds: Sequence[int], feather: int = 0,
             **settings) -> Tensor:
    """Put pictures into a larger grid, with their top left token at row, column `at`, and draw the
    rest. ValueError if they do not fit. Returns (B, 3, h·stride, w·stride)."""
    known, canvas, mask = place(tokenizer, images.expand(len(seeds), -1, -1, -1), grid, at)
    ids = complete(model, known, labels, seeds, **settings)
    return composite(canvas, to_pixels(tokenizer, ids, model.config.grid), mask, feather)


def place(tokenizer: VQTokenizer, images: Tensor, grid: tuple[int, int],
          at: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures in a larger grid: ids (B, h, w), -1 around them; the pixels; and a mask of the
    unknown pixels."""
    s, ids = tokenizer.config.stride, tokenizer.encode(images)
    (row, column), (a, b) = at, ids.shape[1:]
    if row < 0 or column < 0 or row + a > grid[0] or column + b > grid[1]:
        raise ValueError(f"at {row},{column}: a picture of {a}x{b} tokens does not fit a grid of "
                         f"{grid[0]}x{grid[1]} there")
    known = ids.new_full((len(images), *grid), -1)
    known[:, row:row + a, column:column + b] = ids
    canvas = images.new_zeros(len(images), 3, grid[0] * s, grid[1] * s)
    mask = torch.ones_like(canvas[:, 0], dtype=torch.bool)
    pixels = np.s_[..., row * s:(row + a) * s, column * s:(column + b) * s]
    canvas[pixels], mask[pixels] = images, False
    return known, canvas, mask


def expand(model: ARPG, tokenizer: VQTokenizer, labels, seeds: Sequence[int],
           grid: tuple[int, int], **settings) -> Tensor:
    """Draw pictures of any grid, larger than the trained one or of another shape. (To enlarge a
    given picture, use `outpaint`.)"""
    device = model.embedding.weight.device
    nothing = torch.full((len(seeds), *grid), -1, device=device)
    ids = complete(model, nothing, labels, seeds, **settings)
    return to_pixels(tokenizer, ids, model.config.grid)
