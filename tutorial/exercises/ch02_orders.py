"""Chapter 2, any order. Replace each `raise` by your code, then run

    python -m pytest tutorial/exercises/test_ch02.py

Letters: B batch · N tokens of an image · order[t] the raster position that is drawn t-th.
"""

from collections.abc import Callable

from torch import Tensor


def log_conditionals(joint: Tensor, image: Tensor, order: Tensor) -> Tensor:
    """The chain rule along an order: ln p(x[order[t]] | x[order[0]], …, x[order[t-1]]), for all t.

    joint: the probabilities of all images, with one axis per raster position (they may differ in
    size): joint[x[0], x[1], …, x[N-1]] = p(x). It sums to 1. image: (N,) int64, the ids x by raster
    position, with p(x) > 0. order: (N,) int64, a permutation of 0..N-1.
    Returns (N,), of joint's type; entry t belongs to the t-th position *of the order*.

    Example: joint [[0.1, 0.3, 0.2], [0.0, 0.3, 0.1]] (2 ids at position 0, 3 at position 1),
    image [0, 1], order [1, 0]. First p(x[1] = 1) = 0.6, then p(x[0] = 0 | x[1] = 1) = 0.3 / 0.6.
    The result is [ln 0.6, ln 0.5].

    Minutes: 25
    """
    raise NotImplementedError("log_conditionals: (N,) logs of the conditionals along the order")


def to_raster(content: Tensor, orders: Tensor) -> Tensor:
    """Put tokens that stand in the order they were drawn back to where they belong.

    content: (B, N, ...), content[b, t] is the t-th that was drawn of sample b: an id, or a vector.
    orders: (B, N) int64, a permutation per sample.
    Returns raster of content's shape and type: raster[b, orders[b, t]] = content[b, t]. No loop.

    Example: content [[7, 8, 9]], orders [[1, 2, 0]]. The 7 goes to position 1, the 8 to
    position 2, the 9 to position 0: [[9, 7, 8]].

    Minutes: 15
    """
    raise NotImplementedError("to_raster: content[b, t] put to raster position orders[b, t]")


def inputs_and_targets(tokens: Tensor, class_ids: Tensor, orders: Tensor) -> tuple[Tensor, Tensor]:
    """What a causal model reads and what it shall predict, along each sample's own order.

    tokens: (B, N) ids by raster position. class_ids: (B,) the id that stands for the class.
    orders: (B, N) int64, a permutation per sample.
    Returns two (B, N): inputs, the class and then the tokens in their order but for the last one;
    and targets, the tokens in their order. So inputs[b, :t + 1] is all that may be known when
    targets[b, t] is predicted. No loop.

    Example: tokens [[4, 5, 6]], class_ids [90], orders [[2, 0, 1]].
    inputs [[90, 6, 4]], targets [[6, 4, 5]].

    Minutes: 15
    """
    raise NotImplementedError("inputs_and_targets: both (B, N), along the orders, class first")


def check_any_order(implementation: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """A property of `log_conditionals`: raise AssertionError unless it holds.

    implementation(joint, image, order) is what exercise 2.1 asks for, or fails to be. For every
    joint distribution, image and order this must hold:

        1. the entries sum to ln p(image), whatever the order;
        2. no peeking: entry t does not change when the image changes at positions that come later
           in the order, order[t+1], …, order[N-1].

    Assert both. Take a joint distribution without zeros, so that every image has a logarithm, and
    without any other neatness: one in which pixels are independent would hide most mistakes.

    Example: an `implementation` that looks at all other pixels, p(x[i] | all others), gives sums
    that are not ln p(image). Your check must raise AssertionError.

    Minutes: 30
    """
    raise NotImplementedError("check_any_order: assert what holds under every order")
