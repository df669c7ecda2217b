"""The benchmarks measure real steps of real loops, and count their floors correctly."""

import json
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from arpg_mini import attention, decoding
from arpg_mini.config import ModelConfig, presets
from arpg_mini.decoding import decode_steps
from arpg_mini.measure import bench, bench_decode, raster, timing
from arpg_mini.measure.raster import Raster, raster_steps
from arpg_mini.run import plan
from tests.helpers import code_of, tiny_model

SMALL = ModelConfig(dim=24, heads=2, content_layers=2, query_layers=3, vocab_size=37, num_classes=5,
                    grid=(3, 4), ffn_hidden=40)
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


def test_raster_reads_its_class_and_what_came_before():
    model, seeds = raster_model(), [7, 7]
    *_, ids = raster_steps(model, torch.tensor([0, 1]), seeds)
    assert not torch.equal(ids[0], ids[1])
    c = torch.zeros(1, 3, dtype=torch.long)
    table = raster.rotary_table(SMALL.grid, SMALL.head_dim)[None, :3]
    for place in range(3):
        other = c.clone()
        other[0, place] = 5
        assert not torch.equal(model(c, table), model(other, table))


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


def test_times_between_measured_lengths_are_interpolated():
    filled = bench_decode.between([1, 5, 7], np.array([[2.0, 10.0, 10.0]]))
    assert filled.tolist() == [[2, 4, 6, 8, 10, 10, 10]]


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


def test_memory_is_compared_with_raster_order(monkeypatch, capsys):
    """The measurements run in processes of their own. Here, fixed numbers replace them."""
    monkeypatch.setattr(bench_decode, "in_a_process", lambda work, kind, config, *rest: (
        100, {"ARPG": 30, "raster": 60}[kind] * config.grid[0] // 6, 50 * config.grid[0] // 6))
    ours, raster, larger = run(monkeypatch, capsys, "memory", "--batch-size", "4")
    assert (ours["tokens"], raster["tokens"], larger["tokens"]) == (36, 36, 81)
    assert (raster["cache_saved"], larger["cache_saved"]) == (0.5, pytest.approx(1 - 30 / 90))
    assert (raster["saved"], larger["saved"]) == (0, pytest.approx(1 - 150 / 175))


def test_exponents_are_those_of_the_power_law():
    x = [64, 144, 256, 576]
    assert bench_decode.slope(x, 3.0 * np.array(x) ** 1.5) == pytest.approx(1.5)


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
    assert 0 < row["least_exponent"] <= row["exponent"] <= row["most_exponent"] < 3


@pytest.mark.parametrize("arguments", [["decode", "--baselines", "raster"],
                                       ["scaling", "--sweeps", "steps"]])
def test_tables_have_a_line_for_each_row(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", *arguments, "--repeats", "1", "--batch-size", "1"])
    assert bench.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] in ("images", "cost") and lines[1].split()[0] in ("1", "steps")


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
