"""Measuring is measuring: real steps of the real loop, beside the plan."""

import json
import sys

import pytest
import torch

from arpg_mini import bench, plan
from arpg_mini.config import presets


def test_a_training_step_is_timed_and_its_memory_taken(monkeypatch, capsys):
    """In processes of their own; the floor is the plan's FLOPs at the measured rate."""
    monkeypatch.setattr(bench, "matrix_rate", lambda *_: 1e12)
    monkeypatch.setattr(sys, "argv", ["bench", "train", "--preset", "shapes", "--batch-size", "64",
                                      "--repeats", "2", "--variants", "chunked", "--json"])
    assert bench.main() == 0
    row, = json.loads(capsys.readouterr().out)
    assert row["variant"] == "chunked" and 0 < row["fastest"] <= row["seconds"] <= row["slowest"]
    assert row["images_per_second"] == pytest.approx(64 / row["seconds"])
    flops = 64 * plan.training_flops(presets()["shapes"].model, 36)
    assert row["share_of_floor"] == pytest.approx(flops / 1e12 / row["seconds"])
    assert 0.5 < row["peak_bytes"] / row["planned_bytes"] < 1.5


def test_the_two_losses_are_one():
    """What is timed as whole logits is the loss that training computes in chunks."""
    preset = presets()["shapes"]
    torch.manual_seed(0)
    model = bench.ARPG(preset.model).eval()
    torch.nn.init.normal_(model.head.weight, std=0.1)
    ids = bench.RandomIds(3, preset)
    tokens = torch.from_numpy(ids.ids[:, 0].astype("int64"))
    arguments = tokens, torch.from_numpy(ids.labels), torch.rand(3, 36).argsort(1)
    torch.testing.assert_close(bench.whole_logits(model)(*arguments, loss_rows=7),
                               model(*arguments, loss_rows=7))


def test_the_rate_of_products_is_a_rate():
    assert 1e8 < bench.matrix_rate(torch.device("cpu"), torch.float32, n=256) < 1e14


@pytest.mark.parametrize("flags, says", [
    (["--batch-size", "0"], "--batch-size 0"), (["--repeats", "-1"], "--repeats -1"),
    (["--loss-rows", "0"], "--loss-rows 0"), (["--variants", "fast"], "--variants fast"),
    (["--preset", "huge"], "--preset"), (["--device", "tpu"], "--device tpu")])
def test_mistakes_end_in_one_line(flags, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "train", *flags])
    try:
        code = bench.main()
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert code == 2 and says in error and error.count("\n") == 1
