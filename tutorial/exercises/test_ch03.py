"""Grades chapter 3. Each number here is recomputed by loops, one vector at a time."""

import math

import torch
from torch import Tensor

from tutorial.exercises.grading import attempt, expect, fail, judge

CHAPTER = "ch03_attention"


def usual(got, mistakes: dict[str, Tensor], otherwise: str) -> str:
    """The mistake that gives exactly what was got, if it is one of the known ones."""
    for text, wrong in mistakes.items():
        if (isinstance(got, Tensor) and got.shape == wrong.shape
                and torch.allclose(got.double(), wrong.double(), 1e-6, 1e-6)):
            return text
    return otherwise


# --- rotary_angles


def angles(grid, head_dim, base, coordinates=lambda r, c, h, w: (r, c), exponent=2.0, every=False,
           columnwise=False) -> Tensor:
    """(N, K/2), or what a mistake makes of it."""
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
            fail(call, got, right, "h·w rows, one for each position; the class has none here"
                 if got.shape[-1:] == right.shape[-1:] else
                 "K/4 frequencies turn with the row and the same K/4 with the "
                 "column: K/2 angles for each of the h·w positions")
        mistakes = {
            "row and column are swapped: the first half of the angles turns with the row, the "
            "second with the column": angles(*case, lambda r, c, h, w: (c, r)),
            "the raster index was split by the number of rows: row = index // w, column = "
            "index % w": angles(*case, lambda r, c, h, w: divmod(r * w + c, h)),
            "positions are listed column by column: row r·w + c of the result is the place in row "
            "r, column c": angles(*case, columnwise=True),
            "that is one dimension: the flat raster index in place of row and column":
                angles(*case, lambda r, c, h, w: (r * w + c, r * w + c)),
            "base was not used: 10000 is only its default": angles(grid, head_dim, 10000.0),
            "rows and columns are counted from 0": angles(*case, lambda r, c, h, w: (r + 1, c + 1)),
            "the exponent is -2i / K: K/2 is what the frequencies of one axis share":
                angles(*case, exponent=1.0),
            "the exponent is -4i / (K/2): twice what it should be": angles(*case, exponent=4.0),
            "the sign of the exponent: frequencies fall from 1": angles(*case, exponent=-2.0),
            "row and column take turns; all angles of the row come first": angles(*case, every=True)
        }
        expect(call, got, right, usual(got, mistakes, "compare the first row that differs with the "
                                       "formula: angle i is r·f_i, angle K/4 + i is c·f_i"))
        if got.dtype != torch.float64:
            fail(f"{call}.dtype", got.dtype, torch.float64,
                 "angles are computed in float64: torch.arange(…, dtype=torch.float64)")


# --- rotate


def tables(grid=(3, 5), head_dim=8, base=20.0) -> tuple[Tensor, Tensor]:
    """cos and sin, (N + 1, K/2), the class slot's row zero."""
    turns = angles(grid, head_dim, base)
    zero = torch.zeros(1, head_dim // 2, dtype=torch.float64)
    return torch.cat([turns.cos(), zero]), torch.cat([turns.sin(), zero])


def turned(vector: list[float], cos: list[float], sin: list[float], half=False, sign=1,
           stale=False) -> list[float]:
    """One vector, or what a mistake makes of it."""
    out, pairs = list(vector), len(vector) // 2
    for k in range(pairs):
        i, j = (k, k + pairs) if half else (2 * k, 2 * k + 1)
        out[i] = vector[i] * cos[k] - sign * vector[j] * sin[k]
        out[j] = vector[j] * cos[k] + sign * (out[i] if stale else vector[i]) * sin[k]
    return out


def rotated(x: Tensor, where: Tensor, cos: Tensor, sin: Tensor, **mistake) -> Tensor:
    """(B, S, H, K), vector by vector."""
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
                f"of {tuple(cos.shape)}, row 15 the class slot")
        before = x.clone()
        got = attempt(call, lambda: rotate(x, where, cos, sin))
        if not torch.equal(x, before):
            fail(call + ": x afterwards", x, before,
                 "x was written to: build a new tensor, the caller still needs the old one")
        slots = torch.arange(where.shape[1]).expand_as(where)
        is_class = (where == 15)[..., None, None]
        right = rotated(x, where, cos, sin)
        mistakes = {
            "the pairs are neighbours (0, 1), (2, 3), …, not the halves (k, k + K/2)":
                rotated(x, where, cos, sin, half=True),
            "the sign of sin: that turns backwards": rotated(x, where, cos, sin, sign=-1),
            "b is computed from the new a: both need the old values":
                rotated(x, where, cos, sin, stale=True),
            "the pairs were put back as halves: a and b of a pair are neighbours":
                right.unflatten(-1, (4, 2)).transpose(-1, -2).flatten(-2),
            "cos and sin changed places": rotated(x, where, sin, cos),
            "turned by the number of the slot (0, 1, 2, …): where[b, s] says which row of the "
            "tables it is": rotated(x, slots, cos, sin),
            "the class slot came out as it went in: cos = sin = 0 makes it the zero vector":
                torch.where(is_class, x, right),
            "nothing was turned": x,
        }
        expect(call, got, right, usual(
            got, mistakes, "one pair of features at a time: (a, b) -> (a·cos - b·sin, "
            "b·cos + a·sin), with cos[where], sin[where] the same for all heads of a slot"))
        if got.dtype != x.dtype:
            fail(f"{call}.dtype", got.dtype, x.dtype, "the result has the dtype of x")


