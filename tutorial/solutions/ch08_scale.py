"""Solutions of chapter 8."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def warmup_cosine(step: int, steps: int, warmup: int, peak: float, final: float) -> float:
    """`step + 1`, because with `step` the first step would have rate 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / (steps - warmup)
    return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2


def training_bytes(shapes: list[tuple[int, ...]], processes: int, shard: bool) -> dict[str, int]:
    """Without sharding the number of processes makes no difference."""
    count = sum(math.prod(shape) for shape in shapes)
    held = -(-count // processes) if shard else count
    return {"weights": 4 * held, "gradients": 4 * held, "moments": 8 * held, "average": 4 * held}


def rows_of(seed: int, step: int, batch: int, n: int, rank: int, world: int,
            micro_batch: int) -> list[tuple[Tensor, float]]:
    """Draw for the whole batch, then cut. A row counts weight / (rows of its piece) / world, which
    must be 1 / batch."""
    orders = torch.from_numpy(
        np.random.default_rng([seed, step]).random((batch, n)).argsort(axis=1))
    mine = orders[rank * batch // world:(rank + 1) * batch // world]
    return [(piece, len(piece) * world / batch) for piece in mine.split(micro_batch)]


def check_resume(train: Callable) -> None:
    """Change the global random stream between the parts, and continue twice from one state."""
    torch.manual_seed(3)
    whole = train(None, 12)
    torch.manual_seed(3)
    middle = train(None, 5)
    for other_seed in (8, 9):
        torch.manual_seed(other_seed)
        end = train(middle, 7)
        for name in ("weights", "average"):
            assert torch.equal(end[name], whole[name]), (name, other_seed)
