"""The benchmarks measure real steps of real loops, and count their floors correctly. In some tests
given times and memories replace the measured ones, so every number of a row is known."""

import json
import math
import sys
from argparse import Namespace
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from io import StringIO
from itertools import accumulate, islice
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from arpg_mini import attention, decoding
from arpg_mini.config import ModelConfig, TrainConfig
from arpg_mini.decoding import decode_steps
from arpg_mini.measure import bench, bench_decode, timing
from arpg_mini.measure.raster import Raster, raster_steps
from arpg_mini.orders import step_sizes
from arpg_mini.run import plan
from arpg_mini.run.presets import Preset, presets
from tests.definition import attend, norm, turn
from tests.helpers import code_of, tiny_model
from tests.strategies import for_all

SMALL = ModelConfig(dim=24, heads=2, content_layers=2, query_layers=3, vocab_size=37, num_classes=5,
                    grid=(3, 4), ffn_hidden=40)
TINY = replace(SMALL, grid=(2, 4), content_layers=1, query_layers=2)
CPU = torch.device("cpu")


def arpg_model():
    return tiny_model(torch.float32, **asdict(SMALL)).requires_grad_(False)


def raster_model(dtype=torch.float64) -> Raster:
    model = bench_decode.build(Raster, SMALL, CPU, dtype)
    for p in model.parameters():                # unlike the initial weights
        torch.nn.init.normal_(p, 0.0, 0.4)
    return model


def run(monkeypatch, capsys, *arguments) -> list[dict]:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments, "--json"])
    assert bench.main() == 0
    return json.loads(capsys.readouterr().out)


def flops(work) -> int:
    # With plain products: PyTorch counts fused attention kernels on some devices only.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for _ in work:
            pass
    return counter.get_total_flops()


@pytest.mark.slow
def test_a_training_step_is_timed_and_its_memory_taken(monkeypatch, capsys):
    """It runs in a process of its own. Its floor is the plan's FLOPs at the measured rate."""
    monkeypatch.setattr(bench, "matrix_rate", lambda *_: 1e12)
    row, = run(monkeypatch, capsys, "train", "--batch-size", "64", "--repeats", "2", "--variants",
               "chunked")
    assert row["variant"] == "chunked" and 0 < row["fastest"] <= row["seconds"] <= row["slowest"]
    assert row["images_per_second"] == pytest.approx(64 / row["seconds"])
    flops = 64 * plan.training_flops(presets()["shapes"].model, 36)
    assert row["share_of_floor"] == pytest.approx(flops / 1e12 / row["seconds"])
    assert 0.5 < row["peak_bytes"] / row["planned_bytes"] < 1.5


def test_the_two_losses_are_equal():
    """The loss that is timed with whole logits equals the loss that training computes in chunks."""
    preset = presets()["shapes"]
    torch.manual_seed(0)
    model = bench.ARPG(preset.model).eval()
    torch.nn.init.normal_(model.head.weight, std=0.1)
    ids = bench.RandomIds(3, preset)
    tokens = torch.from_numpy(ids.ids[:, 0].astype("int64"))
    arguments = tokens, torch.from_numpy(ids.labels), torch.rand(3, 36).argsort(1)
    torch.testing.assert_close(bench.whole_logits(model)(*arguments, loss_rows=7),
                               model(*arguments, loss_rows=7))


def test_measured_rates_are_plausible():
    assert 1e8 < timing.matrix_rate(CPU, torch.float32, n=256) < 1e14
    assert 1e8 < timing.bandwidth(CPU, numbers=2**20) < 1e13


def test_loops_are_timed_alternately_and_step_by_step():
    """A slow step adds only to its own time. The first two steps of both loops are not counted."""
    said = []

    def work(name, steps):
        for step in range(steps):
            said.append(name + str(step))
            if name + str(step) == "b1":
                timing.time.sleep(0.05)
            yield

    works = {"a": timing.Work(3, lambda: work("a", 3)), "b": timing.Work(2, lambda: work("b", 2))}
    seconds = timing.paired(works, 2, CPU)
    assert said == ["a0", "a1", "b0", "b1"] + ["a0", "a1", "a2", "b0", "b1"] * 2
    assert seconds["a"].shape == (2, 3) and seconds["b"].shape == (2, 2)
    assert (seconds["b"][:, 1] >= 0.05).all() and seconds["a"].max() < 0.05


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_raster_order_with_a_cache_equals_raster_order_without(guidance):
    """The ids are equal after every step. Broken if the cached keys are not those of a causal
    transformer."""
    model, labels, seeds = raster_model(), torch.tensor([4, 0, 2]), [7, 8, 9]
    kept, anew = ([ids.clone() for ids in raster_steps(model, labels, seeds, guidance, cached)]
                  for cached in (True, False))
    assert len(kept) == 12 and all(torch.equal(a, b) for a, b in zip(kept, anew))
    for t, ids in enumerate(kept):
        assert (ids[:, :t + 1] >= 0).all() and (ids[:, t + 1:] == -1).all()
    assert len({tuple(row.tolist()) for row in kept[-1]}) == 3


