"""Properties of the orders for parallel steps, which choose the tokens that share a step."""

import math
from fractions import Fraction
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from arpg_mini.config import FIXED_ORDERS, ORDERS, PARALLEL_ORDERS
from arpg_mini.decoding import decode, decode_sequential, make_plan
from arpg_mini.orders import named_order, parallel_orders, random_orders, step_sizes
from arpg_mini.sampling import Settings
from tests.helpers import tiny_model
from tests.strategies import compositions, for_all, seeds

pytestmark = pytest.mark.equivalence


@st.composite
def schedules(draw) -> tuple[tuple[int, int], list[bool], tuple[int, ...]]:
    """A grid, which of its positions are known, and the sizes of the steps."""
    grid = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)), "grid")
    n = grid[0] * grid[1]
    known = draw(st.sampled_from([[False] * n, None, [True] * n]), "known")
    known = known or draw(st.lists(st.booleans(), min_size=n, max_size=n), "known positions")
    return grid, known, draw(compositions(n - sum(known)), "sizes")


def halton_by_hand(seed: int, grid: tuple[int, int], known: list[bool]) -> list[int]:
    """Visit cells, point by point, until none is left."""
    shift = [Fraction(x) for x in np.random.default_rng([1, seed]).random(2).tolist()]
    order = [p for p, old in enumerate(known) if old]
    for i in count():
        if len(order) == len(known):
            return order
        at = []
        for base, more, few in zip((2, 3), shift, grid):
            left, point, worth = i, Fraction(0), Fraction(1)
            while left:
                left, digit, worth = left // base, left % base, worth / base
                point += digit * worth
            at.append(math.floor((point + more) % 1 * few))
        if (cell := at[0] * grid[1] + at[1]) not in order:
            order.append(cell)


def order_by_hand(name: str, seed: int, grid: tuple[int, int], known: list[bool],
                  sizes: tuple[int, ...]) -> list[int]:
    """One position after another, each the best of all that are free."""
    if name == "halton":
        return halton_by_hand(seed, grid, known)
    cells = [divmod(p, grid[1]) for p in range(len(known))]
    rank = np.random.default_rng([1, seed]).permutation(len(known)).tolist().index
    order = [p for p, old in enumerate(known) if old]

    def away(p: int, others: list[int]) -> float:
        return min((math.dist(cells[p], cells[q]) for q in others), default=math.inf)

    for size in sizes:
        before, own = list(order), []
        for _ in range(size):
            free = [p for p in range(len(known)) if p not in before + own]
            beside = {p for p in free for q in own
                      if max(abs(x - y) for x, y in zip(cells[p], cells[q])) == 1}
            if name == "near":
                best = min(free, key=lambda p: (away(p, before), rank(p)))
            elif name == "apart" or beside == set(free):
                best = min(free, key=lambda p: (-away(p, own), rank(p)))
            else:
                best = min(set(free) - beside, key=lambda p: (away(p, before), rank(p)))
            own.append(best)
        order += own
    return order


@for_all(100, name=st.sampled_from(PARALLEL_ORDERS), plan=schedules(),
         batch=st.lists(seeds, min_size=1, max_size=3))
def test_parallel_orders_are_their_definition(name, plan, batch):
    """Every sample's order is the permutation that its own seed, the sizes, the grid and the known
    positions give, whatever its batch. Equally good positions follow its random order.

    Broken if a position is not the nearest, the farthest or the nearest that is not too close; if
    known positions do not count; if a step sees itself, or does not see the last one.
    """
    grid, known, sizes = plan
    got = parallel_orders(name, batch, grid, sizes, torch.tensor(known))
    for seed, order in zip(batch, got.tolist()):
        right = order_by_hand(name, seed, grid, known, sizes)
        assert sorted(order) == list(range(len(known))), f"{name}: {order} is no permutation"
        assert order == right, f"{name}, seed {seed}: {order}, by definition {right}"


def largest_hole(order: list[int], done: int, grid: tuple[int, int]) -> float:
    """How far the farthest cell is from the first `done` of an order; sides are joined."""
    cells = np.stack(np.divmod(np.arange(grid[0] * grid[1]), grid[1]), axis=1)
    gaps = np.abs(cells[:, None] - cells[order[:done]])
    return np.square(np.minimum(gaps, np.array(grid) - gaps)).sum(2).min(1).max() ** 0.5


@for_all(10, grid=st.sampled_from([(8, 8), (5, 9), (16, 16)]), start=st.integers(0, 2**32))
def test_halton_leaves_smaller_holes_than_chance(grid, start):
    """On average over eight samples, when a half, a third, … an eighth are decoded.

    Broken if the rows or columns of the points are not spread, or if they move together.
    """
    some, n = range(start, start + 8), grid[0] * grid[1]
    even, chance = (np.mean([largest_hole(order, n // share, grid)
                             for order in orders.tolist() for share in range(2, 9)])
                    for orders in (parallel_orders("halton", some, grid, [n]),
                                   random_orders(some, n)))
    assert even < chance, f"{grid}: holes of {even:.2f}, by chance {chance:.2f}"


@for_all(60, name=st.sampled_from(ORDERS), plan=schedules(),
         batch=st.lists(seeds, min_size=1, max_size=3), steps=st.integers(1, 9),
         given=st.booleans())
def test_a_decode_takes_the_order_of_a_name(name, plan, batch, steps, given):
    """A plan has the orders that the name gives for its seeds, grid, steps and known positions.

    Broken if the name is ignored, or if the order is made for other steps or known positions.
    """
    grid, known, sizes = plan
    steps = min(steps, max(1, sum(sizes)))
    how = Settings(orders=name, grid=grid, steps=list(sizes) if given else steps,
                   known=torch.tensor(known).long() - 1)
    sizes = sizes if given else step_sizes(sum(sizes), steps) if sizes else []
    right = (random_orders(batch, len(known)).tolist() if name == "random"
             else [named_order(name, grid).tolist()] * len(batch) if name in FIXED_ORDERS
             else [order_by_hand(name, seed, grid, known, sizes) for seed in batch])
    right = [[p for p in order if not known[p]] for order in right]
    got = make_plan(tiny_model(), [0] * len(batch), batch, how).orders.tolist()
    assert got == right, f"{name}: {got}, by definition {right}"


@for_all(5, name=st.sampled_from(ORDERS), seed=seeds)
def test_both_decoders_take_names(name, seed):
    """Broken if a decoder makes another order of the name."""
    model = tiny_model()
    got, right = (f(model, [0, 1], [seed, seed + 1], steps=4, orders=name).tolist()
                  for f in (decode, decode_sequential))
    assert got == right, f"{name}: {got}, one by one {right}"


def test_a_wrong_name_is_refused_in_one_line():
    with pytest.raises(ValueError, match="^orders 'zigzag': must be one of random, .*, halton$"):
        decode(tiny_model(), [0], [0], orders="zigzag")
