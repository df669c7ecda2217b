"""Sizes and settings: dataclasses with a comment per field, and the presets made of them."""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

VIEWS = "center", "center-flip", "ten-crop"   # of a picture: see `ids.crops`


class UserError(Exception):
    """A user's mistake, told in one line: the flag or file, the value, what would be right."""


class Parser(argparse.ArgumentParser):
    """Prints only the line that matters when a flag is wrong, and ends with exit code 2."""

    def error(self, message: str):
        sys.exit(complain(self.prog, message))


def complain(program: str, message: object) -> int:
    """Print one line for the user and return the exit code of their mistakes."""
    print(f"{program}: error: {message}", file=sys.stderr)
    return 2


def exit_code(program: str, work: Callable[[], int | None]) -> int:
    """Do the work; a user's mistake ends in one line and code 2, Ctrl-C in one line and 130."""
    try:
        return work() or 0
    except UserError as error:
        return complain(program, error)
    except KeyboardInterrupt:
        complain(program, "interrupted")
        return 130


@dataclass
class ModelConfig:
    """The sizes of an ARPG model. Letters as in `attention.py`."""

    dim: int = 128                      # D, model width
    content_layers: int = 3             # layers that read the class and the tokens so far
    query_layers: int = 3               # layers that ask for target positions
    heads: int = 4                      # H; the head width K = D / H is a multiple of 4
    vocab_size: int = 64                # V, ids of the tokenizer
    num_classes: int = 10               # C
    grid: tuple[int, int] = (6, 6)      # (h, w), tokens of an image
    ffn_hidden: int | None = None       # None: 2·4·D/3, rounded up to a multiple of 256
    dropout: float = 0.1                # of tokens, attention outputs and FFN outputs, in training
    class_dropout: float = 0.1          # share of samples trained without their class
    rope_base: float = 10000.0          # base of the rotary frequencies
    control_stride: int = 0             # pixels a side of condition maps per token; 0: takes none

    def __post_init__(self):
        self.grid = tuple(self.grid)
        for name in ("dim", "content_layers", "query_layers", "heads", "vocab_size", "num_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be 1 or more")
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise ValueError(f"grid {self.grid}: must be two sizes, 1 or more")
        for name in ("dropout", "class_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be 0 or more and below 1")
        if self.dim % self.heads or self.head_dim % 4:
            raise ValueError(f"dim {self.dim} with {self.heads} heads: the head width must be "
                             "a whole multiple of 4")
        if self.ffn_hidden is None:
            self.ffn_hidden = -(-int(2 * 4 * self.dim / 3) // 256) * 256

    @property
    def head_dim(self) -> int:
        """K."""
        return self.dim // self.heads


@dataclass
class TokenizerConfig:
    """The sizes of a VQ tokenizer. The defaults are the released VQ-16's."""

    channels: int = 128                     # width of the first level
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # width of each level; all but the last halve
    encoder_blocks: int = 2                 # residual blocks a level on the way down
    decoder_blocks: int = 3                 # and on the way up
    latent_channels: int = 256              # features between the convolutions and the codebook
    codebook_size: int = 16384              # V
    code_dim: int = 8                       # width of a codebook row
    commitment: float = 0.25                # weight of the commitment loss
    local_encoder: bool = False             # an id says what is in its own few pixels, not
                                            # where in the picture it is nor what is elsewhere

    def __post_init__(self):
        self.multipliers = tuple(self.multipliers)
        if self.channels % 32:
            raise ValueError(f"channels {self.channels}: GroupNorm needs a multiple of 32")
        if not 2 <= self.codebook_size <= 65536:
            raise ValueError(f"codebook_size {self.codebook_size}: ids are kept as uint16, "
                             "so 2 to 65536 rows are possible")

    @property
    def stride(self) -> int:
        """Pixels a side that one id stands for."""
        return 2 ** (len(self.multipliers) - 1)


@dataclass
class TrainConfig:
    """How to train. The ARPG half follows the paper; the tokenizer half is for small pictures."""

    steps: int = 3000                       # optimizer steps of ARPG
    batch_size: int = 64                    # images a step, over all processes together
    micro_batch: int = 64                   # most of them that a process handles at a time
    lr: float = 2e-3                        # peak learning rate
    final_lr: float = 1e-5                  # where the cosine ends
    warmup: float = 0.25                    # share of the run in which it rises to the peak
    weight_decay: float = 0.05              # on tensors of two or more dimensions
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0                  # largest norm of the whole gradient
    ema: float = 0.9999                     # decay of the running average of the weights
    loss_rows: int = 8192                   # rows of logits held at once
    tokenizer_steps: int = 400
    tokenizer_batch_size: int = 32
    tokenizer_lr: float = 2e-3
    tokenizer_patience: int = 20            # batches a codebook row may idle before it is moved


@dataclass
class Preset:
    """All that a named run fixes: where its pictures come from, and every size."""

    data: str                               # "shapes", "fashion-mnist" or "folder"
    side: int                               # pixels a side of a picture
    model: ModelConfig
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    views: str = "center"                   # of each picture, encoded as ids: see `ids.crops`
    guidance: float = 4.0                   # these two: how its samples are drawn by default
    guidance_schedule: str = "linear"


def _small_tokenizer(codebook_size: int) -> TokenizerConfig:
    return TokenizerConfig(channels=32, multipliers=(1, 1, 2), encoder_blocks=1, decoder_blocks=1,
                           latent_channels=64, codebook_size=codebook_size, local_encoder=True)


def presets() -> dict[str, Preset]:
    """The named runs, made anew at each call so that nobody changes another's."""
    small = dict(dim=128, content_layers=3, query_layers=3, heads=4, ffn_hidden=256, dropout=0.0,
                 rope_base=100.0)
    paper = dict(vocab_size=16384, num_classes=1000, grid=(16, 16))
    chunks = dict(loss_rows=2048)           # 2048 × 16384 float32 logits are 0.13 GB
    gentle = dict(guidance=2.0, guidance_schedule="constant")
    quick = dict(warmup=0.05, final_lr=4e-5, ema=0.998)
    return {
        # Two CPU cores, minutes: shapes drawn on the spot, 0.9 M parameters.
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
        # ImageNet-256 from here on, with a tokenizer of stride 16. What each needs, `--plan` says.
        # One 24 GB GPU: 62 M parameters, the paper's recipe at a quarter of its batch.
        "imagenet-s": Preset(
            "folder", 256, ModelConfig(dim=512, content_layers=7, query_layers=7, heads=8, **paper),
            train=TrainConfig(**chunks, steps=300_000, batch_size=256, lr=2e-4),
            views="center-flip"),
        # The paper's sizes, batches, rates and steps; fewer GPUs accumulate. 40 GB cards, or
        # 24 GB ones with --micro-batch 32.
        "arpg-l": Preset(
            "folder", 256,
            ModelConfig(dim=1024, content_layers=12, query_layers=12, heads=16, **paper),
            train=TrainConfig(**chunks, steps=500_000, batch_size=1024, lr=4e-4),
            views="center-flip"),
        # 80 GB cards, or several of 24 GB with --shard --recompute; XXL likewise.
        "arpg-xl": Preset(
            "folder", 256,
            ModelConfig(dim=1280, content_layers=18, query_layers=18, heads=20, **paper),
            train=TrainConfig(**chunks, steps=670_000, batch_size=768, micro_batch=32, lr=3e-4),
            views="center-flip"),
        "arpg-xxl": Preset(
            "folder", 256,
            ModelConfig(dim=1536, content_layers=24, query_layers=24, heads=24, **paper),
            train=TrainConfig(**chunks, steps=1_000_000, batch_size=512, micro_batch=16,
                              lr=2e-4),
            views="center-flip"),
    }


# Flags of train_mini.py that change a run's description: its key (and the key within), least value.
FLAGS = {"data": ("data", None, None), "preset": ("preset", None, None), "seed": ("seed", None, 0),
         "side": ("side", None, 4), "views": ("views", None, None),
         "tokenizer": ("tokenizer_file", None, None),
         "steps": ("train", "steps", 1), "tokenizer_steps": ("train", "tokenizer_steps", 4),
         "batch_size": ("train", "batch_size", 1), "lr": ("train", "lr", 1e-12),
         "dropout": ("model", "dropout", 0), "control": ("control", None, None),
         "init": ("init", None, None)}


def describe_run(options: argparse.Namespace) -> dict:
    """The whole description of a run as plain values: its preset's, changed by the flags given.

    With --resume it is the one stored in the run folder; a flag that says otherwise is a mistake.
    Sets `options.out` if it wasn't given. UserError names the flag that can't be.
    """
    known = presets()
    if options.preset and options.preset not in known:
        raise UserError(f"--preset {options.preset}: must be one of {', '.join(known)}")
    data = options.data or known[options.preset or "shapes"].data
    name = options.preset or (data if data in ("shapes", "fashion-mnist") else "folder")
    options.out = options.out or Path("runs") / name
    stored = options.out / "config.json"
    if options.resume and not (stored.exists() or not (options.preset or options.data)):
        options.resume = False              # a job that is sent again may come too early to resume
    if options.resume:
        try:
            run = {"control": None, "init": None, **json.loads(stored.read_text())}
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"--resume: {stored}: no run to go on with ({error})") from None
        if not run.keys() >= asdict(known["shapes"]).keys():
            raise UserError(f"--resume: {stored}: not the description of a run")
    elif stored.exists() and not options.plan and "WORLD_SIZE" not in os.environ:
        raise UserError(f"--out {options.out}: already holds a run; add --resume to go on with it, "
                        "or name another folder")
    else:
        run = {"preset": name, "seed": 0, "tokenizer_file": None, "control": None, "init": None,
               **asdict(known[name])}
        run["data"] = data
    for flag, (key, inner, least) in FLAGS.items():
        value, place = getattr(options, flag), run if inner is None else run[key]
        if value is None:
            continue
        written = f"--{flag.replace('_', '-')} {value}"
        if least is not None and not least <= value < math.inf:
            raise UserError(f"{written}: must be {least} or more")
        value = str(value) if isinstance(value, Path) else value
        if options.resume and place[inner or key] != value:
            raise UserError(f"{written}: the run in {options.out} was started with "
                            f"{place[inner or key]}; leave the flag out")
        place[inner or key] = value
    if run["views"] not in VIEWS:
        raise UserError(f"--views {run['views']}: must be one of {', '.join(VIEWS)}")
    if run["views"] == "ten-crop" and run["data"] in ("shapes", "fashion-mnist"):
        raise UserError("--views ten-crop: needs pictures that come larger, from a folder")
    if run["control"] not in (None, "edges"):
        raise UserError(f"--control {run['control']}: must be edges")
    for flag, file in (("tokenizer", options.tokenizer), ("init", options.init)):
        if file and not file.is_file():
            raise UserError(f"--{flag} {file}: no such file")
    if (run["tokenizer"]["channels"] == TokenizerConfig.channels and not run["tokenizer_file"]
            and not options.plan):
        raise UserError(f"--preset {run['preset']}: needs a trained tokenizer, --tokenizer FILE")
    if run["model"]["dropout"] >= 1:
        raise UserError(f"--dropout {run['model']['dropout']}: must be 0 or more and below 1")
    processes = int(os.environ.get("WORLD_SIZE", options.gpus))  # torchrun's, if it started us
    if processes > 0 and run["train"]["batch_size"] % processes:
        raise UserError(f"--batch-size {run['train']['batch_size']}: must be a multiple of "
                        f"--gpus {processes}")
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out}: is no folder")
    for flag in ("device_tflops", "utilisation"):
        if not 0 < getattr(options, flag) < math.inf:
            raise UserError(f"--{flag.replace('_', '-')} {getattr(options, flag)}: must be above 0")
    for flag in ("save_every", "keep", "micro_batch", "gpus"):
        if (value := getattr(options, flag)) is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')} {value}: must be 1 or more")
    return run
