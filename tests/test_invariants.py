"""Properties of training, and of the state that a decode leaves behind."""

from itertools import islice
from unittest.mock import patch

import pytest
import torch
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from arpg_mini import decoding, training
from arpg_mini.attention import rotary_table
from arpg_mini.config import TrainConfig
from arpg_mini.decoding import decode, decode_steps
from arpg_mini.model import ChunkedCrossEntropy
from tests.definition import answer
from tests.helpers import FakeIds, tiny_model
from tests.strategies import C, V, chi_squared_p, decodes, for_all, lessons, seeds

pytestmark = pytest.mark.equivalence



@for_all(case=lessons(), rows=st.integers(1, 30))
def test_the_loss_is_its_definition(case, rows):
    """It is the mean over samples and targets of −log softmax(logits)[the id at order[t]], for any
    number of rows at a time. Its gradient is the gradient of this mean.

    Broken if targets are not permuted like the inputs, or chunks have wrong weights.
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
    """The training forward pass equals its formula, computed query by query by loops in NumPy."""
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
            f"query {t}, at position {order[t]}, differs by {gap:.2g} from its definition"


@for_all(15, case=lessons(batch=st.just(2)), rows=st.integers(1, 9))
def test_every_weight_learns_from_the_loss(case, rows):
    """The gradient of every weight gives the slope of the loss that is measured along a random
    direction.

    Broken if a path passes no gradient ([MASK], keys, a gate), or a gradient is scaled.
    """
    model, orders = case.new_model(), torch.tensor(case.orders)
    image = torch.randint(V, orders.shape, generator=torch.Generator().manual_seed(case.seeds[0]))

    def loss():
        return model(image, torch.tensor(case.labels), orders, loss_rows=rows)

    for name, weight in model.named_parameters():
        gradient, = torch.autograd.grad(loss(), weight)
        direction = torch.randn(weight.shape, dtype=weight.dtype,
                                generator=torch.Generator().manual_seed(len(name)))
        values = []
        with torch.no_grad():
            for step in (1e-6, -2e-6):
                weight += step * direction
                values.append(loss())
            weight += 1e-6 * direction
        slope, expected = (gradient * direction).sum(), (values[0] - values[1]) / 2e-6
        assert abs(slope - expected) < 1e-4 * (1 + abs(expected)), \
            f"{name}: the gradient says {slope:.6g}, the loss rises by {expected:.6g}"


@for_all(20, case=lessons(), training=st.booleans())
def test_dropout_is_where_the_paper_puts_it(case, training):
    """Training applies dropout to the embedded tokens, and to what attention and feed-forward add
    in every block.

    If all of these are dropped, only [MASK] is left: the residual stream itself is never dropped.
    Broken if one dropout is missing, the residual stream is dropped, or evaluation uses dropout.
    """
    model = case.new_model(dropout=0.3).train(training)
    (b, n), calls = (len(case.labels), len(case.known)), []

    def drop(x, p=0.5, training=True, inplace=False):
        calls.append((tuple(x.shape), p if training else 0.0))
        return x * (not calls[-1][1])

    image, orders = torch.zeros(b, n, dtype=torch.long), torch.tensor(case.orders)
    with patch.object(torch.nn.functional, "dropout", drop):
        logits = model(image, torch.tensor(case.labels), orders)
    shape = (b, n, case.heads * case.head_width)
    expected = [(shape, 0.3 * training)] * (1 + 2 * sum(case.layers))
    assert calls == expected, f"dropped {calls}, not {expected}"
    if training:
        alone = model.head(model.norm(model.embedding.weight[V])).expand(logits.shape)
        assert torch.allclose(logits, alone), "more than the branches was dropped"


@for_all(25, seed=st.integers(0, 999), rows=st.integers(1, 300))
def test_the_loss_adds_up_in_float32(seed, rows):
    """A bfloat16 model has float32 logits. Its loss and gradients are float64's, rounded once.

    Broken if losses of thousands of rows, or the head's gradients, are summed in bfloat16.
    """
    model = tiny_model(torch.bfloat16)
    inputs = torch.zeros(1, 15, dtype=torch.long), torch.tensor([0]), torch.arange(15)[None]
    assert model(*inputs).dtype == torch.float32, f"logits in {model(*inputs).dtype}"
    g = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(3000, 8, generator=g), torch.randn(V, 8, generator=g)
    low = [x.bfloat16().requires_grad_() for x in (hidden, weight)]
    exact = [x.detach().double().requires_grad_() for x in low]
    targets = torch.randint(V, (3000,), generator=g)
    loss = ChunkedCrossEntropy.apply(*low, targets, rows)
    expected = torch.nn.functional.cross_entropy(exact[0] @ exact[1].T, targets, reduction="sum")
    assert abs(loss / expected - 1) < 1e-3, f"{rows} rows at a time: {loss:.6g}, not {expected:.6g}"
    for name, got, right in zip(("hidden", "weight"), torch.autograd.grad(loss, low),
                                torch.autograd.grad(expected, exact)):
        gap = (got - right).abs().max() / right.abs().max()
        assert gap < 2**-6, f"{rows} rows at a time: the {name}'s gradient is off by {gap:.2g}"


@for_all(20, seed=st.integers(0, 999), rows=st.integers(1, 30), half=st.booleans())
def test_a_loss_without_gradients_computes_none(seed, rows, half):
    """Under `no_grad` the loss is the same, and nothing as large as the head's gradient is made.

    Broken if validation pays for gradients that nobody asks for.
    """
    model, sizes = tiny_model(torch.float32, vocab_size=40), []
    g = torch.Generator().manual_seed(seed)
    batch = (torch.randint(40, (3, 15), generator=g), torch.tensor([0, 1, 2]),
             torch.rand(3, 15, generator=g).argsort(1))

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, kernel, types, arguments=(), named=None):
            sizes.append(str(kernel))
            return kernel(*arguments, **(named or {}))

    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        expected = model(*batch, loss_rows=rows)
        with torch.no_grad(), Watch():
            loss = model(*batch, loss_rows=rows)
    assert torch.equal(loss, expected), f"{loss} without gradients, {expected} with"
    made = [name for name in sizes if "exp_" in name or "scatter_add" in name]
    assert not made, f"gradients were computed: {made}"


@for_all(20, seed=seeds, step=st.integers(0, 10**6), world=st.sampled_from([1, 2, 4]))
def test_training_draws_for_each_sample(seed, step, world):
    """In 64 samples all orders differ, and some but not all lose their class. Processes take slices
    of the batch. Another step or seed gives new draws.

    False alarms: 2·10⁻⁹ for two equal orders of 15; 10⁻¹⁹ for all or none of 64 dropped at 0.5, or
    for the same 64 drops twice.
    Broken if a batch or all steps share one order or one drop, or each process draws its own.
    """
    config, ids = TrainConfig(batch_size=64), FakeIds()

    def batch(seed, step, rank=0, world=1):
        return training.draw_batch(ids, config, C, 0.5, seed, step, rank, world)

    tokens, labels, orders = whole = batch(seed, step)
    parts = [torch.cat(x) for x in zip(*(batch(seed, step, rank, world) for rank in range(world)))]
    assert all(map(torch.equal, parts, whole)), f"{world} processes differ"
    assert (orders.sort(-1).values == torch.arange(15)).all(), "orders are not permutations"
    assert len(orders.unique(dim=0)) == 64, f"{len(orders.unique(dim=0))} orders for 64 samples"
    dropped = (labels == C).sum().item()
    assert 0 < dropped < 64, f"{dropped} of 64 samples lost their class"
    for what, other in (("step", batch(seed, step + 1)), ("seed", batch(seed + 1, step))):
        assert len(torch.cat([orders, other[2]]).unique(dim=0)) == 128, f"next {what}: same orders"
        assert not torch.equal(labels == C, other[1] == C), f"next {what}: same classes dropped"
        assert not torch.equal(second_view(ids, tokens), second_view(ids, other[0])), \
            f"next {what}: same views"


def second_view(ids: FakeIds, tokens: torch.Tensor) -> torch.Tensor:
    """(B,) bool: is a row of tokens a picture's second view?"""
    rows = torch.from_numpy(ids.ids[:, 1].astype("int64"))
    return (tokens[:, None] == rows).all(-1).any(-1)


