"""Comparison with inputs and outputs of the released implementation."""

import json

import pytest
import torch

from arpg_mini import TokenizerConfig
from arpg_mini.decoding import decode
from arpg_mini.orders import step_sizes
from arpg_mini.pretrained import load_released_tokenizer
from tests.helpers import GOLDEN, golden, golden_arpg

SIZES = json.loads((GOLDEN / "step_sizes.json").read_text())
RUNS = [f"{schedule}__{guidance}__{steps}" for schedule in ("arccos", "cosine")
        for guidance in ("linear", "constant") for steps in (4, 7)]


@pytest.mark.parametrize("name", SIZES)
def test_step_sizes_are_the_released_ones(name):
    schedule, n, steps = name.split("/")
    assert step_sizes(int(n), int(steps), schedule) == SIZES[name]


def test_teacher_forcing_gives_the_released_logits_and_loss():
    """Broken if any part of the forward pass, or a fused weight's order, differs from the release.

    The tolerance is 1e-5 of the logits' norm. Single logits differ more: the recipe's weights make
    attention so peaked that float32 and float64 runs of one model differ by 9e-5 of the largest
    logit.
    """
    model, arrays, _ = golden_arpg()
    inputs = arrays["tokens"], arrays["labels"], arrays["orders"]
    gap, expected = model(*inputs) - arrays["logits"], arrays["logits"]
    assert gap.norm() < 1e-5 * expected.norm() and gap.abs().max() < 5e-5 * expected.abs().max()
    assert abs(model(*inputs, loss_rows=5).item() - arrays["loss"].item()) < 1e-5


@pytest.mark.parametrize("run", RUNS)
def test_greedy_decoding_gives_the_released_ids(run):
    """Broken if the schedule, the guidance, the cache or the block attention differs from the
    release."""
    model, arrays, config = golden_arpg()
    schedule, guidance_schedule, steps = run.split("__")
    order, tokens = arrays[f"gen__{run}__order"], arrays[f"gen__{run}__tokens"]
    assert step_sizes(len(order), int(steps), schedule) == arrays[f"gen__{run}__sizes"].tolist()
    ids = decode(model, arrays["labels"], range(3), steps=int(steps), schedule=schedule, top_k=1,
                 guidance=config["guidance"], guidance_schedule=guidance_schedule, orders=order)
    assert torch.equal(ids, tokens)


def test_the_tokenizer_gives_the_released_ids_and_pixels(tmp_path):
    """Broken if a layer, its position, a norm's epsilon or a padding differs from the release."""
    arrays, _, released = golden("vq16.npz")
    torch.save(released, tmp_path / "vq.pt")
    tokenizer = load_released_tokenizer(tmp_path / "vq.pt")
    assert tokenizer.config == TokenizerConfig() and tokenizer.config.stride == 16
    assert torch.equal(tokenizer.encode(arrays["image"]), arrays["indices"])
    with torch.no_grad():
        pixels = tokenizer.reconstruct(tokenizer.codebook.lookup(arrays["codes"]))
    assert (pixels - arrays["decoded"]).abs().max() < 1e-4
    assert torch.equal(tokenizer.decode(arrays["codes"]), pixels.clamp(-1, 1))
