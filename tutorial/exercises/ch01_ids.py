"""Chapter 1, images as ids. Replace each `raise` with your code, then run

    python -m pytest tutorial/exercises/test_ch01.py

Letters: V rows of a codebook · dim width of a row · (...) any number of leading axes, or none.
"""

from torch import Tensor


def nearest_ids(features: Tensor, rows: Tensor) -> Tensor:
    """Find, for each feature vector, the number of the codebook row with the largest cosine.

    features: (..., dim). rows: (V, dim). Vectors and rows have any length except zero.
    Returns (...) int64, each in 0..V-1. Use no loop.

    Example: the rows [[3, 4], [0, 0.5], [-5, 0]] have the directions (0.6, 0.8), (0, 1) and
    (-1, 0). The feature [0, 1] has the cosines 0.8, 1 and 0 with them. So its id is 1.

    Minutes: 10
    """
    raise NotImplementedError("nearest_ids: return the number of the row with the largest cosine")


def straight_through(features: Tensor, codes: Tensor) -> Tensor:
    """Return the value of the codes, but let the gradient go to the features.

    features, codes: the same shape (..., dim). Returns that shape.
    The result has the value of the codes (up to rounding). In the backward pass, the gradient that
    arrives goes to `features` unchanged. No gradient goes to `codes`.

    Example: features [0.8, 0.6], codes [0.6, 0.8]. The result is [0.6, 0.8]. If the loss is
    1·result[0] + 2·result[1], the gradient of the features is [1, 2], that of the codes is zero.

    Minutes: 10
    """
    raise NotImplementedError("straight_through: return the codes, pass the gradient to features")


def usage(ids: Tensor, size: int) -> tuple[float, float]:
    """Measure how much of a codebook is in use: the share of rows that occur, and the perplexity.

    ids: int64 of any shape, each in 0..size-1. size: V, the number of rows of the codebook.
    Returns two floats. Let p_v be the share of ids that equal v. The perplexity is
    exp(-Σ_v p_v ln p_v), where a row that never occurs adds 0. A codebook with this number of rows,
    all used equally, carries the same information. The perplexity is 1 if all ids are equal,
    and V if all rows occur equally often.

    Example: ids [[0, 0], [2, 2]] with 4 rows: 2 of 4 rows occur, each half of the time.
    The share is 0.5, the perplexity is exp(ln 2) = 2.

    Minutes: 15
    """
    raise NotImplementedError("usage: return the share of rows in use, and the perplexity")


def check_round_trip(quantizer: type) -> None:
    """Test a property: raise AssertionError unless ids survive the round trip through their codes.

    quantizer: a class. `q = quantizer(rows)` takes a (V, dim) codebook whose rows have any length
    except zero. `q.lookup(ids)` turns (...) ids into (..., dim) codes. `q.nearest(features)` turns
    (..., dim) features into (...) ids. The property has two claims. They must hold for every
    codebook in which no two rows have the same direction, and for ids of every shape:

        1. q.nearest(q.lookup(ids)) equals the ids and has their shape;
        2. every code has length 1, whatever the length of its row.

    Assert both, on codebooks and ids of your choice. Choose them so that a mistake becomes visible.
    A row and its opposite have different directions.

    Example: `quantizer` searches among rows that are not normalised. With the rows
    [[3, 4], [0, 0.5]], the code of id 1 is [0, 1]. Its products with the rows are 4 and 0.5, so the
    id comes back as 0. Your check must raise AssertionError. If all rows had the same length, it
    could not find this mistake.

    Minutes: 25
    """
    raise NotImplementedError("check_round_trip: assert what must hold for every right quantizer")
