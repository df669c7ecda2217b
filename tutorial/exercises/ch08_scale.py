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
    Over the first `warmup` steps the rate rises in equal parts: step 0 has one part, not 0, and
    step warmup - 1 has `peak`. Then it falls along half a period of a cosine, as a function of
    x = (step - warmup) / (steps - warmup). It is `peak` at x = 0, half way between `peak` and
    `final` at x = 1/2, and `final` at x = 1 (which no step reaches).

    Example: steps 12, warmup 4, peak 8.0, final 2.0. Steps 0 to 3: 2.0, 4.0, 6.0, 8.0. Step 4: 8.0.
    Step 8: 5.0.
    Minutes: 15
    """
    raise NotImplementedError("warmup_cosine: a line up to the peak, then half a cosine down")


def training_bytes(shapes: list[tuple[int, ...]], processes: int, shard: bool) -> dict[str, int]:
    """Bytes in each process of the tensors that last through the whole training, in float32.

    shapes: the shapes of all weights. Every learned number takes 4 bytes for itself, 4 for its
    gradient, 4 for each of AdamW's two moments, and 4 in a running average of the weights.
    processes: how many train together. shard: if False, each process holds a copy of everything
    (DDP). If True, everything is spread evenly over the processes (FSDP), and each process holds
    its share of the numbers, rounded up to a whole number.
    Returns {"weights": …, "gradients": …, "moments": …, "average": …}.

    Example: shapes [(2, 3), (5,)], so 11 numbers, and 2 processes. Without sharding each process
    holds 44 bytes of weights, 44 of gradients, 88 of moments and 44 of the average. With sharding a
    process has at most 6 of the 11 numbers: 24, 24, 48, 24.
    Minutes: 10
    """
    raise NotImplementedError("training_bytes: bytes of weights, gradients, moments and average")


def rows_of(seed: int, step: int, batch: int, n: int, rank: int, world: int,
            micro_batch: int) -> list[tuple[Tensor, float]]:
    """One process's part of a step, so that several processes together train like one.

    The random orders of n tokens, for the whole (global) batch of the step, are the rows of
        torch.from_numpy(np.random.default_rng([seed, step]).random((batch, n)).argsort(axis=1))
    These rows and their order do not depend on the number of processes. Row i belongs to image i.
    Process `rank` (0 to world - 1) takes neighbouring rows: rank 0 the first ones, and so on. world
    need not divide batch, but two ranks differ by one row at most. Each process cuts its rows, in
    order, into pieces of at least one row and at most `micro_batch` rows.
    For every piece the process computes the *mean* loss over the piece's rows, multiplies it by the
    piece's weight, and adds up the gradients of its pieces. The gradients are then *averaged* over
    the processes. The result must be the gradient of the mean loss over the whole batch.
    Returns [(orders of the piece's rows (k, n) int64, weight), …] of this rank. world <= batch.

    Example: batch 5, world 2, micro_batch 2. Rank 0 can take rows 0 and 1, and rank 1 rows 2, 3
    and 4. Rank 1 then has two pieces: rows 2 and 3, and row 4. A row must count 1/5. In a piece of
    two rows each row counts 1/2 · weight, and the average over two ranks halves that. So weight / 4
    must be 1/5, and the weight is 0.8. The piece of one row has weight 0.4.
    Minutes: 40
    """
    raise NotImplementedError("rows_of: this rank's pieces of the global batch and their weights")


def check_resume(train: Callable) -> None:
    """A property: if training stops and continues, it ends in the same bits.

    train(state, steps) -> the state after that many more steps. state: None to start, else a state
    that `train` returned, as a restarted program would load it from a file. A state is a dict.
    state["weights"] and state["average"] (the running average of the weights) are float32 tensors.
    The other entries depend on the implementation. Training uses dropout and a learning rate that
    depends on the step, and it is fast.
    Assert that 5 + 7 steps give the same bits as 12. What is different if the second part runs in
    another process? Other code has drawn from PyTorch's global random stream. Also, a file can be
    loaded twice: training from it the first time must not change it.

    Example: whole = train(None, 12), and whole["weights"] is [0.25, -1.5]. If train(None, 5) and
    then seven more steps end in [0.25, -1.5000001], raise AssertionError: equal means equal.
    Minutes: 25
    """
    raise NotImplementedError("check_resume: assert that 5 + 7 steps give the same bits as 12")
