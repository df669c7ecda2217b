"""The plan's formulas, compared with what PyTorch counts on the real model."""

import os
import subprocess
import sys
from dataclasses import asdict
from unittest.mock import patch

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from arpg_mini import ARPG, ModelConfig
from arpg_mini.measure import bench
from arpg_mini.measure.timing import in_a_process
from arpg_mini.run import plan
from arpg_mini.run.presets import presets
from tests.helpers import ROOT

SIZES = [dict(dim=64, heads=4, content_layers=3, query_layers=2, vocab_size=100, num_classes=5,
              grid=(6, 6), ffn_hidden=200),
         dict(dim=48, heads=2, content_layers=1, query_layers=4, vocab_size=31, num_classes=7,
              grid=(3, 5), ffn_hidden=80)]
BATCH = 4


def training_model(**sizes) -> tuple[ARPG, tuple]:
    """A model in training mode, and the arguments of a training step of BATCH images."""
    model = ARPG(ModelConfig(**sizes)).train()
    torch.nn.init.normal_(model.head.weight, std=0.02)
    h, w = model.config.grid
    torch.manual_seed(0)
    return model, (torch.randint(model.config.vocab_size, (BATCH, h * w)),
                   torch.zeros(BATCH, dtype=torch.long), torch.rand(BATCH, h * w).argsort(1))


@pytest.mark.parametrize("name", presets())
def test_parameters_are_counted(name):
    config = presets()[name].model
    with torch.device("meta"):
        assert plan.parameters(config) == sum(p.numel() for p in ARPG(config).parameters())


@pytest.mark.parametrize("sizes", SIZES)
def test_flops_are_those_that_pytorch_counts(sizes):
    """Broken if a single FLOP differs. The formulas leave out only one projection of [MASK], which
    a whole batch shares."""
    model, arguments = training_model(**sizes)
    tokens = arguments[0].shape[1]

    def counted(work) -> int:
        # With plain products: PyTorch counts fused attention kernels on some devices only.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    once = 2 * sizes["dim"]**2
    forward = counted(lambda: model(*arguments))
    assert forward == BATCH * plan.forward_flops(model.config, tokens) + once
    trained = counted(lambda: model(*arguments).sum().backward())
    assert trained == BATCH * plan.training_flops(model.config, tokens) + 3 * once
    for block in [*model.content, *model.query]:
        block.recompute = True
    again = counted(lambda: model(*arguments).sum().backward())
    assert again == BATCH * plan.training_flops(model.config, tokens, recompute=True) + 4 * once


def kept(model: ARPG, arguments: tuple, half: bool) -> int:
    """Bytes of all tensors that autograd keeps, each storage once, without the weights and their
    bfloat16 copies."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {tuple(p.shape) for p in model.parameters()}
    seen = {}

    def pack(tensor):
        storage, flipped = tensor.untyped_storage(), tuple(tensor.shape[::-1])
        copy = tensor.dtype == torch.bfloat16 and flipped in shapes
        if storage.data_ptr() not in weights and not copy:
            seen[storage.data_ptr()] = storage.nbytes(), tensor  # else its memory is used again
        return tensor

    with (torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
          torch.autocast("cpu", torch.bfloat16, enabled=half)):
        model(*arguments, loss_rows=7)
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("sizes", SIZES)
def test_activations_are_those_that_autograd_keeps(sizes, dropout, half):
    """Broken if the formula misses a tensor that grows with the batch. Others are tolerated: the
    gradient of the head, and a few numbers more."""
    model, arguments = training_model(**sizes, dropout=dropout)
    c, tokens = model.config, arguments[0].shape[1]
    # On a CPU, dropout keeps its mask in the precision of the features.
    formula = plan.kept_bytes(c, tokens, BATCH, half, mask_bytes=2 if half else 4)
    if half and dropout:                                 # the embedding's mask is float32 even then
        formula += BATCH * tokens * c.dim * 2
    head = 4 * c.vocab_size * c.dim
    assert 0 <= kept(model, arguments, half) - head - formula + 64 * c.dim <= 128 * c.dim


def test_recomputing_keeps_the_blocks_inputs():
    model, arguments = training_model(**SIZES[0], dropout=0.0)
    c, tokens = model.config, arguments[0].shape[1]
    everything = kept(model, arguments, half=False)
    for block in [*model.content, *model.query]:
        block.recompute = True
    layers = c.content_layers + c.query_layers
    a_block = plan.kept_bytes(c, tokens, BATCH, recompute=True) - plan.kept_bytes(
        ModelConfig(**{**asdict(c), "content_layers": 1, "query_layers": 1}), tokens, BATCH,
        recompute=True)
    assert a_block == (layers - 2) * BATCH * tokens * 4 * c.dim
    assert kept(model, arguments, half=False) < 0.3 * everything


def test_what_the_presets_promise_fits():
    """Broken if a preset does not fit on the GPUs that config.py names for it."""
    def fits(name, card, images, **how):
        p = presets()[name]
        how = dict(half=True, **how)
        return plan.most_images(p.model, p.train, 256, card, how) >= images

    micro = {name: p.train.micro_batch for name, p in presets().items()}
    assert fits("imagenet-s", 24, micro["imagenet-s"])
    assert fits("arpg-l", 40, micro["arpg-l"]) and not fits("arpg-l", 24, micro["arpg-l"])
    assert fits("arpg-l", 24, 32)
    for name in ("arpg-xl", "arpg-xxl"):
        assert fits(name, 80, micro[name]) and not fits(name, 24, micro[name])
        assert fits(name, 24, micro[name], processes=8, shard=True, recompute=True)


def test_sharding_divides_the_state_and_not_the_activations():
    p = presets()["arpg-l"]
    one, eight = (plan.memory(p.model, p.train, 256, 8, n, half=True, shard=True) for n in (1, 8))
    for part in ("weights", "gradients", "optimizer", "running average"):
        assert one[part] == pytest.approx(8 * eight[part])
    assert one["activations"] == eight["activations"]


def test_the_plan_in_words_needs_no_data(tmp_path):
    """Broken if --plan reads data, trains, writes a file, or needs the GPUs that it plans for."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_mini.py"), "--preset", "arpg-xxl", "--plan", "--gpus",
         "8", "--device-tflops", "100", "--utilisation", "0.5"], cwd=tmp_path, capture_output=True,
        text=True)
    assert done.returncode == 0 and not list(tmp_path.iterdir()), done.stderr
    assert "1,302.4 M parameters" in done.stdout
    p = presets()["arpg-xxl"]
    rate = 8 * 100e12 * 0.5 / plan.training_flops(p.model, 256)
    assert f"{rate:,.0f} images/s, the run takes {512e6 / rate / 3600:,.1f} hours" in done.stdout


@pytest.mark.slow
def test_memory_is_what_a_step_really_takes():
    """The peak resident memory of real steps (62 M parameters) is a little below the plan. With
    recomputation the parts do not peak at the same time, so the plan is an upper bound."""
    preset, device = presets()["imagenet-s"], torch.device("cpu")
    preset.train.batch_size = 5
    with patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_="1000000"):
        taken = {variant: in_a_process(bench.train_memory, preset, variant, device, False)
                 / sum(plan.memory(preset.model, preset.train, 256, 5,
                                   recompute=variant == "recompute").values())
                 for variant in ("chunked", "recompute")}
    assert 0.8 < taken["chunked"] < 1.05
    assert 0.5 < taken["recompute"] < 1.05
