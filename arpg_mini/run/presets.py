"""The named runs: everything that `train_mini.py --preset NAME` fixes."""

from dataclasses import dataclass, field

from ..config import ModelConfig, TokenizerConfig, TrainConfig


@dataclass
class Preset:
    """Everything that a named run fixes: where its pictures come from, and every size."""

    data: str                               # "shapes", "fashion-mnist" or "folder"
    side: int                               # pixels per side of a picture
    model: ModelConfig
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    views: str = "center"                   # of each picture: one of VIEWS
    guidance: float = 4.0                   # these two: how samples are drawn by default
    guidance_schedule: str = "linear"


def _small_tokenizer(codebook_size: int) -> TokenizerConfig:
    return TokenizerConfig(channels=32, multipliers=(1, 1, 2), encoder_blocks=1, decoder_blocks=1,
                           latent_channels=64, codebook_size=codebook_size, local_encoder=True)


def _imagenet(dim: int, layers: int, heads: int, **train) -> Preset:
    """ImageNet-256 with a tokenizer of stride 16: half of the layers read, half ask."""
    model = ModelConfig(dim=dim, content_layers=layers, query_layers=layers, heads=heads,
                        vocab_size=16384, num_classes=1000, grid=(16, 16))
    train = TrainConfig(loss_rows=2048, **train)        # 2048 × 16384 float32 logits are 0.13 GB
    return Preset("folder", 256, model, train=train, views="center-flip")


def presets() -> dict[str, Preset]:
    """The named runs. Each call makes new ones, so a caller may change them."""
    small = dict(dim=128, content_layers=3, query_layers=3, heads=4, ffn_hidden=256, dropout=0.0,
                 rope_base=100.0)
    gentle = dict(guidance=2.0, guidance_schedule="constant")
    quick = dict(warmup=0.05, final_lr=4e-5, ema=0.998)
    return {
        # Two CPU cores, minutes: built-in shapes, 0.9 M parameters.
        "shapes": Preset(
            "shapes", 24, ModelConfig(**small, vocab_size=48, num_classes=10, grid=(6, 6)),
            _small_tokenizer(48),
            TrainConfig(**quick, steps=4000, lr=2.5e-3, tokenizer_steps=600), **gentle),
        # Two CPU cores, minutes: 60,000 real pictures, 28×28.
        "fashion-mnist": Preset(
            "fashion-mnist", 28, ModelConfig(**small, vocab_size=256, num_classes=10, grid=(7, 7)),
            _small_tokenizer(256), TrainConfig(**quick, steps=2000), **gentle),
        # Two CPU cores, minutes: any folder of class folders, at 32×32.
        "folder": Preset(
            "folder", 32, ModelConfig(**small, vocab_size=256, num_classes=10, grid=(8, 8)),
            _small_tokenizer(256), TrainConfig(**quick, steps=2000), views="center-flip", **gentle),
        # One 24 GB GPU: 62 M parameters, the paper's recipe with a quarter of its batch.
        "imagenet-s": _imagenet(512, 7, 8, steps=300_000, batch_size=256, lr=2e-4),
        # The paper's sizes, batches, rates and steps; fewer GPUs accumulate gradients. `--plan`
        # prints the memory. L: 40 GB cards, or 24 GB ones with --micro-batch 32.
        "arpg-l": _imagenet(1024, 12, 16, steps=500_000, batch_size=1024, lr=4e-4),
        # XL and XXL: 80 GB cards, or several of 24 GB with --shard --recompute.
        "arpg-xl": _imagenet(1280, 18, 20, steps=670_000, batch_size=768, micro_batch=32, lr=3e-4),
        "arpg-xxl": _imagenet(1536, 24, 24, steps=1_000_000, batch_size=512, micro_batch=16,
                              lr=2e-4),
    }
