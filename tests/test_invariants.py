"""What each part of ARPG must hold for itself: cache, rotary positions, steps, sampling, training.

`test_equivalence.py` says what the whole must do; when it fails, a property here often says why.
"""

import math
from itertools import accumulate, islice
from unittest.mock import patch

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st

from arpg_mini import decoding, training
from arpg_mini.attention import Cache, rotary_table, rotate
from arpg_mini.config import TrainConfig
from arpg_mini.decoding import (
    decode,
    decode_steps,
    filter_logits,
    inverse_cdf,
    position_noise,
    random_orders,
    step_sizes,
)
from tests.definition import answer, turn
from tests.helpers import FakeIds, tiny_model
from tests.strategies import C, V, decodes, for_all, grids, model_of, permutations, seeds

pytestmark = pytest.mark.equivalence

bases = st.sampled_from([10.0, 100.0, 10000.0])
widths = st.sampled_from([4, 8, 12, 16])


def short(numbers) -> str:
    """Numbers for a message, to four digits."""
    if isinstance(numbers, torch.Tensor):
        numbers = numbers.tolist()
    return ("[" + ", ".join(map(short, numbers)) + "]" if isinstance(numbers, list)
            else f"{numbers:.4g}")


class WatchedCache(Cache):
    """A cache that begins as NaN, so that a slot read before it is written spoils every logit."""

    made: list["WatchedCache"] = []

    def __init__(self, *sizes, **factory):
        super().__init__(*sizes, **factory)
        self.pairs.fill_(math.nan)
        self.steps = []                          # the length at the end of each step
        self.made.append(self)

    def append(self, layer, keys, values):
        assert not keys.isnan().any(), f"before layer {layer} a slot was read that holds nothing"
        before = self.pairs.clone()
        out = super().append(layer, keys, values)
        changed = (~((self.pairs == before) | (self.pairs.isnan() & before.isnan()))
                   ).flatten(1, 3).any(-1).any(1)                              # (layers, slots)
        first, wrote = self.length, changed.nonzero().tolist()
        expected = [[layer, s] for s in range(first, first + keys.shape[2])]
        assert wrote == expected, f"[layer, slot] written: {wrote}; next in turn: {expected}"
        assert before[layer, :, :, :, first:].isnan().all(), f"layer {layer}: a slot written twice"
        return out

    def advance(self, slots):
        super().advance(slots)
        self.steps.append(self.length)
        assert not self.pairs[..., :self.length, :].isnan().any(), \
            f"a layer has an empty slot before slot {self.length}"


@for_all(case=decodes())
def test_cache_slots_are_written_once_in_order(case):
    """Every layer's slots are written one after the other, each once: class, known tokens, steps.

    None is left empty, none is allocated in vain, and nothing is read before it is written (it
    would be NaN). Broken if a step's keys land in another's slots, or a layer's in another layer's.
    """
    WatchedCache.made.clear()
    with patch.object(decoding, "Cache", WatchedCache):
        run = case.run(decode)
    assert not run.logits.isnan().any(), "a query read a slot that holds nothing"
    cache, = WatchedCache.made
    known = sum(x >= 0 for x in case.known)
    lengths = [1] + [1 + known] * (known > 0)
    lengths += [1 + known + done for done in accumulate(case.sizes[:-1])]
    assert cache.steps == lengths, f"slots filled after each step: {cache.steps}, not {lengths}"
    assert cache.pairs.shape[4] == lengths[-1], \
        f"{cache.pairs.shape[4]} slots allocated, {lengths[-1]} used"


@for_all(grid=grids, width=widths, base=bases, data=st.data())
def test_rotation_is_its_definition(grid, width, base, data):
    """Row first, then column; interleaved pairs; frequencies base^(-2i/(K/2)).

    Broken if axes, pairs or frequencies are swapped, or angles are kept in half precision.
    """
    row = data.draw(st.integers(0, grid[0] - 1), label="row")
    column = data.draw(st.integers(0, grid[1] - 1), label="column")
    table = rotary_table(grid, width, base)
    vector = torch.arange(1, width + 1, dtype=torch.float64)
    got = rotate(vector.view(1, 1, 1, -1), table[None, [row * grid[1] + column]]).flatten()
    expected = torch.from_numpy(turn(vector.numpy(), (row, column), base))
    assert torch.allclose(got, expected, atol=1e-9), (
        f"{short(vector)} at row {row}, column {column}: {short(got)}, by definition "
        f"{short(expected)}")


@for_all(base=bases, width=widths, p=st.tuples(st.integers(0, 4), st.integers(0, 6)),
         q=st.tuples(st.integers(0, 4), st.integers(0, 6)),
         shift=st.tuples(st.integers(0, 5), st.integers(0, 5)))
