"""Parallel equals sequential: the eight properties of ARPG, for all grids, orders, steps, models.

Read them as the specification. Each says what would be broken if it failed. `tests/mutants/` breaks
the code in some ninety ways, and each time the property named there fails. All but the eighth are
in float64: there, rounding makes equal logits of order ten differ by about 1e-14, and 1e-9 is
allowed. The ids are then equal too, unless a uniform number falls that close to a boundary between
two ids: once in many millions of runs.
"""

import copy
from itertools import accumulate

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from arpg_mini import ARPG
from arpg_mini.decoding import decode, decode_sequential, decode_steps
from arpg_mini.sampling import guide
from tests.definition import finished_image_logits
from tests.helpers import tiny_model
from tests.strategies import (
    C,
    Decode,
    V,
    chi_squared_p,
    decodes,
    for_all,
    grids,
    layers,
    lessons,
    model_of,
    short,
)

pytestmark = pytest.mark.equivalence

HALVES = ["conditional", "unconditional"]        # of the logits, under guidance


def agree(case: Decode, got: Tensor, expected: Tensor, names: str,
          tolerance: float | None = None) -> None:
    """Compare logits (B, U, …). The message names the first query that differs."""
    __tracebackhide__ = True
    assert got.shape == expected.shape, f"{names} logits: {got.shape} and {expected.shape}"
    if not got.numel():
        return
    gap = (got - expected).abs().flatten(2).amax(-1)
    wrong = ~(gap <= (tolerance or 1e-9 * (1 + expected.abs().max())))        # NaN is wrong
    if wrong.any():
        b, t = wrong.nonzero()[0].tolist()
        raise AssertionError(f"{names} logits differ by {gap[b, t]:.2g}: {case.query(b, t)}")


def defined(case: Decode, model: ARPG, ids: Tensor, label: int) -> Tensor:
    """(1, U, V): the logits by `tests/definition.py` on the way to a sample's finished image."""
    known = [p for p, x in enumerate(case.known) if x >= 0]
    return torch.from_numpy(finished_image_logits(
        model, ids[0].tolist(), label, case.grid, known, case.unknown_orders[0].tolist(),
        case.sizes, case.within_step))[None]


@for_all(case=decodes(one_a_step=True, nothing_known=True, as_trained=True))
def test_teacher_forcing(case):
    """1. Decoding one token per step with the cache gives the training logits of that image.

    Broken if decoding computes anything else than training.
    """
    run = case.run(decode)
    for half, label in enumerate(HALVES[:run.logits.shape[2]]):
        labels = torch.tensor(case.labels if half == 0 else (C,) * len(case.labels))
        taught = case.model(run.ids, labels, torch.tensor(case.orders))
        agree(case, run.logits[:, :, half], taught, f"{label} decoded and trained")


@for_all(case=decodes())
def test_cached_equals_uncached(case):
    """2. For any order, steps and known tokens, `decode` equals `decode_sequential`.

    Broken if the cache, a mask, a position or the guidance gives another result than recomputing
    everything, one query at a time, with an explicit mask.
    """
    fast, slow = case.run(decode), case.run(decode_sequential)
    agree(case, fast.logits, slow.logits, "cached and uncached")
    agree(case, fast.guided, slow.guided, "cached and uncached guided")
    assert torch.equal(fast.ids, slow.ids), \
        f"cached ids {fast.ids.tolist()}, uncached {slow.ids.tolist()}"


@for_all(150, case=decodes(batch=st.just(1)))
def test_decoding_is_its_definition(case):
    """2b. Every logit of a decode equals its formula, computed by loops in NumPy.

    Broken if both decoders make the same mistake, because they share a model: rotary angles, key
    scaling, norms, a wrong slot.
    """
    run = case.run(decode)
    for half, name in enumerate(HALVES[:run.logits.shape[2]]):
        expected = defined(case, case.model, run.ids, C if half else case.labels[0])
        agree(case, run.logits[:, :, half], expected, f"{name} decoded and defined")


@for_all(grid=grids, sizes=layers, data=st.data())
def test_queries_are_independent(grid, sizes, data):
    """3. Adding, dropping, repeating or reordering the other queries of a step changes nothing.

    Broken if queries see each other, or if a query's output depends on its place among them.
    """
    model, n = model_of(grid, sizes, 2, 8), grid[0] * grid[1]
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
            assert gap < 1e-9, (f"the query at position {target}, number {m} of queries at "
                                f"{targets}, differs by {gap:.2g} from the same query alone")


@for_all(case=lessons(batch=st.just(1)), training=st.booleans(),
         dropout=st.sampled_from([0.0, 0.3]), data=st.data())
def test_no_peeking(case, training, dropout, data):
    """4. Query t's logits have zero gradient at the embeddings of tokens t, t+1, … of the order.

    At every earlier token and at the class it is not zero (without dropout). Training mode and
    evaluation mode behave alike. (All ids of the image differ here, so each row of the embedding's
    gradient belongs to one token.)
    Broken if training shows a query its answer, or hides a token that decoding will show.
    """
    order, n = case.orders[0], len(case.orders[0])
    t = data.draw(st.integers(0, n - 1), label="query")
    model = case.new_model(vocab_size=n, dropout=dropout).train(training)
    image = torch.randperm(n, generator=torch.Generator().manual_seed(case.seeds[0]))
    logits = model(image[None], torch.tensor(case.labels), torch.tensor(case.orders))
    gradient, = torch.autograd.grad(logits[0, t].square().sum(), model.embedding.weight)
    reached = gradient.abs().sum(-1) > 0
    seen = [s for s in range(n) if reached[image[order[s]]]]
    where = f"query {t} of the order (position {order[t]}) sees tokens {seen} of the order"
    assert max(seen, default=-1) < t, f"{where}: it may see only those before {t}"
    if not (training and dropout):
        assert seen == list(range(t)), f"{where}: it should see all before {t}"
        assert reached[n + 1 + case.labels[0]], f"{where}, but not the class"


