"""Which position is decoded when: orders, and how many positions each step takes.

The one idea: an order is a permutation of the raster positions, and a list of step sizes cuts it
into steps. Both are known before the first step. The model was trained on random orders (paper
§3.1), so it can decode in any order.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ORDER, NOISE, WINDOW = 1, 2, 3              # purposes of a sample's random streams


def step_sizes(n: int, steps: int, schedule: str = "arccos") -> list[int]:
    """How many of n tokens each of `steps` steps decodes: at least one each, n in total.

    "arccos" (the paper's) and "cosine" start with small steps and end with large ones, when most
    tokens are known. "constant" gives equal steps. ValueError if steps is not in 1..n.
    """
    if not 1 <= steps <= n:
        raise ValueError(f"steps {steps}: with {n} tokens to decode it must be 1 to {n}")
    sizes, done = [], 0
    for s in range(1, steps + 1):
        if schedule == "constant":
            left = n - n * s // steps
        else:
            ratio = {"arccos": math.acos(s / steps) / (math.pi / 2),
                     "cosine": math.cos(math.pi / 2 * s / steps)}[schedule]
            left = max(1, min(n - done - 1, int(n * ratio)))
        sizes.append(n - done - left if s < steps else n - done)
        done += sizes[-1]
    return sizes


def random_orders(seeds: Sequence[int], n: int) -> Tensor:
    """(B, n) int64: for each seed its own permutation of the raster positions 0..n-1."""
    return torch.from_numpy(
        np.stack([np.random.default_rng([ORDER, s]).permutation(n) for s in seeds]))


def named_order(name: str, grid: tuple[int, int]) -> Tensor:
    """(N,) int64: "raster" goes row by row, "column" column by column, "spiral" from the edge
    inwards, "outward" by distance from the centre; "checkerboard" takes every second position
    first."""
    height, width = grid
    row, column = np.divmod(np.arange(height * width), width)
    ring = np.minimum.reduce([row, column, height - 1 - row, width - 1 - column])
    y, x = row - (height - 1) / 2, column - (width - 1) / 2
    # A ring goes clockwise from its top left corner: right, down, left, up.
    top, right, bottom = row == ring, column == width - 1 - ring, row == height - 1 - ring
    side = np.select([top, right, bottom], [0, 1, 2], 3)
    along = np.select([top, right, bottom], [column, row, -column], -row)
    keys = {"raster": [row], "column": [column], "spiral": [ring, side, along],
            "outward": [y * y + x * x, np.arctan2(y, x)],
            "checkerboard": [(row + column) % 2]}[name]
    return torch.from_numpy(np.lexsort(keys[::-1]))
