"""Grades chapter 3. Loops recompute every number here, one vector at a time."""

import math

import torch
from torch import Tensor

from tutorial.exercises.grading import attempt, expect, fail, judge

CHAPTER = "ch03_attention"


def usual(got, mistakes: dict[str, Tensor], otherwise: str) -> str:
    """Return the known mistake that gives exactly this result, or `otherwise`."""
    for text, wrong in mistakes.items():
        if (isinstance(got, Tensor) and got.shape == wrong.shape
                and torch.allclose(got.double(), wrong.double(), 1e-6, 1e-6)):
            return text
    return otherwise


# --- rotary_angles


def angles(grid, head_dim, base, coordinates=lambda r, c, h, w: (r, c), exponent=2.0, every=False,
           columnwise=False) -> Tensor:
    """Compute the (N, K/2) angles, or the result of a mistake."""
    height, width = grid
    places = [(r, c) for r in range(height) for c in range(width)]
    if columnwise:
        places = [(r, c) for c in range(width) for r in range(height)]
    frequencies = [base ** (-exponent * i / (head_dim // 2)) for i in range(head_dim // 4)]
    rows = []
    for place in places:
        first, second = coordinates(*place, height, width)
        pairs = [(first * f, second * f) for f in frequencies]
        rows.append([x for pair in pairs for x in pair] if every else
                    [a for a, _ in pairs] + [b for _, b in pairs])
    return torch.tensor(rows, dtype=torch.float64)


def test_rotary_angles(answers):
    rotary_angles = answers("rotary_angles")
    for grid, head_dim, base in (((3, 5), 12, 70.0), ((5, 2), 8, 10000.0), ((1, 7), 20, 50.0)):
        call = f"rotary_angles({grid}, {head_dim}, base={base})"
        got = attempt(call, lambda: rotary_angles(grid, head_dim, base=base))
        right, case = angles(grid, head_dim, base), (grid, head_dim, base)
        if isinstance(got, Tensor) and got.shape != right.shape:
            fail(call, got, right, "there are h·w rows, one per position, and none for the class"
                 if got.shape[-1:] == right.shape[-1:] else
                 "K/4 frequencies belong to the row and the same K/4 to the "
                 "column: K/2 angles for each of the h·w positions")
        mistakes = {
            "row and column are swapped: the first half of the angles belongs to the row, "
            "the second to the column": angles(*case, lambda r, c, h, w: (c, r)),
            "the raster index was divided by the number of rows: row = index // w, column = "
            "index % w": angles(*case, lambda r, c, h, w: divmod(r * w + c, h)),
            "positions are listed column by column: row r·w + c of the result must be the position "
            "in row r, column c": angles(*case, columnwise=True),
            "that uses one number, the flat raster index, instead of row and column":
                angles(*case, lambda r, c, h, w: (r * w + c, r * w + c)),
            "base was not used: 10000 is only the default": angles(grid, head_dim, 10000.0),
            "rows and columns start at 0": angles(*case, lambda r, c, h, w: (r + 1, c + 1)),
            "the exponent was -2i / K; it must be -2i / (K/2), because an axis has K/2 features":
                angles(*case, exponent=1.0),
            "the exponent was -4i / (K/2), twice the right one": angles(*case, exponent=4.0),
            "the exponent has the wrong sign: frequencies must fall from 1":
                angles(*case, exponent=-2.0),
            "angles of row and column alternate; the row must come first": angles(*case, every=True)
        }
        expect(call, got, right, usual(got, mistakes, "compare the first row that differs with the "
                                       "formula: angle i is r·f_i, angle K/4 + i is c·f_i"))
        if got.dtype != torch.float64:
            fail(f"{call}.dtype", got.dtype, torch.float64,
                 "compute the angles in float64: torch.arange(…, dtype=torch.float64)")


# --- rotate


def tables(grid=(3, 5), head_dim=8, base=20.0) -> tuple[Tensor, Tensor]:
    """cos and sin, (N + 1, K/2). The row of the class slot is zero."""
    turns = angles(grid, head_dim, base)
    zero = torch.zeros(1, head_dim // 2, dtype=torch.float64)
    return torch.cat([turns.cos(), zero]), torch.cat([turns.sin(), zero])


def turned(vector: list[float], cos: list[float], sin: list[float], half=False, sign=1,
           stale=False) -> list[float]:
    """Rotate one vector, or make a mistake with it."""
    out, pairs = list(vector), len(vector) // 2
    for k in range(pairs):
        i, j = (k, k + pairs) if half else (2 * k, 2 * k + 1)
        out[i] = vector[i] * cos[k] - sign * vector[j] * sin[k]
        out[j] = vector[j] * cos[k] + sign * (out[i] if stale else vector[i]) * sin[k]
    return out


def rotated(x: Tensor, where: Tensor, cos: Tensor, sin: Tensor, **mistake) -> Tensor:
    """Rotate (B, S, H, K), vector by vector."""
    return torch.tensor([[[turned(vector, cos[place].tolist(), sin[place].tolist(), **mistake)
                           for vector in slot] for slot, place in zip(sample, at)]
                         for sample, at in zip(x.tolist(), where.tolist())], dtype=torch.float64)


def test_rotate(answers):
    rotate = answers("rotate")
    cos, sin = tables()
    for seed, heads, where in ((7, 3, [[13, 2, 15, 7], [4, 15, 0, 11]]),
                               (8, 2, [[14], [6], [1]])):
        where = torch.tensor(where)
        x = torch.randn(*where.shape, heads, 8, generator=torch.Generator().manual_seed(seed),
                        dtype=torch.float64)
        call = (f"rotate(x, {where.tolist()}, cos, sin), x of shape {tuple(x.shape)}, cos and sin "
                f"of {tuple(cos.shape)}, row 15 is for the class")
        before = x.clone()
        got = attempt(call, lambda: rotate(x, where, cos, sin))
        if not torch.equal(x, before):
            fail(call + ": x afterwards", x, before,
                 "x was overwritten: make a new tensor, because the caller still needs x")
        slots = torch.arange(where.shape[1]).expand_as(where)
        is_class = (where == 15)[..., None, None]
        right = rotated(x, where, cos, sin)
        mistakes = {
            "the pairs are neighbours (0, 1), (2, 3), …, not the halves (k, k + K/2)":
                rotated(x, where, cos, sin, half=True),
            "sin has the wrong sign: this rotates backwards": rotated(x, where, cos, sin, sign=-1),
            "b is computed from the new a: both need the old values":
                rotated(x, where, cos, sin, stale=True),
            "the pairs were put back as halves: a and b of a pair must be neighbours":
                right.unflatten(-1, (4, 2)).transpose(-1, -2).flatten(-2),
            "cos and sin are swapped": rotated(x, where, sin, cos),
            "rotated by the number of the slot (0, 1, 2, …): where[b, s] says which row of the "
            "tables to use": rotated(x, slots, cos, sin),
            "the class slot was left unchanged: cos = sin = 0 makes it the zero vector":
                torch.where(is_class, x, right),
            "nothing was rotated": x,
        }
        expect(call, got, right, usual(
            got, mistakes, "rotate one pair of features at a time: (a, b) -> (a·cos - b·sin, "
            "b·cos + a·sin). All heads of a slot use the same cos[where] and sin[where]"))
        if got.dtype != x.dtype:
            fail(f"{call}.dtype", got.dtype, x.dtype, "the result must have the dtype of x")


# --- query_attention


def case(seed: int, batch: int, slots: int, questions: int, heads: int, head_dim: int) -> dict:
    """Make arguments of query_attention, with weights large enough for uneven attention."""
    g, dim = torch.Generator().manual_seed(seed), heads * head_dim

    def random(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    cos, sin = tables(head_dim=head_dim)
    orders = torch.stack([torch.randperm(15, generator=g) for _ in range(batch)])
    places = torch.cat([torch.full((batch, 1), 15), orders[:, :slots - 1]], dim=1)
    return dict(mask=random(dim), content=random(batch, slots, dim),
                targets=orders[:, slots - 1:slots - 1 + questions], places=places, cos=cos, sin=sin,
                **{w: random(dim, dim) * (1.5 / dim) ** 0.5
                   for w in ("w_q", "w_k", "w_v", "w_out")}, heads=heads)


def answered(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out, heads,
             scale: float | None = None, turn_keys=True, turn_values=False, turn_queries=True,
             by_rank=False, see_class=True, causal=False, over_queries=False, cut="heads first",
             transpose=True, put_back=True, put_out=True, by_slot=False,
             class_free=False) -> Tensor:
    """Compute (B, M, D) by loops over samples, heads and queries, or the result of a mistake."""
    (batch, slots, dim), many = content.shape, targets.shape[1]
    width = dim // heads
    scale = width if scale is None else scale

    def part(x: Tensor, head: int) -> Tensor:
        return x[head * width:(head + 1) * width] if cut == "heads first" else x[head::heads]

    def turn(x: Tensor, place: Tensor) -> Tensor:
        return torch.tensor(turned(x.tolist(), cos[place].tolist(), sin[place].tolist()),
                            dtype=torch.float64)

    def project(w: Tensor, x: Tensor) -> Tensor:
        return w @ x if transpose else x @ w

    out = torch.zeros(batch, many, dim, dtype=torch.float64)
    for b in range(batch):
        mixed = torch.zeros(many, heads, width, dtype=torch.float64)
        for head in range(heads):
            query = part(project(w_q, mask), head)
            scores, values = torch.zeros(many, slots, dtype=torch.float64), []
            for s in range(slots):
                key, value = (part(project(w, content[b, s]), head) for w in (w_k, w_v))
                if turn_keys and not (class_free and s == 0):
                    key = turn(key, torch.tensor(s) if by_slot else places[b, s])
                values.append(turn(value, places[b, s]) if turn_values else value)
                for m in range(many):
                    place = m if by_rank else targets[b, m]
                    q = turn(query, place) if turn_queries else query
                    seen = (see_class or s > 0) and (not causal or s <= m)
                    scores[m, s] = q @ key / math.sqrt(scale) if seen else -math.inf
            weights = scores.softmax(0 if over_queries else 1)
            for m in range(many):
                mixed[m, head] = sum(w * v for w, v in zip(weights[m], values))
        if cut != "heads first":
            mixed = mixed.transpose(1, 2)
        if not put_back:
            mixed = mixed.transpose(0, 1)
        for m, one in enumerate(mixed.reshape(many, dim)):
            out[b, m] = project(w_out, one) if put_out else one
    return out


def explain(got, arguments: dict, query_attention) -> str:
    slots, dim = arguments["content"].shape[1:]
    mistakes = {
        f"scaled by sqrt(D) = sqrt({dim}): a head's dot product has only K = D / H terms":
            dict(scale=dim),
        f"scaled by sqrt(S) = sqrt({slots}): the scale depends on the width of a head, not on the "
        "number of slots": dict(scale=slots),
        "scores were not divided by sqrt(K)": dict(scale=1),
        "scores were divided by K: use sqrt(K)": dict(scale=(dim // arguments["heads"])**2),
        "w_out was forgotten: it projects the joined heads": dict(put_out=False),
        "keys were rotated by the number of their slot, not by places": dict(by_slot=True),
        "the class key was not rotated: its row of the tables is zero, so the key becomes zero":
            dict(class_free=True),
        "softmax was taken over the queries: the weights of one query must sum to 1":
            dict(over_queries=True),
        "values were rotated too: they say what is there, at any position":
            dict(turn_values=True),
        "keys were not rotated: then the score depends on the position of the query, not on the "
        "displacement": dict(turn_keys=False),
        "queries were not rotated: all queries are the same": dict(turn_queries=False),
        "queries were rotated by their number in the step (0, 1, 2, …), not by targets":
            dict(by_rank=True),
        "the class slot was left out: a score of 0 is not a weight of 0, but exp(0) / sum":
            dict(see_class=False),
        "a causal mask was used: it is for training, where slot t + 1 holds target t; here every "
        "query sees every slot": dict(causal=True),
        "the features were cut into K groups of H: head j has features j·K … (j + 1)·K - 1":
            dict(cut="heads last"),
        "x @ w was computed, but nn.Linear computes x @ w.T": dict(transpose=False),
        "(B, H, M, K) must be transposed to (B, M, H, K) before it becomes (B, M, D)":
            dict(put_back=False),
    }
    for text, mistake in mistakes.items():
        said = usual(got, {text: answered(**arguments, **mistake)}, "")
        if said:
            return said
    alone = attempt("query_attention with the first target alone", lambda: query_attention(
        **arguments | {"targets": arguments["targets"][:, :1]}))
    if not torch.allclose(alone.double(), got[:, :1].double(), 1e-6, 1e-6):
        return ("queries see each other, or (B, M, D) was reshaped to (B, H, M, K) in one step: "
                "split it into (B, M, H, K), then transpose. The answer to one query must not "
                "depend on the other queries")
    return ("check one step at a time: queries have shape (B, M, H, K), keys and values have shape "
            "(B, S, H, K), until heads and slots are transposed")


SIZES = ((21, 2, 7, 4, 2, 12), (22, 3, 5, 6, 3, 4), (23, 1, 9, 2, 5, 8))


def test_query_attention(answers):
    query_attention = answers("query_attention")
    for sizes in SIZES:
        arguments = case(*sizes)
        _, batch, slots, questions, heads, width = sizes
        call = (f"query_attention(…) with B = {batch}, S = {slots}, M = {questions}, H = {heads}, "
                f"K = {width}, targets = {arguments['targets'].tolist()}")
        got = attempt(call, lambda: query_attention(**arguments))
        right = answered(**arguments)
        if isinstance(got, Tensor) and got.shape != right.shape:
            fail(call, got, right, "one answer of width D for each target")
        known = not isinstance(got, Tensor) or torch.allclose(got.double(), right, 1e-6, 1e-6)
        expect(call, got, right, "" if known else explain(got, arguments, query_attention))


def test_query_attention__first_step(answers):
    """If the class is the only slot, it has all the weight, for every target."""
    query_attention = answers("query_attention")
    arguments = case(24, 2, 1, 5, 3, 8)
    call = "query_attention(…) with S = 1: the class alone"
    got = attempt(call, lambda: query_attention(**arguments))
    expect(call, got, answered(**arguments), "with one slot the softmax gives it weight 1, "
           "although its score is 0: every target gets the value of the class")


# --- check_displacement


def place_turn(vector: Tensor, first: float, second: float, base: float = 100.0,
               dtype=torch.float64) -> Tensor:
    """Rotate a vector (8,): two pairs by `first`, two by `second`."""
    frequencies = base ** (-torch.tensor([0.0, 0.5], dtype=torch.float64))
    a = torch.cat([first * frequencies, second * frequencies]).to(dtype).double()
    pairs = torch.view_as_complex(vector.view(4, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(a), a)).flatten()


def score_of(turn_query, turn_key):
    """Make a score from functions that put a position (row, column) into a vector."""
    def score(query: Tensor, key: Tensor, at_query: tuple[int, int], at_key: tuple[int, int]):
        for row, column in (at_query, at_key):
            if not (0 <= row < 6 and 0 <= column < 9):
                raise ValueError(f"position ({row}, {column}) is not on the 6 × 9 grid")
        return float(turn_query(query, *at_query) @ turn_key(key, *at_key))
    return score


def both(turn):
    return score_of(turn, turn)


def added(vector: Tensor, row: int, column: int) -> Tensor:
    learned = torch.randn(54, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return vector + learned[9 * row + column]


def column_added(vector: Tensor, row: int, column: int) -> Tensor:
    return place_turn(added(vector, 0, column), row, column)


def by_distance(query: Tensor, key: Tensor, at_query, at_key) -> float:
    rows, columns = abs(at_key[0] - at_query[0]), abs(at_key[1] - at_query[1])
    return both(place_turn)(query, key, (0, 0), (rows, columns))


def test_check_displacement(answers):
    check = answers("check_displacement")
    judge("check_displacement", check, both(place_turn), [
        ("adds a learned vector for the position to query and key, rotates neither", both(added)),
        ("first adds a learned vector for the column, then rotates both", both(column_added)),
        ("rotates only the key", score_of(lambda x, *_: x, place_turn)),
        ("keeps angles in bfloat16",
         both(lambda x, r, c: place_turn(x, r, c, dtype=torch.bfloat16))),
        ("ignores positions and rotates only values", both(lambda x, *_: x)),
        ("rotates all pairs by row + column", both(lambda x, r, c: place_turn(x, r + c, r + c))),
        ("knows distances but not directions", by_distance),
        ("rotates by the raster index 9·row + column",
         both(lambda x, r, c: place_turn(x, 9 * r + c, 9 * r + c))),
    ])
    # With the column first, other frequencies and a scale, it is right as well.
    judge("check_displacement", check,
          both(lambda x, r, c: place_turn(x, c, r, 10000.0) / 8 ** 0.25), [])
