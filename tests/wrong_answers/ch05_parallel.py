"""Wrong answers of chapter 5: `tests/test_exercises.py` says what they are for."""

import math

import torch
from torch.nn import functional as F

from arpg_mini import ARPG, ModelConfig
from arpg_mini.attention import rotate
from arpg_mini.decoding import decode_sequential
from arpg_mini.orders import random_orders
from tutorial.solutions import ch05_parallel as right


def step_sizes__rounds_each(n, steps):
    """rounding each size by itself loses or adds tokens"""
    share = [math.acos(s / steps) / (math.pi / 2) for s in range(steps + 1)]
    return [max(1, int(n * (a - b))) for a, b in zip(share, share[1:])]


def step_sizes__empty_steps(n, steps):
    """a step has no token"""
    if not 1 <= steps <= n:
        raise ValueError
    left = [n] + [int(n * math.acos(s / steps) / (math.pi / 2)) for s in range(1, steps + 1)]
    return [a - b for a, b in zip(left, left[1:])]


def step_sizes__counts_steps_from_zero(n, steps):
    """after step s = 1, 2, … the number of tokens left is"""
    sizes, done = [], 0
    for s in range(steps - 1):
        left = max(1, min(n - done - 1, int(n * math.acos(s / steps) / (math.pi / 2))))
        sizes.append(n - done - left)
        done += sizes[-1]
    return sizes + [n - done]


def step_sizes__reversed(n, steps):
    """the first steps must be small"""
    return right.step_sizes(n, steps)[::-1]


def step_sizes__cosine(n, steps):
    """this is the cosine schedule"""
    sizes, done = [], 0
    for s in range(1, steps):
        left = max(1, min(n - done - 1, int(n * math.cos(math.pi / 2 * s / steps))))
        sizes.append(n - done - left)
        done += sizes[-1]
    return sizes + [n - done]


def step_sizes__forgets_half_pi(n, steps):
    """rounded down"""
    sizes, done = [], 0
    for s in range(1, steps):
        left = max(1, min(n - done - 1, int(n * math.acos(s / steps))))
        sizes.append(n - done - left)
        done += sizes[-1]
    return sizes + [n - done]


def step_sizes__returns_what_is_left(n, steps):
    """the sizes are their differences"""
    return [int(n * math.acos(s / steps) / (math.pi / 2)) for s in range(1, steps + 1)]


def step_sizes__raises_sizes_afterwards(n, steps):
    """raising a size to 1 afterwards does it too"""
    left = [n] + [int(n * math.acos(s / steps) / (math.pi / 2)) for s in range(1, steps + 1)]
    return [max(1, a - b) for a, b in zip(left, left[1:])]


def step_sizes__accepts_anything(n, steps):
    """more steps than tokens, or no steps, are impossible: raise ValueError"""
    return right.step_sizes(n, steps) if 1 <= steps <= n else [1] * n


def draw__argmax(logits, noise):
    """it depends on the number"""
    return logits.argmax(-1)


def draw__fresh_noise(logits, noise):
    """it depends on the number, and on nothing else that is random"""
    probabilities = logits.softmax(-1).view(-1, logits.shape[-1])
    generator = torch.Generator().manual_seed(2)
    return torch.multinomial(probabilities, 1, generator=generator).view(noise.shape)


def draw__sums_over_the_first_axis(logits, noise):
    """cumsum run over the last axis"""
    cdf = logits.double().softmax(-1).cumsum(0)
    return torch.searchsorted(cdf, noise[..., None], right=True)[..., 0].clamp(
        max=logits.shape[-1] - 1)


def draw__left_side(logits, noise):
    """an id of probability zero was drawn, or an id on the wrong side of a boundary"""
    cdf = logits.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(cdf, noise.double()[..., None])[..., 0]


def draw__float32(logits, noise):
    """rounding ends the running sum a little below 1"""
    cdf = logits.float().softmax(-1).cumsum(-1)
    return torch.searchsorted(cdf, noise.float()[..., None], right=True)[..., 0]


def ends_where_the_sum_does(cdf, noise):
    ids = torch.searchsorted(cdf, noise.to(cdf.dtype)[..., None], right=True)[..., 0]
    return torch.minimum(ids, (cdf == cdf[..., -1:]).int().argmax(-1))