@for_all(case=decodes())
def test_every_position_is_decoded_exactly_once(case):
    """5. A step fills its own positions and no others. Known ids stay. In the end no id is missing.

    Broken if a step's tokens are lost, drawn twice or written elsewhere, or if known ids change, in
    the image or in the caller's tensor.
    """
    before, ends, settings = case.known_rows, list(accumulate(case.sizes)), case.settings
    streamed = [ids.clone() for ids in
                decode_steps(case.model, case.labels, case.seeds, **settings)]
    for name in ("known", "orders"):
        assert torch.equal(settings[name], case.settings[name]), f"the caller's {name} changed"
    assert len(streamed) == max(1, len(ends)), f"{len(streamed)} steps, not {len(ends)}"
    for step, (start, end, ids) in enumerate(zip([0] + ends, ends, streamed)):
        expected = case.unknown_orders[:, start:end].sort(-1).values.tolist()
        changed = [row.nonzero()[:, 0].tolist() for row in ids != before]
        assert changed == expected, f"step {step} changed positions {changed}, not {expected}"
        before = ids
    assert ((before >= 0) & (before < V)).all(), f"some ids are missing: {before.tolist()}"
    if not ends:
        assert streamed[0].tolist() == before.tolist(), "everything was known, but ids changed"


@for_all(case=decodes(batch=st.integers(2, 4), own_orders=True), data=st.data())
def test_samples_do_not_depend_on_their_batch(case, data):
    """6. A sample is the same alone, among other samples, and in another order of samples.

    Broken if orders or noise are drawn for a whole batch, or if rows of a batch get mixed.
    """
    rows = data.draw(st.lists(st.integers(0, len(case.labels) - 1), min_size=1, max_size=3),
                     label="samples")
    whole = case.run(decode).ids
    part = case.with_(labels=tuple(case.labels[i] for i in rows),
                      seeds=tuple(case.seeds[i] for i in rows)).run(decode).ids
    for at, i in enumerate(rows):
        assert torch.equal(part[at], whole[i]), (
            f"sample {i} of the batch is {whole[i].tolist()}; as number {at} of a batch of samples "
            f"{rows} it is {part[at].tolist()}")


@for_all(15, first_seed=st.integers(0, 2**40), label=st.integers(0, C),
         one_a_step=st.booleans())
def test_images_follow_the_models_distribution(first_seed, label, one_a_step):
    """6b. 3,000 images of three tokens follow the exact probability of each possible image.

    The probability of an image is the product of its steps' softmaxes, averaged over the six
    orders. A correct sampler fails less than once in 10^9 examples.
    Broken if noise is reused within an image, or depends on its order.
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
    """7. guidance=1 computes no second half. Otherwise this half is the model without a class.

    A step's own tokens count as done. Broken if the unconditional half knows the class, if the two
    halves have different tokens, or if `done` is one step late.
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
                  f"{HALVES[half]} half's and unguided")


@for_all(30, case=decodes(batch=st.just(1)), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_low_precision_only_rounds(case, dtype):
    """8. In float32 and bfloat16 the model equals its definition, up to rounding errors.

    How large are they? The measure is how far the exact logits move when every weight moves by one
    unit of rounding: the largest move of five tries. Products, norms and attention round more than
    once, averages round less. Over 2,000 decodes the error was at most 1.5 times that move in
    float32 and 0.7 times in bfloat16; 6 and 2 times are allowed.
    Broken if something is stored, rotated or summed with less precision than it should be.
    """
    assume(case.sizes)
    case = case.with_(guidance=1.0)
    low = copy.deepcopy(case.model)
    with torch.no_grad():
        for parameter in low.parameters():
            parameter.mul_(0.5 if parameter.ndim > 1 else 1)           # less peaked attention
    low, exact = low.to(dtype), copy.deepcopy(low.to(dtype)).double()
    run = case.run(decode, low)
    expected, moves = defined(case, exact, run.ids, case.labels[0]), []
    for seed in range(5):
        moved, generator = copy.deepcopy(exact), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in moved.parameters():
                noise = torch.randn(p.shape, generator=generator, dtype=p.dtype).clamp(-2, 2)
                p.mul_(1 + torch.finfo(dtype).eps * noise)
        moves.append((defined(case, moved, run.ids, case.labels[0]) - expected).abs().max())
    agree(case, run.logits[:, :, 0].double(), expected, f"{dtype} and exact",
          tolerance={torch.float32: 6, torch.bfloat16: 2}[dtype] * max(moves))


@for_all(logits=st.lists(st.floats(-9, 9), min_size=4, max_size=4),
         guidance=st.floats(0, 20), share=st.floats(0.01, 1))
def test_guide_is_its_definition(logits, guidance, share):
    """7b. It is u + (c − u)·s: s = 1 gives c, s = 0 gives u. "linear" runs from 1 to `guidance`."""
    both = torch.tensor(logits, dtype=torch.float64).view(2, 1, 2)
    c, u = both
    for schedule, s in (("constant", guidance), ("linear", 1 + (guidance - 1) * share)):
        got, expected = guide(both, guidance, schedule, share)[0], u + (c - u) * s
        assert torch.allclose(got, expected, rtol=0, atol=1e-9), \
            (f"{schedule}: conditional {short(c[0])}, unconditional {short(u[0])}, "
             f"got {short(got[0])}")
