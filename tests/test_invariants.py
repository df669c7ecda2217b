"""What training must hold, and what a decode may not leave behind."""

from itertools import islice
from unittest.mock import patch

import pytest
import torch
from hypothesis import strategies as st

from arpg_mini import training
from arpg_mini.config import TrainConfig
from arpg_mini.decoding import (
    decode,
    decode_steps,
)
from tests.definition import answer
from tests.helpers import FakeIds, tiny_model
from tests.strategies import C, V, decodes, for_all, seeds

pytestmark = pytest.mark.equivalence



@for_all(case=decodes(nothing_known=True), rows=st.integers(1, 30))
def test_the_loss_is_its_definition(case, rows):
    """Mean over samples and targets of −log softmax(logits)[the id at order[t]], whatever the rows
    at a time; and its gradient is that loss's.

    Broken if targets are not permuted as the inputs are, or chunks are weighed wrongly.
    """
    model, orders = case.model, torch.tensor(case.orders)
    b, n = orders.shape
    image = torch.randint(V, (b, n), generator=torch.Generator().manual_seed(case.seeds[0]))
    logits, labels = model(image, torch.tensor(case.labels), orders), torch.tensor(case.labels)
    expected = -sum(logits[i, t].log_softmax(-1)[image[i, order[t]]]
                    for i, order in enumerate(case.orders) for t in range(n)) / (b * n)
    loss = model(image, labels, orders, loss_rows=rows)
    assert torch.isclose(loss, expected, rtol=1e-9), \
        f"{rows} rows at a time: loss {loss:.6g}, by definition {expected:.6g}"
    weights = [model.head.weight, model.content[0].attention.qkv.weight]
    for got, slow in zip(torch.autograd.grad(3 * loss, weights),
                         torch.autograd.grad(3 * expected, weights)):
        assert torch.allclose(got, slow, rtol=1e-7, atol=1e-9), \
            f"{rows} rows at a time: gradients differ by {(got - slow).abs().max():.2g}"


@for_all(30, case=decodes(batch=st.just(1), nothing_known=True))
def test_training_is_its_definition(case):
    """The training forward, query by query, is the paper's formula computed by loops in NumPy."""
    order, width = case.orders[0], case.grid[1]
    n, t = len(order), case.seeds[0] % len(order)
    image = torch.randint(V, (1, n), generator=torch.Generator().manual_seed(case.seeds[0]))
    logits = case.model(image, torch.tensor(case.labels), torch.tensor([order]))[0, t]
    ids = [V + 1 + case.labels[0]] + [image[0, p].item() for p in order[:t]]
    places = [None] + [divmod(p, width) for p in order[:t]]
    causal = torch.ones(t + 1, t + 1).tril().bool().numpy()
    expected = answer(case.model, ids, places, causal, divmod(order[t], width))
    gap = (logits - torch.from_numpy(expected)).abs().max()
    assert gap < 1e-9 * (1 + abs(expected).max()), \
        f"query {t}, at position {order[t]}, is off its definition by {gap:.2g}"


@for_all(20, seed=seeds, step=st.integers(0, 10**6), world=st.sampled_from([1, 2, 4]))
def test_training_draws_for_each_sample(seed, step, world):
    """64 samples: orders all differ, some but not all lose their class; processes take slices.

    False alarms: two equal orders of 15, 2·10⁻⁹; all or none of 64 dropped at 0.5, 10⁻¹⁹.
    Broken if one order or one drop serves the batch, or each process draws its own.
    """
    config, ids = TrainConfig(batch_size=64), FakeIds()
    parts = [training.draw_batch(ids, config, C, 0.5, seed, step, rank, world)
             for rank in range(world)]
    tokens, labels, orders = (torch.cat(x) for x in zip(*parts))
    whole = training.draw_batch(ids, config, C, 0.5, seed, step)
    assert all(map(torch.equal, (tokens, labels, orders), whole)), f"{world} processes differ"
    assert (orders.sort(-1).values == torch.arange(15)).all(), "orders are no permutations"
    assert len(orders.unique(dim=0)) == 64, f"{len(orders.unique(dim=0))} orders for 64 samples"
    dropped = (labels == C).sum().item()
    assert 0 < dropped < 64, f"{dropped} of 64 samples lost their class"


@for_all(case=decodes(nothing_known=True), training=st.booleans(), data=st.data(),
         error=st.sampled_from([RuntimeError, KeyboardInterrupt]),
         where=st.sampled_from(["read", "ask", "close"]))
def test_an_interrupted_decode_leaves_nothing_behind(case, training, data, error, where):
    """An exception or a closed stream, anywhere: the same model decodes and trains as before.

    Broken if a decode switches something on (a mode, a cache in the model, a gradient flag) that
    only its regular end switches off.
    """
    model = tiny_model(grid=case.grid, vocab_size=V, num_classes=C, dropout=0.0).train(training)
    image = torch.zeros(len(case.labels), len(case.known), dtype=torch.long)
    inputs = image, torch.tensor(case.labels), torch.tensor(case.orders)

    def state():
        return case.run(decode, model).ids, model(*inputs)

    quiet = case.run(decode, tiny_model(grid=case.grid, vocab_size=V, num_classes=C).eval()).ids
    before, step = state(), data.draw(st.integers(0, len(case.sizes) - 1), label="step")
    assert torch.equal(before[0], quiet), "ids depend on the training mode"
    stream = decode_steps(model, case.labels, case.seeds, **case.settings)
    list(islice(stream, step))
    with patch.object(model, where if where != "close" else "read", side_effect=error, create=True):
        if where != "close":
            with pytest.raises(error):
                next(stream)
        stream.close()
    assert torch.is_grad_enabled() and model.training == training, "a mode was left switched"
    after = state()
    for what, old, new in zip(["ids", "training logits"], before, after):
        assert torch.equal(old, new), f"interrupted in step {step} at {where}, its {what} changed"
