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

from .config import PARALLEL_ORDERS

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


def parallel_orders(name: str, seeds: Sequence[int], grid: tuple[int, int], sizes: Sequence[int],
                    known: Tensor | None = None) -> Tensor:
    """(B, N) int64: orders for many tokens a step. Known positions come first, then step by step:

    "near": those nearest to what is decoded or known before the step.
    "apart": one after another, the one farthest from those that the step already has.
    "local": as "near", but not beside one that the step already has, not even diagonally. When no
    others are left, as "apart". (After locality-aware parallel decoding, arXiv 2507.01957: near
    tokens tell much about a target; those of one step should tell little about each other.)
    "halton": spread evenly at all times (arXiv 2503.17076), see `halton_visits`.

    Equally good positions follow the sample's random order. known: (N,) bool. sizes: of the steps.
    """
    n, rows = grid[0] * grid[1], np.arange(len(seeds))
    cells = np.stack(np.divmod(np.arange(n), grid[1]), axis=1)
    squares = ((cells[:, None] - cells) ** 2).sum(2)                # (N, N) squared distances
    beyond = grid[0] ** 2 + grid[1] ** 2                            # larger than all of them
    known = np.zeros(n, bool) if known is None else np.asarray(known)
    ties = random_orders(seeds, n).argsort(1).numpy() / n           # (B, N) below 1
    free = np.tile(~known, (len(seeds), 1))
    near = np.tile(squares[known].min(0, initial=beyond), (len(seeds), 1))  # to what is decoded
    visits = halton_visits(seeds, grid) if name == "halton" else None
    order = [np.full(len(seeds), p) for p in known.nonzero()[0]]
    for size in sizes:
        own = np.full_like(near, beyond)                            # to the step's own positions
        for _ in range(size):
            cost = {"near": near, "apart": -own, "halton": visits,
                    "local": np.where(own > 2, near, 2 * beyond - own)}[name]
            order.append(np.where(free, cost + ties, np.inf).argmin(1))
            free[rows, order[-1]] = False
            own = np.minimum(own, squares[order[-1]])
        near = np.minimum(near, own)
    return torch.from_numpy(np.stack(order, axis=1))


def halton_visits(seeds: Sequence[int], grid: tuple[int, int]) -> np.ndarray:
    """(B, N): which point of a Halton sequence (bases 2 and 3) is the first in each cell. A
    random shift of the sample moves all its points; they re-enter on the other side."""
    visits, points = np.zeros((len(seeds), grid[0] * grid[1])), []
    for base in (2, 3):                 # digits mirrored at the point: 6 = 110 gives 0.011 = 3/8
        worth = base ** np.arange(1, 25)
        # 96·N visit each cell: even cut in two, it holds a box 1/2^i × 1/3^j, 2^i < 8h, 3^j < 12w.
        numbers = np.arange(96 * visits.shape[1])[:, None]
        points.append((numbers // (worth // base) % base / worth).sum(1))
    for seed, visit in zip(seeds, visits):
        shift = np.random.default_rng([ORDER, seed]).random(2)
        row, column = (((np.stack(points, 1) + shift) * grid).astype(int) % grid).T
        visit[(row * grid[1] + column)[::-1]] = np.arange(len(row))[::-1]       # the first stays
    return visits


def orders_by_name(name: str, seeds: Sequence[int], grid: tuple[int, int], sizes: Sequence[int],
                   known: Tensor) -> Tensor:
    """(N,) or (B, N) int64: the orders of any name of `config.ORDERS`."""
    if name == "random":
        return random_orders(seeds, grid[0] * grid[1])
    if name in PARALLEL_ORDERS:
        return parallel_orders(name, seeds, grid, sizes, known)
    return named_order(name, grid)
