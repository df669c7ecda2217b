"""Chapter 3, where and what: replace each `raise NotImplementedError`, then grade yourself.

    python -m pytest tutorial/exercises/test_ch03.py
    python -m pytest tutorial/exercises/test_ch03.py -k rotate

Letters: B batch, N tokens of an image, S slots, M queries, D width, H heads, K = D / H head width.
"""

from collections.abc import Callable

from torch import Tensor


def rotary_angles(grid: tuple[int, int], head_dim: int, base: float = 10000.0) -> Tensor:
    """The angles, in radians, by which each position of a grid turns the pairs of a head.

    grid: (h, w), rows and columns. head_dim: K, a multiple of 4.
    Returns (N, K/2) float64, N = h·w. Row r·w + c belongs to the position in row r, column c. With
    the K/4 frequencies f_i = base^(-2i / (K/2)), i = 0 … K/4 - 1, it is

        r·f_0, r·f_1, …, c·f_0, c·f_1, …

    Example: rotary_angles((2, 3), 8, base=100.0). K/2 = 4 angles, K/4 = 2 frequencies:
    f_0 = 100^0 = 1 and f_1 = 100^(-2/4) = 0.1. The last row of the table is the position in row 1,
    column 2: [1·1, 1·0.1, 2·1, 2·0.1] = [1, 0.1, 2, 0.2].

    Minutes: 15
    """
    raise NotImplementedError("rotary_angles: return (N, K/2) angles, row half, then column half")


def rotate(x: Tensor, where: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn every pair of neighbouring features (a, b) to (a·cos - b·sin, b·cos + a·sin).

    x: (B, S, H, K). where: (B, S) long, for each vector the row of the tables it turns by.
    cos, sin: (N + 1, K/2), the same dtype as x; column k turns the pair of features 2k and 2k + 1.
    All heads of a slot turn alike. Row N is the class slot: cos = sin = 0 there.
    Returns a new (B, S, H, K) tensor; x stays as it was.

    Example: K = 4, x = [1, 2, 3, 4], a row with cos = [0, -1] and sin = [1, 0] (a quarter turn, a
    half turn): the pair (1, 2) becomes (1·0 - 2·1, 2·0 + 1·1) = (-2, 1), the pair (3, 4) becomes
    (-3, -4). So [-2, 1, -3, -4].

    Minutes: 20
    """
    raise NotImplementedError("rotate: return x with each pair of neighbours turned by its place")


def query_attention(mask: Tensor, content: Tensor, targets: Tensor, places: Tensor, cos: Tensor,
                    sin: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_out: Tensor,
                    heads: int) -> Tensor:
    """Attention of M questions to S slots, in several heads: the heart of the query pass.

    mask: (D,), the one vector that every question starts as.
    content: (B, S, D), what the slots hold; slot 0 is the class.
    targets: (B, M) long, the row of cos and sin for the place each question asks about.
    places: (B, S) long, the row for the place where each slot is; N for the class.
    cos, sin: (N + 1, K/2), as in `rotate`; row N is zero.
    w_q, w_k, w_v, w_out: (D, D), used like nn.Linear's: x @ w.T, no bias.
    heads: H. Head j has features j·K … (j + 1)·K - 1 of queries, keys and values, K = D / H.

    1. Project: mask to a query (once: it is the same for all targets), content to keys and values.
    2. Turn queries by their targets and keys by their places. Values are not turned.
    3. In each head: scores = query · key / sqrt(K), softmax over the S slots, weighted sum of the
       values. Every question sees every slot, the class included; none sees another question.
    4. Put the heads side by side and project by w_out.
    Returns (B, M, D). You may call your `rotate`.

    Example: H = 1, K = D = 4, all four weights the identity, mask = [2, 0, 0, 0]. Two slots: the
    class with content [8, 0, 0, 0] and, at the target's own place, a token with content
    [ln 3, 0, 0, 0]. The class's key is the zero vector: score 0. The token's score is
    2·ln 3 / sqrt(4) = ln 3. The weights are 1/4 and 3/4, and the answer is
    [8/4 + 3·ln 3 / 4, 0, 0, 0] = [2.824, 0, 0, 0].

    Minutes: 60
    """
    raise NotImplementedError("query_attention: return (B, M, D), one answer for each target")


def check_displacement(score: Callable) -> None:
    """Raise AssertionError unless `score` knows displacements, all of each and nothing else.

    score(query, key, at_query, at_key) is the score, a float, of a query and a key, (8,) float64
    each, that stand at (row, column) places of a 6 × 9 grid. It must hold that

    a. *nothing else*: if query and key both move by the same step, the score stays (to 1e-9);
    b. *all of it*: two different displacements, (rows, columns) from query to key, have different
       scores (by more than 1e-9) for random vectors, the same two vectors for both.

    Return nothing if both hold. Keep every place within rows 0 … 5 and columns 0 … 8; outside,
    `score` raises ValueError. A check may take some seconds.

    Example: for a `score` that ignores both places, claim a holds and b does not: down 1 scores as
    right 1. So check_displacement(lambda query, key, at_query, at_key: float(query @ key)) raises
    AssertionError.

    Minutes: 40
    """
    raise NotImplementedError("check_displacement: assert claims a and b about score")
