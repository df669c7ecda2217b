"""Solutions of chapter 5: step sizes, the inverse CDF, the cache, and the property."""

import math

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from arpg_mini import ARPG, ModelConfig
from arpg_mini.attention import rotate
from arpg_mini.decoding import decode_sequential
from arpg_mini.orders import random_orders


def step_sizes(n: int, steps: int) -> list[int]:
    if not 1 <= steps <= n:
        raise ValueError(f"steps {steps}: must be 1 to {n}")
    sizes, done = [], 0
    for s in range(1, steps):
        left = int(n * math.acos(s / steps) / (math.pi / 2))
        left = max(1, min(n - done - 1, left))      # one for the last step, one for this
        sizes.append(n - done - left)
        done += sizes[-1]
    return sizes + [n - done]


def draw(logits: Tensor, noise: Tensor) -> Tensor:
    cdf = logits.double().softmax(-1).cumsum(-1)                            # (..., V)
    # Rounding may end the sum a little below 1. A number beyond the end must draw the last id whose
    # probability is not zero: this is the first id at which the sum reaches its end.
    last = torch.nextafter(cdf[..., -1], torch.zeros_like(cdf[..., -1]))    # (...)
    at = torch.minimum(noise.double(), last)                                # (...)
    return torch.searchsorted(cdf, at[..., None], right=True)[..., 0]       # (...)


def cached_attention(pair: Tensor, length: int, q: Tensor, k: Tensor, v: Tensor, rotary: Tensor,
                     within_step: str = "block") -> Tensor:
    s, end = q.shape[1], length + q.shape[1]
    pair[0, :, :, length:end] = rotate(k, rotary).transpose(1, 2)           # (B, H, s, K)
    pair[1, :, :, length:end] = v.transpose(1, 2)
    keys, values = pair[:, :, :, :end]                                      # (B, H, L + s, K) each
    mask = None
    if within_step == "causal":                     # row i is slot length + i: it sees up to itself
        mask = torch.ones(s, end, dtype=torch.bool, device=q.device).tril(length)
    x = F.scaled_dot_product_attention(rotate(q, rotary).transpose(1, 2), keys, values,
                                       attn_mask=mask)                      # (B, H, s, K)
    return x.transpose(1, 2)                                                # (B, s, H, K)


def lively_model(grid: tuple[int, int]) -> ARPG:
    """A tiny float64 model with weights of order one. (A fresh model's head is zero: it draws the
    same ids whatever its cache holds.)"""
    torch.manual_seed(5)
    model = ARPG(ModelConfig(dim=16, content_layers=2, query_layers=1, heads=2, ffn_hidden=24,
                             vocab_size=13, num_classes=3, grid=grid, dropout=0.0)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.5)
    return model


def check_parallel(decode) -> None:
    @settings(max_examples=20, deadline=None, database=None, derandomize=True,
              phases=[Phase.generate])
    @given(grid=st.sampled_from([(2, 3), (3, 2), (1, 7), (4, 2)]), seed=st.integers(0, 2**30),
           batch=st.integers(1, 3), cuts=st.integers(1, 2**30),
           within_step=st.sampled_from(["block", "causal"]), guidance=st.sampled_from([1.0, 3.0]))
    def parallel_is_sequential(grid, seed, batch, cuts, within_step, guidance):
        n, sizes = grid[0] * grid[1], [1]
        for i in range(n - 1):                      # bit i of `cuts`: does a new step begin here?
            if cuts >> i & 1:
                sizes.append(1)
            else:
                sizes[-1] += 1
        seeds = range(seed, seed + batch)
        model, labels = lively_model(grid), torch.arange(batch) % 3
        how = dict(steps=sizes, within_step=within_step, guidance=guidance,
                   orders=random_orders(range(seed + 7, seed + 7 + batch), n))
        got = decode(model, labels, seeds, **how)
        expected = decode_sequential(model, labels, seeds, **how)
        assert torch.equal(got, expected), f"{sizes}, {within_step}: {got} is not {expected}"

    parallel_is_sequential()


def accept(guesses: Tensor, draws: Tensor) -> Tensor:
    right = (guesses == draws)[:, :-1]          # no query saw the last guess
    return 1 + right.long().cumprod(1).sum(1)


def check_exact(decode_exact) -> None:
    @settings(max_examples=30, deadline=None, database=None, derandomize=True,
              phases=[Phase.generate])
    @given(grid=st.sampled_from([(2, 3), (1, 7), (4, 2)]), seed=st.integers(0, 2**30),
           batch=st.integers(1, 3), window=st.integers(1, 9), guidance=st.sampled_from([1.0, 8.0]),
           schedule=st.sampled_from(["linear", "constant"]),
           temperature=st.sampled_from([1.0, 0.3]))
    def exact_is_one_token_a_step(grid, seed, batch, window, guidance, schedule, temperature):
        n, seeds = grid[0] * grid[1], range(seed, seed + batch)
        model, labels = lively_model(grid), torch.arange(batch) % 3
        how = dict(guidance=guidance, guidance_schedule=schedule, temperature=temperature)
        ids, passes = decode_exact(model, labels, seeds, window=window, **how)
        expected = decode_sequential(model, labels, seeds, steps=n, **how)
        assert torch.equal(ids, expected), f"window {window}, {how}: {ids} is not {expected}"
        assert 1 <= passes.min() and passes.max() <= n, f"{passes} passes for {n} tokens"
        assert window > 1 or (passes == n).all(), f"{passes} passes of one token each for {n}"

    exact_is_one_token_a_step()
