"""Parallel equals sequential, and the parts of a decode each against a slow definition."""

import math

import numpy as np
import pytest
import torch
from helpers import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from arpg_mini.decoding import (
    decode,
    decode_sequential,
    decode_steps,
    filter_logits,
    guide,
    inverse_cdf,
    named_order,
    position_noise,
    random_orders,
    step_sizes,
)

grids = st.tuples(st.integers(1, 4), st.integers(1, 5)).filter(lambda g: g[0] * g[1] > 1)
seeds = st.integers(0, 2**32)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), grid=grids, seed=seeds, within=st.sampled_from(["block", "causal"]),
       guidance=st.sampled_from([1.0, 2.5]),
       guidance_schedule=st.sampled_from(["linear", "constant"]),
       schedule=st.sampled_from(["arccos", "cosine", "constant"]))
def test_decode_equals_decode_sequential(data, grid, seed, within, guidance, guidance_schedule,
                                         schedule):
    """Broken if the cache, the masks, the order of anything or the guidance differ from the
    definition."""
    model = tiny_model(grid=grid)
    n = grid[0] * grid[1]
    known = torch.tensor(
        data.draw(st.lists(st.sampled_from([-1, -1, 0, 4, 10]), min_size=n, max_size=n)))
    unknown = max(1, int((known < 0).sum()))
    arguments = dict(labels=[0, model.null_label], seeds=[seed, seed + 1], known=known,
                     within_step=within, steps=data.draw(st.integers(1, unknown)),
                     schedule=schedule, guidance=guidance, guidance_schedule=guidance_schedule,
                     temperature=0.8, top_p=0.95)
    fast, slow = decode(model, **arguments), decode_sequential(model, **arguments)
    assert torch.equal(fast, slow), f"grid {grid}, known {known.tolist()}:\n{fast}\n{slow}"
    assert (fast[:, known >= 0] == known[known >= 0]).all() and (fast >= 0).all()


def teacher_forced_logits_by_cache(model, tokens, labels, orders):
    """One token a step through the decoder, made to draw `tokens`; returns the logits it drew
    from."""
    seen = []
    hook = model.head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    noise = {"next": 0}

    def forced(logits, noise_row, share, how):
        t = noise["next"]
        noise["next"] += 1
        return tokens.gather(1, orders[:, t:t + 1])

    import arpg_mini.decoding as module
    original, module.sample = module.sample, forced
    try:
        decode(model, labels, [0] * len(labels), steps=tokens.shape[1], orders=orders, guidance=1)
    finally:
        module.sample = original
        hook.remove()
    return torch.cat(seen, dim=1)


