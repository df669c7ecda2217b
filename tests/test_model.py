"""The model: sizes, first loss, and what may influence its results."""

import math
from unittest.mock import patch

import pytest
import torch

from arpg_mini import ARPG, ModelConfig, TokenizerConfig
from arpg_mini.attention import Linear, RMSNorm, rotary_table, rotate
from arpg_mini.config import TrainConfig
from arpg_mini.decoding import decode
from arpg_mini.orders import random_orders
from arpg_mini.run.presets import presets
from tests.helpers import tiny_model


@pytest.mark.parametrize("name, millions", [("imagenet-s", 62), ("arpg-l", 319.8),
                                            ("arpg-xl", 719.0), ("arpg-xxl", 1302.4)])
def test_named_sizes_have_their_parameter_counts(name, millions):
    with torch.device("meta"):
        count = sum(p.numel() for p in ARPG(presets()[name].model).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.5 if name == "imagenet-s" else 0.06)


def test_a_fresh_models_loss_is_ln_v():
    model = ARPG(ModelConfig(dim=32, heads=4, vocab_size=100, grid=(3, 4)))
    tokens = torch.randint(100, (2, 12))
    loss = model(tokens, torch.tensor([0, 10]), random_orders([0, 1], 12), loss_rows=5)
    assert loss.item() == pytest.approx(math.log(100), abs=1e-6)
    assert model.embedding.weight.shape == (100 + 10 + 3, 32)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            assert (weight == 1).all(), name
        elif name == "head.weight":
            assert (weight == 0).all()
        else:
            assert 0.018 < weight.std() < 0.022 and abs(weight.mean()) < 0.002, name


def test_causality_belongs_to_the_call():
    """Training mode and evaluation mode give the same logits. Broken if `train()` switches a mask
    on or off."""
    model = tiny_model()
    tokens, labels, orders = (torch.randint(11, (2, 15)), torch.tensor([0, 1]),
                              random_orders([1, 2], 15))
    assert torch.equal(model.train()(tokens, labels, orders), model.eval()(tokens, labels, orders))


def test_rotation_is_of_interleaved_pairs_and_the_class_slot_is_zero():
    table = rotary_table((2, 3), 8, base=100.0)
    turned = rotate(torch.tensor([1.0, 0, 0, 2, 1, 0, 0, 0]).double().view(1, 1, 1, 8),
                    table[None, 5:6])
    # Row 1, column 2; frequencies 1 and 0.1.
    expected = [math.cos(1), math.sin(1), -2 * math.sin(0.1), 2 * math.cos(0.1),
                math.cos(2), math.sin(2), 0, 0]
    assert turned.flatten().tolist() == pytest.approx(expected)
    assert rotate(torch.ones(1, 1, 1, 8).double(), table[None, 6:7]).abs().sum() == 0


def test_rms_norm_is_computed_wide():
    """In bfloat16 the mean of squares is computed in float32. The result is cast before it is
    multiplied by the gain."""
    norm, x = RMSNorm(64).bfloat16(), (torch.randn(5, 64) * 30).bfloat16()
    torch.nn.init.normal_(norm.gain)
    wide = x.float()
    expected = (wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()).bfloat16() * norm.gain
    assert torch.equal(norm(x), expected)


@pytest.mark.parametrize("wrong", [
    dict(dim=30, heads=4), dict(dim=24, heads=4), dict(heads=0), dict(vocab_size=0),
    dict(grid=(0, 3)), dict(dropout=1.0), dict(content_layers=0)])
def test_impossible_sizes_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ModelConfig(**wrong)


