"""Chapter 1, images as ids. Replace each `raise` by your code, then run

    python -m pytest tutorial/exercises/test_ch01.py

Letters: V rows of a codebook · dim width of a row · (...) any leading sizes, none included.
"""

from torch import Tensor


def nearest_ids(features: Tensor, rows: Tensor) -> Tensor:
    """For each feature vector the number of the codebook row with the largest cosine.

    features: (..., dim), of any length but zero. rows: (V, dim), of any length but zero.
    Returns (...) int64, each in 0..V-1. No loop.

    Example: rows [[3, 4], [0, 0.5], [-5, 0]] point to (0.6, 0.8), (0, 1) and (-1, 0).
    The feature [0, 1] has cosines 0.8, 1 and 0 with them: its id is 1.

    Minutes: 10
    """
    raise NotImplementedError("nearest_ids: the row number with the largest cosine, per feature")


def straight_through(features: Tensor, codes: Tensor) -> Tensor:
    """What the decoder gets: the codes, with a gradient that goes to the features instead.

    features, codes: the same shape (..., dim). Returns that shape.
    The value is the codes' (up to rounding). In the backward pass, whatever gradient arrives goes
    to `features` as it is, and none to `codes`.

    Example: features [0.8, 0.6], codes [0.6, 0.8]. The result is [0.6, 0.8]. If a loss is
    1·result[0] + 2·result[1], the features' gradient is [1, 2], and that of the codes is zero.

    Minutes: 10
    """
    raise NotImplementedError("straight_through: the codes' value with the features' gradient")


def usage(ids: Tensor, size: int) -> tuple[float, float]:
    """How much of a codebook is in use: the share of rows that occur, and the perplexity.

    ids: int64 of any shape, each in 0..size-1. size: V, the rows of the codebook.
    Returns two floats. With p_v the share of the ids that are v, the perplexity is
    exp(-Σ_v p_v ln p_v), where a row that never occurs adds 0. It is the size of a codebook that,
    used evenly, would say as much: 1 if all ids are equal, V if all rows are used equally often.

    Example: ids [[0, 0], [2, 2]] of 4 rows: 2 of 4 rows occur, half of the time each.
    Share 0.5, perplexity exp(ln 2) = 2.

    Minutes: 15
    """
    raise NotImplementedError("usage: the share of rows in use, and the perplexity of the ids")


def check_round_trip(quantizer: type) -> None:
    """A property: raise AssertionError unless ids survive the round trip through their codes.

    quantizer: a class. `q = quantizer(rows)` takes a (V, dim) codebook, with rows of any length
    but zero; `q.lookup(ids)` gives (...) ids their (..., dim) codes; `q.nearest(features)` gives
    (..., dim) features their (...) ids. What must hold, for every codebook in which no two rows
    point in the same direction, and for ids of every shape:

        1. q.nearest(q.lookup(ids)) are the ids, in their shape;
        2. every code has length 1, whatever the length of its row.

    Assert both, on codebooks and ids of your choice. Choose them so that a mistake would show.
    A row and its opposite point in different directions.

    Example: `quantizer` searches among the rows as they are, not normalised. With the rows
    [[3, 4], [0, 0.5]] the code of id 1 is [0, 1]; its products with the rows are 4 and 0.5; so it
    comes back as 0. Your check must raise AssertionError. With rows of one length it could not.

    Minutes: 25
    """
    raise NotImplementedError("check_round_trip: assert what must hold of any right quantizer")