def draw__float32_but_for_the_end(logits, noise):
    """softmax and sums must be in float64"""
    return ends_where_the_sum_does(logits.float().softmax(-1).cumsum(-1), noise)


def draw__softmax_in_float32(logits, noise):
    """softmax and sums must be in float64"""
    return ends_where_the_sum_does(logits.softmax(-1).double().cumsum(-1), noise)


def draw__keeps_an_axis(logits, noise):
    """a tensor with the shape of noise"""
    cdf = logits.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(cdf, noise[..., None], right=True)


def draw__clamps_to_the_last_id(logits, noise):
    """must draw the last id whose probability is not zero"""
    cdf = logits.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(cdf, noise.double()[..., None], right=True)[..., 0].clamp(
        max=logits.shape[-1] - 1)


def attend(q, keys, values, mask=None, **how):
    return F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=mask,
                                          **how).transpose(1, 2)


def write(pair, start, k, v):
    end = start + k.shape[1]
    pair[0, :, :, start:end], pair[1, :, :, start:end] = k.transpose(1, 2), v.transpose(1, 2)
    return pair[0, :, :, :end], pair[1, :, :, :end]


def see(s, end, length, within_step):
    return torch.ones(s, end, dtype=torch.bool).tril(length if within_step == "causal" else end)


def cached_attention__overwrites_the_newest_slot(pair, length, q, k, v, rotary,
                                                 within_step="block"):
    """length counts the filled slots, so it is the first free one"""
    start = max(length - 1, 0)
    keys, values = write(pair, start, rotate(k, rotary), v)
    return attend(rotate(q, rotary), keys, values,
                  see(q.shape[1], keys.shape[2], start, within_step))


def cached_attention__skips_a_slot(pair, length, q, k, v, rotary, within_step="block"):
    """slots after the new ones were written"""
    keys, values = write(pair, length + 1, rotate(k, rotary), v)
    return attend(rotate(q, rotary), keys, values,
                  see(q.shape[1], keys.shape[2], length + 1, within_step))


def cached_attention__concatenates(pair, length, q, k, v, rotary, within_step="block"):
    """nothing was written into the memory"""
    new = torch.stack([rotate(k, rotary).transpose(1, 2), v.transpose(1, 2)])
    keys, values = torch.cat([pair[:, :, :, :length], new], 3)
    return attend(rotate(q, rotary), keys, values,
                  see(q.shape[1], keys.shape[2], length, within_step))


def cached_attention__attends_to_all_memory(pair, length, q, k, v, rotary, within_step="block"):
    """it attends to slots that were never written"""
    write(pair, length, rotate(k, rotary), v)
    mask = torch.ones(q.shape[1], pair.shape[3], dtype=torch.bool)
    return attend(rotate(q, rotary), *pair, mask.tril(length) if within_step == "causal" else mask)


def cached_attention__rotates_cached_keys_by_the_new_place(pair, length, q, k, v, rotary,
                                                           within_step="block"):
    """the keys are stored unrotated"""
    keys, values = write(pair, length, k, v)
    keys = rotate(keys.transpose(1, 2), rotary[:, -1:]).transpose(1, 2)
    return attend(rotate(q, rotary), keys, values,
                  see(q.shape[1], keys.shape[2], length, within_step))


def cached_attention__rotates_twice(pair, length, q, k, v, rotary, within_step="block"):
    """must not be rotated again"""
    keys, values = write(pair, length, rotate(k, rotary), v)
    keys = rotate(keys.transpose(1, 2), rotary[:, -1:]).transpose(1, 2)
    return attend(rotate(q, rotary), keys, values,
                  see(q.shape[1], keys.shape[2], length, within_step))


def cached_attention__halves_share_a_cache(pair, length, q, k, v, rotary, within_step="block"):
    """rows of the batch share the keys and values of one row"""
    keys, values = write(pair, length, rotate(k, rotary)[:1].expand_as(k), v[:1].expand_as(v))
    return attend(rotate(q, rotary), keys, values,
                  see(q.shape[1], keys.shape[2], length, within_step))


