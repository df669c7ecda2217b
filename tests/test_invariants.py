"""What training must hold, and what a decode may not leave behind."""

from itertools import islice
from unittest.mock import patch

import pytest
import torch
from hypothesis import strategies as st

from arpg_mini import decoding, training
from arpg_mini.config import TrainConfig
from arpg_mini.decoding import (
    decode,
    decode_steps,
)
from tests.definition import answer
from tests.helpers import FakeIds
from tests.strategies import C, V, decodes, for_all, lessons, seeds

pytestmark = pytest.mark.equivalence



@for_all(case=lessons(), rows=st.integers(1, 30))
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


@for_all(30, case=lessons(batch=st.just(1)))
def test_training_is_its_definition(case):
    """The training forward, query by query, is its formula computed by loops in NumPy."""
    order, n, width = case.orders[0], len(case.known), case.grid[1]
    image = torch.randint(V, (1, n), generator=torch.Generator().manual_seed(case.seeds[0]))
    logits = case.model(image, torch.tensor(case.labels), torch.tensor([order]))[0]
    for t in range(n):
        ids = [V + 1 + case.labels[0]] + [image[0, p].item() for p in order[:t]]
        places = [None] + [divmod(p, width) for p in order[:t]]
        causal = torch.ones(t + 1, t + 1).tril().bool().numpy()
        target = divmod(order[t], width)
        expected = torch.from_numpy(answer(case.model, ids, places, causal, target))
        gap = (logits[t] - expected).abs().max()
        assert gap < 1e-9 * (1 + expected.abs().max()), \
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


@for_all(60, case=decodes(nothing_known=True), training=st.booleans(), data=st.data(),
         error=st.sampled_from([RuntimeError, KeyboardInterrupt]),
         where=st.sampled_from(["read", "ask", "head", "sample", "between steps"]))
def test_an_interrupted_decode_leaves_nothing_behind(case, training, data, error, where):
    """An exception in any part of any step, or a stream closed between two: the same model then
    decodes and trains as before.

    Broken if a decode switches something on (a mode, a cache in the model, a gradient flag) that
    only its regular end switches off.
    """
    model = case.new_model().train(training)
    image = torch.zeros(len(case.labels), len(case.known), dtype=torch.long)
    inputs = image, torch.tensor(case.labels), torch.tensor(case.orders)

    def state():
        return case.run(decode, model).ids, model(*inputs)

    before, last = state(), len(case.sizes) - 1
    assert torch.equal(before[0], case.run(decode, case.new_model().train(not training)).ids), \
        "ids depend on the training mode"
    step = data.draw(st.integers(0, last), label="step")
    stream = decode_steps(model, case.labels, case.seeds, **case.settings)
    list(islice(stream, step + (where == "between steps")))
    if where != "between steps":
        part = {"sample": decoding, "head": model.head}.get(where, model)
        with patch.object(part, "forward" if where == "head" else where, side_effect=error):
            with pytest.raises(error):
                next(stream)
    stream.close()
    assert torch.is_grad_enabled() and model.training == training, "a mode was left switched"
    for what, old, new in zip(["ids", "training logits"], before, state()):
        assert torch.equal(old, new), f"interrupted in step {step} ({where}), its {what} changed"
