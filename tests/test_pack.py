"""The trained model that comes with the chapters, and the command that made its file small."""

import json

import numpy as np
import pytest
import torch

from arpg_mini import training
from arpg_mini.data import shapes
from arpg_mini.data.builtin import SHAPES
from arpg_mini.run import checkpoint
from arpg_mini.tokenizer import to_device
from tests.helpers import ROOT, weights
from tutorial.pack import halved, main

SHAPES_RUN = ROOT / "tutorial" / "shapes"


@pytest.mark.slow
def test_the_packed_model_is_small_and_as_good_as_its_recipe_says():
    """Broken if the file was replaced, or if the model no longer computes what it learned."""
    assert sum(path.stat().st_size for path in SHAPES_RUN.iterdir()) < 4e6
    recipe = json.loads((SHAPES_RUN / "recipe.json").read_text())
    model, saved = checkpoint.load_model(SHAPES_RUN / "model.pt")
    tokenizer, _ = checkpoint.load_tokenizer(SHAPES_RUN / "tokenizer.pt")
    assert saved["classes"] == list(SHAPES) and saved["step"] == recipe["run"]["train"]["steps"]

    class HeldOut:
        """The input of `validation_loss`: the pictures that the run itself held out."""
        def __init__(self, images, labels):
            pictures = to_device(images, torch.device("cpu"))
            self.ids = tokenizer.encode(pictures).flatten(1)[:, None].numpy()
            self.labels = labels

        def __len__(self):
            return len(self.labels)

    loss = training.validation_loss(model, HeldOut(*shapes(2000, seed=1)), recipe["run"]["seed"])
    assert loss == pytest.approx(recipe["validation loss, half precision"], abs=2e-3)
    assert loss == pytest.approx(recipe["validation loss, float32"], abs=2e-3)


def test_a_run_is_packed_and_draws(finished, tmp_path, monkeypatch, capsys, sample):
    out, small = finished[0], tmp_path / "small"
    monkeypatch.setattr("sys.argv", ["pack", str(out), str(small)])
    assert main() == 0
    assert "nats in float32" in capsys.readouterr().out
    model = checkpoint.load_model(small / "model.pt")[0]
    for name, tensor in weights(out)["ema"].items():
        assert torch.equal(model.state_dict()[name], tensor.half().float()), name
    size = sum(path.stat().st_size for path in small.iterdir())
    assert size < 0.3 * (out / "model.pt").stat().st_size
    sample(small, "--count", 2, "--steps", 2, "--npz", tmp_path / "two.npz")
    with np.load(tmp_path / "two.npz") as file:
        assert file["arr_0"].shape == (2, 16, 16, 3)


def test_what_cannot_be_packed_is_reported(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["pack", str(tmp_path / "none"), str(tmp_path / "out")])
    assert main() == 2 and "no such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    before = (finished[0] / "model.pt").read_bytes()
    monkeypatch.setattr("sys.argv", ["pack", str(finished[0]), str(finished[0])])
    assert main() == 2 and "would be lost" in capsys.readouterr().err
    assert (finished[0] / "model.pt").read_bytes() == before
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(layer.weight, 1e6)
    with pytest.raises(checkpoint.UserError, match="weight"):
        halved(layer)
