"""Parallel equals sequential: the seven properties of ARPG, for all grids, orders, steps, models.

Read them as the specification. Each says what would be broken if it failed; `tests/mutants.py`
breaks the code in all those ways and names the property that notices. In float64, so that "equal"
means up to rounding: logits of order ten agree to 1e-9, ids exactly (for an id to flip, a uniform
number must fall within 1e-12 of a boundary: less than one run in a million).
"""

import copy
from itertools import accumulate

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from arpg_mini.decoding import decode, decode_sequential, decode_steps, guide
from tests.definition import finished_image_logits
from tests.helpers import tiny_model
from tests.strategies import C, Decode, V, decodes, for_all, grids, model_of

pytestmark = pytest.mark.equivalence


def agree(case: Decode, got: Tensor, expected: Tensor, names: str,
          tolerance: float | None = None) -> None:
    """(B, U, …) logits; says which query is the first to differ."""
    assert got.shape == expected.shape, f"{names} logits: {got.shape} and {expected.shape}"
    if not got.numel():
        return
    gap = (got - expected).abs().flatten(2).amax(-1)
    wrong = ~(gap <= (tolerance or 1e-9 * (1 + expected.abs().max())))        # NaN is wrong
    if wrong.any():
        b, t = wrong.nonzero()[0].tolist()
        raise AssertionError(f"{names} logits differ by {gap[b, t]:.2g}: {case.query(b, t)}")


@for_all(case=decodes(one_a_step=True, nothing_known=True))
def test_teacher_forcing(case):
    """1. One token a step from the cache: the logits of the training forward on that image.

    Broken if decoding computes anything else than what training taught.
    """
    run = case.run(decode)
    halves = [torch.tensor(case.labels), torch.full((len(case.labels),), C)]
    for half in range(run.logits.shape[2]):
        taught = case.model(run.ids, halves[half], torch.tensor(case.orders))
        agree(case, run.logits[:, :, half], taught, "decoded and trained")


@for_all(case=decodes())
def test_cached_equals_uncached(case):
    """2. Any order, any steps, any known tokens: `decode` = `decode_sequential`.

    Broken if the cache, a mask, a position or the guidance differs from recomputing everything, one
    query at a time, under an explicit mask.
    """
    fast, slow = case.run(decode), case.run(decode_sequential)
    agree(case, fast.logits, slow.logits, "cached and uncached")
    assert torch.equal(fast.ids, slow.ids), \
        f"cached ids {fast.ids.tolist()}, uncached {slow.ids.tolist()}"


@for_all(60, case=decodes(batch=st.just(1)))
def test_decoding_is_its_definition(case):
    """2b. Every logit on the way to an image is the paper's formula, computed by loops in NumPy.

    Broken if both decoders, which share a model, share a mistake: rotary angles, key scaling,
    norms, a wrong slot.
    """
    run = case.run(decode)
    known = [p for p, x in enumerate(case.known) if x >= 0]
    for half, label in enumerate([case.labels[0], C][:run.logits.shape[2]]):
        expected = torch.from_numpy(finished_image_logits(
            case.model, run.ids[0].tolist(), label, case.grid, known,
            case.unknown_orders[0].tolist(), case.sizes, case.within_step))
        agree(case, run.logits[:, :, half], expected.view(1, -1, V), "decoded and defined")


@for_all(grid=grids, model=st.tuples(st.integers(1, 3), st.integers(1, 3)), data=st.data())
def test_queries_are_independent(grid, model, data):
    """3. Adding, dropping, repeating or reordering the other queries of a step changes nothing.

    Broken if queries see each other, or if one's answer depends on its place among them.
    """
    model, n = model_of(grid, model, 2, 8), grid[0] * grid[1]
    places = data.draw(st.lists(st.integers(0, n - 1), max_size=n, unique=True), label="slots")
    targets = data.draw(st.lists(st.integers(0, n - 1), min_size=2, max_size=n), label="queries")
    table = model.rotary(grid)
    ids = torch.tensor([[V + 1] + [p % V for p in places]])
    with torch.no_grad():
        keys, values = model.read(ids, table[torch.tensor([[n] + places])])
        together = model.ask(table[torch.tensor([targets])], keys, values)[0]
        for m, target in enumerate(targets):
            alone = model.ask(table[torch.tensor([[target]])], keys, values)[0, 0]
            gap = (together[m] - alone).abs().max()
            assert gap < 1e-9, (f"the query at position {target} answers otherwise, by {gap:.2g}, "
                                f"as number {m} of queries at {targets} than alone")


