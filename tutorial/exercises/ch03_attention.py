"""Chapter 3, where and what. Replace each `raise` with your code, then run

    python -m pytest tutorial/exercises/test_ch03.py
    python -m pytest tutorial/exercises/test_ch03.py -k rotate

Letters: B batch, N tokens of an image, S slots, M queries, D width, H heads, K = D / H head width.
"""

from collections.abc import Callable

from torch import Tensor


def rotary_angles(grid: tuple[int, int], head_dim: int, base: float = 10000.0) -> Tensor:
    """Return the angles, in radians, by which each position of a grid rotates the pairs of a head.

    grid: (h, w), rows and columns. head_dim: K, a multiple of 4.
    Returns (N, K/2) float64, N = h·w. Row r·w + c belongs to the position in row r, column c. The
    K/4 frequencies are f_i = base^(-2i / (K/2)), i = 0 … K/4 - 1. The row is

        r·f_0, r·f_1, …, c·f_0, c·f_1, …

    Example: rotary_angles((2, 3), 8, base=100.0). There are K/2 = 4 angles and K/4 = 2 frequencies:
    f_0 = 100^0 = 1 and f_1 = 100^(-2/4) = 0.1. The last row of the result is the position in row 1,
    column 2: [1·1, 1·0.1, 2·1, 2·0.1] = [1, 0.1, 2, 0.2].

    Minutes: 15
    """
    raise NotImplementedError("rotary_angles: return (N, K/2) angles, row half, then column half")


def rotate(x: Tensor, where: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair of neighbouring features (a, b) to (a·cos - b·sin, b·cos + a·sin).

    x: (B, S, H, K). where: (B, S) long, for each slot the row of the tables that rotates it.
    cos, sin: (N + 1, K/2), the dtype of x. Column k rotates the pair of features 2k and 2k + 1.
    All heads of a slot rotate alike. Row N is the class slot: cos = sin = 0 there.
    Returns a new (B, S, H, K) tensor and leaves x unchanged.

    Example: K = 4, x = [1, 2, 3, 4], a row with cos = [0, -1] and sin = [1, 0] (a quarter turn and
    a half turn). The pair (1, 2) becomes (1·0 - 2·1, 2·0 + 1·1) = (-2, 1). The pair (3, 4) becomes
    (-3, -4). The result is [-2, 1, -3, -4].

    Minutes: 20
    """
    raise NotImplementedError("rotate: return x with each pair of neighbours rotated")


def query_attention(mask: Tensor, content: Tensor, targets: Tensor, places: Tensor, cos: Tensor,
                    sin: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_out: Tensor,
                    heads: int) -> Tensor:
    """Compute the attention of M queries to S slots, in several heads: the core of the query pass.

    mask: (D,), the one vector that every query starts as.
    content: (B, S, D), what the slots hold; slot 0 is the class.
    targets: (B, M) long, the row of cos and sin for the position that each query asks about.
    places: (B, S) long, the row for the position of each slot; N for the class.
    cos, sin: (N + 1, K/2), as in `rotate`; row N is zero.
    w_q, w_k, w_v, w_out: (D, D), used like the weights of nn.Linear: x @ w.T, no bias.
    heads: H. Head j has features j·K … (j + 1)·K - 1 of queries, keys and values, K = D / H.

    1. Project mask to a query, once: it is the same for all targets. Project content to keys and
       values.
    2. Rotate queries by their targets and keys by their places. Do not rotate values.
    3. In each head: scores = query · key / sqrt(K), softmax over the S slots, weighted sum of the
       values. Every query sees every slot, also the class. No query sees another query.
    4. Put the heads next to each other and project them with w_out.
    Returns (B, M, D). You may call your `rotate`.

    Example: H = 1, K = D = 4, all four weights are the identity, mask = [2, 0, 0, 0]. There are two
    slots: the class with content [8, 0, 0, 0], and a token with content [ln 3, 0, 0, 0] at the
    position of the target. The key of the class is the zero vector, so its score is 0. The score of
    the token is 2·ln 3 / sqrt(4) = ln 3. The weights are 1/4 and 3/4, and the answer is
    [8/4 + 3·ln 3 / 4, 0, 0, 0] = [2.824, 0, 0, 0].

    Minutes: 60
    """
    raise NotImplementedError("query_attention: return (B, M, D), one answer for each target")


def check_displacement(score: Callable) -> None:
    """Raise AssertionError unless `score` depends on the whole displacement and on nothing else.

    score(query, key, at_query, at_key) returns a float, the score of a query and a key. Both are
    (8,) float64. at_query and at_key are their (row, column) positions on a 6 × 9 grid. Two claims
    must hold:

    a. *nothing else*: if query and key move by the same step, the score stays the same (to 1e-9);
    b. *the whole displacement*: two different displacements, (rows, columns) from query to key,
       have different scores (by more than 1e-9). Use random vectors, the same two for both.

    Return nothing if both hold. Keep every position within rows 0 … 5 and columns 0 … 8; outside,
    `score` raises ValueError. A check may take some seconds.

    Example: if `score` ignores both positions, claim a holds. Claim b does not hold: "1 down" and
    "1 right" have the same score. So
    check_displacement(lambda query, key, at_query, at_key: float(query @ key)) raises
    AssertionError.

    Minutes: 40
    """
    raise NotImplementedError("check_displacement: assert claims a and b about `score`")
