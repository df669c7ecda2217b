"""Chapter 8, to ImageNet: fill in the four functions.

    python -m pytest tutorial/exercises/test_ch08.py
"""

import math  # noqa: F401 (yours to use)
from collections.abc import Callable

import numpy as np  # noqa: F401
import torch  # noqa: F401
from torch import Tensor


def warmup_cosine(step: int, steps: int, warmup: int, peak: float, final: float) -> float:
    """The learning rate of one step.

    step: 0 to steps - 1. warmup: 1 or more, fewer than steps. final: below peak.
    Over the first `warmup` steps the rate rises on a line: step 0 has the first share of it, not 0,
    and step warmup - 1 has `peak`. From there it falls along half a period of a cosine, as a
    function of (step - warmup) / (steps - warmup): `peak` where that is 0, half way between `peak`
    and `final` where it is 1/2, and `final` where it would be 1 (which no step reaches).

    Example: steps 12, warmup 4, peak 8.0, final 2.0. Steps 0 to 3: 2.0, 4.0, 6.0, 8.0. Step 4: 8.0.
    Step 8: 5.0.
    Minutes: 15
    """
    raise NotImplementedError("warmup_cosine: a line up to the peak, then half a cosine down")


def training_bytes(shapes: list[tuple[int, ...]], processes: int, shard: bool) -> dict[str, int]:
    """Bytes that each process holds of what lives through the whole of training, in float32.

    shapes: of all weights. Every number that is learned has itself, its gradient, AdamW's two
    moments and its place in a running average of the weights, 4 bytes each.
    processes: how many train together. shard: False, each holds a copy of everything (DDP); True,
    all of it is spread evenly over them (FSDP), and a process holds its share, rounded up to whole
    numbers.
    Returns {"weights": …, "gradients": …, "moments": …, "average": …}.

    Example: shapes [(2, 3), (5,)], so 11 numbers, 2 processes. Without sharding each holds 44 bytes
    of weights, 44 of gradients, 88 of moments, 44 of the average. Sharded, a process has at most 6
    of the 11: 24, 24, 48, 24.
    Minutes: 10
    """
    raise NotImplementedError("training_bytes: bytes of weights, gradients, moments and average")


def rows_of(seed: int, step: int, batch: int, n: int, rank: int, world: int,
            micro_batch: int) -> list[tuple[Tensor, float]]:
    """What one of several processes does in a step, so that together they train as one would.

    The step's random orders of n tokens are, for the whole (global) batch, the rows of
        torch.from_numpy(np.random.default_rng([seed, step]).random((batch, n)).argsort(axis=1))
    The same rows in the same places however many processes there are; row i belongs to image i.
    Process `rank` (0 to world - 1) takes one run of neighbouring rows: rank 0 the first ones, and
    so on. batch need not be a multiple of world: two ranks differ by one row at most. It takes its
    rows in pieces of at least one row and at most `micro_batch`, in order.
    For every piece the process computes the *mean* loss over the piece's rows, multiplies it by the
    piece's weight, and adds up the gradients of its pieces. The gradients are then *averaged* over
    the processes. That must be the gradient of the mean loss over the whole batch.
    Returns [(orders of the piece's rows (k, n) int64, weight), …] of this rank. world <= batch.

    Example: batch 5, world 2, micro_batch 2. One may cut it into rows 0, 1 for rank 0 and rows 2, 3
    and 4 for rank 1, which takes 2, 3 as one piece and 4 as another. A row must count 1/5. A piece
    of two rows counts each row 1/2 · weight, and averaging over two ranks halves that: weight / 4
    is to be 1/5, so weight = 0.8. The piece of one row has weight 0.4.
    Minutes: 40
    """
    raise NotImplementedError("rows_of: this rank's pieces of the global batch and their weights")


def check_resume(train: Callable) -> None:
    """A property: training that is stopped and continued ends in the same bits.

    train(state, steps) -> state after so many more steps. state: None to start, else what `train`
    returned, as a program that starts again would load it from a file. A state is a dict; of
    what it holds, state["weights"] and state["average"] (the running average of the weights) are
    float32 tensors; the rest is the implementation's own affair. Training uses dropout and a
    learning rate that depends on the step, and it is fast.
    Assert that 5 + 7 steps give the bits of 12. Think of what differs when the second part
    runs in another process: other things have drawn from PyTorch's global random stream. And a
    file can be loaded twice: what was trained from it the first time must not have changed it.

    Example: whole = train(None, 12), and whole["weights"] is [0.25, -1.5]. If after train(None, 5)
    seven more steps end in [0.25, -1.5000001], raise AssertionError: equal means equal.
    Minutes: 25
    """
    raise NotImplementedError("check_resume: assert that 5 + 7 steps give the bits of 12")