@pytest.mark.parametrize("rows", [1, 3, 8, 12, 100, 300])
def test_all_ways_to_multiply_give_the_same_product(rows):
    """The products that decoding computes in its own ways equal those by `F.linear` in training.

    Broken if a product is padded, transposed or kept in another precision, or if it ignores
    autocast.
    """
    torch.manual_seed(rows)
    layer, x = Linear(512, 520), torch.randn(rows, 3, 512).transpose(0, 1)
    for few in (0, 40):                                 # both, whatever this processor prefers
        with torch.no_grad(), patch("arpg_mini.attention.FEW", few):
            quick = layer(x)
        torch.testing.assert_close(quick, layer(x), atol=1e-6, rtol=1e-5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


@pytest.mark.parametrize("few", [0, 40])
def test_all_ways_to_multiply_give_the_same_decode(few):
    """Broken if a view needs the result of a product in the memory layout of `F.linear`."""
    torch.manual_seed(0)
    model = ARPG(ModelConfig(vocab_size=40, num_classes=3, grid=(3, 4), dim=32, heads=4,
                             content_layers=2, query_layers=2)).requires_grad_(False)
    torch.nn.init.normal_(model.head.weight)
    drawn = decode(model, [0, 1], [0, 1], steps=4, guidance=3.0)
    with patch("arpg_mini.attention.FEW", few), patch("arpg_mini.attention.LARGE", 1):
        assert torch.equal(decode(model, [0, 1], [0, 1], steps=4, guidance=3.0), drawn)


def test_compiled_rotation_is_the_same():
    """The real arithmetic for the compiler rotates like the complex product."""
    x, table = torch.randn(2, 5, 3, 8).double(), rotary_table((2, 3), 8)[None, [0, 5, 2, 6, 3]]
    with patch("torch.compiler.is_compiling", lambda: True):
        spelt_out = rotate(x, table)
    torch.testing.assert_close(spelt_out, rotate(x, table))


def test_the_recipe_is_the_papers():
    """The defaults that the paper and the released code fix. A mistake here trains a worse model,
    and nothing else shows it."""
    train, model, tokenizer = TrainConfig(), ModelConfig(), TokenizerConfig()
    assert (train.betas, train.weight_decay, train.grad_clip) == ((0.9, 0.95), 0.05, 1.0)
    assert (train.final_lr, train.warmup, train.ema) == (1e-5, 0.25, 0.9999)
    assert (model.dropout, model.class_dropout, model.rope_base) == (0.1, 0.1, 10000.0)
    assert model.ffn_hidden is not None and ModelConfig(dim=1024, heads=16).ffn_hidden == 2816
    assert (tokenizer.channels, tokenizer.multipliers) == (128, (1, 1, 2, 2, 4))
    assert (tokenizer.encoder_blocks, tokenizer.decoder_blocks) == (2, 3)
    assert (tokenizer.latent_channels, tokenizer.codebook_size, tokenizer.code_dim) == (
        256, 16384, 8)
    assert (tokenizer.stride, tokenizer.commitment, tokenizer.local_encoder) == (16, 0.25, False)


@pytest.mark.parametrize("name, width, layers, heads, steps, batch, lr", [
    ("arpg-l", 1024, 12, 16, 500_000, 1024, 4e-4), ("arpg-xl", 1280, 18, 20, 670_000, 768, 3e-4),
    ("arpg-xxl", 1536, 24, 24, 1_000_000, 512, 2e-4),
    ("imagenet-s", 512, 7, 8, 300_000, 256, 2e-4)])
def test_the_named_sizes_train_as_the_paper_says(name, width, layers, heads, steps, batch, lr):
    preset = presets()[name]
    model, train = preset.model, preset.train
    assert (model.dim, model.content_layers, model.query_layers, model.heads) == (
        width, layers, layers, heads)
    assert (model.vocab_size, model.num_classes, model.grid) == (16384, 1000, (16, 16))
    assert (train.steps, train.batch_size, train.lr) == (steps, batch, lr)
    assert (preset.side, preset.views, preset.data) == (256, "center-flip", "folder")
    usual = TrainConfig()
    for field in ("betas", "weight_decay", "grad_clip", "final_lr", "warmup", "ema"):
        assert getattr(train, field) == getattr(usual, field), field
    assert (model.dropout, model.class_dropout, model.rope_base) == (0.1, 0.1, 10000.0)
    assert preset.tokenizer == TokenizerConfig()
