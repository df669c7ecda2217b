"""Chapter 5: many at a time. `python -m pytest tutorial/exercises/test_ch05.py` grades this file.

Letters: B batch, H heads, K head width, N tokens of an image, s new slots of a step, V vocabulary.
"""

import torch
from torch import Tensor

from arpg_mini import ARPG, ModelConfig


def step_sizes(n: int, steps: int) -> list[int]:
    """How many of n tokens each step decodes, by the arccos schedule.

    After step s = 1..steps - 1 there shall be left n · arccos(s / steps) / (π / 2) tokens, rounded
    down, but for two rules: every step decodes at least one token, and leaves at least one for
    those behind it. The last step decodes all that remain.

    n: tokens to decode. steps: 1 to n; for any other, raise ValueError.
    Returns `steps` ints, each at least 1, that sum to n.

    Example: step_sizes(16, 4) is [3, 3, 3, 7]. After step 1 arccos(1/4) is 75.52 of 90 degrees, so
    16 · 0.8391 = 13.43 tokens are left, rounded down to 13: the step takes 16 - 13 = 3.

    Minutes: 20
    """
    raise NotImplementedError("step_sizes: count what is left after each step; a step takes the "
                              "difference")


def draw(logits: Tensor, noise: Tensor) -> Tensor:
    """Draw ids from softmax(logits) by inverting the cumulative distribution at given numbers.

    logits: (..., V) float32 or float64; -inf for ids that must never be drawn.
    noise: (...) uniform numbers in [0, 1), one a distribution, in float64.
    Returns (...) int64, the ids i with P(id < i) <= noise < P(id <= i). Softmax and sums in
    float64. An id of probability zero is never drawn, not even at noise 0 or at the largest number
    below 1.

    Example: probabilities 0.2, 0, 0.5, 0.3 have the running sums 0.2, 0.2, 0.7, 1. The number 0.1
    draws id 0, 0.21 and 0.69 draw id 2, 0.71 draws id 3. No number draws id 1: its interval, from
    0.2 to 0.2, is empty.

    Minutes: 25
    """
    raise NotImplementedError("draw: running sums of the softmax, and the first one above the "
                              "number")


def cached_attention(pair: Tensor, length: int, q: Tensor, k: Tensor, v: Tensor, rotary: Tensor,
                     within_step: str = "block") -> Tensor:
    """Self-attention of a step's s new tokens, with all earlier ones in a cache.

    pair: (2, B, H, slots, K): keys, then values, allocated once. Slots 0..length-1 are filled, with
    keys that are rotated already. What stands in the others is whatever was in that memory.
    q, k, v: (B, s, H, K) of the new tokens, not rotated yet. rotary: (B, s, K/2) complex, their
    places (see `arpg_mini.attention.rotate`, which you may import).
    within_step: "block", new tokens see all earlier ones and each other; "causal", all earlier
    ones, themselves, and of the new ones only those before them.

    Writes the s new keys (rotated) and values into the slots length..length+s-1 of `pair`, in
    place, and no others. Returns (B, s, H, K), what the new tokens' attention gives.

    Example: B = H = 1, K = 2, length 1, s = 1, all queries 0. Every score is 0, so slot 0 and the
    new slot get a half each. With the value (4, 0) in slot 0 and v = (0, 2) the result is (2, 1),
    and (0, 2) stands in slot 1 of `pair[1]`.

    Minutes: 60
    """
    raise NotImplementedError("cached_attention: write rotated keys and values behind the filled "
                              "slots, then attend to all that are filled now")


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
    """State, with asserts, that a decoder draws what its definition draws.

    decode: is called as `arpg_mini.decoding.decode` is, decode(model, labels, seeds, steps=[...],
    orders=..., within_step=..., guidance=...), and returns (B, N) raster ids. The definition is
    `arpg_mini.decoding.decode_sequential`, with the same arguments.

    Raises AssertionError if `decode` is broken, and nothing if it is right. Broken ones are wrong
    only in some decodes: for some orders, groupings into steps, batches, guidances, or one of the
    two `within_step`. Loop over enough of them, or let Hypothesis draw them (say
    `settings(max_examples=20, deadline=None, database=None)`). `lively_model(grid)` is a model.

    Example: check_parallel(arpg_mini.decoding.decode) raises nothing. check_parallel of a function
    that returns zeros raises AssertionError.

    Minutes: 45
    """
    raise NotImplementedError("check_parallel: assert that decode(...) equals decode_sequential("
                              "...) for many orders, groupings and batches")
