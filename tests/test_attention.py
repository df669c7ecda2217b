"""Properties of the cache and of the rotary positions, each part on its own.

`test_equivalence.py` tests the whole. When it fails, a property here often says why.
"""

import math
from itertools import accumulate
from unittest.mock import patch

import pytest
import torch
from hypothesis import strategies as st

from arpg_mini import attention, decoding
from arpg_mini import model as arpg
from arpg_mini.attention import Cache, append, rotary_table, rotate
from arpg_mini.decoding import decode
from tests.definition import turn
from tests.helpers import tiny_model
from tests.strategies import C, V, decodes, for_all, grids, layers, lessons, model_of, short

pytestmark = pytest.mark.equivalence

bases = st.sampled_from([10.0, 100.0, 10000.0])
widths = st.sampled_from([4, 8, 12, 16])


class WatchedCache(Cache):
    """A cache that starts as NaN: reading a slot before it is written makes every logit NaN."""

    made: list["WatchedCache"] = []

    def __init__(self, *sizes, **factory):
        super().__init__(*sizes, **factory)
        self.pairs.fill_(math.nan)
        self.steps = []                          # the length at the end of each step
        self.turn = 0                            # the layer that writes next
        self.made.append(self)

    def append(self, pair, length, keys, values):
        """Replaces `attention.append`."""
        layer = pair.storage_offset() // self.pairs.stride(0)
        assert not keys.isnan().any(), f"before layer {layer} an empty slot was read"
        before = self.pairs.clone()
        out = append(pair, length, keys, values)
        changed = (~((self.pairs == before) | (self.pairs.isnan() & before.isnan()))
                   ).flatten(1, 3).any(-1).any(1)                              # (layers, slots)
        first, wrote = self.length, changed.nonzero().tolist()
        expected = [[self.turn, s] for s in range(first, first + keys.shape[2])]
        assert wrote == expected, f"[layer, slot] written: {wrote}; expected: {expected}"
        assert before[layer, :, :, :, first:].isnan().all(), f"layer {layer}: a slot written twice"
        self.turn = (self.turn + 1) % len(self.pairs)
        return out

    def advance(self, slots):
        super().advance(slots)
        self.steps.append(self.length)
        assert not self.pairs[..., :self.length, :].isnan().any(), \
            f"a layer has an empty slot before slot {self.length}"


@for_all(case=decodes())
def test_cache_slots_are_written_once_in_order(case):
    """Every layer's slots are written in order, each once: class, known tokens, steps.

    No slot stays empty, no slot is allocated and never used, and none is read before it is written
    (it would be NaN). Broken if keys are written to the slots of another step or another layer.
    """
    WatchedCache.made.clear()

    def watched(*arguments):
        return WatchedCache.made[-1].append(*arguments)

    with patch.object(decoding, "Cache", WatchedCache), \
            patch.object(attention, "append", watched), patch.object(arpg, "append", watched):
        run = case.run(decode)
    assert not run.logits.isnan().any(), "a query read an empty slot"
    cache, = WatchedCache.made
    known = sum(x >= 0 for x in case.known)
    lengths = [1] + [1 + known] * (known > 0)
    lengths += [1 + known + done for done in accumulate(case.sizes[:-1])]
    assert cache.steps == lengths, f"slots filled after each step: {cache.steps}, not {lengths}"
    assert cache.pairs.shape[4] == lengths[-1], \
        f"{cache.pairs.shape[4]} slots allocated, {lengths[-1]} used"