@for_all(case=decodes(batch=st.just(1), nothing_known=True), training=st.booleans(),
         dropout=st.sampled_from([0.0, 0.3]), data=st.data())
def test_no_peeking(case, training, dropout, data):
    """4. Query t's logits have zero gradient at the embeddings of tokens t, t+1, … of the order.

    At every earlier token and the class it is not zero (dropout aside). The same in training and
    evaluation mode. (Every token has an id of its own here, so that a row of the
    embedding's gradient is a token's.)
    Broken if training leaks answers, or hides what decoding will show.
    """
    (n,), (order,) = {len(o) for o in case.orders}, case.orders
    t = data.draw(st.integers(0, n - 1), label="query")
    model = tiny_model(grid=case.grid, content_layers=case.layers[0], query_layers=case.layers[1],
                       heads=case.heads, dim=case.heads * case.head_width, vocab_size=n,
                       num_classes=C, dropout=dropout).train(training)
    image = torch.randperm(n, generator=torch.Generator().manual_seed(case.seeds[0]))
    logits = model(image[None], torch.tensor(case.labels), torch.tensor(case.orders))
    gradient, = torch.autograd.grad(logits[0, t].square().sum(), model.embedding.weight)
    reached = gradient.abs().sum(-1) > 0
    seen = [s for s in range(n) if reached[image[order[s]]]]
    where = f"query {t}, at position {order[t]}, sees tokens {seen} of the order"
    assert max(seen, default=-1) < t, f"{where}: only those before {t} may it see"
    if not (training and dropout):
        assert seen == list(range(t)), f"{where}: it should see all before {t}"
        assert reached[n + 1 + case.labels[0]], f"{where}, and not the class"


@for_all(case=decodes())
def test_every_position_is_decoded_exactly_once(case):
    """5. A step fills its own positions and no other; known ids stand; at the end none is missing.

    Broken if a step's tokens are lost, drawn twice or written elsewhere, or known ones touched.
    """
    before = torch.tensor(case.known).expand(len(case.labels), -1).clone()
    ends = list(accumulate(case.sizes))
    streamed = [ids.clone() for ids in
                decode_steps(case.model, case.labels, case.seeds, **case.settings)]
    assert len(streamed) == max(1, len(ends)), f"{len(streamed)} steps, not {len(ends)}"
    for step, (start, end, ids) in enumerate(zip([0] + ends, ends, streamed)):
        expected = case.unknown_orders[:, start:end].sort(-1).values.tolist()
        changed = [row.nonzero()[:, 0].tolist() for row in ids != before]
        assert changed == expected, f"step {step} changed positions {changed}, not {expected}"
        before = ids
    assert ((before >= 0) & (before < V)).all(), f"ids {before.tolist()}"
    if not ends:
        assert streamed[0].tolist() == before.tolist(), "everything was known, and changed"


@for_all(case=decodes(batch=st.integers(2, 4)), data=st.data())
def test_samples_do_not_depend_on_their_batch(case, data):
    """6. A sample is the same alone, in another order of samples, and among others.

    Broken if orders or noise are drawn for a batch, or rows of a batch get mixed.
    """
    rows = data.draw(st.lists(st.integers(0, len(case.labels) - 1), min_size=1, max_size=3),
                     label="samples")
    own = case.run(decode, orders=None)
    part = case.with_(labels=tuple(case.labels[i] for i in rows),
                      seeds=tuple(case.seeds[i] for i in rows),
                      orders=tuple(case.orders[i] for i in rows)).run(decode, orders=None)
    for at, i in enumerate(rows):
        assert torch.equal(part.ids[at], own.ids[i]), (
            f"sample {i} of the batch is {own.ids[i].tolist()}; as number {at} of samples {rows} "
            f"it is {part.ids[at].tolist()}")


def chi_squared_p(counts: Tensor, expected: Tensor) -> float:
    """How often a true sampler's counts are as far off; cells expecting under 10 are pooled."""
    rare = expected < 10
    counts, expected = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (counts, expected))
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(freedom, statistic / 2).item()


@for_all(15, first_seed=st.integers(0, 2**40), label=st.integers(0, C),
         one_a_step=st.booleans())
