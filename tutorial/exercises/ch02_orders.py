"""Chapter 2, any order. Replace each `raise` with your code, then run

    python -m pytest tutorial/exercises/test_ch02.py

Letters: B batch · N tokens of an image · order[t] the raster position that is generated t-th.
"""

from collections.abc import Callable

from torch import Tensor


def log_conditionals(joint: Tensor, image: Tensor, order: Tensor) -> Tensor:
    """Apply the chain rule along an order: ln p(x[order[t]] | x[order[0]], …, x[order[t-1]]).

    joint: the probabilities of all images, joint[x[0], x[1], …, x[N-1]] = p(x). It has one axis per
    raster position; the axes may differ in size. It sums to 1. image: (N,) int64, the ids x by
    raster position, with p(x) > 0. order: (N,) int64, a permutation of 0..N-1.
    Returns (N,), in the dtype of joint. Entry t belongs to the t-th position *of the order*.

    Example: joint [[0.1, 0.3, 0.2], [0.0, 0.3, 0.1]] (2 ids at position 0, 3 at position 1),
    image [0, 1], order [1, 0]. First p(x[1] = 1) = 0.6. Then p(x[0] = 0 | x[1] = 1) = 0.3 / 0.6.
    The result is [ln 0.6, ln 0.5].

    Minutes: 25
    """
    raise NotImplementedError("log_conditionals: return the (N,) log conditionals along the order")


def to_raster(content: Tensor, orders: Tensor) -> Tensor:
    """Put tokens from the order in which they were generated back into raster order.

    content: (B, N, ...). content[b, t] is the t-th generated entry of sample b: an id, or a vector.
    orders: (B, N) int64, one permutation per sample.
    Returns a tensor `raster` with the shape and dtype of content:
    raster[b, orders[b, t]] = content[b, t]. Use no loop.

    Example: content [[7, 8, 9]], orders [[1, 2, 0]]. The 7 goes to position 1, the 8 to
    position 2, the 9 to position 0. The result is [[9, 7, 8]].

    Minutes: 15
    """
    raise NotImplementedError("to_raster: put content[b, t] at raster position orders[b, t]")


def inputs_and_targets(tokens: Tensor, class_ids: Tensor, orders: Tensor) -> tuple[Tensor, Tensor]:
    """Make the inputs and targets of a causal model, along each sample's own order.

    tokens: (B, N) ids by raster position. class_ids: (B,), the id that stands for the class.
    orders: (B, N) int64, one permutation per sample.
    Returns two tensors (B, N). The inputs are the class, then the tokens in their order without the
    last one. The targets are the tokens in their order. So when targets[b, t] is predicted, only
    inputs[b, :t + 1] may be known. Use no loop.

    Example: tokens [[4, 5, 6]], class_ids [90], orders [[2, 0, 1]].
    The inputs are [[90, 6, 4]], the targets are [[6, 4, 5]].

    Minutes: 15
    """
    raise NotImplementedError("inputs_and_targets: return both, along the orders, class first")


def check_any_order(implementation: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Test a property of `log_conditionals`: raise AssertionError unless it holds.

    implementation(joint, image, order) is a right or a wrong answer to exercise 2.1. For every
    joint distribution, image and order, two claims must hold:

        1. the entries sum to ln p(image), whatever the order;
        2. no peeking: entry t does not change when the image changes at later positions of the
           order, order[t+1], …, order[N-1].

    Assert both. Take a joint distribution without zeros, so that ln p exists for every image. It
    must have no other regularity: if its pixels were independent, it would hide most mistakes.

    Example: an `implementation` looks at all other pixels, p(x[i] | all others). Its entries do not
    sum to ln p(image). Your check must raise AssertionError.

    Minutes: 30
    """
    raise NotImplementedError("check_any_order: assert what must hold under every order")
