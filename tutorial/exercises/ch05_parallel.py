"""Chapter 5: many at a time. `python -m pytest tutorial/exercises/test_ch05.py` grades this file.

Letters: B batch, H heads, K head width, N tokens of an image, s new slots of a step, V vocabulary.
"""

import torch
from torch import Tensor

from arpg_mini import ARPG, ModelConfig


def step_sizes(n: int, steps: int) -> list[int]:
    """How many of n tokens each step decodes, by the arccos schedule.

    After step s = 1..steps - 1, n · arccos(s / steps) / (π / 2) tokens are left, rounded down. Two
    rules come first: every step decodes at least one token, and it leaves at least one for each
    later step. The last step decodes all that remain.

    n: tokens to decode. steps: 1 to n; for any other, raise ValueError.
    Returns `steps` ints, each at least 1, that sum to n.

    Example: step_sizes(16, 4) is [3, 3, 3, 7]. For step 1, arccos(1/4) is 75.52 of 90 degrees, so
    16 · 0.8391 = 13.43 tokens are left, rounded down to 13: the step takes 16 - 13 = 3.

    Minutes: 20
    """
    raise NotImplementedError("step_sizes: compute how many tokens are left after each step; a "
                              "step decodes the difference")


def draw(logits: Tensor, noise: Tensor) -> Tensor:
    """Draw ids from softmax(logits) by inverting the cumulative distribution at given numbers.

    logits: (..., V) float32 or float64; -inf for ids that must never be drawn.
    noise: (...) uniform numbers in [0, 1), one per distribution, in float64.
    Returns (...) int64, the ids i with P(id < i) <= noise < P(id <= i). Compute softmax and sums in
    float64. An id of probability zero is never drawn, not even at noise 0 or at the largest number
    below 1.

    Example: probabilities 0.2, 0, 0.5, 0.3 have the running sums 0.2, 0.2, 0.7, 1. The number 0.1
    draws id 0, 0.21 and 0.69 draw id 2, 0.71 draws id 3. No number draws id 1: its interval, from
    0.2 to 0.2, is empty.

    Minutes: 25
    """
    raise NotImplementedError("draw: compute running sums of the softmax, and find the first one "
                              "above the number")


def cached_attention(pair: Tensor, length: int, q: Tensor, k: Tensor, v: Tensor, rotary: Tensor,
                     within_step: str = "block") -> Tensor:
    """Self-attention of the s new tokens of a step. All earlier tokens are in a cache.

    pair: (2, B, H, slots, K): keys, then values, allocated once. Slots 0..length-1 are filled, and
    their keys are already rotated. The other slots hold arbitrary numbers.
    q, k, v: (B, s, H, K) of the new tokens, not rotated yet. rotary: (B, s, K/2) complex, the
    rotations of their places (see `arpg_mini.attention.rotate`, which you may import).
    within_step: with "block", new tokens see all earlier tokens and each other. With "causal", they
    see all earlier tokens, themselves, and only those new tokens that come before them.

    Writes the s new keys (rotated) and values into the slots length..length+s-1 of `pair`, in
    place, and changes no other slots. Returns (B, s, H, K), the attention output of the new tokens.

    Example: B = H = 1, K = 2, length 1, s = 1, all queries 0. Every score is 0, so slot 0 and the
    new slot have weight 1/2 each. With the value (4, 0) in slot 0 and v = (0, 2) the result is
    (2, 1), and slot 1 of `pair[1]` holds (0, 2).

    Minutes: 60
    """
    raise NotImplementedError("cached_attention: write rotated keys and values after the filled "
                              "slots, then attend to all filled slots")


def lively_model(grid: tuple[int, int]) -> ARPG:
    """A tiny float64 model with weights of order one. (A fresh model's head is zero: it draws the
    same ids whatever its cache holds.) Nothing to write here; use it in `check_parallel`."""
    torch.manual_seed(5)
    model = ARPG(ModelConfig(dim=16, content_layers=2, query_layers=1, heads=2, ffn_hidden=24,
                             vocab_size=13, num_classes=3, grid=grid, dropout=0.0)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.5)
    return model


def check_parallel(decode) -> None:
    """Assert that a decoder draws the same ids as its definition.

    decode: takes the arguments of `arpg_mini.decoding.decode`, that is, decode(model, labels,
    seeds, steps=[...], orders=..., within_step=..., guidance=...), and returns (B, N) raster ids.
    The definition is `arpg_mini.decoding.decode_sequential`, with the same arguments.

    Raises AssertionError if `decode` is broken, and nothing if it is right. Broken decoders are
    wrong only in some cases: for some orders, groupings into steps, batches, guidance scales, or
    one of the two `within_step`. Loop over enough cases, or let Hypothesis draw them (for example
    `settings(max_examples=20, deadline=None, database=None)`). `lively_model(grid)` gives a model.

    Example: check_parallel(arpg_mini.decoding.decode) raises nothing. check_parallel of a function
    that returns zeros raises AssertionError.

    Minutes: 45
    """
    raise NotImplementedError("check_parallel: assert that decode(...) equals decode_sequential("
                              "...) for many orders, groupings and batches")


def accept(guesses: Tensor, draws: Tensor) -> Tensor:
    """How many draws of a pass of exact decoding are final?

    guesses: (B, W) int64, by rank: the ids that the pass read; -1 where there was no guess yet.
    draws: (B, W) int64, by rank: the ids that the pass drew. All ranks before these W are final.
    The query of a rank saw the guesses of the ranks before it, and not its own guess.
    Returns (B,) int64, 1 to W for each sample: so many draws are final, from the first on.

    Example: guesses 4, 7, 2, 9 and draws 4, 7, 5, 9 give 3. The first query saw only final tokens.
    The second saw the guess 4, and the third 4 and 7: the ids that were drawn. The fourth saw 2,
    but 5 was drawn. So its draw is not final, although it equals its guess.

    Minutes: 15
    """
    raise NotImplementedError("accept: count the guesses before the first wrong one; the draw that "
                              "follows them is final, too")


def check_exact(decode_exact) -> None:
    """Assert that exact decoding draws the ids of one token a step, in few enough passes.

    decode_exact: takes the arguments of `arpg_mini.exact.decode_exact`, that is,
    decode_exact(model, labels, seeds, window=..., guidance=..., guidance_schedule=...,
    temperature=...), and returns (B, N) raster ids and (B,) the passes that each sample took. The
    definition of the ids is `arpg_mini.decoding.decode_sequential` with the same settings and
    steps=N. A sample takes 1 to N passes, and exactly N if the window is 1.

    Raises AssertionError if `decode_exact` is broken, and nothing if it is right. Broken decoders
    are wrong only in some cases: for some windows, batches, or kinds of guidance.
    `lively_model(grid)` gives a model; with a temperature below 1 more of its guesses are right.

    Example: check_exact(arpg_mini.exact.decode_exact) raises nothing. check_exact of a function
    that returns the ids of `decode` in 4 steps raises AssertionError.

    Minutes: 30
    """
    raise NotImplementedError("check_exact: assert that the ids equal those of decode_sequential "
                              "with steps=N, and what must hold for the passes")
