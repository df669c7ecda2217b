"""How fast, and in how much memory? Measured on the machine at hand, beside what must be.

The one idea: seconds alone say nothing. Each figure stands beside its floor, what the arithmetic
would take at the rate at which this machine multiplies matrices, what the reading would take at the
rate at which it reads, or what the plan says is held.

    python -m arpg_mini.bench train --preset imagenet-s --batch-size 16
    python -m arpg_mini.bench decode --preset arpg-l --batch-size 2,8 --steps 64,32
    python -m arpg_mini.bench memory --preset arpg-l --batch-size 8
    python -m arpg_mini.bench scaling --preset imagenet-s --sweeps tokens,steps
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from torch.nn import functional as F

from . import bench_decode, plan, training
from .bench_decode import BASELINES, SWEEPS
from .config import Parser, Preset, UserError, exit_code, presets
from .decoding import Settings
from .distributed import pick_device
from .model import ARPG
from .timing import (
    Work,
    in_a_process,
    matrix_rate,
    paired,
    peak_bytes,
    print_table,
    spread,
)

VARIANTS = "chunked", "whole-logits", "recompute", "compile"


class RandomIds:
    """As many pictures of random ids as asked for, in place of `ids.Ids`."""

    def __init__(self, count: int, preset: Preset):
        rng, (h, w) = np.random.default_rng(0), preset.model.grid
        self.ids = rng.integers(preset.model.vocab_size, size=(count, 1, h * w)).astype(np.uint16)
        self.labels = rng.integers(preset.model.num_classes, size=count)

    def __len__(self) -> int:
        return len(self.labels)


def whole_logits(model: ARPG):
    """The loss as one would write it first: all logits at once."""
    def call(tokens, labels, orders, loss_rows):
        logits = model(tokens, labels, orders)
        return F.cross_entropy(logits.flatten(0, 1), tokens.gather(1, orders).flatten())
    return call


def train_works(preset: Preset, variants: list[str], device: torch.device,
                half: bool) -> dict[str, Work]:
    """Whole steps of `train_arpg` on random ids, of one model for all variants."""
    torch.manual_seed(0)
    model = ARPG(preset.model).to(device)
    average = training.average_of(model)
    config = replace(preset.train, steps=2, micro_batch=preset.train.batch_size)
    optimizer = training.make_optimizer(model, config.weight_decay, config.betas)
    compiled = [torch.compile(block.compute) for block in [*model.content, *model.query]
                if "compile" in variants]

    def start(variant: str) -> Iterator[None]:
        call = whole_logits(model) if variant == "whole-logits" else model
        steps = training.train_arpg(model, call, average, RandomIds(config.batch_size, preset),
                                    config, 0, optimizer, half=half)
        for _ in range(config.steps):
            blocks = [*model.content, *model.query]
            for block in blocks:
                block.recompute = variant == "recompute"
                block.__dict__.pop("compute", None)
            for block, compute in zip(blocks, compiled if variant == "compile" else []):
                block.compute = compute
            next(steps)["loss"].item()
            yield
    return {variant: Work(1, partial(start, variant)) for variant in variants}


def train_memory(preset: Preset, variant: str, device: torch.device, half: bool, results) -> None:
    """The peak of two steps over what the process held before there was a model."""
    before = peak_bytes(device)
    for _ in train_works(preset, [variant], device, half)[variant].start():
        pass
    results.put(peak_bytes(device) - before)


def bench_train(preset: Preset, options, device: torch.device, dtype: torch.dtype) -> list[dict]:
    """A row for each batch size and variant of a training step."""
    half = dtype == torch.bfloat16
    preset.train.loss_rows = options.loss_rows or preset.train.loss_rows
    tokens, rows = preset.model.grid[0] * preset.model.grid[1], []
    rate = matrix_rate(device, dtype)
    for batch in options.batch_size:
        preset.train.batch_size = batch
        # Memory in processes of their own, and without what glibc keeps of freed pieces: all large
        # ones mapped, which costs time.
        with patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_="1000000"):
            peaks = {variant: in_a_process(train_memory, preset, variant, device, half)
                     for variant in options.variants}
        seconds = paired(train_works(preset, options.variants, device, half), options.repeats,
                         device, warm_up=1)
        for variant in options.variants:
            again, whole = variant == "recompute", spread(seconds[variant])
            flops = plan.training_flops(preset.model, tokens, again) * batch
            chunks = replace(preset.train, loss_rows=2**62) if "logits" in variant else preset.train
            parts = plan.memory(preset.model, chunks, tokens, batch, half=half, recompute=again)
            rows.append({"preset": options.preset, "batch": batch, "variant": variant, **whole,
                         "images_per_second": batch / whole["seconds"],
                         "share_of_floor": flops / rate / whole["seconds"],
                         "peak_bytes": peaks[variant], "planned_bytes": sum(parts.values())})
    return rows


SECONDS = {
    "seconds": lambda r: f"{r['seconds']:.3f}",
    "fastest to slowest": lambda r: f"{r['fastest']:.3f} to {r['slowest']:.3f}",
    "images/s": lambda r: f"{r['images_per_second']:.3f}"}
COLUMNS = {
    "train": {
        "images": lambda r: str(r["batch"]), "variant": lambda r: r["variant"], **SECONDS,
        "products": lambda r: f"{r['share_of_floor']:.0%}",
        "peak GB": lambda r: f"{r['peak_bytes'] / 1e9:.2f}",
        "planned": lambda r: f"{r['planned_bytes'] / 1e9:.2f}"},
    "decode": {
        "images": lambda r: str(r["batch"]),
        "decoding": lambda r: r["decoding"] + " (estimated)" * r["estimated"],
        "steps": lambda r: str(r["steps"]), **SECONDS,
        "TFLOP": lambda r: f"{r['flops'] / 1e12:.2f}", "GB": lambda r: f"{r['bytes'] / 1e9:.1f}",
        "of the limit": lambda r: f"{r['share_of_floor']:.0%}",
        "to products": lambda r: "{median:.2f} ({least:.2f} to {most:.2f})".format(
            **r["to_products"]) if "to_products" in r else ""},
    "memory": {
        "images": lambda r: str(r["batch"]), "model": lambda r: r["model"],
        "tokens": lambda r: str(r["tokens"]), "steps": lambda r: str(r["steps"]),
        "weights GB": lambda r: f"{r['weight_bytes'] / 1e9:.2f}",
        "keys, values: formula": lambda r: f"{r['cache_formula'] / 1e9:.3f}",
        "measured": lambda r: f"{r['cache_bytes'] / 1e9:.3f}",
        "ARPG less by": lambda r: f"{r['cache_saved']:.0%}",
        "peak": lambda r: f"{r['peak_bytes'] / 1e9:.3f}",
        "least to most": lambda r: f"{r['least_peak'] / 1e9:.3f} to {r['most_peak'] / 1e9:.3f}",
        "in all, less by": lambda r: f"{r['saved']:.0%}"},
    "scaling": {
        "cost against": lambda r: r["sweep"],
        "at": lambda r: " ".join(map(str, r["points"])),
        "seconds": lambda r: " ".join(f"{s:.3g}" for s in r["seconds"]),
        "exponent": lambda r: f"{r['exponent']:.2f} ({r['least_exponent']:.2f} to "
                              f"{r['most_exponent']:.2f})",
        "of the FLOPs": lambda r: f"{r['flops_exponent']:.2f}"}}
NOTES = {
    "train": "products: the share of the time that bare products of 2048×2048 matrices would take; "
             "peak: over what\nthe process held before there was a model",
    "decode": "TFLOP, GB: arithmetic, and weights, keys and values read; of the limit: the share "
              "of the time that these would take\nat the machine's rates; to products: seconds over"
              " those of the bare products of a plain implementation",
    "memory": "peak: over what the process held with the model; in all: weights and peak",
    "scaling": "exponent: a in seconds ~ size^a, least squares over the points (each repetition by "
               "itself); the FLOPs' beside it"}


def words(allowed: tuple[str, ...]):
    """A parser of some of these, with commas."""
    def parse(text: str) -> list[str]:
        if wrong := set(text.split(",")) - {*allowed, ""}:
            raise argparse.ArgumentTypeError(f"{wrong.pop()}: must be of {', '.join(allowed)}")
        return [word for word in text.split(",") if word]
    return parse


def whole_numbers(text: str) -> list[int]:
    if not all(word.isdecimal() and 0 < int(word) < 10**6 for word in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text}: must be whole numbers, 1 or more, with commas")
    return [int(word) for word in text.split(",")]


def one_or_more(text: str) -> int:
    return whole_numbers(text.replace(",", " "))[0]


def parse(arguments: list[str] | None = None):
    parser = Parser("python -m arpg_mini.bench", description=__doc__.split("\n")[0])
    kinds = parser.add_subparsers(dest="what", required=True)
    for what, word in (("train", "training steps, with what saves time or memory on and off"),
                       ("decode", "images a second, beside one token a step and raster order"),
                       ("memory", "of keys and values and of a whole decode, beside raster order"),
                       ("scaling", "cost of a decode against its sizes, and the exponents")):
        kind = kinds.add_parser(what, help=word, description=word)
        kind.add_argument("--preset", default="shapes", choices=tuple(presets()))
        kind.add_argument("--batch-size", type=whole_numbers, default="2" if what == "scaling" else
                          "8", help="images at a time, with commas (default %(default)s)")
        kind.add_argument("--repeats", type=one_or_more, default=3,
                          help="how often each is measured (default 3)")
        kind.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
        kind.add_argument("--precision", choices=("float32", "bfloat16"),
                          help="of products (default: bfloat16 on cuda, float32 on cpu)")
        kind.add_argument("--json", action="store_true", help="print rows as JSON")
        if what == "train":
            kind.add_argument("--loss-rows", type=one_or_more, help="rows of logits held at once "
                              "in all but whole-logits (default: the preset's)")
            kind.add_argument("--variants", type=words(VARIANTS),
                              default="chunked,whole-logits,recompute",
                              help="of " + ", ".join(VARIANTS) + " (default: the first three)")
            continue
        kind.add_argument("--steps", type=whole_numbers, help="decoding steps, with commas "
                          "(default: a quarter and an eighth of the number of tokens)")
        kind.add_argument("--guidance", type=float, default=4.0, help="1: none (default 4)")
        if what == "decode":
            kind.add_argument("--baselines", type=words(BASELINES), default=",".join(BASELINES),
                              help="what to measure beside it (default: all of %(default)s)")
        if what == "scaling":
            kind.add_argument("--sweeps", type=words(SWEEPS), default=",".join(SWEEPS),
                              help="what to vary (default: all of %(default)s)")
    return parser.parse_args(arguments)


def main() -> int:
    def work() -> None:
        device, preset = torch.device(pick_device(options.device)), presets()[options.preset]
        dtype = getattr(torch, options.precision or
                        ("bfloat16" if device.type == "cuda" else "float32"))
        if options.what != "train":
            n = preset.model.grid[0] * preset.model.grid[1]
            options.steps = options.steps or [n // 4, n // 8]
            if max(options.steps) > n:
                raise UserError(f"--steps {max(options.steps)}: {options.preset} has {n} tokens, "
                                "of which each step takes one or more")
            try:
                Settings(guidance=options.guidance)
            except ValueError as error:
                raise UserError(f"--{error}") from None
        measure = {"train": bench_train, "decode": bench_decode.bench_decode,
                   "memory": bench_decode.bench_memory, "scaling": bench_decode.bench_scaling}
        rows = measure[options.what](preset, options, device, dtype)
        if options.json:
            print(json.dumps(rows, indent=1))
        else:
            print_table(rows, COLUMNS[options.what])
            print(NOTES[options.what])
    options = parse()
    return exit_code("python -m arpg_mini.bench", work)


if __name__ == "__main__":
    sys.exit(main())
