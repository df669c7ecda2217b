"""The flags of train_mini.py, and the description of a run that follows from them.

The one idea: plain values describe a run: a preset's, changed by flags. (This file does not import
torch, so that `--help` and mistakes are answered at once.)
"""

import argparse
import importlib.util
import json
import os
from dataclasses import asdict
from pathlib import Path

from .. import UserError
from ..config import VIEWS, ModelConfig, TokenizerConfig, TrainConfig
from ..data.files import regular
from .command import DEVICE, PRECISION, Parser, launcher, number
from .presets import Preset, presets

COUNT = number(int, 1)
FLAGS = {
    "what to train on": [
        ("--preset", tuple(presets()), "named sizes and settings"),
        ("--data", str, "shapes (default), fashion-mnist, a folder of class folders of pictures or "
         "of ids (CLASS/NAME.npy, or codes/ and labels/), or a run whose ids to use"),
        ("--tokenizer", Path, "a trained tokenizer.pt, or the released VQ-16 (default: train one)"),
        ("--control", ("edges",), "also learn to draw by an outline, see sample_mini.py --control"),
        ("--init", Path, "a run's model.pt to start from (fine-tuning)"),
        ("--views", VIEWS, "of each picture")],
    "where": [
        ("--out", Path, "run folder (default: runs/PRESET)"),
        ("--resume", bool, "continue the run in --out"), DEVICE,
        ("--gpus", COUNT, "number of processes, one per GPU, or CPU processes with --device cpu; "
         "torchrun sets its own", 1)],
    "how (default: the preset's)": [
        ("--steps", COUNT, "optimizer steps of ARPG"),
        ("--tokenizer-steps", number(int, 4), "optimizer steps of the tokenizer"),
        ("--batch-size", COUNT, "images per step, over all processes together"),
        ("--lr", number(float, 1e-12), "peak learning rate of ARPG"),
        ("--dropout", number(float, 0), "of tokens, attention outputs and FFN outputs"),
        ("--side", number(int, 4), "pixels per side of a picture from a folder"),
        ("--seed", number(int, 0), "of every random choice (default 0)")],
    "fitting it onto the machine (may change with --resume)": [
        ("--micro-batch", COUNT, "images that a process handles at a time; it accumulates the "
         "gradients of its share (default: the preset's)"),
        ("--shard", bool, "spread weights, gradients and optimizer over the processes (FSDP2); "
         "default: a copy in each (DDP)"),
        ("--recompute", bool, "activation checkpointing: a third more work for a fraction of the "
         "memory"),
        ("--compile", bool, "torch.compile the blocks"),
        ("--precision", PRECISION, "of matrix products (default: bfloat16 on cuda, if it has it)"),
        ("--deterministic", bool, "use only kernels that sum in a fixed order, so that a resumed "
         "run has the same bits on CUDA too; slower")],
    "saving and watching": [
        ("--save-every", COUNT, "steps between checkpoints, validation and sheets of samples "
         "(default: a tenth of all, at most 2000)"),
        ("--keep", COUNT, "newest checkpoints to keep, beside the best (default 2)", 2),
        ("--tensorboard", bool, "also log for TensorBoard, if it is installed")],
    "planning": [
        ("--plan", bool, "print parameters, FLOPs, memory and hours of the run, and stop"),
        ("--device-tflops", number(float, 1e-9), "peak of one device (default 312: an A100's "
         "bfloat16, by data sheet)", 312.0),
        ("--utilisation", number(float, 1e-9), "share of the peak that training reaches (default "
         "0.4)", 0.4)]}
# Where a description stores a flag, if not under the flag's own name.
STORED = {"tokenizer": "tokenizer_file", "steps": "train.steps", "lr": "train.lr",
          "tokenizer_steps": "train.tokenizer_steps", "batch_size": "train.batch_size",
          "dropout": "model.dropout"}