def cached_attention__reshapes_heads(pair, length, q, k, v, rotary, within_step="block"):
    """not by a reshape"""
    batch, s, heads, width = q.shape
    end = length + s
    pair[0, :, :, length:end] = rotate(k, rotary).reshape(batch, heads, s, width)
    pair[1, :, :, length:end] = v.reshape(batch, heads, s, width)
    return attend(rotate(q, rotary), *pair[:, :, :, :end], see(s, end, length, within_step))


def cached_attention__is_causal(pair, length, q, k, v, rotary, within_step="block"):
    """is_causal=True aligns rows and columns at the top left"""
    keys, values = write(pair, length, rotate(k, rotary), v)
    return attend(rotate(q, rotary), keys, values, is_causal=within_step == "causal")


def cached_attention__mask_a_column_short(pair, length, q, k, v, rotary, within_step="block"):
    """the causal mask is off by one column"""
    keys, values = write(pair, length, rotate(k, rotary), v)
    return attend(rotate(q, rotary), keys, values,
                  see(q.shape[1], keys.shape[2], length - 1, within_step))


def cached_attention__reshapes_the_result(pair, length, q, k, v, rotary, within_step="block"):
    """by transpose(1, 2), not by a reshape"""
    x = right.cached_attention(pair, length, q, k, v, rotary, within_step)
    return x.transpose(1, 2).reshape(q.shape)


def cached_attention__forgets_the_scale(pair, length, q, k, v, rotary, within_step="block"):
    """the scores are not divided by sqrt(K)"""
    return right.cached_attention(pair, length, q * q.shape[-1] ** 0.5, k, v, rotary, within_step)


def cached_attention__first_rows_rotary(pair, length, q, k, v, rotary, within_step="block"):
    """every row has its own `rotary`"""
    keys, values = write(pair, length, rotate(k, rotary), v)
    return attend(rotate(q, rotary[:1].expand_as(rotary)), keys, values,
                  see(q.shape[1], keys.shape[2], length, within_step))


def cached_attention__always_block(pair, length, q, k, v, rotary, within_step="block"):
    """a new token saw later new tokens"""
    return right.cached_attention(pair, length, q, k, v, rotary, "block")


def cached_attention__always_causal(pair, length, q, k, v, rotary, within_step="block"):
    """a new token must also see later new tokens"""
    return right.cached_attention(pair, length, q, k, v, rotary, "causal")


def cached_attention__reads_before_it_writes(pair, length, q, k, v, rotary, within_step="block"):
    """they must see themselves, too"""
    keys, values = write(pair, length, rotate(k, rotary), v)
    seen = max(length, 1)
    return attend(rotate(q, rotary), keys[:, :, :seen], values[:, :, :seen])


def equal_everywhere(decode, sizes, withins=("block", "causal"), guidances=(1.0, 3.0),
                     orders=None, batch=2, lively=True):
    """The property, over the given cases. Each wrong answer leaves some cases out."""
    grid = (2, 3)
    torch.manual_seed(1)
    fresh = ARPG(ModelConfig(dim=16, content_layers=1, query_layers=1, heads=2, vocab_size=13,
                             num_classes=3, grid=grid)).double()
    model = right.lively_model(grid) if lively else fresh
    for seed in range(4):
        for within in withins:
            for guidance in guidances:
                how = dict(steps=sizes, within_step=within, guidance=guidance,
                           orders=random_orders(range(seed + 9, seed + 9 + batch), 6)
                           if orders is None else orders)
                labels, seeds = torch.arange(batch) % 3, range(seed, seed + batch)
                assert torch.equal(decode(model, labels, seeds, **how),
                                   decode_sequential(model, labels, seeds, **how))


def check_parallel__one_token_a_step(decode):
    """an implementation that lets the queries of a step see each other"""
    equal_everywhere(decode, [1] * 6)


def check_parallel__block_only(decode):
    """although within_step is "causal\""""
    equal_everywhere(decode, [2, 1, 3], withins=["block"])


def check_parallel__raster_order_only(decode):
    """takes its noise by rank in the order, not by position"""
    equal_everywhere(decode, [2, 1, 3], orders=torch.arange(6))


def check_parallel__one_sample(decode):
    """gives every row of the batch the first row's positions"""
    equal_everywhere(decode, [2, 1, 3], batch=1)


