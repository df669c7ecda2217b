"""Properties of step sizes, filters, noise and the inverse CDF, each on its own."""

import math
from itertools import accumulate

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st

from arpg_mini.config import GUIDANCE_SCHEDULES, SCHEDULES
from arpg_mini.decoding import decode
from arpg_mini.orders import random_orders, step_sizes
from arpg_mini.sampling import (
    Settings,
    filter_logits,
    inverse_cdf,
    position_noise,
    sample,
)
from tests.strategies import V, decodes, for_all, permutations, seeds, short, trace

pytestmark = pytest.mark.equivalence


@for_all(200, n=st.integers(1, 300), schedule=st.sampled_from(SCHEDULES), data=st.data())
def test_steps_add_up_and_follow_their_curve(n, schedule, data):
    """The T sizes are one or more and sum to n. After each step, the curve's share of n is left.

    The share is rounded down, but this step and the last get one token at least.
    Broken if a step is empty, the last step does not take all that remains, or the curve is wrong.
    """
    steps = data.draw(st.integers(1, n), label="steps")
    sizes = step_sizes(n, steps, schedule)
    assert len(sizes) == steps and sum(sizes) == n and min(sizes) >= 1, \
        f"{n} tokens in {steps} steps: {sizes}"
    before = n
    for s, size in enumerate(sizes[:-1], start=1):
        share = {"arccos": math.acos(s / steps) / (math.pi / 2), "constant": 1 - s / steps,
                 "cosine": math.cos(math.pi / 2 * s / steps)}[schedule]
        lowest, highest = (max(1, min(before - 1, math.floor(n * share + slack)))
                           for slack in (-1e-9, 1e-9))
        left = before - size
        assert lowest <= left <= highest or schedule == "constant" and left == highest + 1, \
            f"{n} tokens: after step {s} of {steps}, {left} are left, not {highest}"
        before = left


@for_all(case=decodes(), schedule=st.sampled_from(SCHEDULES), data=st.data())
def test_a_schedule_decodes_as_its_sizes(case, schedule, data):
    """A decode in T steps has the sizes that `step_sizes` gives for its unknown positions.

    Broken if known positions are counted too, or the schedule is not passed on.
    """
    assume(case.sizes)
    steps, unknown = data.draw(st.integers(1, sum(case.sizes)), label="T"), sum(case.sizes)
    sizes = step_sizes(unknown, steps, schedule)
    shares = trace(decode, case.model, case.labels, case.seeds,
                   **case.settings | dict(steps=steps, schedule=schedule)).share_done
    expected = [done / unknown for done in accumulate(sizes)]
    assert shares == expected, f"{steps} steps, {schedule}: shares done {shares}, not {expected}"


def slow_filter(row: list[float], temperature: float, top_k: int, top_p: float) -> set[int]:
    """The ids that stay, by definition. Top-k keeps the k largest logits and all that equal the
    smallest of them. Of those, top-p keeps the most likely ids, until their sum reaches p."""
    row = [x / temperature for x in row]
    kth = sorted(row, reverse=True)[min(top_k or len(row), len(row)) - 1]
    row = [x if x >= kth else -math.inf for x in row]
    weights = [math.exp(x - max(row)) for x in row]
    reached, keep = 0.0, set()
    for i in sorted(range(len(row)), key=lambda i: -row[i]):
        if reached < top_p and row[i] > -math.inf:
            keep.add(i)
        reached += weights[i] / sum(weights)
    return keep


@for_all(300, shape=st.lists(st.integers(1, 4), max_size=2), v=st.integers(1, 9), seed=seeds,
         ties=st.booleans(), temperature=st.sampled_from([0.5, 1.0, 2.0]),
         top_k=st.integers(0, 10), top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]))
def test_filters_are_their_slow_definition(shape, v, seed, ties, temperature, top_k, top_p):
    """Ids that stay have logits / temperature, the others -inf. Rows of any shape do not mix.

    Among equally likely ids, top_p may keep any; only their number is defined.
    Broken if top_p cuts the id that crosses p, a filter runs along another axis, the temperature is
    applied at the wrong place, or top_k drops one of two equal logits.
    """
    logits = torch.randn(*shape, v, dtype=torch.float64,
                         generator=torch.Generator().manual_seed(seed))
    logits = logits.round() if ties else logits
    assert torch.equal(filter_logits(logits), logits), "something is filtered by default"
    rows = filter_logits(logits, temperature, top_k, top_p).reshape(-1, v).tolist()
    for given_row, row in zip(logits.reshape(-1, v).tolist(), rows):
        keep, scaled = slow_filter(given_row, temperature, top_k, top_p), []
        scaled = [x / temperature for x in given_row]
        kept = [i for i, x in enumerate(row) if x > -math.inf]
        right = sorted(scaled[i] for i in keep) == sorted(row[i] for i in kept)
        assert right and all(row[i] == scaled[i] for i in kept), \
            (f"logits {short(given_row)}: ids {sorted(keep)} must stay, divided by {temperature}; "
             f"got {short(row)}")


