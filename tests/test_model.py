"""The model: sizes, first loss, what may and may not influence what."""

import math

import pytest
import torch
from helpers import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from arpg_mini import ARPG, ModelConfig
from arpg_mini.attention import RMSNorm, rotary_table, rotate
from arpg_mini.config import presets
from arpg_mini.decoding import random_orders
from arpg_mini.model import ChunkedCrossEntropy


@pytest.mark.parametrize("name, millions", [("imagenet-s", 62), ("arpg-l", 319.8),
                                            ("arpg-xl", 719.0), ("arpg-xxl", 1302.4)])
def test_named_sizes_have_their_parameter_counts(name, millions):
    with torch.device("meta"):
        count = sum(p.numel() for p in ARPG(presets()[name].model).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.5 if name == "imagenet-s" else 0.06)


def test_a_fresh_models_loss_is_ln_v():
    model = ARPG(ModelConfig(dim=32, heads=4, vocab_size=100, grid=(3, 4)))
    tokens = torch.randint(100, (2, 12))
    loss = model(tokens, torch.tensor([0, 10]), random_orders([0, 1], 12), loss_rows=5)
    assert loss.item() == pytest.approx(math.log(100), abs=1e-6)
    assert model.embedding.weight.shape == (100 + 10 + 3, 32)
    assert 0.018 < model.content[0].attention.qkv.weight.std() < 0.022


@settings(max_examples=25, deadline=None)
@given(grid=st.tuples(st.integers(1, 3), st.integers(2, 4)), seed=st.integers(0, 2**32),
       data=st.data(), training=st.booleans())
def test_no_peeking_under_any_order(grid, seed, data, training):
    """The gradient of target t's logits with respect to the t-th and later content tokens is
    exactly zero, and to some earlier one (the class, at t = 0) it is not."""
    model = tiny_model(grid=grid, seed=1).train(training)
    n = grid[0] * grid[1]
    t = data.draw(st.integers(0, n - 1))
    orders = random_orders([seed], n)
    tokens = torch.randint(11, (1, n), generator=torch.Generator().manual_seed(seed))
    embedded = []

    def remember(module, inputs, output):
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    hook = model.embedding.register_forward_hook(remember)
    logits = model(tokens, torch.tensor([1]), orders)
    hook.remove()
    gradient, = torch.autograd.grad(logits[0, t].square().sum(), embedded[0])
    by_slot = gradient[0].abs().sum(-1)  # slot s holds token s - 1; slot 0 the class
    assert (by_slot[t + 1:] == 0).all(), \
        f"order {orders.tolist()}, target {t} sees slots {by_slot.nonzero()}"
    assert (by_slot[:t + 1] > 0).any()


def test_queries_are_independent():
    """A query's answer is the same alone, among others, and in another order of queries."""
    model = tiny_model()
    table = model.rotary((3, 5))
    keys, values = model.read(torch.randint(11, (1, 4)), table[torch.tensor([[15, 2, 9, 4]])])
    together = model.ask(table[torch.tensor([[1, 7, 3, 14]])], keys, values)
    alone = model.ask(table[torch.tensor([[7]])], keys, values)
    swapped = model.ask(table[torch.tensor([[14, 7, 1]])], keys, values)
    torch.testing.assert_close(together[:, 1:2], alone, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(together[:, [3, 1, 0]], swapped, rtol=1e-10, atol=1e-10)


def test_causality_belongs_to_the_call():
    """Logits in evaluation mode are those of training mode: no mask is switched on or off by
    `train()`."""
    model = tiny_model()
    tokens, labels, orders = (torch.randint(11, (2, 15)), torch.tensor([0, 1]),
                              random_orders([1, 2], 15))
    assert torch.equal(model.train()(tokens, labels, orders), model.eval()(tokens, labels, orders))


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), seed=st.integers(0, 999))
def test_the_chunked_loss_is_cross_entropy(rows, seed):
    """Value and both gradients, for any number of rows at a time."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(23, 6, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, 6, generator=g, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(9, (23,), generator=g)
    plain = torch.nn.functional.cross_entropy(hidden @ weight.T, targets)
    chunked = ChunkedCrossEntropy.apply(hidden, weight, targets, rows) / 23
    torch.testing.assert_close(chunked, plain)
    for a, b in zip(torch.autograd.grad(chunked, (hidden, weight)),
                    torch.autograd.grad(plain, (hidden, weight))):
        torch.testing.assert_close(a, b)


def test_the_loss_is_the_mean_over_all_targets_of_the_logits():
    model = tiny_model()
    tokens, labels, orders = (torch.randint(11, (2, 15)), torch.tensor([0, 3]),
                              random_orders([1, 2], 15))
    logits = model(tokens, labels, orders)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1),
                                                 tokens.gather(1, orders).flatten())
    torch.testing.assert_close(model(tokens, labels, orders, loss_rows=4), expected)


@settings(max_examples=40, deadline=None)
@given(a=st.tuples(st.integers(0, 4), st.integers(0, 6)),
       b=st.tuples(st.integers(0, 4), st.integers(0, 6)),
       shift=st.tuples(st.integers(0, 5), st.integers(0, 5)), seed=st.integers(0, 999))
def test_rotary_scores_depend_on_displacement_only(a, b, shift, seed):
    """Row and column apart: shifting query and key together changes nothing, swapping the axes
    does."""
    grid = (10, 12)
    table = rotary_table(grid, 16)
    g = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=g, dtype=torch.float64)

    def score(p, r):
        at = [table[x[0] * grid[1] + x[1]].view(1, 1, -1) for x in (p, r)]
        return (rotate(q, at[0]) * rotate(k, at[1])).sum().item()

    moved = [tuple(x + s for x, s in zip(p, shift)) for p in (a, b)]
    assert score(a, b) == pytest.approx(score(*moved), abs=1e-9)
    if abs(a[0] - b[0]) != abs(a[1] - b[1]):
        assert score(a, b) != pytest.approx(score(a[::-1], b[::-1]), abs=1e-9)


def test_rotation_is_of_interleaved_pairs_and_the_class_slot_is_zero():
    table = rotary_table((2, 3), 8, base=100.0)
    turned = rotate(torch.tensor([1.0, 0, 0, 2, 1, 0, 0, 0]).double().view(1, 1, 1, 8),
                    table[None, 5:6])
    # Row 1, column 2; frequencies 1 and 0.1.
    expected = [math.cos(1), math.sin(1), -2 * math.sin(0.1), 2 * math.cos(0.1),
                math.cos(2), math.sin(2), 0, 0]
    assert turned.flatten().tolist() == pytest.approx(expected)
    assert rotate(torch.ones(1, 1, 1, 8).double(), table[None, 6:7]).abs().sum() == 0


def test_rms_norm_is_computed_wide():
    """In bfloat16 the mean of squares is taken in float32, and the result is cast before the
    gain."""
    norm, x = RMSNorm(64).bfloat16(), (torch.randn(5, 64) * 30).bfloat16()
    torch.nn.init.normal_(norm.gain)
    wide = x.float()
    expected = (wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()).bfloat16() * norm.gain
    assert torch.equal(norm(x), expected)


@pytest.mark.parametrize("wrong", [
    dict(dim=30, heads=4), dict(dim=24, heads=4), dict(heads=0), dict(vocab_size=0),
    dict(grid=(0, 3)), dict(dropout=1.0), dict(content_layers=0)])
def test_impossible_sizes_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ModelConfig(**wrong)