def test_rotary_scores_know_displacements_only(base, width, p, q, shift):
    """Query at p, key at q: shifting both changes nothing; rows and columns stay apart.

    Broken if a score depends on where the two are, or a step down looks like a step right.
    """
    grid = (10, 12)
    table, g = rotary_table(grid, width, base), torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, width, generator=g, dtype=torch.float64)

    def score(*places):
        at = [table[None, [row * grid[1] + column]] for row, column in places]
        return (rotate(query, at[0]) * rotate(key, at[1])).sum().item()

    moved = [(place[0] + shift[0], place[1] + shift[1]) for place in (p, q)]
    assert math.isclose(score(p, q), score(*moved), abs_tol=1e-9), \
        f"query at {p}, key at {q}: {score(p, q):.4g}; at {moved}: {score(*moved):.4g}"
    down, right = q[0] - p[0], q[1] - p[1]
    if down != right:
        swapped = score((0, 0), (right, down)) if min(down, right) >= 0 else score(
            (-min(right, 0), -min(down, 0)), (max(right, 0), max(down, 0)))
        assert abs(score(p, q) - swapped) > 1e-9, \
            f"{down} down and {right} right scores as {right} down and {down} right"


@for_all(case=decodes(batch=st.just(1)), slots=st.integers(0, 5),
         shift=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_moving_everything_moves_nothing(case, slots, shift):
    """The whole model, shifted as one on a larger grid, answers the same.

    Broken if a key or a query, in either pass, is rotated twice, not at all, or to another place.
    """
    model, (height, width) = case.model, case.grid
    large = (height + 3, width + 3)
    table = model.rotary(large)
    slots = list(case.orders[0])[:slots]
    target = case.orders[0][-1]

    def logits(down, right):
        def there(position):
            return (position // width + down) * large[1] + position % width + right
        at = torch.tensor([[large[0] * large[1]] + [there(p) for p in slots]])
        ids = torch.tensor([[V + 1] + [p % V for p in slots]])
        with torch.no_grad():
            keys, values = model.read(ids, table[at], causal=True)
            return model.head(model.ask(table[torch.tensor([[there(target)]])], keys, values))

    gap = (logits(0, 0) - logits(*shift)).abs().max()
    assert gap < 1e-9, (f"tokens at {slots}, query at {target}: shifted by {shift} the logits "
                        f"change by {gap:.2g}")


@for_all(grid=grids, layers=st.tuples(st.integers(1, 2), st.integers(1, 2)), data=st.data())
def test_the_class_slot_scores_zero_everywhere(grid, layers, data):
    """The class's key is the zero vector: a query weighs it as exp(0), whatever and wherever it is.

    Broken if the class slot is rotated, as a position 0 would be.
    """
    model, n = model_of(grid, layers, 2, 8), grid[0] * grid[1]
    label = data.draw(st.integers(0, C), label="class")
    position = data.draw(st.integers(0, n - 1), label="position")
    table = model.rotary(grid)
    with torch.no_grad():
        keys, _ = model.read(torch.tensor([[V + 1 + label, 0]]),
                             table[torch.tensor([[n, position]])])
    assert keys[0, :, 0].abs().max() == 0, f"the class slot's key is {short(keys[0, :, 0])}"
    assert keys[0, :, 1].abs().max() > 0, "a token's key is zero too"


@for_all(200, n=st.integers(1, 300), schedule=st.sampled_from(decoding.SCHEDULES), data=st.data())
def test_steps_add_up_and_follow_their_curve(n, schedule, data):
    """T sizes of one or more that sum to n; what is left follows the curve, within its bounds.

    Broken if a step is empty, or the last does not take what remains.
    """
    steps = data.draw(st.integers(1, n), label="steps")
    sizes = step_sizes(n, steps, schedule)
    assert len(sizes) == steps and sum(sizes) == n and min(sizes) >= 1, \
        f"{n} tokens in {steps} steps: {sizes}"
    for s, done in enumerate(accumulate(sizes[:-1]), start=1):
        curve = {"arccos": math.acos(s / steps) / (math.pi / 2), "constant": 1 - s / steps,
                 "cosine": math.cos(math.pi / 2 * s / steps)}[schedule]
        before = done - sizes[s - 1]
        assert abs(n - done - n * curve) <= 1 or sizes[s - 1] == 1 or n - done == 1, \
            f"{n} tokens: after step {s} of {steps} {n - done} are left of {n - before}"


def slow_filter(row: list[float], temperature: float, top_k: int, top_p: float) -> set[int]:
    """The ids that stay, by definition: the k largest and their equals; of those, from the
    likeliest down, as many as it takes to reach p."""
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


@for_all(150, shape=st.lists(st.integers(1, 4), max_size=2), v=st.integers(1, 9), seed=seeds,
         temperature=st.sampled_from([0.5, 1.0, 2.0]), top_k=st.integers(0, 10),
         top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]))
