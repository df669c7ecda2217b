"""Wrong answers of students in chapter 3. Each docstring is part of the grader's message."""

from itertools import product

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutorial.solutions import ch03_attention as solved


def angle_table(first, second, head_dim, base, exponent=2.0):
    """(N, K/2): the `first` and `second` coordinate of each position times K/4 frequencies."""
    i = torch.arange(head_dim // 4, dtype=torch.float64)
    frequencies = base ** (-exponent * i / (head_dim // 2))
    return torch.cat([first[:, None] * frequencies, second[:, None] * frequencies], dim=1)


def rows_and_columns(grid):
    at = torch.arange(grid[0] * grid[1])
    return at // grid[1], at % grid[1]


def rotary_angles__columns_first(grid, head_dim, base=10000.0):
    """row and column are swapped"""
    row, column = rows_and_columns(grid)
    return angle_table(column, row, head_dim, base)


def rotary_angles__index_divided_by_height(grid, head_dim, base=10000.0):
    """divided by the number of rows"""
    at = torch.arange(grid[0] * grid[1])
    return angle_table(at // grid[0], at % grid[0], head_dim, base)


def rotary_angles__raster_index(grid, head_dim, base=10000.0):
    """the flat raster index, instead of row and column"""
    at = torch.arange(grid[0] * grid[1])
    return angle_table(at, at, head_dim, base)


def rotary_angles__one_axis(grid, head_dim, base=10000.0):
    """the same K/4 to the column"""
    i = torch.arange(0, head_dim, 2, dtype=torch.float64)
    return torch.arange(grid[0] * grid[1])[:, None] * base ** (-i / head_dim)[:head_dim // 4]


def rotary_angles__exponent_of_one_axis(grid, head_dim, base=10000.0):
    """the exponent was -2i / K"""
    return angle_table(*rows_and_columns(grid), head_dim, base, exponent=1.0)


def rotary_angles__an_angle_per_feature(grid, head_dim, base=10000.0):
    """K/2 angles for each of the h·w positions"""
    return solved.rotary_angles(grid, 2 * head_dim, base)


def rotary_angles__axes_take_turns(grid, head_dim, base=10000.0):
    """angles of row and column alternate"""
    table = solved.rotary_angles(grid, head_dim, base)
    return table.unflatten(1, (2, -1)).transpose(1, 2).flatten(1)


def rotary_angles__column_by_column(grid, head_dim, base=10000.0):
    """positions are listed column by column"""
    column, row = (x.flatten() for x in torch.meshgrid(
        torch.arange(grid[1]), torch.arange(grid[0]), indexing="ij"))
    return angle_table(row, column, head_dim, base)


def spread(where, cos, sin):
    return cos[where].unsqueeze(2), sin[where].unsqueeze(2)


def rotate__halves(x, where, cos, sin):
    """not the halves (k, k + K/2)"""
    cos, sin = spread(where, cos, sin)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def rotate__backwards(x, where, cos, sin):
    """this rotates backwards"""
    return solved.rotate(x, where, cos, -sin)


def rotate__in_place(x, where, cos, sin):
    """x was overwritten"""
    cos, sin = spread(where, cos, sin)
    x[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
    x[..., 1::2] = x[..., 1::2] * cos + x[..., 0::2] * sin
    return x


def rotate__new_a_in_b(x, where, cos, sin):
    """b is computed from the new a"""
    return rotate__in_place(x.clone(), where, cos, sin)


def rotate__by_the_slot(x, where, cos, sin):
    """rotated by the number of the slot"""
    return solved.rotate(x, torch.arange(x.shape[1]).expand(x.shape[:2]), cos, sin)


def rotate__class_left_as_it_is(x, where, cos, sin):
    """cos = sin = 0 makes it the zero vector"""
    still = torch.cat([cos[:-1], torch.ones_like(cos[:1])])
    return solved.rotate(x, where, still, sin)


def rotate__halves_put_back(x, where, cos, sin):
    """the pairs were put back as halves"""
    cos, sin = spread(where, cos, sin)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attend(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out, heads, *, scale=None,
           over=-1, values_too=False, keys_too=True, queries_too=True, hide=None, meet=False,
           last=False, other_way=False, reshape=False):
    """Query attention, vectorised. Each option is one mistake."""
    batch, many, dim = len(content), targets.shape[1], len(mask)
    width = dim // heads

    def split(x, w):
        x = x @ (w if other_way else w.T)
        if last:
            return x.unflatten(-1, (width, heads)).transpose(-1, -2)
        return x.unflatten(-1, (heads, width))

    q, k, v = split(mask.expand(batch, many, dim), w_q), split(content, w_k), split(content, w_v)
    if queries_too:
        q = solved.rotate(q, targets, cos, sin)
    if keys_too:
        k = solved.rotate(k, places, cos, sin)
    if values_too:
        v = solved.rotate(v, places, cos, sin)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if meet:
        own = split(mask.expand(batch, many, dim), w_v).transpose(1, 2)
        k, v = torch.cat([k, q], dim=2), torch.cat([v, own], dim=2)
    scores = q @ k.transpose(-1, -2) / (scale or width) ** 0.5
    if hide is not None:
        scores = scores.masked_fill(hide, -torch.inf)
    out = scores.softmax(over) @ v
    if reshape:
        out = out.reshape(batch, many, dim)
    else:
        out = out.transpose(1, 2)
        out = out.transpose(-1, -2).flatten(2) if last else out.flatten(2)
    return out @ (w_out if other_way else w_out.T)


def query_attention__scaled_by_width(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out,
                                     heads):
    """scaled by sqrt(D)"""
    return attend(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out, heads,
                  scale=len(mask))


def query_attention__scaled_by_slots(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out,
                                     heads):
    """scaled by sqrt(S)"""
    return attend(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out, heads,
                  scale=content.shape[1])


def query_attention__not_scaled(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out,
                                heads):
    """scores were not divided by sqrt(K)"""
    return attend(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out, heads, scale=1)


def query_attention__softmax_over_queries(mask, content, targets, places, cos, sin, w_q, w_k, w_v,
                                          w_out, heads):
    """softmax was taken over the queries"""
    return attend(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out, heads, over=-2)


def query_attention__values_turned(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out,
                                   heads):
    """values were rotated too"""
    return attend(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out, heads,
                  values_too=True)


def query_attention__keys_not_turned(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out,
                                     heads):
    """keys were not rotated"""
    return attend(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out, heads,
                  keys_too=False)


def query_attention__queries_not_turned(mask, content, targets, places, cos, sin, w_q, w_k, w_v,
                                        w_out, heads):
    """queries were not rotated"""
    return attend(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out, heads,
                  queries_too=False)


def query_attention__by_rank(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out, heads):
    """by their number in the step"""
    rank = torch.arange(targets.shape[1]).expand_as(targets)
    return attend(mask, content, rank, places, cos, sin, w_q, w_k, w_v, w_out, heads)


def query_attention__no_class(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out,
                              heads):
    """a score of 0 is not a weight of 0"""
    hide = torch.arange(content.shape[1]) == 0
    return attend(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out, heads, hide=hide)


def query_attention__causal(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out, heads):
    """a causal mask"""
    hide = torch.ones(targets.shape[1], content.shape[1]).triu(1).bool()
    return attend(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out, heads, hide=hide)


def query_attention__queries_meet(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out,
                                  heads):
    """queries see each other"""
    return attend(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out, heads, meet=True)


def query_attention__features_cut_crosswise(mask, content, targets, places, cos, sin, w_q, w_k, w_v,
                                            w_out, heads):
    """cut into K groups of H"""
    return attend(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out, heads, last=True)


def query_attention__heads_not_put_back(mask, content, targets, places, cos, sin, w_q, w_k, w_v,
                                        w_out, heads):
    """must be transposed to (B, M, H, K)"""
    return attend(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out, heads,
                  reshape=True)


def query_attention__weights_not_transposed(mask, content, targets, places, cos, sin, w_q, w_k, w_v,
                                            w_out, heads):
    """x @ w was computed, but nn.Linear computes x @ w.T"""
    return attend(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out, heads,
                  other_way=True)


def query_attention__unknown_class_weighs_nothing(mask, content, targets, places, cos, sin, w_q,
                                                  w_k, w_v, w_out, heads):
    """with one slot the softmax gives it weight 1"""
    if content.shape[1] == 1:                   # "nothing to read yet"
        return torch.zeros(*targets.shape, len(mask), dtype=mask.dtype)
    return attend(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out, heads)


def two_vectors(seed=3):
    return torch.randn(2, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PLACES = list(product(range(6), range(9)))


def check_displacement__moves_down_only(score):
    """first adds a learned vector for the column, then rotates both"""
    query, key = two_vectors()
    for row, column in product(range(5), range(9)):
        here = score(query, key, (row, column), (2, 4))
        below = score(query, key, (row + 1, column), (3, 4))
        assert abs(here - below) < 1e-9
    check_displacement__looks_from_one_place(score, moves=False)


def check_displacement__shifts_only(score):
    """an implementation that ignores positions"""
    query, key = two_vectors()
    known = {}
    for p, q in product(PLACES, PLACES):
        got = score(query, key, p, q)
        assert abs(got - known.setdefault((q[0] - p[0], q[1] - p[1]), got)) < 1e-9


def check_displacement__looks_from_one_place(score, moves=True):
    """rotates by the raster index"""
    if moves:
        check_displacement__shifts_only(score)
    query, key = two_vectors()
    seen = sorted(score(query, key, (3, 4), at_key) for at_key in PLACES)
    assert all(b - a > 1e-9 for a, b in zip(seen, seen[1:]))


def check_displacement__down_is_not_right(score):
    """knows distances but not directions"""
    check_displacement__shifts_only(score)
    query, key = two_vectors()
    down, right = score(query, key, (0, 0), (1, 0)), score(query, key, (0, 0), (0, 1))
    assert abs(down - right) > 1e-9


def check_displacement__roughly(score):
    """keeps angles in bfloat16"""
    query, key = two_vectors()
    known = {}
    for p, q in product(PLACES, PLACES):
        got = score(query, key, p, q)
        assert abs(got - known.setdefault((q[0] - p[0], q[1] - p[1]), got)) < 0.5


def check_displacement__returns_a_verdict(score):
    """adds a learned vector for the position to query and key"""
    try:
        solved.check_displacement(score)
    except AssertionError:
        return False
    return True


def check_displacement__distance_alone(score):
    """the property asks for more than is true"""
    query, key = two_vectors()
    there, back = score(query, key, (2, 3), (4, 4)), score(query, key, (4, 4), (2, 3))
    assert abs(there - back) < 1e-9


def check_displacement__any_vectors(score):
    """the property asks for more than is true"""
    @settings(derandomize=True, database=None, deadline=None)
    @given(st.lists(st.integers(-1, 1), min_size=8, max_size=8))
    def different(numbers):
        vector = torch.tensor(numbers, dtype=torch.float64)
        assert abs(score(vector, vector, (0, 0), (0, 1)) - score(vector, vector, (0, 0), (1, 0))
                   ) > 1e-9
    different()


def check_displacement__leaves_the_grid(score):
    """ValueError: position (6, 0) is not on the 6 × 9 grid"""
    query, key = two_vectors()
    for row in range(6):
        assert abs(score(query, key, (row, 0), (row, 2)) - score(
            query, key, (row + 1, 0), (row + 1, 2))) < 1e-9


def rotary_angles__float32(grid, head_dim, base=10000.0):
    """compute the angles in float64"""
    return solved.rotary_angles(grid, head_dim, base).float()


def rotary_angles__base_ignored(grid, head_dim, base=10000.0):
    """base was not used"""
    return solved.rotary_angles(grid, head_dim)


def rotate__float32(x, where, cos, sin):
    """the result must have the dtype of x"""
    return solved.rotate(x.float(), where, cos.float(), sin.float())


def query_attention__divided_by_width(mask, content, targets, places, cos, sin, w_q, w_k, w_v,
                                      w_out, heads):
    """scores were divided by K: use sqrt(K)"""
    return attend(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out, heads,
                  scale=(len(mask) // heads)**2)


def query_attention__no_w_out(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out,
                              heads):
    """w_out was forgotten"""
    return attend(mask, content, targets, places, cos, sin, w_q, w_k, w_v,
                  torch.eye(len(mask), dtype=mask.dtype), heads)


def query_attention__keys_by_slot(mask, content, targets, places, cos, sin, w_q, w_k, w_v, w_out,
                                  heads):
    """keys were rotated by the number of their slot"""
    slots = torch.arange(content.shape[1]).expand_as(places)
    return attend(mask, content, targets, slots, cos, sin, w_q, w_k, w_v, w_out, heads)