@settings(max_examples=15, deadline=None)
@given(grid=grids, seed=seeds, layers=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_one_token_a_step_gives_the_training_logits(grid, seed, layers):
    """Broken if decoding computes anything else than what training taught."""
    model = tiny_model(grid=grid, content_layers=layers[0], query_layers=layers[1], dropout=0.0)
    n = grid[0] * grid[1]
    tokens = torch.randint(11, (2, n), generator=torch.Generator().manual_seed(seed))
    orders, labels = random_orders([seed, seed + 1], n), torch.tensor([2, model.null_label])
    by_cache = teacher_forced_logits_by_cache(model, tokens, labels, orders)
    torch.testing.assert_close(by_cache, model(tokens, labels, orders), rtol=1e-9, atol=1e-9)


def test_a_sample_does_not_depend_on_its_batch():
    """Broken if noise or order are drawn per batch or per step: sample 7 alone is sample 7 among
    others."""
    model = tiny_model()
    together = decode(model, [0, 1, 2, 0], [5, 6, 7, 8], steps=4)
    assert torch.equal(decode(model, [2], [7], steps=4)[0], together[2])
    assert torch.equal(decode(model, [0, 2, 0, 1], [8, 7, 5, 6], steps=4), together[[3, 2, 0, 1]])


def test_noise_belongs_to_seed_and_position():
    assert torch.equal(position_noise([3, 9], 10)[1], position_noise([9], 10)[0])
    assert not torch.equal(position_noise([3], 10), position_noise([4], 10))
    assert not torch.equal(random_orders([3], 10), random_orders([4], 10))


def test_guidance_one_is_the_conditional_model_and_the_null_label_the_unconditional():
    """`guide` at 1 returns the conditional half; decoding the null label with any guidance ignores
    it."""
    logits = torch.randn(4, 3, 5)
    for schedule in ("linear", "constant"):
        torch.testing.assert_close(guide(logits, 1.0, schedule, 0.3), logits[:2])
    torch.testing.assert_close(guide(logits, 3.0, "constant", 0.3),
                               logits[2:] + 3 * (logits[:2] - logits[2:]))
    torch.testing.assert_close(guide(logits, 3.0, "linear", 0.25),
                               logits[2:] + 1.5 * (logits[:2] - logits[2:]))
    model = tiny_model()
    null = [model.null_label] * 2
    assert torch.equal(decode(model, null, [1, 2], steps=5, guidance=7.0),
                       decode(model, null, [1, 2], steps=5, guidance=1))


@given(n=st.integers(1, 300), data=st.data(),
       schedule=st.sampled_from(["arccos", "cosine", "constant"]))
def test_step_sizes_add_up_and_none_is_empty(n, data, schedule):
    steps = data.draw(st.integers(1, n))
    sizes = step_sizes(n, steps, schedule)
    assert len(sizes) == steps and sum(sizes) == n and min(sizes) >= 1
    if schedule == "constant":
        assert max(sizes) - min(sizes) <= 1


def test_more_steps_than_tokens_are_refused():
    with pytest.raises(ValueError, match="steps 17: with 16 tokens"):
        step_sizes(16, 17)


def slow_filter(logits, temperature, top_k, top_p):
    """The definition, one row at a time: sort, keep k (and equals of the k-th), keep up to p."""
    out = []
    for row in logits.reshape(-1, logits.shape[-1]).tolist():
        row = [x / temperature for x in row]
        if top_k:
            kth = sorted(row, reverse=True)[min(top_k, len(row)) - 1]
            row = [x if x >= kth else -math.inf for x in row]
        weights = [math.exp(x - max(row)) for x in row]
        total, reached, keep = sum(weights), 0.0, set()
        for i in sorted(range(len(row)), key=lambda i: -row[i]):
            if reached < top_p:
                keep.add(i)
            reached += weights[i] / total
        out.append([x if i in keep else -math.inf for i, x in enumerate(row)])
    return torch.tensor(out, dtype=logits.dtype).view(logits.shape)


@settings(deadline=None)
@given(shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(2, 9)), seed=seeds,
       temperature=st.sampled_from([0.5, 1.0, 2.0]), top_k=st.integers(0, 10),
       top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]))
def test_filters_are_their_slow_definition(shape, seed, temperature, top_k, top_p):
    logits = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    fast, slow = (filter_logits(logits, temperature, top_k, top_p),
                  slow_filter(logits, temperature, top_k, top_p))
    assert torch.equal(fast.isinf(), slow.isinf())
    torch.testing.assert_close(fast, slow)


def test_temperature_zero_is_the_largest_logit():
    logits = torch.randn(50, 13)
    noise = torch.rand(50, dtype=torch.float64)
    assert torch.equal(inverse_cdf(filter_logits(logits, temperature=0), noise), logits.argmax(-1))


def test_inverse_cdf_follows_the_distribution():
    """On an even lattice of 10,000 uniform numbers each id comes within one of 10,000 times its
    share, at V = 16384 too; at the very ends of [0, 1) it stays on possible ids. Exact: no odds of
    a false alarm."""
    lattice = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    for v in (2, 7, 16384):
        logits = torch.randn(v, generator=torch.Generator().manual_seed(v))
        logits[v // 2] = -torch.inf
        ids = inverse_cdf(logits.expand(10_000, v) if v < 100 else logits.expand(10_000, v),
                          lattice)
        expected = logits.double().softmax(-1) * 10_000
        assert (torch.bincount(ids, minlength=v) - expected).abs().max() <= 1
        ends = inverse_cdf(logits.expand(2, v),
                           torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))
        assert (logits[ends].isfinite().all() and ends[0] == 0
                and ends[1] == v - (2 if v == 2 else 1))