def test_filters_are_their_slow_definition(shape, v, seed, temperature, top_k, top_p):
    """What stays is logits / temperature, the rest -inf; rows of any shape do not mix.

    Broken if the id that crosses top_p is cut, a filter runs along another axis, or temperature
    comes in at the wrong place.
    """
    logits = torch.randn(*shape, v, dtype=torch.float64,
                         generator=torch.Generator().manual_seed(seed))
    rows = filter_logits(logits, temperature, top_k, top_p).reshape(-1, v).tolist()
    for given_row, row in zip(logits.reshape(-1, v).tolist(), rows):
        keep = slow_filter(given_row, temperature, top_k, top_p)
        expected = [x / temperature if i in keep else -math.inf for i, x in enumerate(given_row)]
        assert all(a == b or math.isclose(a, b, abs_tol=1e-12) for a, b in zip(row, expected)), \
            (f"logits {short(given_row)}: ids {sorted(keep)} stay, divided by {temperature}; "
             f"got {short(row)}")


@for_all(60, v=st.integers(1, 9), seed=seeds, noise=st.floats(0, 1, exclude_max=True))
def test_temperature_has_its_limits(v, seed, noise):
    """Towards 0 the largest logit is certain, and at 0 it is; towards infinity all are alike."""
    logits = 3 * torch.randn(v, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    largest, at = logits.argmax().item(), torch.tensor(noise, dtype=torch.float64)
    assert inverse_cdf(filter_logits(logits, 0), at).item() == largest
    top = logits.topk(min(2, v)).values
    if v == 1 or top[0] - top[1] > 0.01:
        assert inverse_cdf(filter_logits(logits, 1e-4), at).item() == largest, \
            f"temperature 0.0001, logits {short(logits)}: not the largest"
    hot = filter_logits(logits, 1e9).softmax(-1)
    assert (hot - 1 / v).abs().max() < 1e-6, f"temperature 10^9: {short(hot)}"


@for_all(60, v=st.integers(1, 12), seed=seeds, impossible=st.sets(st.integers(0, 11)))
def test_inverse_cdf_follows_the_distribution(v, seed, impossible):
    """On an even lattice of 1,000 uniform numbers each id comes within one of 1,000 times its
    share, and at the ends of [0, 1) only possible ids do. Exact: there are no odds."""
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
    """16,384 float32 logits: the id at every boundary of the exact sums is right to 1e-10.

    Broken if the sum is taken in float32: ids then shift where many small shares have added up.
    """
    logits = torch.randn(16384, generator=torch.Generator().manual_seed(seed % 2**32))
    edges = logits.double().softmax(-1).cumsum(-1)[:-1]
    i = torch.arange(0, 16383, 31)
    below = inverse_cdf(logits.expand(len(i), -1), edges[i] - 1e-10)
    above = inverse_cdf(logits.expand(len(i), -1), edges[i] + 1e-10)
    wrong = ((below != i) | (above != i + 1)).sum().item()
    assert not wrong, f"{wrong} of {len(i)} boundaries between ids are off by more than 1e-10"


@for_all(case=decodes(), data=st.data())
def test_noise_belongs_to_seed_and_position(case, data):
    """Other steps, other samples, another order: the number at a position stays what it was.

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
        f"position {wrong[0]} drew at {first[wrong[0]]:.4f}, then at {second[wrong[0]]:.4f}"
    assert all(0 <= u < 1 for u in first.values())
    if len(first) > 1:
        assert len(set(first.values())) > 1, "every position has the same number"


@for_all(first=seeds, second=seeds, n=st.integers(20, 40))
def test_seeds_have_orders_and_noise_of_their_own(first, second, n):
    """Two seeds agree in neither (once in 10^18 they might in an order: 1/20!)."""
    assume(first != second)
    orders, noise = random_orders([first, second], n), position_noise([first, second], n)
    assert sorted(orders[0].tolist()) == list(range(n)) and noise.shape == (2, n)
    assert not torch.equal(*orders), f"seeds {first} and {second} share an order"
    assert not torch.isclose(*noise, rtol=0, atol=1e-9).all(), \
        f"seeds {first} and {second} share their noise"
    ranks = noise[0].argsort()
    assert not torch.equal(ranks, orders[0]) and not torch.equal(ranks.argsort(), orders[0]), \
        f"seed {first}: the order tells the noise"


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