guidances = st.sampled_from([1.0, 2.5, 0.0, 7.0])


@for_all(200, seed=seeds, batch=st.integers(1, 3), m=st.sampled_from([1, 40]),
         share=st.floats(0.01, 1), guidance=guidances,
         schedule=st.sampled_from(GUIDANCE_SCHEDULES),
         temperature=st.sampled_from([1.0, 0.5, 2.0, 0.0]), top_k=st.sampled_from([0, 1, 3]),
         top_p=st.sampled_from([1.0, 0.9, 0.5]), dtype=st.sampled_from([torch.float64,
                                                                       torch.bfloat16]))
def test_sample_is_its_definition(seed, batch, m, share, guidance, schedule, temperature, top_k,
                                  top_p, dtype):
    """Guidance comes first, then temperature, top-k and top-p. The sample is the first id whose
    cumulative probability exceeds the uniform number. All is computed in float32 at least.

    Broken if a setting is ignored, applied twice or applied in another order.
    """
    g, halves = torch.Generator().manual_seed(seed), 1 if guidance == 1 else 2
    logits = 2 * torch.randn(halves * batch, m, V, dtype=torch.float64, generator=g)
    logits = logits.to(dtype)
    noise = torch.rand(batch, m, dtype=torch.float64, generator=g)
    how = Settings(guidance=guidance, guidance_schedule=schedule, top_k=top_k,
                            temperature=temperature, top_p=top_p)
    got = sample(logits, noise, share, how).tolist()
    s = guidance if schedule == "constant" else 1 + (guidance - 1) * share
    for b in range(batch):
        for t in range(m):
            row = logits[b, t].double()
            if halves == 2:
                u = logits[batch + b, t].double()
                row = u + (row - u) * s
            row = row.tolist()
            if len(set(row)) < V and top_p < 1:
                continue                                  # top-p may keep either of two equal ids
            keep = (slow_filter(row, temperature, top_k, top_p) if temperature
                    else {i for i, x in enumerate(row) if x == max(row)})
            weights = [math.exp((x - max(row)) / (temperature or 1)) * (i in keep)
                       for i, x in enumerate(row)]
            sums = list(accumulate(w / sum(weights) for w in weights))
            at = noise[b, t].item()
            assume(min(abs(x - at) for x in sums) > (1e-9 if dtype == torch.float64 else 1e-5))
            expected = next(i for i, x in enumerate(sums) if at < x)
            assert got[b][t] == expected, \
                f"sample {b}, query {t}: id {got[b][t]}, by definition {expected} of {short(sums)}"


