"""Properties of editing: known tokens never change, and hidden pixels never show. With nothing
known, editing is plain sampling. A sample does not depend on its batch."""

import cmath
from functools import lru_cache
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arpg_mini import TokenizerConfig, VQTokenizer, editing
from arpg_mini.config import FIXED_ORDERS, ORDERS, POSITIONS
from arpg_mini.decoding import decode, decode_steps, make_plan
from arpg_mini.orders import named_order
from arpg_mini.sampling import Settings
from tests.helpers import tiny_model
from tests.strategies import for_all, new_model, seeds, short

TRAINED, V, STRIDE = (3, 5), 11, 4
SETTINGS = dict(steps=4, guidance=2.0)
METHODS = ["windows", "extrapolate", "interpolate", "ntk"]
few = settings(max_examples=25, deadline=None)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@lru_cache
def tokenizer_of():
    """Not local: its encoder sees the whole picture, like the released one."""
    torch.manual_seed(0)
    return VQTokenizer(TokenizerConfig(channels=32, multipliers=(1, 1, 1), encoder_blocks=1,
                                       decoder_blocks=1, latent_channels=32, codebook_size=V,
                                       code_dim=4)).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of()


def known_grids(batch=2):
    """Ids of a grid up to three times the trained one. A random part of them is -1."""
    grids = st.tuples(st.integers(1, 9), st.integers(1, 11))
    return st.builds(lambda grid, seed, share: np.where(
        np.random.default_rng(seed).random((batch, *grid)) < share, -1,
        np.random.default_rng(seed + 1).integers(0, V, (batch, *grid))),
        grids, st.integers(0, 10**6), st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]))


@few
@given(known=known_grids(), method=st.sampled_from(METHODS))
def test_known_tokens_stay_and_unknown_ones_are_drawn(model, known, method):
    """No step changes known ids. After the last step no id is unknown. The caller's tensor does not
    change."""
    given_ids = torch.from_numpy(known)
    before = given_ids.clone()
    for ids in editing.complete_steps(model, given_ids, [0, 1], [3, 4], positions=method,
                                      **SETTINGS):
        assert (ids[before >= 0] == before[before >= 0]).all()
    assert torch.equal(given_ids, before) and ids.min() >= 0 and ids.max() < V


@pytest.mark.parametrize("method", METHODS)
def test_nothing_known_on_the_trained_grid_is_plain_sampling(model, method):
    """With the same seeds, every method gives the ids of plain sampling."""
    nothing = torch.full((2, *TRAINED), -1)
    drawn = editing.complete(model, nothing, [0, 2], [5, 6], positions=method, **SETTINGS)
    assert torch.equal(drawn.flatten(1), decode(model, [0, 2], [5, 6], **SETTINGS))


# Each function by its definition.


@lru_cache
def small_model():
    """Few weights, and an adapter that has learned something. Do not change it."""
    return tiny_model(grid=(2, 3), dim=16, heads=2, content_layers=1, query_layers=1, ffn_hidden=8,
                      control_stride=2)