def test_images_follow_the_models_distribution(first_seed, label, one_a_step):
    """6b. 3,000 images of three tokens against the exact probability of each possible image.

    The probability of an image is the product of its steps' softmaxes, averaged over the six
    orders. A true sampler fails less than once in 10^9 examples.
    Broken if noise is reused within an image, or tied to its order.
    """
    grid, sizes = (1, 3), (1, 1, 1) if one_a_step else (1, 2)
    model = tiny_model(grid=grid, vocab_size=3, num_classes=C, dim=8, heads=1, content_layers=1,
                       query_layers=1)
    images = torch.cartesian_prod(*[torch.arange(3)] * 3)                       # (27, 3)
    expected = torch.zeros(27, dtype=torch.float64)
    for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]):
        for i, image in enumerate(images.tolist()):
            logits = torch.from_numpy(finished_image_logits(model, image, label, grid, [], order,
                                                            sizes, "block"))
            chosen = torch.tensor([image[p] for p in order])
            expected[i] += logits.softmax(-1).gather(1, chosen[:, None]).prod() / 6 * 3000
    ids = decode(model, [label] * 3000, range(first_seed, first_seed + 3000), steps=list(sizes),
                 guidance=1)
    counts = torch.bincount(ids @ torch.tensor([9, 3, 1]), minlength=27).double()
    p = chi_squared_p(counts, expected)
    assert p > 1e-9, (f"counts {counts.int().tolist()}, expected {expected.int().tolist()}: "
                      f"p = {p:.0e}")


@for_all(case=decodes())
def test_guidance(case):
    """7. guidance=1 costs no second half; otherwise that half is the model without a class.

    Of a step's `done` tokens its own count. Broken if the unconditional half knows the class, or
    the halves' tokens differ, or `done` lags a step.
    """
    run = case.run(decode)
    unknown = sum(case.sizes)
    shares = [end / unknown for end in accumulate(case.sizes)]
    assert run.share_done == shares, f"shares done {run.share_done}, not {shares}"
    halves = 1 if case.guidance == 1 else 2
    assert not unknown or run.logits.shape[2] == halves, \
        f"{run.logits.shape[2]} halves of logits, not {halves}"
    if unknown:
        draws = run.ids.gather(1, case.unknown_orders)
        free = case.with_(labels=(C,) * len(case.labels))
        for half, plain in enumerate([case, free][:halves]):
            alone = plain.with_(guidance=1.0).run(decode, draws=draws)
            agree(case, run.logits[:, :, half], alone.logits[:, :, 0],
                  f"{['conditional', 'unconditional'][half]} half's and that model's own")


@for_all(30, case=decodes(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_low_precision_only_rounds(case, dtype):
    """8. Float32 and bfloat16 are the same model as float64, up to what rounding must do.

    How much is that? As much as the exact logits move when every weight moves by one unit of
    rounding: the largest move of five tries. Products, norms and attention round more often than
    once, averages less: over 4,000 decodes the error was at most 2.1 times that move in float32
    and 0.8 times in bfloat16; 6 and 2 are allowed.
    Broken if something is kept, rotated or added up in less precision than it should be.
    """
    assume(case.sizes)
    low = copy.deepcopy(case.model)
    with torch.no_grad():
        for parameter in low.parameters():
            parameter.mul_(0.5 if parameter.ndim > 1 else 1)           # less peaked attention
    low = low.to(dtype)
    exact = copy.deepcopy(low).double()
    draws = case.run(decode, exact).ids.gather(1, case.unknown_orders)

    def logits(model):
        return case.run(decode, model, draws=draws).logits.double()

    expected, moves = logits(exact), []
    for seed in range(5):
        moved, generator = copy.deepcopy(exact), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in moved.parameters():
                noise = torch.randn(p.shape, generator=generator, dtype=p.dtype).clamp(-2, 2)
                p.mul_(1 + torch.finfo(dtype).eps * noise)
        moves.append((logits(moved) - expected).abs().max())
    agree(case, logits(low), expected, f"{dtype} and float64",
          tolerance={torch.float32: 6, torch.bfloat16: 2}[dtype] * max(moves))


@for_all(logits=st.lists(st.floats(-9, 9), min_size=4, max_size=4),
         guidance=st.floats(0, 20), share=st.floats(0.01, 1))
def test_guide_is_its_definition(logits, guidance, share):
    """7b. u + (c − u)·s: s = 1 gives c, s = 0 gives u; "linear" runs from 1 to `guidance`."""
    both = torch.tensor(logits, dtype=torch.float64).view(2, 1, 2)
    c, u = both
    for schedule, s in (("constant", guidance), ("linear", 1 + (guidance - 1) * share)):
        got, expected = guide(both, guidance, schedule, share)[0], u + (c - u) * s
        assert torch.allclose(got, expected, rtol=0, atol=1e-9), \
            f"{schedule}: conditional {c[0]}, unconditional {u[0]}, got {got[0]}"