@for_all(grid=grids, width=widths, base=bases, data=st.data())
def test_rotation_is_its_definition(grid, width, base, data):
    """Row first, then column; interleaved pairs; the frequencies are base^(-2i/(K/2)).

    Broken if axes, pairs or frequencies are swapped, or angles are stored in half precision.
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


@for_all(40, grid=grids, width=widths, seed=st.integers(0, 999))
def test_rotation_is_in_float32_at_least(grid, width, seed):
    """Half-precision vectors are rotated in float32, and rounded once. A bfloat16 model has float32
    angles.

    Broken if angles are stored or applied in half precision: at column 24 they would be off by 0.1.
    """
    model = tiny_model(torch.bfloat16, heads=1, dim=width)
    large = (grid[0] + 20, grid[1] + 20)
    exact = rotary_table(large, width).to(torch.complex64)
    got = model.rotary(large)
    assert got.dtype == exact.dtype and (got - exact).abs().max() < 1e-6, \
        f"angles are off by {(got - exact).abs().max():.2g}"
    x = torch.randn(1, 3, 1, width, generator=torch.Generator().manual_seed(seed)).bfloat16()
    places = got[None, -4:-1]
    assert torch.equal(rotate(x, places), rotate(x.float(), places).bfloat16()), \
        f"{short(x[0, 0, 0])} rotated differently in bfloat16 and float32"


@for_all(base=bases, width=widths, p=st.tuples(st.integers(0, 4), st.integers(0, 6)),
         q=st.tuples(st.integers(0, 4), st.integers(0, 6)),
         shift=st.tuples(st.integers(0, 5), st.integers(0, 5)), seed=st.integers(0, 999))
def test_rotary_scores_know_displacements_only(base, width, p, q, shift, seed):
    """If a query at p and a key at q shift together, their score stays the same.

    Broken if a score depends on absolute positions, or is the same for rows and columns.
    """
    grid = (10, 12)
    table, g = rotary_table(grid, width, base), torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, 1, 1, 1, width, generator=g, dtype=torch.float64)

    def score(*places):
        at = [table[None, [row * grid[1] + column]] for row, column in places]
        return (rotate(query, at[0]) * rotate(key, at[1])).sum().item()

    moved = [(place[0] + shift[0], place[1] + shift[1]) for place in (p, q)]
    assert math.isclose(score(p, q), score(*moved), abs_tol=1e-9), \
        f"query at {p}, key at {q}: {score(p, q):.4g}; at {moved}: {score(*moved):.4g}"
    down, right = q[0] - p[0], q[1] - p[1]
    if down != right:
        swapped = score((max(-right, 0), max(-down, 0)), (max(right, 0), max(down, 0)))
        assert abs(score(p, q) - swapped) > 1e-9, \
            f"{down} down and {right} right scores as {right} down and {down} right"


@for_all(case=lessons(batch=st.just(1)), slots=st.integers(0, 5),
         shift=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_shifting_all_positions_changes_nothing(case, slots, shift):
    """The model's logits stay the same when all positions shift together on a larger grid.

    Broken if, in either pass, a key or a query is rotated twice or not at all.
    """
    model, (height, width) = case.model, case.grid
    large = (height + 3, width + 3)
    table = model.rotary(large)
    slots, target = list(case.orders[0][:-1])[:slots], case.orders[0][-1]

    def logits(down, right):
        def there(position):
            return (position // width + down) * large[1] + position % width + right
        at = torch.tensor([[large[0] * large[1]] + [there(p) for p in slots]])
        ids = torch.tensor([[V + 1] + [p % V for p in slots]])
        with torch.no_grad():
            keys, values = model.read(ids, table[at], causal=True)
            return model.head(model.ask(table[torch.tensor([[there(target)]])], keys, values))

    gap = (logits(0, 0) - logits(*shift)).abs().max()
    assert gap < 1e-9, (f"tokens at {slots}, query at {target}: shifted by {shift}, the logits "
                        f"change by {gap:.2g}")


@for_all(grid=grids, sizes=layers, data=st.data())
def test_the_class_slot_scores_zero_everywhere(grid, sizes, data):
    """In every layer the class's key is the zero vector: every query's score for it is 0.

    Broken if the class slot is rotated like position 0.
    """
    model, n = model_of(grid, sizes, 2, 8), grid[0] * grid[1]
    label = data.draw(st.integers(0, C), label="class")
    position = data.draw(st.integers(0, n - 1), label="position")
    cache = Cache(sizes[0] + 1, 1, 2, 2, 8, dtype=torch.float64)
    with torch.no_grad():
        model.read(torch.tensor([[V + 1 + label, 0]]),
                   model.rotary(grid)[torch.tensor([[n, position]])], cache=cache)
    for layer, (keys, _) in enumerate(cache.pairs):                            # (1, H, slots, K)
        assert keys[:, :, 0].abs().max() == 0, \
            f"layer {layer}: the class slot's key is {short(keys[0, :, 0])}"
        assert keys[:, :, 1].abs().max() > 0, f"layer {layer}: a token's key is zero too"


def test_released_memory_is_reused_by_one_cache_of_the_same_shape():
    """Broken if two caches share memory, or if a cache gets memory of another shape or type."""
    sizes = 2, 1, 2, 5, 8
    with torch.inference_mode():
        first = Cache(*sizes)
    memory = first.pairs.data_ptr()
    assert Cache(*sizes).pairs.data_ptr() != memory, "memory reused while in use"
    first.release()
    second, third = Cache(*sizes), Cache(*sizes)
    assert second.pairs.data_ptr() == memory, "memory not reused"
    assert third.pairs.data_ptr() != memory, "memory reused twice"
    second.pairs.zero_()                        # an inference-mode tensor would refuse this
    for other in (dict(dtype=torch.float64), dict(device="meta")):
        second.release()
        made = Cache(*sizes, **other).pairs
        assert (made.dtype, made.device.type) == (
            other.get("dtype", torch.float32), other.get("device", "cpu")), f"reused for {other}"
        assert Cache.spare is None, "memory kept that did not fit"
    second.release()
    assert Cache(2, 1, 2, 6, 8).pairs.shape[-2] == 6, "memory reused for more slots"
