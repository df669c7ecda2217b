"""What a GPU would do is counted without one. The counts hold on every machine."""

import json
import math
import sys

import torch
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from arpg_mini.attention import RMSNorm
from arpg_mini.config import ModelConfig
from arpg_mini.measure import bench, count
from arpg_mini.orders import step_sizes
from arpg_mini.run import plan
from arpg_mini.run.presets import presets
from tests.strategies import for_all

L = presets()["arpg-l"].model
SMALL = dict(dim=24, heads=2, content_layers=1, query_layers=2, vocab_size=37, num_classes=5,
             grid=(3, 4), ffn_hidden=40)


def counted(work) -> count.Counts:
    with count.counting(FakeTensorMode()) as counter:
        counter.counts = count.Counts()
        work()
    return counter.counts


def test_operators_are_counted_by_hand():
    """Two products, a sum, views and memory for nothing; a table of which three rows are read."""
    got = counted(lambda: (torch.empty(6, 4) @ torch.empty(4, 5)).view(3, 10)[:, :4].mT.add(1))
    assert (got.kernels, got.flops, got.bytes) == (
        2, 2 * 6 * 4 * 5, 4 * (24 + 20 + 30) + 4 * (12 + 12)), f"{got}"
    got = counted(lambda: F.embedding(torch.empty(3, dtype=torch.long), torch.empty(999, 8)))
    assert (got.kernels, got.bytes, got.float64) == (1, 2 * 4 * 3 * 8, 0), f"{got}"
    got = counted(lambda: torch.empty(7, dtype=torch.float64).exp())
    assert (got.float64, got.float64_numbers, got.bytes) == (1, 7, 112), f"{got}"
    got = counted(lambda: torch.empty(1, 5).expand(9, 5).exp())
    assert got.bytes == 4 * (5 + 45), "a row that is repeated is read once"
    assert got.seconds["H100"] == count.LAUNCH, f"{got.seconds}"
    got = counted(lambda: torch.empty(8192, 8192).bfloat16() @ torch.empty(8192, 8192).bfloat16())
    right = 2 * 8192**3 / 600e12 + 2 * 6 * 8192**2 / 2.7e12
    assert math.isclose(got.seconds["H100"], right, rel_tol=1e-6), f"{got.seconds}, not {right}"
    got = counted(lambda: F.scaled_dot_product_attention(
        torch.empty(2, 3, 4, 8), torch.empty(2, 3, 5, 8), torch.empty(2, 3, 5, 8)))
    assert (got.kernels, got.flops) == (1, 4 * 2 * 3 * 4 * 5 * 8), f"{got}"


def test_a_wait_is_seen():
    """Broken if work that makes the host wait for the device passes unseen."""
    for work in (lambda: torch.empty(5, device="meta").cpu(),
                 lambda: torch.empty(5).to("meta")):
        with count.counting() as counter:
            try:
                work()
            except NotImplementedError:                 # there is nothing to copy from
                counter.counts.waits.append("refused")
        assert counter.counts.waits, "not seen"


@for_all(6, batch=st.integers(1, 4), steps=st.integers(1, 12),
         guidance=st.sampled_from([1.0, 4.0]))
def test_flops_of_a_decode_are_the_plans(batch, steps, guidance):
    """Products and attention of all steps are those of `plan.decode_costs`, and none is in another
    precision than the model's, but for the sampling."""
    config = ModelConfig(**SMALL)
    each = count.count_decode(config, batch, steps, guidance)
    costs = plan.decode_costs(config, step_sizes(12, steps), batch, guidance != 1)
    right = sum(f for f, _ in costs)
    got = sum(c.flops for c in each)
    assert len(each) == steps and got == right, f"{len(each)} steps, {got} FLOPs, planned {right}"


def test_decoding_wastes_little():
    """ARPG-L, 64 pictures, 32 steps, eager: at most 13,000 kernels, no wait for the device. A
    float64 kernel has at most a hundredth of the vocabulary for each token that is drawn."""
    each = count.count_decode(L, 64, 32)
    kernels = sum(c.kernels for c in each)
    assert kernels <= 13_000, f"{kernels} kernels"
    for c, size in zip(each, step_sizes(256, 32)):
        numbers = c.float64_numbers / c.float64 / (64 * size)
        assert numbers <= L.vocab_size / 100, f"{numbers} float64 numbers of a row in a kernel"
    assert not any(c.waits for c in each), f"waits: {[c.waits for c in each if c.waits]}"


def test_a_training_step_wastes_little():
    """ARPG-L, 64 pictures, eager, under autocast: at most 1,600 kernels and 213 GB."""
    got = count.count_training(L, 64, 2048)
    assert got.kernels <= 1_600 and got.bytes <= 213e9, f"{got.kernels} kernels, {got.bytes} bytes"
    assert not got.float64 and not got.waits, f"float64: {got.float64}, waits: {got.waits}"


class OnGpu(torch.Tensor):
    """A tensor of this machine that says it is on a GPU."""
    device = torch.device("cuda")


def test_the_norm_that_is_counted_is_the_norm():
    """On a GPU a norm is one kernel. Here both ways are computed, in float64 and in bfloat16."""
    torch.manual_seed(0)
    for dtype, apart in ((torch.float64, 1e-12), (torch.bfloat16, 2**-6)):
        norm, x = RMSNorm(64).to(dtype), (torch.randn(50, 64) * 3).to(dtype)
        torch.nn.init.normal_(norm.gain)
        one = norm(x.as_subclass(OnGpu)).as_subclass(torch.Tensor)
        assert (one - norm(x)).abs().max() <= apart * one.abs().max(), f"{dtype}: they differ"


def test_the_table_shows_the_counts(monkeypatch, capsys):
    argv = ["bench", "count", "--batch-size", "3", "--steps", "5", "--guidance", "1"]
    monkeypatch.setattr(sys, "argv", [*argv, "--json"])
    assert bench.main() == 0
    step, whole, training = json.loads(capsys.readouterr().out)
    config = presets()["shapes"].model
    each = count.count_decode(config, 3, 5, 1.0)
    assert (step["work"], whole["work"]) == ("step 3 of 5", "5 steps")
    assert step["kernels"] == each[2].kernels and step["flops"] == each[2].flops
    assert whole["kernels"] == sum(c.kernels for c in each) and whole["waits"] == 0
    assert whole["rates"]["T4"] == 3 / whole["seconds"]["T4"]
    assert training["kernels"] == count.count_training(config, 3, 8192).kernels
    monkeypatch.setattr(sys, "argv", argv)
    assert bench.main() == 0
    text = capsys.readouterr().out
    assert f"{whole['kernels']:,}" in text and "computed, not measured" in text
