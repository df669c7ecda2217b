"""The editing scores, on pictures whose scores are known."""

import sys

import numpy as np
import pytest
import torch

from arpg_mini import ARPG, ModelConfig, VQTokenizer
from arpg_mini.config import presets
from arpg_mini.data import shapes
from arpg_mini.data.builtin import COLOURS, GROUNDS, SHAPES
from arpg_mini.measure import edit_scores
from arpg_mini.run import checkpoint
from arpg_mini.training import to_device
from tests.helpers import code_of


def flat(colour, ground, share=0.5):
    """(1, 24, 24, 3): the left `share` has one colour, the rest is the ground."""
    picture = np.full((1, 24, 24, 3), GROUNDS[ground], np.uint8)
    picture[:, :, :int(24 * share)] = COLOURS[colour]
    return picture


def test_colours_and_grounds_are_read_if_they_are_large_enough():
    pictures = np.concatenate([flat(2, 0), flat(5, 1), flat(1, 1, share=0)])
    assert edit_scores.shown_colour(pictures).tolist() == [2, 5, -1]
    assert edit_scores.ground(pictures).tolist() == [False, True, True]
    assert edit_scores.shown_colour(flat(2, 0)[:, :1, :7]).tolist() == [-1]     # seven pixels


def test_outlines_overlap_as_their_edges_do():
    device = torch.device("cpu")
    images = to_device(shapes(20, seed=5)[0], device)
    assert edit_scores.outline_iou(images, images) == 1
    # Two edges, each two pixels wide, one pixel apart: they share one column of three.
    a, b = flat(2, 0, share=0.5), flat(2, 0, share=13 / 24)
    assert edit_scores.outline_iou(*(to_device(x, device) for x in (a, b))) == pytest.approx(1 / 3)


@pytest.fixture
def run(tmp_path):
    """The folder of an untrained run on shapes that takes condition maps."""
    torch.manual_seed(0)
    tokenizer = VQTokenizer(presets()["shapes"].tokenizer)
    model = ARPG(ModelConfig(dim=16, heads=2, content_layers=1, query_layers=1, ffn_hidden=16,
                             vocab_size=48, control_stride=4))
    checkpoint.save_tokenizer(tmp_path / "tokenizer.pt", tokenizer)
    checkpoint.save(tmp_path / "model.pt", "model", config=vars(model.config),
                    ema=model.state_dict(), classes=list(SHAPES))
    return tmp_path


@pytest.mark.parametrize("flags, rows", [(["--control"], 2), ([], 7 + 2 * 4 * 2)])
def test_every_score_is_printed_with_its_baseline(flags, rows, run, monkeypatch, capsys):
    if not flags:
        monkeypatch.setattr(edit_scores, "shapes_classifier",
                            lambda: edit_scores.Classifier(10).eval())
    command = ["x", str(run), "--count", "10", "--steps", "2", "--out", str(run / "x.png"), *flags]
    monkeypatch.setattr(sys, "argv", command)
    assert edit_scores.main() == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == rows and (run / "x.png").stat().st_size > 1000
    assert all(0 <= float(x) <= 1 for line in lines for x in line.split()[-2:])


def test_mistakes_end_in_one_line(run, monkeypatch, capsys):
    for flags, says in ((["--count", "3"], "--count 3"), (["--steps", "37"], "--steps 37")):
        monkeypatch.setattr(sys, "argv", ["x", str(run), *flags])
        assert code_of(edit_scores.main) == 2 and says in capsys.readouterr().err
