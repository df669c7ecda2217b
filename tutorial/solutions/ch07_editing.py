"""Solutions of chapter 7."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def cells_of_box(box: tuple[int, int, int, int], stride: int, grid: tuple[int, int]) -> Tensor:
    """Starts are rounded down to their cell. Ends are the first pixels outside the box, so they are
    rounded up to the first cell outside."""
    x0, y0, x1, y1 = box
    touched = torch.zeros(grid, dtype=torch.bool)
    touched[y0 // stride:-(-y1 // stride), x0 // stride:-(-x1 // stride)] = True
    return touched


def place(ids: Tensor, grid: tuple[int, int], at: tuple[int, int]) -> Tensor:
    """The check comes first, because slices would cut or wrap without an error."""
    (row, column), (h, w) = at, ids.shape
    if row < 0 or column < 0 or row + h > grid[0] or column + w > grid[1]:
        raise ValueError(f"at {row},{column}: {h}x{w} ids do not fit a grid of "
                         f"{grid[0]}x{grid[1]} there")
    known = ids.new_full(grid, -1)
    known[row:row + h, column:column + w] = ids
    return known


def inpaint(images: Tensor, mask: Tensor, stride: int, encode: Callable, decode: Callable,
            to_pixels: Callable) -> Tensor:
    """Two masks: the decoder uses the mask of cells, the last line uses the mask of pixels."""
    ids = encode(images.masked_fill(mask, 0))                                  # (B, h, w)
    touched = F.max_pool2d(mask[None].float(), stride)[0] > 0                  # (h, w)
    known = ids.masked_fill(touched, -1)
    drawn = decode(known.flatten(1)).view_as(ids)
    return torch.where(mask, to_pixels(drawn), images)


def check_known_stays(complete: Callable) -> None:
    """Change each known position alone, so that the check notices a position that is not read."""
    rng = np.random.default_rng(0)
    for share in (0.2, 0.5, 0.8):
        ids = torch.from_numpy(rng.integers(0, 7, 12))
        is_known = torch.from_numpy(rng.random(12) < share)
        is_known[rng.integers(12)], ids[0] = False, 0
        is_known[0] = share > 0.2
        known = ids.masked_fill(~is_known, -1)
        for seed in range(5):
            drawn = complete(known.clone(), seed)
            assert torch.equal(drawn[is_known], known[is_known]), (known, drawn)
            assert ((drawn >= 0) & (drawn < 7)).all(), (known, drawn)
    # The strictest case for dependence: two known ids, ten to draw.
    known = torch.full((12,), -1)
    known[3], known[8] = 5, 0
    plain = [complete(known.clone(), seed) for seed in range(30)]
    for position in (3, 8):
        other = known.clone()
        other[position] = 2
        rest = torch.arange(12) != position
        assert any(not torch.equal(complete(other.clone(), seed)[rest], plain[seed][rest])
                   for seed in range(30)), f"the id at {position} is not read"