def raster_by_hand(model: Raster, ids: list[int]) -> np.ndarray:
    """(V,) logits after the last of `ids`: the class, which has no place, then tokens row by row.
    Every layer is a content layer of `tests/definition.py`."""
    w = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    c, slots = model.config, range(len(ids))
    places = [None] + [divmod(p, c.grid[1]) for p in range(len(ids) - 1)]
    parts = [slice(h * c.head_dim, (h + 1) * c.head_dim) for h in range(c.heads)]
    stream = [w["embedding.weight"][i] for i in ids]
    for layer in range(len(model.blocks)):
        name, mixed = f"blocks.{layer}", []
        qkv = [np.split(w[f"{name}.attention.qkv.weight"] @ norm(
            x, w[f"{name}.attention_norm.gain"]), 3) for x in stream]
        for s in slots:
            mixed.append(np.concatenate([attend(
                turn(qkv[s][0][part], places[s], c.rope_base),
                [turn(qkv[r][1][part], places[r], c.rope_base) for r in slots[:s + 1]],
                [qkv[r][2][part] for r in slots[:s + 1]]) for part in parts]))
        for s in slots:
            x = stream[s] + w[f"{name}.attention.out.weight"] @ mixed[s]
            gate, value = np.split(
                w[f"{name}.ffn.w13.weight"] @ norm(x, w[f"{name}.ffn_norm.gain"]), 2)
            stream[s] = x + w[f"{name}.ffn.w2.weight"] @ (gate / (1 + np.exp(-gate)) * value)
    return w["head.weight"] @ norm(stream[-1], w["norm.gain"])


@for_all(3, guidance=st.sampled_from([4.0, 1.0, 2.0, None]), cached=st.booleans(),
         labels=st.lists(st.integers(0, 5), min_size=1, max_size=2), seed=st.integers(0, 2**40))
def test_raster_order_is_its_definition(guidance, cached, labels, seed):
    """One token a step, row by row, with guidance that rises to 4 by default. A sample's noise is
    that of ARPG.

    Broken if a token reads later ones or itself, or the class has a place or another number.
    """
    torch.manual_seed(1)
    sizes = replace(SMALL, grid=(2, 3), content_layers=1, query_layers=1)
    model = Raster(sizes).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, 0.0, 0.4)
    how = {} if guidance is None else {"guidance": guidance}
    seeds, strength = [seed, seed + 3][:len(labels)], 4.0 if guidance is None else guidance
    steps = [ids.clone() for ids in raster_steps(model, torch.tensor(labels), seeds, cached=cached,
                                                 **how)]
    for b, (label, own) in enumerate(zip(labels, seeds)):
        noise, ids = np.random.default_rng([2, own]).random(6), []
        for t in range(6):
            logits, none = (raster_by_hand(model, [37 + y, *ids]) for y in (label, 5))
            logits = none + (logits - none) * (1 + (strength - 1) * (t + 1) / 6)
            sums = list(accumulate(np.exp(logits - logits.max())))
            ids.append(next(i for i, x in enumerate(sums) if noise[t] < x / sums[-1]))
            got, right = steps[t][b].tolist(), ids + [-1] * (5 - t)
            assert got == right, f"sample {b}, step {t}: {got}, by definition {right}"
    assert len(steps) == 6, f"{len(steps)} steps"


DECODES = [([1, 2, 4, 5], [], 1.0), ([12], [], 4.0), ([3, 3, 2], [0, 5, 6, 11], 4.0)]


@pytest.mark.parametrize("sizes, known, guidance", DECODES)
def test_flops_of_a_decode_are_those_that_pytorch_counts(sizes, known, guidance):
    model, ids = arpg_model(), torch.full((12,), -1)
    ids[known] = 1
    work = decode_steps(model, [0, 1, 2], [0, 1, 2], steps=sizes, known=ids, guidance=guidance)
    costs = plan.decode_costs(SMALL, sizes, 3, guidance != 1, len(known))
    assert flops(work) == sum(f for f, _ in costs) and len(costs) == len(sizes)


@pytest.mark.parametrize("cached", [True, False])
def test_flops_of_raster_order_are_those_that_pytorch_counts(cached):
    work = raster_steps(raster_model(torch.float32), torch.arange(3), range(3), cached=cached)
    assert flops(work) == sum(f for f, _ in plan.raster_costs(SMALL, 12, 6, cached))


def read_bytes(monkeypatch, work) -> list[int]:
    """The bytes that each step reads: the weights in its products, each time they are used, and the
    different keys and values in its attention."""
    seen, linear, attend = [{}], F.linear, F.scaled_dot_product_attention

    def watched_linear(x, weight):
        seen[-1][len(seen[-1])] = weight.nbytes         # counted at each use
        return linear(x, weight)

    def watched_attend(q, k, v, **how):
        seen[-1].update({x.data_ptr(): x.nbytes for x in (k, v)})
        return attend(q, k, v, **how)

    with monkeypatch.context() as patch:
        patch.setattr(attention.F, "linear", watched_linear)
        patch.setattr(attention.F, "scaled_dot_product_attention", watched_attend)
        for _ in work:
            seen.append({})
    return [sum(step.values()) for step in seen[:-1]]