@for_all(150, v=st.integers(1, 9), seed=seeds, noise=st.floats(0, 1, exclude_max=True))
def test_temperature_has_its_limits(v, seed, noise):
    """At 0 and near 0, the largest logit always wins. Near infinity, all ids are equally likely."""
    logits = 3 * torch.randn(v, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    largest, at = logits.argmax().item(), torch.tensor(noise, dtype=torch.float64)
    assert inverse_cdf(filter_logits(logits, 0), at).item() == largest, \
        f"temperature 0, logits {short(logits)}, noise {noise:.4g}: not the largest"
    top = logits.topk(min(2, v)).values
    if v == 1 or top[0] - top[1] > 0.01:                  # the others are less likely than e^-100
        at = at.clamp(min=1e-40)
        assert inverse_cdf(filter_logits(logits, 1e-4), at).item() == largest, \
            f"temperature 0.0001, logits {short(logits)}: not the largest"
    hot = filter_logits(logits, 1e9).softmax(-1)
    assert (hot - 1 / v).abs().max() < 1e-6, f"temperature 10^9: {short(hot)}"


@for_all(60, v=st.integers(1, 12), seed=seeds, impossible=st.sets(st.integers(0, 11)))
def test_inverse_cdf_follows_the_distribution(v, seed, impossible):
    """For 1,000 evenly spaced numbers, an id of probability p comes 1,000·p times, within one. At
    the ends of [0, 1) only possible ids come. The test is exact: nothing is left to chance."""
    assume(len([i for i in impossible if i < v]) < v)
    logits = torch.randn(v, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    logits[[i for i in impossible if i < v]] = -math.inf
    lattice = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    counts = torch.bincount(inverse_cdf(logits.expand(1000, v), lattice), minlength=v)
    expected = logits.softmax(-1) * 1000
    assert (counts - expected).abs().max() <= 1 and counts[logits.isinf()].sum() == 0, \
        f"expected {short(expected)}, counted {counts.tolist()}"
    ends = inverse_cdf(logits.expand(2, v), torch.tensor([0, 1 - 2**-53], dtype=torch.float64))
    possible = logits.isfinite().nonzero()[:, 0]
    assert ends.tolist() == [possible[0], possible[-1]], \
        f"noise 0 and almost 1 give ids {ends.tolist()}; possible are {possible.tolist()}"


@for_all(5, seed=seeds)
def test_inverse_cdf_is_precise_at_16384_ids(seed):
    """With 16,384 float32 logits, every boundary between two ids is correct to 3e-8.

    Broken if the sum is computed in float32: after many small probabilities, boundaries shift.
    """
    logits = torch.randn(16384, generator=torch.Generator().manual_seed(seed % 2**32))
    edges = logits.double().softmax(-1).cumsum(-1)[:-1]
    i = torch.arange(0, 16383, 31)
    below = inverse_cdf(logits.expand(len(i), -1), edges[i] - 3e-8)
    above = inverse_cdf(logits.expand(len(i), -1), edges[i] + 3e-8)
    wrong = ((below != i) | (above != i + 1)).sum().item()
    assert not wrong, f"{wrong} of {len(i)} boundaries between ids are off by more than 3e-8"


@for_all(60, v=st.sampled_from([1, 7, 1023, 1024, 1025, 1600, 4099]), seed=seeds,
         share=st.sampled_from([0.0, 0.5, 0.99]), spread=st.sampled_from([0.0, 1.0, 30.0]),
         rows=st.sampled_from([(), (3,), (2, 33)]))
def test_inverse_cdf_agrees_with_one_sum_over_all_ids(v, seed, share, spread, rows):
    """In float64, with impossible ids in any blocks, and with numbers at both ends of [0, 1).

    Broken if rows or blocks are mixed, padding can be drawn, or an impossible id is.
    """
    g = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(*rows, v, dtype=torch.float64, generator=g)
    gone = torch.rand(*rows, v, generator=g) < share
    gone.scatter_(-1, torch.randint(v, (*rows, 1), generator=g), False)     # one is possible
    logits = logits.masked_fill(gone, -math.inf)
    noise = torch.rand(rows, dtype=torch.float64, generator=g)
    noise = torch.where(noise < 0.1, 0.0, torch.where(noise > 0.9, 1 - 2**-53, noise))
    got = inverse_cdf(logits, noise)
    assert got.shape == noise.shape, f"shape {tuple(got.shape)}"
    for row, at, drawn in zip(logits.view(-1, v), noise.flatten().tolist(), got.flatten().tolist()):
        assert drawn < v and row[drawn] > -math.inf, f"id {drawn} of {v} is impossible"
        low, high = ([0.0] + row.softmax(-1).cumsum(-1).tolist())[drawn:drawn + 2]
        assert low - 1e-12 <= at <= high + 1e-12, \
            f"noise {at}: id {drawn}, whose sums go from {low} to {high}"


@for_all(case=decodes(), data=st.data())
def test_noise_belongs_to_seed_and_position(case, data):
    """A position has the same uniform number with other steps, other samples and another order.

    Broken if noise is drawn per step or per batch, or indexed by rank.
    """
    assume(case.sizes)
    run, b = case.run(decode), data.draw(st.integers(0, len(case.labels) - 1), label="sample")
    n = len(case.known)
    alone = case.with_(labels=case.labels[b:b + 1], seeds=case.seeds[b:b + 1],
                       orders=(data.draw(permutations(n), label="another order"),),
                       sizes=(sum(case.sizes),))

    def by_position(trace, case, b):
        return dict(zip(case.unknown_orders[b].tolist(), trace.noise[b].tolist()))

    first, second = by_position(run, case, b), by_position(alone.run(decode), alone, 0)
    wrong = [p for p in first if first[p] != second[p]]
    assert not wrong, \
        f"position {wrong[0]} had {first[wrong[0]]:.4f}, then {second[wrong[0]]:.4f}"
    assert all(0 <= u < 1 for u in first.values()), f"not in [0, 1): {first}"
    if len(first) > 1:
        assert len(set(first.values())) > 1, "every position has the same number"


@for_all(first=seeds, second=seeds | st.integers(0, 40).map(lambda k: 2**k),
         n=st.integers(20, 40))
def test_seeds_have_orders_and_noise_of_their_own(first, second, n):
    """Two seeds have different orders and noise (equal orders by chance: 1/20!, once in 10^18)."""
    assume(first != second)
    orders, noise = random_orders([first, second], n), position_noise([first, second], n)
    assert sorted(orders[0].tolist()) == list(range(n)), f"not a permutation: {orders[0].tolist()}"
    assert not torch.equal(*orders), f"seeds {first} and {second} share an order"
    assert noise.dtype == torch.float64 and (noise * 2**24 % 1 > 0).any(), \
        f"seed {first}: noise of 24 bits or fewer never draws the rarest ids"
    assert not torch.isclose(*noise, rtol=0, atol=1e-9).all(), \
        f"seeds {first} and {second} share their noise"
    ranks = noise[0].argsort()
    assert not torch.equal(ranks, orders[0]) and not torch.equal(ranks.argsort(), orders[0]), \
        f"seed {first}: the order reveals the noise"