NAMED, PATHS = ("shapes", "fashion-mnist"), ("data", "tokenizer_file", "init")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags of train_mini.py, as given."""
    parser = Parser("train_mini.py", description="Train ARPG: pictures in, a tokenizer, ids, a "
                    "model, and a sheet of samples out.")
    parser.add_flags(FLAGS)
    return parser.parse_args(arguments)


def alike(value: object, usual: object) -> bool:
    """Whether a stored value has the type of a usual one, and could be one."""
    if isinstance(usual, dict):
        return isinstance(value, dict) and all(name in usual and alike(inner, usual[name])
                                               for name, inner in value.items())
    if isinstance(usual, tuple):
        return isinstance(value, list) and all(alike(inner, usual[0]) for inner in value)
    if isinstance(usual, (bool, str)):
        return type(value) is type(usual)
    if usual is None:
        return value is None or isinstance(value, str)
    whole = isinstance(usual, int)
    return (isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            and (1 if whole and usual else 0) <= value < 2**62)


def read_stored(file: Path, usual: Preset) -> dict:
    """The description in a run's config.json. UserError if it is none."""
    try:
        run = json.loads(regular(file).read_text(encoding="utf-8"))
        run = {"control": None, "init": None, **run}
        wanted = {"preset": "", "seed": 0, "tokenizer_file": None, "control": None, "init": None,
                  "classes": ("",), **asdict(usual)}
        if wrong := [name for name in wanted if not alike(run.get(name, ...), wanted[name])
                     and (name != "classes" or name in run)]:
            raise ValueError(f"it has no usable {wrong[0]}")
        for kind, name in ((ModelConfig, "model"), (TokenizerConfig, "tokenizer"),
                           (TrainConfig, "train")):
            kind(**run[name])
        return run
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"--resume: {file}: no run to resume ({error})") from None


def same_file(path: str, other: str) -> bool:
    """Whether two paths name the same file or folder."""
    return os.path.realpath(path) == os.path.realpath(other)


def describe_run(options: argparse.Namespace) -> dict:
    """The whole description of a run as plain values: its preset's, changed by the given flags.

    With --resume it is the one stored in the run folder; a flag that differs is a mistake.
    Sets `options.out` if it was not given. UserError names the flag that is wrong.
    """
    known = presets()
    data = options.data or known[options.preset or "shapes"].data
    name = options.preset or (data if data in NAMED else "folder")
    options.out = options.out or Path("runs") / name
    stored = options.out / "config.json"
    if options.resume and not (stored.exists() or not (options.preset or options.data)):
        options.resume = False              # a resubmitted job may find no run yet
    if options.resume:
        run = read_stored(stored, known["shapes"])
    elif stored.exists() and not options.plan and not launcher():
        raise UserError(f"--out {options.out}: already holds a run; add --resume to continue it, "
                        "or name another folder")
    else:
        run = {"preset": name, "seed": 0, "tokenizer_file": None, "control": None, "init": None,
               **asdict(known[name])}
        run["data"] = data
    for flag in (*STORED, "data", "preset", "seed", "side", "views", "control", "init"):
        value, (*inner, key) = getattr(options, flag), STORED.get(flag, flag).split(".")
        place = run[inner[0]] if inner else run
        if value is None:
            continue
        if key in PATHS and value not in NAMED:
            value = os.path.abspath(value)      # a run may be resumed from another folder
        if options.resume and place[key] != value and not (
                key in PATHS and place[key] and same_file(place[key], value)):
            raise UserError(f"--{flag.replace('_', '-')} {value}: the run in {options.out} was "
                            f"started with {place[key]}; leave the flag out")
        if not options.resume:
            place[key] = value
    if run["views"] == "ten-crop" and run["data"] in NAMED:
        raise UserError("--views ten-crop: needs larger pictures, from a folder")
    for flag, file in (("tokenizer", options.tokenizer), ("init", options.init)):
        if file and not file.is_file():
            raise UserError(f"--{flag} {file}: no such file")
    if (run["tokenizer"]["channels"] == TokenizerConfig.channels and not run["tokenizer_file"]
            and not options.plan):
        raise UserError(f"--preset {run['preset']}: needs a trained tokenizer, --tokenizer FILE")
    if run["model"]["dropout"] >= 1:
        raise UserError(f"--dropout {run['model']['dropout']}: must be 0 or more and below 1")
    processes = (launcher() or (0, options.gpus))[1]
    if run["train"]["batch_size"] % processes:
        raise UserError(f"--batch-size {run['train']['batch_size']}: must be a multiple of "
                        f"--gpus {processes}")
    for place in (options.out, *options.out.parents):
        if place.is_symlink() and not place.exists():
            raise UserError(f"--out {options.out}: {place} is a link to {os.readlink(place)}, "
                            "which does not exist")
        if place.exists() and not place.is_dir():
            raise UserError(f"--out {options.out}: {place} is not a folder")
    if options.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard: needs that package; pip install tensorboard")
    return run