def test_bytes_are_those_that_are_read(monkeypatch):
    """Every step reads the model's weights once, and the filled part of the cache once, however
    many layers share it."""
    sizes = [2, 3, 7]
    work = decode_steps(arpg_model(), [0, 1], [0, 1], steps=sizes)
    costs = plan.decode_costs(SMALL, sizes, 2)
    assert read_bytes(monkeypatch, work) == [b for _, b in costs]
    work = raster_steps(raster_model(torch.float32), torch.arange(2), range(2))
    assert read_bytes(monkeypatch, work) == [b for _, b in plan.raster_costs(SMALL, 12, 4)]


def test_the_bare_products_are_a_decodes_products():
    """Their FLOPs are those of the decode without its attention, with two exceptions: [MASK] is
    projected every time, and the head multiplies both halves."""
    sizes, rows, c = [1, 4, 7], 6, SMALL
    model = arpg_model()
    attended, past = 0, 0
    for before, size in zip([1, *sizes], sizes):
        past += before
        attended += 4 * c.dim * rows * past * (c.content_layers * before + c.query_layers * size)
    extra = sum(2 * c.dim**2 * (rows * size - 1) + rows * size * c.vocab_size * c.dim
                for size in sizes)
    whole = sum(f for f, _ in plan.decode_costs(c, sizes, rows // 2))
    assert flops(bench_decode.bare_products(model, sizes, rows)) == whole - attended + extra


def test_prefixes_are_steps_of_the_raster_model_without_a_cache():
    lengths = [1, 5, 12]
    costs = plan.raster_costs(SMALL, 12, 4, cached=False)
    assert flops(bench_decode.prefixes(raster_model(torch.float32), lengths, 4)) == sum(
        costs[n - 1][0] for n in lengths)


def test_decoding_is_timed_with_its_floor_and_the_baselines(monkeypatch, capsys):
    monkeypatch.setattr(bench_decode, "matrix_rate", lambda *_: 1e12)
    monkeypatch.setattr(bench_decode, "bandwidth", lambda *_: 1e10)
    rows = run(monkeypatch, capsys, "decode", "--batch-size", "2,3", "--steps", "5,4", "--repeats",
               "2")
    assert [(r["batch"], r["decoding"], r["steps"]) for r in rows] == [
        (b, *way) for b in (2, 3) for way in (
            ("parallel", 5), ("parallel", 4), ("one token a step", 36), ("raster", 36),
            ("raster, no cache", 36))]
    c = presets()["shapes"].model
    for row in rows:
        assert 0 < row["fastest"] <= row["seconds"] <= row["slowest"]
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["seconds"])
        assert row["share_of_floor"] == pytest.approx(row["floor_seconds"] / row["seconds"])
        assert ("to_products" in row) == ("raster" not in row["decoding"])
    costs = plan.raster_costs(c, 36, 4, cached=False)
    assert rows[4]["flops"] == sum(f for f, _ in costs) and rows[4]["estimated"]
    assert rows[4]["floor_seconds"] == pytest.approx(sum(max(f / 1e12, b / 1e10)
                                                         for f, b in costs))


def test_the_bytes_of_a_cache_are_those_of_the_formula(monkeypatch):
    """For equal numbers of content and query layers, the cache is half of a raster-order model's,
    plus one pair."""
    taken = []

    class Results:
        put = staticmethod(taken.append)

    for kind, steps in (("ARPG", 6), ("raster", 12)):
        bench_decode.decode_memory(kind, SMALL, 4, steps, 4.0, CPU, torch.float32, Results)
    slots = 13 - decoding.step_sizes(12, 6)[-1]
    (_, ours, peak), (_, theirs, _) = taken
    assert ours == plan.cache_bytes(SMALL, slots, 8) == 3 * 2 * 8 * slots * 24 * 4
    assert theirs == plan.cache_bytes(SMALL, 12, 8, raster=True) == 5 * 2 * 8 * 12 * 24 * 4
    assert peak >= 0


def slope_by_hand(x: list[float], y: list[float]) -> float:
    a, b = ([math.log(v) for v in values] for values in (x, y))
    mean, other = sum(a) / len(a), sum(b) / len(b)
    return (sum((u - mean) * (v - other) for u, v in zip(a, b))
            / sum((u - mean) ** 2 for u in a))


def median(values) -> float:
    values = sorted(values)
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2


positive = st.floats(0.01, 100)


@for_all(30, data=st.data(), repeats=st.integers(1, 4), points=st.integers(2, 6))
def test_times_are_summed_up_by_their_definition(data, repeats, points):
    """Median, least and most; the slope of the logarithms; the floor, step by step; times at
    lengths between the measured ones.
    """
    seconds = np.array(data.draw(st.lists(positive, min_size=repeats, max_size=repeats), "seconds"))
    got, right = timing.spread(seconds), {"seconds": median(seconds), "fastest": min(seconds),
                                          "slowest": max(seconds)}
    assert got == pytest.approx(right), f"{got}, by definition {right}"
    y = data.draw(st.lists(positive, min_size=points, max_size=points), "costs")
    x = data.draw(st.permutations(range(1, 9)), "sizes")[:points]
    got, right = bench_decode.slope(x, y), slope_by_hand(x, y)
    assert math.isclose(got, right, abs_tol=1e-6), f"slope {got:.6g}, by definition {right:.6g}"
    costs = list(zip(y, x))
    got = bench_decode.floor_seconds(costs, 3.0, 0.5)
    right = sum(a / 3 if a / 3 > b / 0.5 else b / 0.5 for a, b in costs)
    assert math.isclose(got, right), f"floor {got:.6g} s of {costs}, by definition {right:.6g}"
    lengths = [1, *sorted(n + 1 for n in x)]
    times = np.array([[float(t), *np.roll(y, t)] for t in range(repeats)])
    got = bench_decode.between(lengths, times)
    assert got.shape == (repeats, lengths[-1]), f"{got.shape}"
    for row, known in zip(got, times):
        for low, high, first, last in zip(lengths, lengths[1:], known, known[1:]):
            for n in range(low, high + 1):
                right = first + (last - first) * (n - low) / max(1, high - low)
                assert math.isclose(row[n - 1], right, abs_tol=1e-9), \
                    f"length {n}: {row[n - 1]:.6g} s, by definition {right:.6g}"


class Times:
    """In place of `paired`: random seconds, after it has run every step of every work."""

    def __init__(self, seed: int, count: bool = False):
        self.rng, self.count, self.seconds, self.flops = np.random.default_rng(seed), count, {}, {}

    def paired(self, works, repeats, device, warm_up=2):
        for name, work in works.items():
            if self.count:
                self.flops[name] = flops(work.start())
            self.seconds[name] = self.rng.random((repeats, work.steps)) + 0.1
        return {name: seconds.copy() for name, seconds in self.seconds.items()}


def same_row(where: str, got: dict, right: dict) -> None:
    __tracebackhide__ = True
    assert got.keys() == right.keys(), f"{where}: {sorted(got)}, by definition {sorted(right)}"
    for name in right:
        assert got[name] == pytest.approx(right[name]), \
            f"{where}: {name} {got[name]}, by definition {right[name]}"


def whole_times(each: np.ndarray) -> dict:
    whole = [sum(row) for row in each.tolist()]
    return {"seconds": median(whole), "fastest": min(whole), "slowest": max(whole)}


@for_all(5, batch=st.lists(st.integers(1, 3), min_size=1, max_size=2, unique=True),
         steps=st.sampled_from([[5, 3], [4]]), guidance=st.sampled_from([1.0, 4.0]),
         baselines=st.sampled_from([bench_decode.BASELINES, ("raster",), ("products",),
                                    ("one-token", "raster-uncached")]),
         half=st.booleans(), seed=st.integers(0, 99))
def test_rows_of_decoding_are_their_definition(batch, steps, guidance, baselines, half, seed):
    """Every number follows from the times and the plan. What is timed has the plan's arithmetic.

    Broken if baselines are swapped, guidance is left out, or a floor or a ratio is another's.
    """
    dtype = torch.bfloat16 if half else torch.float32
    options = Namespace(batch_size=batch, steps=steps, guidance=guidance, baselines=baselines,
                        repeats=3, preset="small")
    times, rows, width = [], [], dtype.itemsize

    def paired(*works):
        times.append(Times(seed + len(times), count=len(batch) == 1 and not half))
        return times[-1].paired(*works)

    with patch.object(bench_decode, "paired", paired), \
            patch.object(bench_decode, "matrix_rate", lambda *_: 1e8), \
            patch.object(bench_decode, "bandwidth", lambda *_: 1e7):
        rows = iter(bench_decode.bench_decode(Namespace(model=TINY), options, CPU, dtype))
    for b, taken in zip(batch, times):
        twice = b if guidance == 1 else 2 * b
        lengths = [1, 2, 3, 4, 6, 7, 8]          # seven, evenly spread
        ways = [("parallel", k) for k in steps]
        ways += [("one token a step", 8)] * ("one-token" in baselines)
        ways += [("raster", 8)] * ("raster" in baselines)
        ways += [("raster, no cache", 8)] * ("raster-uncached" in baselines)
        for name, k in ways:
            each, row = taken.seconds[name, k], next(rows)
            if "raster" in name:
                costs = plan.raster_costs(TINY, 8, twice, name == "raster", width)
            else:
                costs = plan.decode_costs(TINY, step_sizes(8, k), b, guidance != 1, width=width)
            measured = costs
            if name == "raster, no cache":
                assert each.shape[1] == len(lengths), f"{each.shape[1]} lengths, not {lengths}"
                measured = [costs[n - 1] for n in lengths]
                each = np.array([np.interp(range(1, 9), lengths, one) for one in each])
            if taken.flops:
                counted, planned = taken.flops[name, k], sum(f for f, _ in measured)
                assert counted == planned, f"{name}, {k} steps: {counted} FLOPs, not {planned}"
            right = whole_times(each)
            floor = sum(max(f / 1e8, n / 1e7) for f, n in costs)
            right |= {"preset": "small", "batch": b, "decoding": name, "steps": k,
                      "images_per_second": b / right["seconds"], "flops": sum(f for f, _ in costs),
                      "bytes": sum(n for _, n in costs), "floor_seconds": floor,
                      "share_of_floor": floor / right["seconds"],
                      "estimated": name == "raster, no cache"}
            if ("products", k) in taken.flops:
                sizes, block = step_sizes(8, k), 3 * TINY.dim * TINY.ffn_hidden
                content = (4 * TINY.dim**2 + block) + 2 * TINY.dim**2
                query = 2 * (2 * TINY.dim**2 + block) + TINY.dim * TINY.vocab_size
                planned = 2 * twice * (content * sum([1, *sizes[:-1]]) + query * sum(sizes))
                counted = taken.flops["products", k]
                assert counted == planned, f"products, {k} steps: {counted} FLOPs, not {planned}"
            if "products" in baselines and "raster" not in name:
                bare = taken.seconds["products", k].tolist()
                ratios = [sum(x) / sum(y) for x, y in zip(each.tolist(), bare)]
                right["to_products"] = {"median": median(ratios), "least": min(ratios),
                                        "most": max(ratios)}
            same_row(f"{b} images, {name}, {k} steps", row, right)
    assert next(rows, None) is None, "more rows than ways to decode"


@for_all(4, batch=st.lists(st.integers(1, 3), min_size=1, max_size=2, unique=True),
         windows=st.sampled_from([[1, 4], [3]]), guidance=st.sampled_from([4.0, 1.0]),
         seed=st.integers(0, 99))
def test_rows_of_exact_decoding_are_their_definition(batch, windows, guidance, seed):
    """Seconds of a pass, but for the first two, and their ratio to a step of one token. What is
    timed are passes with that window, and steps of one token."""
    options = Namespace(batch_size=batch, windows=windows, guidance=guidance, repeats=3,
                        preset="small")
    times, asked = [], []

    def paired(works, repeats, device):
        times.append(Times(seed + len(times)))
        for name, work in works.items():
            asked.append((name, sum((ids >= 0).sum(1).max().item() == i for i, ids in zip(
                range(1, 9), work.start())) if name == "one token" else len(list(islice(
                    work.start(), work.steps)))))
        return times[-1].paired(works, repeats, device)

    exact, calls = bench_decode.exact_steps, []

    def watched(model, labels, seeds, window, **how):
        calls.append((labels.tolist(), list(seeds), window, how))
        return exact(model, labels, seeds, window, **how)

    with patch.object(bench_decode, "paired", paired), \
            patch.object(bench_decode, "exact_steps", watched):
        rows = iter(bench_decode.bench_exact(Namespace(model=TINY), options, CPU, torch.float32))
    assert set(asked) == {("one token", 8)} | {(w, 8) for w in windows}, f"{asked}"
    assert {(str(label), str(s), w, str(how)) for label, s, w, how in calls} == {
        (str([i % 5 for i in range(b)]), str(list(range(b))), w, str({"guidance": guidance}))
        for b in batch for w in windows}, f"{calls}"
    for b, taken in zip(batch, times):
        one = [sum(x[2:]) / 6 for x in taken.seconds["one token"].tolist()]
        for name in ["one token", *windows]:
            each = [sum(x[2:]) / 6 for x in taken.seconds[name].tolist()]
            ratios = [x / y for x, y in zip(each, one)]
            same_row(f"{b} images, window {name}", next(rows), {
                "preset": "small", "batch": b, "window": name, "seconds": median(each),
                "fastest": min(each), "slowest": max(each), "to_a_step": {
                    "median": median(ratios), "least": min(ratios), "most": max(ratios)}})
    assert next(rows, None) is None, "more rows than windows"


@for_all(4, batch=st.lists(st.integers(1, 3), min_size=1, max_size=2, unique=True),
         steps=st.sampled_from([5, 3]), guidance=st.sampled_from([4.0, 1.0]), half=st.booleans(),
         repeats=st.integers(1, 4), seed=st.integers(0, 99))
def test_rows_of_memory_are_their_definition(batch, steps, guidance, half, repeats, seed):
    """Three models: ARPG, raster order, and raster order with 1.5 times the tokens per side. Their
    memories are random numbers here."""
    rng, taken, dtype = np.random.default_rng(seed), [], torch.bfloat16 if half else torch.float32
    options = Namespace(batch_size=batch, steps=[steps, 99], guidance=guidance, repeats=repeats,
                        preset="small")

    def measure(work, *asked):
        numbers = tuple(map(int, rng.integers(1, 10**6, 3)))
        taken.append((work, asked, numbers if not taken or len(taken) % repeats == 0
                      else (*taken[-1][2][:2], numbers[2])))
        return taken[-1][2]

    preset = Namespace(model=replace(SMALL, grid=(2, 4)))
    larger = replace(SMALL, grid=(3, 6))
    with patch.object(bench_decode, "in_a_process", measure):
        rows = iter(bench_decode.bench_memory(preset, options, CPU, dtype))
    asked = iter(taken)
    for b in batch:
        right = []
        for kind, config in (("ARPG", preset.model), ("raster", preset.model), ("raster", larger)):
            n = math.prod(config.grid)
            k, peaks = steps if kind == "ARPG" else n, []
            for _ in range(repeats):
                work, arguments, (weights, cache, peak) = next(asked)
                expected = kind, config, b, k, guidance, CPU, dtype
                assert work is bench_decode.decode_memory and arguments == expected, \
                    f"measured {arguments}, not {expected}"
                peaks.append(peak)
            slots = 1 + sum(step_sizes(n, k)[:-1])
            right.append({
                "preset": "small", "batch": b, "model": kind, "tokens": n, "steps": k,
                "weight_bytes": weights, "cache_bytes": cache, "least_peak": min(peaks),
                "most_peak": max(peaks), "peak_bytes": sorted(peaks)[repeats // 2],
                "cache_formula": plan.cache_bytes(config, slots, b * (1 + (guidance != 1)),
                                                  kind == "raster", dtype.itemsize)})
        ours, all_ours = right[0]["cache_bytes"], right[0]["weight_bytes"] + right[0]["peak_bytes"]
        for i, row in enumerate(right):
            whole = row["weight_bytes"] + row["peak_bytes"]
            same_row(f"{b} images, model {i}", next(rows), row | {
                "cache_saved": (row["cache_bytes"] - ours) / row["cache_bytes"],
                "saved": (whole - all_ours) / whole})


@for_all(3, what=st.sampled_from(["batch", "steps", "depth", "width"]), batch=st.integers(2, 3),
         steps=st.integers(2, 4), guidance=st.sampled_from([4.0, 1.0]), seed=st.integers(0, 99))
def test_rows_of_scaling_are_their_definition(what, batch, steps, guidance, seed):
    """Seconds and FLOPs at every point, and the slopes of their logarithms. Here, other sizes stay
    small, and times are random."""
    times = Times(seed, count=True)
    options = Namespace(batch_size=[batch, 9], steps=[steps, 9], guidance=guidance, repeats=3,
                        preset="small", sweeps=[what])
    with patch.object(bench_decode, "paired", times.paired):
        row, = bench_decode.bench_scaling(Namespace(model=SMALL), options, CPU, torch.float32)
    points = list(bench_decode.sweep(what, SMALL, batch, steps))
    x, work = [size for size, *_ in points], []
    for size, config, b, k in points:
        costs = plan.decode_costs(config, step_sizes(12, k), b, guidance != 1)
        work.append(sum(f for f, _ in costs))
        counted = times.flops[size]
        assert counted == work[-1], f"{what} {size}: {counted} FLOPs, not {work[-1]}"
    whole = [[sum(one) for one in times.seconds[size].tolist()] for size in x]
    slopes = [slope_by_hand(x, one) for one in zip(*whole)]
    same_row(what, row, {
        "preset": "small", "sweep": what, "points": x, "seconds": list(map(median, whole)),
        "fastest": list(map(min, whole)), "slowest": list(map(max, whole)), "flops": work,
        "exponent": median(slopes), "least_exponent": min(slopes), "most_exponent": max(slopes),
        "flops_exponent": slope_by_hand(x, work)})


@for_all(4, batch=st.lists(st.integers(1, 9), min_size=1, max_size=2, unique=True),
         variants=st.permutations(bench.VARIANTS).map(lambda v: v[:3]), half=st.booleans(),
         loss_rows=st.sampled_from([None, 50]), seed=st.integers(0, 99))
def test_rows_of_training_are_their_definition(batch, variants, half, loss_rows, seed):
    """Every number follows from times, memories and the plan: all logits at once in "whole-logits",
    everything twice in "recompute". The variants' steps are those that their names say."""
    preset = Preset("shapes", 12, SMALL, train=TrainConfig(loss_rows=70))
    dtype, peaks, seen, times = torch.bfloat16 if half else torch.float32, [], [], []
    options = Namespace(batch_size=batch, variants=variants, repeats=3, preset="small",
                        loss_rows=loss_rows)

    def measure(work, preset, variant, device, half):
        peaks.append((work, variant, half, 1000 + seed + len(peaks)))
        return peaks[-1][-1]

    def steps(model, call, average, ids, config, seed, optimizer, half):
        while True:
            blocks = [*model.content, *model.query]
            seen.append((len(ids), config.batch_size, config.micro_batch, config.loss_rows, half,
                         call is not model, {block.recompute for block in blocks},
                         {"compute" in vars(block) for block in blocks}))
            yield {"loss": torch.zeros(())}

    def paired(works, *rest, **how):
        for work in works.values():
            seen.append(len(list(work.start())))
        times.append(Times(seed + len(times)))
        return times[-1].paired(works, *rest)

    with patch.object(bench, "in_a_process", measure), patch.object(bench, "paired", paired), \
            patch.object(bench, "matrix_rate", lambda *_: 1e7), \
            patch.object(bench.training, "train_arpg", steps):
        rows = bench.bench_train(preset, options, CPU, dtype)
    said, rows, peaks = iter(seen), iter(rows), iter(peaks)
    for b, taken in zip(batch, times):
        for variant in variants:
            again, least = variant == "recompute", loss_rows or 70
            expected = (b, b, b, least, half, variant == "whole-logits", {again},
                        {variant == "compile"})
            for _ in range(2):
                got = next(said)
                assert got == expected, f"{variant}: steps with {got}, not {expected}"
            assert next(said) == 2, f"{variant}: not two steps"
            right = whole_times(taken.seconds[variant])
            asked = next(peaks)
            assert asked[:3] == (bench.train_memory, variant, half), f"memory of {asked}"
            config = replace(preset.train, loss_rows=10**9 if variant == "whole-logits" else least)
            parts = plan.memory(SMALL, config, 12, b, half=half, recompute=again)
            same_row(f"{b} images, {variant}", next(rows), right | {
                "preset": "small", "batch": b, "variant": variant,
                "images_per_second": b / right["seconds"], "peak_bytes": asked[3],
                "share_of_floor": b * plan.training_flops(SMALL, 12, again) / 1e7
                / right["seconds"], "planned_bytes": sum(parts.values())})


def cells_by_hand(what: str, r: dict) -> dict[str, str]:
    """What a line of a table shows, by the heads of its columns."""
    if what == "scaling":
        return {"cost against": r["sweep"], "at": " ".join(str(x) for x in r["points"]),
                "seconds": " ".join(f"{x:.3g}" for x in r["seconds"]), "exponent":
                f"{r['exponent']:.2f} ({r['least_exponent']:.2f} to {r['most_exponent']:.2f})",
                "of the FLOPs": f"{r['flops_exponent']:.2f}"}
    if what == "exact":
        return {"images": str(r["batch"]), "window": str(r["window"]),
                "seconds of a pass": f"{r['seconds']:.4f}",
                "fastest to slowest": f"{r['fastest']:.4f} to {r['slowest']:.4f}",
                "to a step of one token": "{median:.2f} ({least:.2f} to {most:.2f})".format(
                    **r["to_a_step"])}
    if what == "memory":
        return {"images": str(r["batch"]), "model": r["model"], "tokens": str(r["tokens"]),
                "steps": str(r["steps"]), "weights GB": f"{r['weight_bytes'] / 1e9:.2f}",
                "keys, values: formula": f"{r['cache_formula'] / 1e9:.3f}",
                "measured": f"{r['cache_bytes'] / 1e9:.3f}",
                "ARPG less by": f"{100 * r['cache_saved']:.0f}%",
                "peak": f"{r['peak_bytes'] / 1e9:.3f}", "least to most":
                f"{r['least_peak'] / 1e9:.3f} to {r['most_peak'] / 1e9:.3f}",
                "in all, less by": f"{100 * r['saved']:.0f}%"}
    times = {"seconds": f"{r['seconds']:.3f}",
             "fastest to slowest": f"{r['fastest']:.3f} to {r['slowest']:.3f}",
             "images/s": f"{r['images_per_second']:.3f}"}
    if what == "train":
        return {"images": str(r["batch"]), "variant": r["variant"], **times,
                "products": f"{100 * r['share_of_floor']:.0f}%",
                "peak GB": f"{r['peak_bytes'] / 1e9:.2f}",
                "planned": f"{r['planned_bytes'] / 1e9:.2f}"}
    ratio = r.get("to_products")
    return {"images": str(r["batch"]), "decoding": r["decoding"] + (
        " (estimated)" if r["estimated"] else ""), "steps": str(r["steps"]), **times,
        "TFLOP": f"{r['flops'] / 1e12:.2f}", "GB": f"{r['bytes'] / 1e9:.1f}",
        "of the limit": f"{100 * r['share_of_floor']:.0f}%", "to products":
        f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})" if ratio else ""}


NUMBERS = {"train": {"seconds", "fastest", "slowest", "images_per_second", "share_of_floor"},
           "decode": {"seconds", "fastest", "slowest", "images_per_second", "share_of_floor"},
           "memory": {"cache_saved", "saved"}, "exact": {"seconds", "fastest", "slowest"},
           "scaling": {"exponent", "least_exponent", "most_exponent", "flops_exponent"}}
WHOLE = {"train": {"batch", "peak_bytes", "planned_bytes"},
         "decode": {"batch", "steps", "flops", "bytes"}, "scaling": set(),
         "exact": {"batch", "window"},
         "memory": {"batch", "tokens", "steps", "weight_bytes", "cache_formula", "cache_bytes",
                    "peak_bytes", "least_peak", "most_peak"}}


@for_all(12, what=st.sampled_from(list(NUMBERS)), count=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_tables_columns_hold_what_their_heads_say(what, count, seed):
    """Every cell ends below the end of its head, or the head above the end of the widest cell."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(count):
        row = {name: float(rng.random() * 9) for name in sorted(NUMBERS[what])}
        row |= {name: int(rng.integers(10**9, 10**12)) for name in sorted(WHOLE[what])}
        row |= {"variant": "chunked", "decoding": "raster", "model": "ARPG", "sweep": "depth",
                "estimated": bool(rng.integers(2)), "points": [3, int(rng.integers(99))]}
        if what == "scaling":
            row["seconds"] = rng.random(2).tolist()
        if what == "exact":
            row["to_a_step"] = dict(zip(("least", "median", "most"), rng.random(3).tolist()))
        if rng.integers(2):
            row["to_products"] = dict(zip(("least", "median", "most"), rng.random(3).tolist()))
        rows.append(row)
    with redirect_stdout(StringIO()) as out:
        timing.print_table(rows, bench.COLUMNS[what])
    right = [cells_by_hand(what, row) for row in rows]
    heads = [{head: head for head in right[0]}]
    widths = [max(len(row[head]) for row in heads + right) for head in right[0]]
    for line, row in zip(out.getvalue().splitlines(), heads + right):
        at = 0
        for (head, cell), width in zip(row.items(), widths):
            got = line.ljust(500)[at:at + width].strip()
            assert got == cell, f"{what}, column '{head}': '{got}', by definition '{cell}'"
            at += width + 2
    assert len(out.getvalue().splitlines()) == 1 + count, "a line is missing"


@for_all(12, kind=st.sampled_from(list(NUMBERS)), flags=st.booleans(), as_json=st.booleans(),
         precision=st.sampled_from([None, "bfloat16", "float32"]))
def test_the_flags_of_a_benchmark_reach_it(kind, flags, as_json, precision):
    """It prints a table with its notes, or the rows as JSON."""
    given = ["--preset", "shapes", "--batch-size", "3,1", "--repeats", "2"]
    right = dict(preset="shapes", batch_size=[3, 1] if flags else [2 if kind == "scaling" else 8],
                 repeats=2 if flags else 3)
    if kind == "train":
        given += ["--loss-rows", "77", "--variants", "compile,chunked"]
        right |= dict(loss_rows=77 if flags else None, variants=["compile", "chunked"] if flags
                      else ["chunked", "whole-logits", "recompute"])
    elif kind == "exact":
        given += ["--windows", "7,2", "--guidance", "1.5"]
        right |= dict(windows=[7, 2] if flags else [1, 2, 4, 8, 16, 32, 64],
                      guidance=1.5 if flags else 4.0)
    else:
        given += ["--steps", "7,2", "--guidance", "1.5"]
        right |= dict(steps=[7, 2] if flags else [9, 4], guidance=1.5 if flags else 4.0)
        right |= {"decode": {"baselines": ["raster"] if flags else list(bench.BASELINES)},
                  "scaling": {"sweeps": ["width"] if flags else list(bench.SWEEPS)}}.get(kind, {})
        given += {"decode": ["--baselines", "raster"],
                  "scaling": ["--sweeps", "width"]}.get(kind, [])
    asked = []

    def measure(preset, options, device, dtype):
        asked.append({name: list(value) if isinstance(value, tuple) else value for name, value in
                      vars(options).items()} | {"model": preset.model, "dtype": dtype,
                                                "device": device})
        return []

    argv = ["bench", kind, *given * flags, "--device", "cpu", *["--json"] * as_json,
            *(["--precision", precision] if precision else [])]
    with patch.object(sys, "argv", argv), redirect_stdout(StringIO()) as out, patch.object(
            *((bench, "bench_train") if kind == "train"
              else (bench_decode, f"bench_{kind}")), measure):
        code = code_of(bench.main)
    assert code == 0 and len(asked) == 1, f"{argv}: code {code}, {len(asked)} measurements"
    shown = "[]" if as_json else "  ".join(bench.COLUMNS[kind]) + "\n" + bench.NOTES[kind]
    assert out.getvalue() == shown + "\n", f"{argv[1:]} prints {out.getvalue()!r}, not {shown!r}"
    right |= dict(model=presets()["shapes"].model, device=CPU,
                  dtype=getattr(torch, precision or "float32"))
    for name in right:
        assert asked[0][name] == right[name], \
            f"{argv[1:]}: {name} {asked[0][name]}, not {right[name]}"


def test_scaling_varies_one_size_at_a_time(monkeypatch, capsys):
    for what in bench_decode.SWEEPS:
        sizes, configs, batches, steps = zip(*bench_decode.sweep(what, SMALL, 2, 4))
        assert list(sizes) == sorted(set(sizes)) and len(sizes) > 2
        assert len(set(batches)) == (len(sizes) if what == "batch" else 1)
        assert len(set(steps)) == (len(sizes) if what == "steps" else 1)
        varied = {"tokens": "grid", "depth": "content_layers", "width": "dim"}.get(what)
        for name in ("grid", "content_layers", "dim"):
            values = {getattr(config, name) for config in configs}
            assert len(values) == (len(sizes) if name == varied else 1)
    row, = run(monkeypatch, capsys, "scaling", "--steps", "4", "--sweeps", "batch", "--repeats",
               "2")
    assert row["points"] == [1, 2, 4, 8, 16] and row["flops_exponent"] == pytest.approx(1, abs=0.01)
    # Times on a busy machine may be anything.
    assert row["least_exponent"] <= row["exponent"] <= row["most_exponent"] < math.inf


@pytest.mark.parametrize("arguments, says", [
    (["train", "--batch-size", "0"], "--batch-size 0"),
    (["train", "--repeats", "-1"], "--repeats -1"), (["train", "--repeats", "2,3"], "--repeats"),
    (["train", "--loss-rows", "0"], "--loss-rows 0"),
    (["train", "--variants", "fast"], "--variants fast"), (["train", "--preset", "x"], "--preset"),
    (["train", "--device", "tpu"], "--device tpu"), (["train", "--steps", "3"], "--steps"),
    (["decode", "--steps", "37"], "--steps 37"), (["decode", "--steps", "4,"], "--steps 4,"),
    (["decode", "--guidance", "nan"], "--guidance nan"), (["memory", "--steps", "0"], "--steps 0"),
    (["decode", "--baselines", "gpt"], "--baselines gpt"), (["fly"], "fly"), ([], "what"),
    (["scaling", "--sweeps", "depth,hue"], "--sweeps hue")])
def test_mistakes_end_in_one_line(arguments, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    code = code_of(bench.main)
    error = capsys.readouterr().err
    assert code == 2 and says in error and error.count("\n") == 1