def check_parallel__no_guidance(decode):
    """lets both guidance halves read the keys of one half"""
    equal_everywhere(decode, [2, 1, 3], guidances=[1.0])


def check_parallel__fresh_model(decode):
    """an implementation that lets the queries of a step see each other"""
    equal_everywhere(decode, [2, 1, 3], lively=False)


def check_parallel__shapes_only(decode):
    """an implementation that lets the queries of a step see each other"""
    ids = decode(right.lively_model((2, 3)), torch.tensor([1, 2]), [4, 5], steps=[2, 1, 3])
    assert ids.shape == (2, 6) and ids.min() >= 0


def check_parallel__fewer_steps_change_nothing(decode):
    """the property asks for more than is true"""
    for seed in range(4):
        few, many = (decode(right.lively_model((2, 3)), torch.tensor([1]), [seed], steps=sizes,
                            guidance=1.0) for sizes in ([2, 1, 3], [1] * 6))
        assert torch.equal(few, many)


def accept__counts_all(guesses, draws):
    """right guesses after a wrong one count here"""
    return (guesses == draws).sum(1)


def accept__counts_all_and_the_first(guesses, draws):
    """right guesses after a wrong one count here"""
    return 1 + (guesses == draws)[:, :-1].sum(1)


def accept__not_the_draw_after_them(guesses, draws):
    """the draw after the last right guess is missing"""
    return (guesses == draws).long().cumprod(1).sum(1)


def accept__the_last_guess_counts(guesses, draws):
    """more draws are final than were made"""
    return 1 + (guesses == draws).long().cumprod(1).sum(1)


def accept__shifted(guesses, draws):
    """the guess of each rank with the draw of the same rank"""
    return 1 + (guesses[:, 1:] == draws[:, :-1]).long().cumprod(1).sum(1)


def accept__in_lockstep(guesses, draws):
    """samples must not wait for each other"""
    few = right.accept(guesses, draws).min()
    return few.expand(len(draws))


def accept__one_number(guesses, draws):
    """one count for each sample"""
    return right.accept(guesses, draws)[0]


def accept__a_mask(guesses, draws):
    """one count for each sample"""
    return torch.arange(draws.shape[1]) < right.accept(guesses, draws)[:, None]


def exact_everywhere(decode_exact, windows=(1, 2, 3, 8), guidances=(1.0, 8.0), batch=3,
                     schedule="linear", passes=True):
    """The property, over the given cases. Each wrong answer leaves some cases out."""
    model = right.lively_model((2, 3))
    for window in windows:
        for guidance in guidances:
            for seed in range(6):
                how = dict(guidance=guidance, guidance_schedule=schedule, temperature=0.5)
                labels, seeds = torch.arange(batch) % 3, range(seed, seed + batch)
                ids, took = decode_exact(model, labels, seeds, window=window, **how)
                assert torch.equal(ids, decode_sequential(model, labels, seeds, steps=6, **how))
                if passes:
                    assert 1 <= took.min() and took.max() <= 6
                    assert window > 1 or (took == 6).all()


def check_exact__window_1(decode_exact):
    """takes every draw of a window for final"""
    exact_everywhere(decode_exact, windows=[1])


def check_exact__one_sample(decode_exact):
    """takes as many draws of every sample for final as of the fastest"""
    exact_everywhere(decode_exact, batch=1)


def check_exact__no_guidance(decode_exact):
    """guides all ranks of a pass as if they were its first"""
    exact_everywhere(decode_exact, guidances=[1.0])


def check_exact__constant_guidance(decode_exact):
    """guides all ranks of a pass as if they were its first"""
    exact_everywhere(decode_exact, schedule="constant")


def check_exact__ids_only(decode_exact):
    """asks for all ranks whatever the window is"""
    exact_everywhere(decode_exact, passes=False)


def check_exact__large_windows(decode_exact):
    """asks for all ranks whatever the window is"""
    exact_everywhere(decode_exact, windows=[3, 8])


def check_exact__always_fewer(decode_exact):
    """the property asks for more than is true"""
    for seed in range(6):
        _, took = decode_exact(right.lively_model((2, 3)), torch.tensor([0]), [seed], window=6)
        assert took.max() < 6