@for_all(3, seed=seeds)
def test_training_draws_are_uniform_and_independent(seed):
    """In 4,000 samples every position is equally frequent at every rank, and both views lose their
    class equally often. False alarms: 10⁻⁹ for the first, five standard deviations for the second.

    Broken if some orders come more often, or two purposes share a random stream.
    """
    config, ids = TrainConfig(batch_size=4000), FakeIds()
    tokens, labels, orders = training.draw_batch(ids, config, C, 0.5, seed, step=0)
    counts = torch.nn.functional.one_hot(orders, 15).sum(0).flatten().double()
    p = chi_squared_p(counts, torch.full((225,), 4000 / 15, dtype=torch.float64))
    assert p > 1e-9, f"positions by rank: {counts.view(15, 15).int().tolist()}"
    second, dropped = second_view(ids, tokens), labels == C
    apart = dropped[second].double().mean() - dropped[~second].double().mean()
    assert abs(apart) < 5 * (1 / 4000) ** 0.5, f"drops in the two views differ by {apart:.2g}"


@for_all(60, case=decodes(nothing_known=True, as_trained=True), training=st.booleans(),
         data=st.data(), error=st.sampled_from([RuntimeError, KeyboardInterrupt]),
         where=st.sampled_from(["read", "ask", "head", "sample", "between steps"]))
def test_an_interrupted_decode_leaves_nothing_behind(case, training, data, error, where):
    """After an exception in any part of any step, or a stream closed between two steps, the same
    model decodes and trains as before.

    Broken if a decode switches something on (a mode, a cache in the model, a gradient flag) and
    only its regular end switches it off, or if it changes the global random state.
    """
    model = case.new_model().train(training)
    image = torch.zeros(len(case.labels), len(case.known), dtype=torch.long)
    inputs = image, torch.tensor(case.labels), torch.tensor(case.orders)

    def state():
        return case.run(decode, model).ids, model(*inputs)

    random, before, last = torch.get_rng_state(), state(), len(case.sizes) - 1
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
    assert torch.is_grad_enabled() and model.training == training, "a mode was not switched back"
    for what, old, new in zip(["ids", "training logits"], before, state()):
        assert torch.equal(old, new), f"interrupted in step {step} ({where}), its {what} changed"
    assert torch.equal(torch.get_rng_state(), random), "the global random state changed"


def test_decoding_in_inference_mode_leaves_training_possible():
    """Broken if a table made in inference mode is cached for later: it would pass no gradient."""
    rotary_table.cache_clear()
    model = tiny_model()
    with torch.inference_mode():
        ids = decode(model, [0], [0], steps=3)
    model(ids.clone(), torch.tensor([0]), torch.arange(15)[None], loss_rows=4).backward()
    assert model.kv.weight.grad.abs().sum() > 0, "no gradient"
