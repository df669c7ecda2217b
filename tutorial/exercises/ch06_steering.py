"""Chapter 6: steering. Fill in the functions; `python -m pytest tutorial/exercises/test_ch06.py`
grades them."""

from collections.abc import Callable, Sequence

from torch import Tensor


def guide(logits: Tensor, guidance: float, schedule: str, sizes: Sequence[int],
          step: int) -> Tensor:
    """Classifier-free guidance at one step of a decode.

    logits: (2B, M, V). The first B rows are c, the logits with the class. The last B rows are u,
    the logits of the same pictures without the class.
    schedule: "constant": the scale s is `guidance` at every step. "linear": s is
    1 + (guidance - 1) · share, where share is the share of all tokens that are decoded when this
    step ends.
    sizes: how many tokens each step decodes. step: the number of this step, 0, 1, …
    Returns (B, M, V): logits whose softmax is proportional to p(x|c) · p(c|x)^(s-1). A constant
    added to all logits of a position makes no difference.

    Example: c = [0., 4.], u = [1., 1.], guidance 3, "linear", sizes [2, 3, 5], step 0. The share
    is 2/10, so s = 1 + 2 · 0.2 = 1.4 and the result is [1 - 1.4, 1 + 3 · 1.4] = [-0.4, 5.2].

    Minutes: 20
    """
    raise NotImplementedError("guide: compute s, then the guided logits of c and u")


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the likeliest ids until their total probability reaches p; the rest can't be drawn.

    logits: (..., V), at least one axis. p: above 0 and at most 1.
    Returns (..., V): the ids that stay keep their logits, unchanged and in place; all others get
    -inf. The id that makes the total reach p stays.

    Example: probabilities [0.1, 0.4, 0.3, 0.2] and p = 0.6. From the likeliest id on, the totals
    are 0.4, 0.7: ids 1 and 2 stay. With p = 0.75 the totals are 0.4, 0.7, 0.9: ids 1, 2 and 3 stay.

    Minutes: 25
    """
    raise NotImplementedError("top_p: sort, add up, and put the cut back in the order of the ids")


def check_guidance(implementation: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """Assert what must hold for any implementation(c, u, s) of guidance at a constant scale s.

    c, u: (V,) float64 logits of the same shape, with and without the class. s: 0 or more.
    implementation(c, u, s) returns (V,) logits. They mean a distribution, so compare softmaxes.

    Four things must hold for all logits:
      s = 1 gives the conditional distribution, and s = 0 the unconditional one;
      adding a constant to all of c, or to all of u, changes nothing;
      take the id with the largest c - u, the one that the class favours most. A larger s never
      lowers its odds against any other id.
    Raise AssertionError if one of them does not hold. Try several logits (seeded, or drawn by
    Hypothesis), several s on both sides of 1, and constants of both signs.

    Example: `lambda c, u, s: u + (c - u) * s` must pass; `lambda c, u, s: c` must fail: at s = 0 it
    is still the conditional model.

    Minutes: 30
    """
    raise NotImplementedError("check_guidance: assert the four things for many logits and scales")


def agreement(joint: Tensor) -> Tensor:
    """How often two tokens agree if one step draws both: the price of parallelism.

    joint: (B, V, V) floats. joint[b, i, j] is the probability that in data set b the first token
    is i and the second is j.
    Returns (B,): the probability that the two ids are equal when each is drawn from its own
    distribution, without looking at the other.

    Example: joint[0] = [[0.3, 0.2], [0.1, 0.4]]. The first token is 0 with probability 0.5, the
    second with 0.4. They agree with probability 0.5 · 0.4 + 0.5 · 0.6 = 0.5. (If they are drawn one
    after the other: 0.3 + 0.4.)

    Minutes: 10
    """
    raise NotImplementedError("agreement: compute each token's own distribution, then the "
                              "probability of equal ids")
