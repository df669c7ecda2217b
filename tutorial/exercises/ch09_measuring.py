"""Chapter 9: measuring honestly. Replace each `raise` by your own code.

    python -m pytest tutorial/exercises/test_ch09.py
"""

from collections.abc import Callable

from torch import Tensor


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """|m - m'|² + tr(C) + tr(C') - 2 tr((C C')^½) of two sets of feature vectors.

    features: (n, d), others: (k, d), one row per picture, float32, n and k at least 2. m is the
    mean row, C the (d, d) covariance of the columns, divided by n - 1. Returns a float. Compute in
    float64. C may be singular. Then eigenvalues that should be 0 come out slightly negative, and
    their square root is nan.

    Example (d = 1, so C is one number, the variance):
        features [[1.], [3.]]         m = 2, C = 2
        others   [[0.], [4.], [8.]]   m' = 4, C' = 16
        (2 - 4)² + 2 + 16 - 2·√32 = 10.6863

    Minutes: 30
    """
    raise NotImplementedError("frechet_distance: mean and covariance of each set, then the formula")


def rename(state: dict[str, Tensor], back: bool = False) -> dict[str, Tensor]:
    """Rename the tensors of ARPG's content blocks from the released names to this package's.

    For every block number i in `state` (any numbers, also 10 and more):
        layers.self_dec.i.attn_norm.weight          -> content.i.attention_norm.gain
        layers.self_dec.i.attn.to_q|to_k|to_v.weight -> content.i.attention.qkv.weight
        layers.self_dec.i.attn.proj.weight          -> content.i.attention.out.weight
        layers.self_dec.i.ffn_norm.weight           -> content.i.ffn_norm.gain
        layers.self_dec.i.ffn.w1|w3.weight          -> content.i.ffn.w13.weight
        layers.self_dec.i.ffn.w2.weight             -> content.i.ffn.w2.weight
    Where several tensors become one, they are stacked row under row, in the order written here.
    Every weight is (outputs, inputs), on both sides. `back=True` goes the other way, from our names
    to the released ones, and rename(rename(state), back=True) is state again. A name that is in
    neither column raises KeyError with that name in its message. `state` itself does not change.

    Example, of width 1 (each weight one row):
        {"layers.self_dec.0.attn.to_q.weight": [[5.]], "….to_k.weight": [[6.]],
         "….to_v.weight": [[7.]]}  ->  {"content.0.attention.qkv.weight": [[5.], [6.], [7.]]}

    Minutes: 40
    """
    raise NotImplementedError("rename: a table of names, cat on the way in, chunk on the way back")


def check_distance(distance: Callable[[Tensor, Tensor], float]) -> None:
    """Assert what must hold for any Fréchet distance `distance(features, others)`.

    It takes two sets, (n, d) and (k, d), and returns a float. Assert, up to rounding:
      - The distance of a set from itself is 0.
      - The distance stays the same if the two sets are exchanged.
      - It stays the same if both sets are turned by the same rotation, and if both are shifted by
        the same vector.
      - If a set is shifted by a vector t, its distance from the set as it was is |t|².

    Example: with x a set of features and t a vector,
        assert abs(distance(x, x + t) - float(t @ t)) < 1e-4

    Minutes: 30
    """
    raise NotImplementedError("check_distance: make two sets of features and assert what must hold")


def standard_error(first: Tensor, second: Tensor) -> float:
    """The standard error of mean(first) - mean(second), where row i of both has the same seed.

    first, second: (n,) bool: was picture i right with the first setting, and with the second? Both
    settings use the same seeds and classes, so the pictures come in pairs. Take the difference of
    each pair (-1, 0 or 1), then the standard deviation of the differences (divided by n - 1), then
    the standard deviation of their mean.

    Example: first 1 1 1 0 1, second 1 0 1 0 1: the differences are 0 1 0 0 0, their mean is 0.2,
    and their variance is (4·0.04 + 0.64) / 4 = 0.2. The variance of the mean of five is
    0.2 / 5 = 0.04, so the standard error is 0.2.

    Minutes: 15
    """
    raise NotImplementedError("standard_error: of the mean of the paired differences")