# --- query_attention


def case(seed: int, batch: int, slots: int, questions: int, heads: int, head_dim: int) -> dict:
    """The arguments of query_attention: weights large enough for uneven attention."""
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
    """(B, M, D) by loops over samples, heads and questions, or what a mistake makes of it."""
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
        f"scaled by sqrt(S) = sqrt({slots}): the scale belongs to the width of a head, not to the "
        "number of slots": dict(scale=slots),
        "scores were not divided by sqrt(K)": dict(scale=1),
        "scores were divided by K: it is sqrt(K)": dict(scale=(dim // arguments["heads"])**2),
        "w_out was forgotten: it projects the heads, put side by side": dict(put_out=False),
        "keys were turned by the number of their slot, not by places": dict(by_slot=True),
        "the class's key was not turned: its row of the tables is zero, and so is its key":
            dict(class_free=True),
        "softmax over the questions: the weights of one question, over its slots, sum to 1":
            dict(over_queries=True),
        "values were turned too: they say what is there, whatever the place":
            dict(turn_values=True),
        "keys were not turned: then the score depends on where the question is, not on how far "
        "the two are apart": dict(turn_keys=False),
        "queries were not turned: all questions are the same": dict(turn_queries=False),
        "queries were turned by their number in the step (0, 1, 2, …), not by targets":
            dict(by_rank=True),
        "the class slot was left out: score 0 is not weight 0, it is exp(0) / sum":
            dict(see_class=False),
        "a causal mask: that is for training, where slot t + 1 holds target t; here every question "
        "sees every slot": dict(causal=True),
        "the features were cut into K groups of H: head j has the K neighbours j·K … (j + 1)·K - 1":
            dict(cut="heads last"),
        "x @ w where nn.Linear does x @ w.T": dict(transpose=False),
        "heads and questions must change places again before (B, M, H, K) becomes (B, M, D)":
            dict(put_back=False),
    }
    for text, mistake in mistakes.items():
        said = usual(got, {text: answered(**arguments, **mistake)}, "")
        if said:
            return said
    alone = attempt("query_attention with the first target alone", lambda: query_attention(
        **arguments | {"targets": arguments["targets"][:, :1]}))
    if not torch.allclose(alone.double(), got[:, :1].double(), 1e-6, 1e-6):
        return ("questions see each other, or (B, M, D) became (B, H, M, K) at one stroke: cut "
                "it into (B, M, H, K), then transpose. What one gets must not change with what "
                "else is asked")
    return ("one step at a time: shapes (B, M, H, K) for queries, (B, S, H, K) for keys and values "
            "before heads and slots change places")


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
    """Only the class is there: it has all the weight, whatever is asked."""
    query_attention = answers("query_attention")
    arguments = case(24, 2, 1, 5, 3, 8)
    call = "query_attention(…) with S = 1: the class alone"
    got = attempt(call, lambda: query_attention(**arguments))
    expect(call, got, answered(**arguments), "with one slot the softmax gives it weight 1, "
           "although its score is 0: every target gets the value of the class")


# --- check_displacement


def place_turn(vector: Tensor, first: float, second: float, base: float = 100.0,
               dtype=torch.float64) -> Tensor:
    """(8,) turned: two pairs by `first`, two by `second`."""
    frequencies = base ** (-torch.tensor([0.0, 0.5], dtype=torch.float64))
    a = torch.cat([first * frequencies, second * frequencies]).to(dtype).double()
    pairs = torch.view_as_complex(vector.view(4, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(a), a)).flatten()


def score_of(turn_query, turn_key):
    """A score from what becomes of a vector at (row, column)."""
    def score(query: Tensor, key: Tensor, at_query: tuple[int, int], at_key: tuple[int, int]):
        for row, column in (at_query, at_key):
            if not (0 <= row < 6 and 0 <= column < 9):
                raise ValueError(f"place ({row}, {column}) is not on the 6 × 9 grid")
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
        ("adds a learned vector for the place to query and key, and turns neither", both(added)),
        ("turns both, but adds a learned vector for the column before", both(column_added)),
        ("turns the key alone", score_of(lambda x, *_: x, place_turn)),
        ("keeps angles in bfloat16",
         both(lambda x, r, c: place_turn(x, r, c, dtype=torch.bfloat16))),
        ("ignores places: it turns values alone", both(lambda x, *_: x)),
        ("turns all pairs by row + column", both(lambda x, r, c: place_turn(x, r + c, r + c))),
        ("knows distances but not directions", by_distance),
        ("turns by the raster index 9·row + column",
         both(lambda x, r, c: place_turn(x, 9 * r + c, 9 * r + c))),
    ])
    # Column first, other frequencies, scaled: right as well.
    judge("check_displacement", check,
          both(lambda x, r, c: place_turn(x, c, r, 10000.0) / 8 ** 0.25), [])