def starts(n: int, few: int) -> list[int]:
    """Windows of `few` tokens begin half a window apart, and the last one ends with the grid."""
    found = [0]
    while found[-1] + few < n:
        found.append(min(found[-1] + max(1, few // 2), n - few))
    return found


def windows_by_hand(known: torch.Tensor, size: tuple[int, int], steps: int, usual: int):
    """(row, column, steps): the next window is the one with the most known tokens. Of equals it is
    the upper one, then the left one. Its steps are in proportion to its unknown tokens."""
    known = known.clone()
    while not known.all():
        best, where = -1, None
        for r in starts(known.shape[0], size[0]):
            for c in starts(known.shape[1], size[1]):
                seen = int(known[r:r + size[0], c:c + size[1]].sum())
                if best < seen < size[0] * size[1]:
                    best, where = seen, (r, c)
        unknown = size[0] * size[1] - best
        yield *where, min(unknown, max(1, round(steps * unknown / usual)))
        known[where[0]:where[0] + size[0], where[1]:where[1] + size[1]] = True


def complete_by_hand(known, label, seed, steps, positions, order, control, against, **how):
    """The ids of one sample after each step. Every window is decoded by itself."""
    model, trained = small_model(), small_model().config.grid
    a, b = (tuple(map(min, known.shape, trained)) if positions == "windows" else known.shape)
    ids, states = known.clone(), [known]
    for number, (r, c, few_steps) in enumerate(windows_by_hand(known >= 0, (a, b), steps, 6)):
        own = int(np.random.default_rng([3, seed, number]).integers(2**62)) if number else seed
        for part in decode_steps(
                model, [label], [own], steps=few_steps, grid=(a, b),
                known=ids[r:r + a, c:c + b].flatten(),
                positions="extrapolate" if positions == "windows" else positions,
                orders=order,
                control=None if control is None else control[None, :, 2 * r:2 * (r + a),
                                                             2 * c:2 * (c + b)],
                against=None if against is None else [against], **how):
            ids[r:r + a, c:c + b] = part.view(a, b)
            states.append(ids.clone())
    return states


def changes(states: list[torch.Tensor]) -> list[list]:
    """Without repetitions: other samples of a batch have steps of their own."""
    return [s.tolist() for i, s in enumerate(states) if i == 0 or not torch.equal(s, states[i - 1])]


completions = st.fixed_dictionaries(dict(
    grid=st.sampled_from([(2, 3), (3, 4), (4, 3), (5, 7), (1, 2), (2, 7), (5, 2), (1, 8)]),
    shares=st.lists(st.sampled_from([1.0, 0.5, 0.8, 0.1, 0.0]), min_size=1, max_size=3),
    same_mask=st.booleans(), steps=st.sampled_from([3, 1, 6, 2]),
    order=st.sampled_from(ORDERS), positions=st.sampled_from(METHODS),
    control=st.sampled_from(["none", "one", "each"]), old=st.booleans(), seed=st.integers(0, 2**40),
    how=st.sampled_from([dict(guidance=3.0), dict(guidance=1.0, temperature=0.4),
                         dict(guidance=-2.0, guidance_schedule="constant", schedule="cosine"),
                         dict(guidance=2.0, top_k=2, within_step="causal"), dict(top_p=0.3)])))


@for_all(25, case=completions)
def test_editing_is_decoding_with_known_ids_window_by_window(case):
    """Every sample passes through the states of `complete_by_hand`, whatever its batch. The known
    ids and the caller's tensor stay.

    Broken if an argument is ignored or belongs to another sample, or if windows have other places,
    seeds, steps or orders.
    """
    rng, b, grid = np.random.default_rng(case["seed"]), len(case["shares"]), case["grid"]
    hidden = rng.random((1 if case["same_mask"] else b, *grid)) < np.reshape(
        case["shares"][:1] if case["same_mask"] else case["shares"], (-1, 1, 1))
    known = torch.from_numpy(np.where(hidden, -1, rng.integers(0, 11, (b, *grid))))
    labels, seeds = rng.integers(0, 4, b).tolist(), [case["seed"] + 10 * i for i in range(b)]
    old = rng.integers(0, 4, b).tolist() if case["old"] else None
    maps = {"none": None, "one": torch.from_numpy(rng.random((1, 1, 2 * grid[0], 2 * grid[1]))),
            "each": torch.from_numpy(rng.random((b, 1, 2 * grid[0], 2 * grid[1])))}[case["control"]]
    how = dict(steps=case["steps"], positions=case["positions"], order=case["order"], **case["how"])
    before = known.clone()
    got = [ids.clone() for ids in editing.complete_steps(
        small_model(), known, labels, seeds, control=maps, against=old, **how)]
    assert torch.equal(known, before), "the caller's ids have changed"
    groups = {}
    for row in range(b):
        right = complete_by_hand(known[row], labels[row], seeds[row], against=old and old[row],
                                 control=None if maps is None else maps[row % len(maps)], **how)
        groups[(known[row] >= 0).numpy().tobytes()] = len(right) - 1
        mine, right = changes([known[row], *(ids[row] for ids in got)]), changes(right)
        step = next((i for i, (x, y) in enumerate(zip(mine, right)) if x != y),
                    min(len(mine), len(right)) - 1)
        assert mine == right, \
            f"sample {row}, change {step} of {len(right) - 1}: {mine[step]}, not {right[step]}"
    steps = max(1, sum(groups.values()))
    assert len(got) == steps, f"{len(got)} steps, not {steps}"


@for_all(40, data=st.data(), grid=st.sampled_from([(2, 3), (3, 4), (1, 2), (5, 2)]),
         b=st.integers(1, 3), guidance=st.sampled_from([3.0, 1.0]), old=st.booleans(),
         given_orders=st.sampled_from(["none", "one", "each"]), seed=st.integers(0, 2**40))
def test_a_decode_plans_what_it_is_told(data, grid, b, guidance, old, given_orders, seed):
    """Orders, noise, known ids and classes of every sample. With guidance there is a second half:
    the classes to lead away from, or no class.

    Broken if a given order or an old class is ignored, or if one sample gets another's.
    """
    rng, model, n = np.random.default_rng(seed), small_model(), grid[0] * grid[1]
    labels, against = rng.integers(0, 4, (2, b)).tolist()
    seeds = [seed + 7 * i for i in range(b)]
    own = [np.random.default_rng([1, s]).permutation(n).tolist() for s in seeds]
    others = [rng.permutation(n).tolist() for _ in range(b)]
    orders = {"none": own, "one": others[:1] * b, "each": others}[given_orders]
    hidden = data.draw(st.lists(st.booleans(), min_size=n, max_size=n), "hidden")
    known = np.where(hidden, -1, rng.integers(0, 11, (b, n)))
    plan = make_plan(model, labels, seeds, Settings(
        steps=max(1, sum(hidden)), grid=grid, known=torch.from_numpy(known), guidance=guidance,
        against=torch.tensor(against) if old else None,
        orders={"none": None, "one": torch.tensor(others[0]), "each": torch.tensor(others)}[
            given_orders]))
    halves = [] if guidance == 1 else against if old else [3] * b
    right = dict(ids=known.tolist(), labels=labels + halves, sizes=[1] * sum(hidden),
                 known=[p for p in range(n) if not hidden[p]],
                 orders=[[p for p in order if hidden[p]] for order in orders],
                 noise=[np.random.default_rng([2, s]).random(n).tolist() for s in seeds])
    for name, expected in right.items():
        got = getattr(plan, name)
        got = got.tolist() if isinstance(got, torch.Tensor) else got
        assert got == expected, f"{name} {got}, by definition {expected}"


@for_all(20, first=seeds, others=st.lists(st.integers(1, 10**6), min_size=1, max_size=3))
def test_no_two_windows_share_their_noise(first, others):
    """The windows of neighbouring and of other seeds all have different seeds. The first window has
    the sample's own.

    Broken if a window's seed is a sum of seed and number, or depends on one of them only.
    """
    samples = {first, first + 1, first + 2, *(first + n for n in others)}
    by_seed = {}
    for seed in samples:
        for number in range(12):
            own = editing.window_seed(seed, number)
            assert own not in by_seed, \
                f"sample {seed}, window {number} has the seed of sample, window {by_seed[own]}"
            by_seed[own] = seed, number
        assert editing.window_seed(seed, 0) == seed, f"the first window of seed {seed} has another"


def order_by_hand(name: str, height: int, width: int) -> list[int]:
    cells = [(r, c) for r in range(height) for c in range(width)]
    if name == "spiral":                        # walk, and turn right at the edge or at old cells
        walk, (r, c), (down, right) = [], (0, 0), (0, 1)
        while len(walk) < len(cells):
            walk.append((r, c))
            ahead = r + down, c + right
            if ahead not in cells or ahead in walk:
                down, right = right, -down
            r, c = r + down, c + right
        cells = walk
    elif name != "raster":
        cells.sort(key={"column": lambda at: at[1], "checkerboard": lambda at: sum(at) % 2,
                        "outward": lambda at: sum((2 * x - n + 1) ** 2 for x, n in
                                                  zip(at, (height, width)))}[name])
    return [r * width + c for r, c in cells]


@for_all(40, name=st.sampled_from(FIXED_ORDERS), height=st.integers(1, 7), width=st.integers(1, 7))
def test_named_orders_are_their_definition(name, height, width):
    """"outward" may take equally distant positions in any order."""
    got, right = named_order(name, (height, width)).tolist(), order_by_hand(name, height, width)
    assert sorted(got) == sorted(right), f"{name}: {got} is no permutation"
    if name == "outward":
        got, right = ([sum((2 * x - n + 1) ** 2 for x, n in zip(divmod(p, width), (height, width)))
                       for p in order] for order in (got, right))
    assert got == right, f"{name}, {height}x{width}: {got}, by definition {right}"


@for_all(40, grid=st.tuples(st.integers(1, 7), st.integers(1, 7)),
         trained=st.tuples(st.integers(1, 5), st.integers(1, 5)), base=st.sampled_from([10.0, 1e4]),
         width=st.sampled_from([8, 4, 12]), positions=st.sampled_from(POSITIONS))
def test_larger_grids_have_the_documented_rotations(grid, trained, base, width, positions):
    """`interpolate` divides all angles of an axis by how much longer it is; `ntk` the lowest
    frequency by this and the highest by 1. A shorter axis stays. A decode uses this table.

    Broken if a method does nothing, is another, or treats rows as columns.
    """
    model, (h, w) = new_model(trained, (1, 1), 1, width, base), grid
    table = make_plan(model, [0], [0], Settings(steps=1, grid=grid, positions=positions)).table
    for row in range(h):
        for column in range(w):
            for k in range(width // 2):
                axis, i = divmod(k, width // 4)
                longer = max(1, grid[axis] / trained[axis])
                share = {"extrapolate": 0, "interpolate": 1,
                         "ntk": i / max(1, width // 4 - 1)}[positions]
                angle = (row, column)[axis] * base ** (-2 * i / (width // 2)) / longer ** share
                got, right = table[row * w + column, k].item(), cmath.rect(1, angle)
                assert abs(got - right) < 1e-9, (
                    f"{positions}, {h}x{w} trained on {trained}: row {row}, column {column}, pair "
                    f"{k}: {got:.4g}, by definition {right:.4g}")
    assert table[h * w].abs().max() == 0, "the class slot is rotated"


class Cells:
    """A tokenizer of 2×3 grids that decodes every cell of every place in its own way, and encodes
    cells by their number. It remembers what it was given to encode."""

    config = TokenizerConfig(multipliers=(1, 1))

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        self.given, (b, _, h, w) = images, images.shape
        return torch.arange(b * h * w // 4).view(b, h // 2, w // 2)

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        b, h, w = ids.shape
        wide = ids.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None].float()
        return wide + torch.arange(12 * h * w).view(3, 2 * h, 2 * w) / 100


@for_all(25, grid=st.tuples(st.integers(1, 6), st.integers(1, 7)), b=st.integers(1, 2),
         trained=st.sampled_from([(2, 3), (3, 2), (1, 4)]), seed=st.integers(0, 999))
def test_pixels_of_large_grids_are_a_mean_of_windows(grid, trained, b, seed):
    """A pixel is the mean over the windows that hold it. A window's weight is the product of the
    pixel's distances to its nearer horizontal and vertical side. One window is used as it is."""
    (h, w), ids = grid, torch.from_numpy(np.random.default_rng(seed).integers(0, 11, (b, *grid)))
    m, n = min(h, trained[0]), min(w, trained[1])
    total, weights = torch.zeros(b, 3, 2 * h, 2 * w).double(), torch.zeros(2 * h, 2 * w).double()
    for r in starts(h, m):
        for c in starts(w, n):
            part = Cells().decode(ids[:, r:r + m, c:c + n]).double()
            for y in range(2 * m):
                for x in range(2 * n):
                    weight = min(y + 1, 2 * m - y) * min(x + 1, 2 * n - x)
                    total[:, :, 2 * r + y, 2 * c + x] += weight * part[:, :, y, x]
                    weights[2 * r + y, 2 * c + x] += weight
    got = editing.to_pixels(Cells(), ids, trained)
    off = (got - total / weights).abs().max()
    assert got.shape == total.shape and off < 1e-4, f"{h}x{w} by {trained}: off by {off:.3g}"


hidden_pixels = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3),
                          st.integers(0, 10**6), st.sampled_from([0.3, 0.0, 0.05, 0.9, 1.0]))


def hidden_pictures(size) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pictures (b, 3, 2·h, 2·w), float64, and masks."""
    h, w, b, seed, share = size
    rng = np.random.default_rng(seed)
    return (torch.from_numpy(rng.random((b, 3, 2 * h, 2 * w)) * 2 - 1),
            torch.from_numpy(rng.random((b, 2 * h, 2 * w)) < share))


@for_all(40, size=hidden_pixels)
def test_known_ids_are_those_outside_the_mask(size):
    """What is encoded: the pictures, with the mean colour of a picture's known pixels in place of
    its masked ones, 0 if none is known. A token is unknown if one of its pixels is masked."""
    (images, mask), coder = hidden_pictures(size), Cells()
    ids, plain = editing.known_ids(coder, images, mask), Cells().encode(images)
    for i, (picture, hidden, given_picture) in enumerate(zip(images, mask, coder.given)):
        for channel, (shown, got) in enumerate(zip(picture, given_picture)):
            known = [x for x, y in zip(shown.flatten().tolist(), hidden.flatten()) if not y]
            mean = sum(known) / max(1, len(known))
            right = shown.clone()
            right[hidden] = mean
            assert torch.allclose(got, right, atol=1e-9), \
                f"picture {i}, channel {channel}: {short(got)} was encoded, not {short(right)}"
        for r in range(ids.shape[1]):
            for c in range(ids.shape[2]):
                touched = any(hidden[2 * r + y, 2 * c + x] for y in (0, 1) for x in (0, 1))
                right = -1 if touched else plain[i, r, c].item()
                assert ids[i, r, c] == right, \
                    f"picture {i}, token {r}, {c}: {ids[i, r, c]}, by definition {right}"


def composite_by_hand(image: np.ndarray, made: np.ndarray, mask: np.ndarray, feather: int):
    """One picture (3, h, w). Known colours grow inwards, one pixel in all eight directions at a
    time: a pixel takes the mean of its neighbours that have one. At depth d of the feather, d parts
    in 1 + feather are new."""
    (h, w), out = mask.shape, np.where(mask, made, image)
    colours = {(y, x): image[:, y, x] for y in range(h) for x in range(w) if not mask[y, x]}
    for depth in range(1, feather + 1):
        grown = {}
        for y in range(h):
            for x in range(w):
                near = [colours[at] for at in ((y + i, x + j) for i in (-1, 0, 1)
                                               for j in (-1, 0, 1)) if at in colours]
                if near and (y, x) not in colours:
                    grown[y, x] = sum(near) / len(near)
        for (y, x), colour in grown.items():
            share = depth / (1 + feather)
            out[:, y, x] = (1 - share) * colour + share * made[:, y, x]
        colours |= grown
    return out


@for_all(40, size=hidden_pixels, feather=st.integers(0, 4))
def test_a_composite_is_its_definition(size, feather):
    """Outside the mask every pixel is exactly the picture's. Inside it is the new one, or the blend
    of `composite_by_hand`.

    Broken if the mask is inverted, or the seam runs the other way, is too wide or too narrow.
    """
    images, mask = hidden_pictures(size)
    made = torch.from_numpy(np.random.default_rng(size[3] + 1).random(images.shape) * 2 - 1)
    got = editing.composite(images, made, mask, feather)
    for i in range(len(images)):
        kept = torch.equal(got[i][:, ~mask[i]], images[i][:, ~mask[i]])
        assert kept, f"picture {i}: a pixel outside the mask has changed"
        right = composite_by_hand(images[i].numpy(), made[i].numpy(), mask[i].numpy(), feather)
        off = np.abs(got[i].numpy() - right)
        at = tuple(map(int, np.unravel_index(off.argmax(), off.shape)))
        assert off.max() < 1e-9, \
            f"picture {i}, [channel, y, x] {at}: {got[i][at]:.4g}, by definition {right[at]:.4g}"


@for_all(40, size=hidden_pixels, around=st.tuples(*[st.integers(0, 3)] * 4))
def test_a_placed_picture_is_where_it_was_told(size, around):
    """Its first token is at row, column `at`. Around it are unknown ids, zeros, and the mask."""
    images, _ = hidden_pictures(size)
    (b, _, h, w), (up, left, down, right) = images.shape, around
    grid = up + h // 2 + down, left + w // 2 + right
    known, canvas, mask = editing.place(Cells(), images, grid, (up, left))
    ids = Cells().encode(images)
    assert known.shape == (b, *grid) and canvas.shape == (b, 3, 2 * grid[0], 2 * grid[1]), \
        f"{tuple(known.shape)} ids, {tuple(canvas.shape)} pixels in a grid {grid}"
    for y in range(2 * grid[0]):
        for x in range(2 * grid[1]):
            inside = 0 <= y - 2 * up < h and 0 <= x - 2 * left < w
            token = known[:, y // 2, x // 2]
            said = f"pixel {y}, {x} of {h}x{w} at token {up}, {left}:"
            assert (mask[:, y, x] != inside).all(), f"{said} wrong in the mask"
            if inside:
                y0, x0 = y - 2 * up, x - 2 * left
                assert torch.equal(canvas[:, :, y, x], images[:, :, y0, x0]), f"{said} wrong colour"
                assert torch.equal(token, ids[:, y0 // 2, x0 // 2]), f"{said} ids {token.tolist()}"
            else:
                assert not canvas[:, :, y, x].any(), f"{said} not zero"
                assert (token == -1).all(), f"{said} ids {token.tolist()}, not -1"
    for at in ((up + down + 1, left), (up, left + right + 1), (-1, left), (up, -1)):
        with pytest.raises(ValueError, match="does not fit"):
            editing.place(Cells(), images, grid, at)


@for_all(10, job=st.sampled_from(["inpaint", "edit_class", "outpaint", "expand"]),
         feather=st.integers(0, 3), one=st.booleans(), method=st.sampled_from(METHODS),
         order=st.sampled_from(ORDERS), seed=st.integers(0, 999))
def test_edited_pictures_are_made_of_these_parts(job, feather, one, method, order, seed):
    """Known ids, their completion, its pixels, and the composite, with all arguments passed on. One
    picture gives a candidate for each seed. `edit_class` leads away from the `old` class.

    Broken if an argument is ignored, or candidates or samples are mixed up.
    """
    rng, model, coder, grid = np.random.default_rng(seed), small_model(), tokenizer_of(), (4, 5)
    labels, seeds, old = rng.integers(0, 3, (3, 2)).tolist()
    how = dict(steps=3, guidance=3.0, order=order, positions=method)
    images = torch.from_numpy(rng.random((1 if one else 2, 3, 8, 12)) * 2 - 1).float()
    mask = torch.from_numpy(rng.random((1 if one else 2, 8, 12)) < 0.2)
    two, hidden = images.expand(2, -1, -1, -1), mask.expand(2, -1, -1)
    known = editing.known_ids(coder, two, hidden)
    *_, ids = editing.complete_steps(model, known, labels, seeds, **how)
    same = torch.equal(editing.complete(model, known, labels, seeds, **how), ids)
    assert same, "`complete` does not give the last step's ids"
    if job == "outpaint":
        known, two, hidden = editing.place(coder, two, grid, (2, 1))
        got = editing.outpaint(model, coder, images, grid, (2, 1), labels, seeds, feather, **how)
    elif job == "expand":
        known, feather, hidden = torch.full((2, *grid), -1), 0, torch.ones(2, 16, 20).bool()
        two = torch.zeros(2, 3, 16, 20)
        got = editing.expand(model, coder, labels, seeds, grid, **how)
    elif job == "edit_class":
        got = editing.edit_class(model, coder, images, mask, labels, seeds, old, feather=feather,
                                 **how)
        how["against"] = old
    else:
        got = editing.inpaint(model, coder, images, mask, labels, seeds, feather, **how)
    *_, ids = editing.complete_steps(model, known, labels, seeds, **how)
    right = editing.composite(two, editing.to_pixels(coder, ids, (2, 3)), hidden, feather)
    for i in range(2):
        assert torch.equal(got[i], right[i]), \
            f"{job}, picture {i}: differs from its parts by {(got[i] - right[i]).abs().max():.3g}"


# What follows from it.


def images_of(batch, height=12, width=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, height, width, generator=generator) * 2 - 1


masks = st.builds(lambda seed, share: torch.from_numpy(
    np.random.default_rng(seed).random((2, 12, 20)) < share),
    st.integers(0, 10**6), st.sampled_from([0.0, 0.01, 0.05, 0.5, 1.0]))


@few
@given(mask=masks, feather=st.integers(0, 4))
def test_pixels_outside_the_mask_are_the_given_ones(model, tokenizer, mask, feather):
    """Broken if a single bit of them changes, with or without feathering."""
    images = images_of(2)
    out = editing.inpaint(model, tokenizer, images, mask, [0, 1], [3, 4], feather=feather,
                          **SETTINGS)
    outside = ~mask[:, None].expand_as(images)
    assert torch.equal(out[outside], images[outside]) and out.isfinite().all()


def test_an_empty_mask_gives_the_picture_back(model, tokenizer):
    images = images_of(2)
    mask = torch.zeros(2, 12, 20, dtype=torch.bool)
    assert torch.equal(editing.inpaint(model, tokenizer, images, mask, [0, 1], [3, 4]), images)


def test_a_full_mask_is_plain_sampling(model, tokenizer):
    mask = torch.ones(2, 12, 20, dtype=torch.bool)
    out = editing.inpaint(model, tokenizer, images_of(2), mask, [0, 1], [3, 4], **SETTINGS)
    ids = decode(model, [0, 1], [3, 4], **SETTINGS)
    assert torch.equal(out, tokenizer.decode(ids.view(2, *TRAINED)))
    assert torch.equal(out, editing.expand(model, tokenizer, [0, 1], [3, 4], TRAINED, **SETTINGS))


@few
@given(mask=masks)
def test_what_the_mask_hides_shows_nowhere(model, tokenizer, mask):
    """Another picture under the mask gives the same result, although the encoder sees the whole
    picture."""
    images, others = images_of(2), images_of(2, seed=1)
    swapped = torch.where(mask[:, None], others, images)
    results = [editing.inpaint(model, tokenizer, x, mask, [0, 1], [3, 4], **SETTINGS)
               for x in (images, swapped)]
    assert torch.equal(*results)


def test_the_property_above_would_notice_a_leak(model, tokenizer):
    """If the hidden pixels are encoded too, known tokens change. So the property above can fail."""
    mask = torch.zeros(1, 12, 20, dtype=torch.bool)
    mask[:, :, 10:] = True
    images, others = images_of(1), images_of(1, seed=1)
    swapped = torch.where(mask[:, None], others, images)
    known = ~editing.token_mask(mask, STRIDE)
    assert (tokenizer.encode(images)[known] != tokenizer.encode(swapped)[known]).any()


def test_the_seam_is_a_ramp_inside_the_mask():
    """The new pixels' weight rises from 0 to 1 over a strip. Known pixels stay as they are; the
    third pixel inside the mask is all new."""
    images, made = torch.zeros(1, 3, 1, 9), torch.ones(1, 3, 1, 9)
    mask = torch.tensor([[[False] * 3 + [True] * 6]])
    ramp = editing.composite(images, made, mask, feather=2)[0, 0, 0]
    torch.testing.assert_close(ramp, torch.tensor([0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1, 1.0]))
    assert editing.composite(images, made, mask)[0, 0, 0].tolist() == [0] * 3 + [1] * 6


@few
@given(mask=masks, feather=st.integers(0, 30))
def test_a_seam_never_shows_what_the_mask_hides(mask, feather):
    """Other pixels under the mask give the same result. A blended colour stays between its two
    colours."""
    images, others, made = images_of(2), images_of(2, seed=1) * 100, images_of(2, seed=2)
    swapped = torch.where(mask[:, None], others, images)
    results = [editing.composite(x, made, mask, feather) for x in (images, swapped)]
    assert torch.equal(*results) and results[0].abs().max() <= 1 + 1e-6


def test_candidates_of_one_picture_are_what_each_would_be_alone(model, tokenizer):
    images, mask = images_of(1), torch.zeros(1, 12, 20, dtype=torch.bool)
    mask[:, :, 7:] = True
    three = editing.inpaint(model, tokenizer, images, mask, [0, 1, 2], [7, 8, 9], **SETTINGS)
    alone = editing.inpaint(model, tokenizer, images, mask, [1], [8], **SETTINGS)
    torch.testing.assert_close(three[1:2], alone)
    assert (three[0] - three[1]).abs().max() > 0.1
    edited = editing.edit_class(model, tokenizer, images, mask, [1], [8], **SETTINGS)
    assert torch.equal(edited, alone)


def test_a_class_matters_to_what_is_drawn(model, tokenizer):
    images, mask = images_of(1), torch.ones(1, 12, 20, dtype=torch.bool)
    mask[:, :4] = False
    a, b = (editing.edit_class(model, tokenizer, images, mask, [c], [8], **SETTINGS)
            for c in (0, 1))
    assert not torch.equal(a, b)


def test_guidance_leads_away_from_the_class_it_is_told(model, tokenizer):
    """`against` gives a class to the unconditional half. "No class" gives plain guidance, and the
    class itself gives no guidance. Each row has its own."""
    labels, seeds, none = [0, 1], [3, 4], [model.null_label] * 2
    plain = decode(model, labels, seeds, **SETTINGS)
    assert torch.equal(decode(model, labels, seeds, against=none, **SETTINGS), plain)
    alone = decode(model, labels, seeds, steps=4, guidance=1)
    assert torch.equal(decode(model, labels, seeds, against=labels, **SETTINGS), alone)
    mixed = decode(model, labels, seeds, against=[0, model.null_label], **SETTINGS)
    assert torch.equal(mixed, torch.stack([alone[0], plain[1]])) and not torch.equal(mixed, plain)
    known = torch.full((2, 9, 9), -1)
    swapped = editing.complete(model, known, [1, 0], [4, 3], against=[2, 0], **SETTINGS)
    both = editing.complete(model, known, labels, seeds, against=[0, 2], **SETTINGS)
    assert torch.equal(swapped.flip(0), both)
    with pytest.raises(ValueError, match="1 classes to lead away from"):
        decode(model, labels, seeds, against=[0], **SETTINGS)
    with pytest.raises(ValueError, match="labels"):
        decode(model, labels, seeds, against=[0, 9], **SETTINGS)


def test_larger_grids_are_seen_through_windows_of_the_trained_size(tokenizer):
    """A grid of the trained size is one window. A corner is in one window only. Where windows
    overlap, they are averaged with weights that sum to one."""
    ids = torch.randint(V, (2, *TRAINED))
    assert torch.equal(editing.to_pixels(tokenizer, ids, TRAINED), tokenizer.decode(ids))
    ids = torch.randint(V, (2, 6, 9))
    with patch.object(tokenizer, "decode", side_effect=tokenizer.decode) as decoded:
        whole = editing.to_pixels(tokenizer, ids, TRAINED)
    assert {call.args[0].shape[1:] for call in decoded.call_args_list} == {TRAINED}
    assert whole.shape == (2, 3, 24, 36)
    corner = tokenizer.decode(ids[:, :3, :5])
    torch.testing.assert_close(whole[:, :, :4, :8], corner[:, :, :4, :8])      # in no other window
    with patch.object(tokenizer, "decode", side_effect=lambda part: torch.full(
            (len(part), 3, 12, 20), 0.25)):
        flat = editing.to_pixels(tokenizer, ids, TRAINED)
    torch.testing.assert_close(flat, torch.full_like(flat, 0.25))