def test_drawn_tokens_follow_the_models_own_distribution():
    """Over 4,000 seeds the first drawn id's counts pass a chi-squared test whose threshold a true
    sampler exceeds once in a million runs (10 degrees of freedom: 48); the seeds are fixed, so
    never here."""
    model = tiny_model(grid=(1, 2), seed=1)
    with torch.no_grad():
        logits = model(torch.zeros(1, 2, dtype=torch.long), torch.tensor([1]),
                       torch.tensor([[0, 1]]))[0, 0]
    expected = (logits / 2).softmax(-1) * 4000
    ids = decode(model, [1] * 4000, range(4000), steps=2, guidance=1, temperature=2.0,
                 orders=torch.tensor([0, 1]))
    counts = torch.bincount(ids[:, 0], minlength=11)
    assert ((counts - expected).square() / expected).sum() < 48


def test_streaming_decodes_every_position_once_and_ends_as_decode_does():
    model = tiny_model()
    before = torch.full((2, 15), -1)
    for ids in decode_steps(model, [0, 1], [3, 4], steps=6):
        assert ((ids[before >= 0] == before[before >= 0]).all()
                and (ids >= 0).sum() > (before >= 0).sum())
        before = ids.clone()
    assert torch.equal(before, decode(model, [0, 1], [3, 4], steps=6))


def test_decoding_ignores_the_training_mode_and_leaves_it_alone():
    model = tiny_model(dropout=0.5)
    quiet = decode(model.eval(), [0], [1], steps=5)
    assert torch.equal(decode(model.train(), [0], [1], steps=5), quiet) and model.training
    stream = decode_steps(model, [0], [1], steps=5)
    next(stream)
    stream.close()
    assert model.training and torch.equal(decode(model, [0], [1], steps=5), quiet)


def test_float32_and_bfloat16_decode():
    for dtype in (torch.float32, torch.bfloat16):
        ids = decode(tiny_model(dtype), [0, 1], [1, 2], steps=5, guidance=3.0)
        assert ids.shape == (2, 15) and 0 <= ids.min() and ids.max() < 11


def test_named_orders_are_permutations_that_do_what_they_say():
    for name in ("raster", "column", "spiral", "outward", "checkerboard"):
        for grid in ((1, 1), (3, 4), (5, 2), (6, 6)):
            assert sorted(named_order(name, grid).tolist()) == list(range(grid[0] * grid[1]))
    assert named_order("spiral", (3, 4)).tolist() == [0, 1, 2, 3, 7, 11, 10, 9, 8, 4, 5, 6]
    assert named_order("column", (2, 3)).tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize("wrong", [
    dict(seeds=[1]), dict(labels=[0, 4]), dict(labels=[-1, 0]), dict(schedule="linear"),
    dict(top_p=0.0), dict(top_k=-1), dict(temperature=-1.0), dict(within_step="none"),
    dict(guidance_schedule="arccos"), dict(steps=0), dict(steps=16),
    dict(orders=torch.zeros(15, dtype=torch.long)), dict(known=torch.tensor([11] + [-1] * 14)),
    dict(known=torch.tensor([[1] + [-1] * 14, [-1] * 15]))])
def test_arguments_that_cannot_be_are_named(wrong):
    arguments = dict(labels=[0, 1], seeds=[1, 2], steps=3) | wrong
    with pytest.raises(ValueError, match=next(iter(wrong)).replace("_", ".")[:5]):
        decode(tiny_model(), **arguments)


def test_order_noise_and_positions_use_separate_streams():
    """Broken if order and noise came from one stream: then a sample's order would tell its
    noise."""
    order, noise = random_orders([0], 1000)[0].double(), position_noise([0], 1000)[0]
    assert abs(np.corrcoef(order, noise)[0, 1]) < 0.17          # 5 standard deviations
