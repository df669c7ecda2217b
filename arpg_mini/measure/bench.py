"""Speed and memory, measured on this machine and compared with the least that is possible.

The one idea: seconds alone say little. Each time is compared with what its arithmetic takes at this
machine's rate of matrix products, or its reading at this machine's bandwidth. Each memory is
compared with the plan's.
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

from .. import UserError, training
from ..model import ARPG
from ..run import plan
from ..run.command import DEVICE, PRECISION, Parser, exit_code, number
from ..run.drawing import check_settings
from ..run.presets import Preset, presets
from ..run.processes import pick_device, pick_precision
from . import bench_decode, count
from .bench_decode import BASELINES, SWEEPS
from .timing import Work, in_a_process, matrix_rate, paired, peak_bytes, print_table, spread

VARIANTS = "chunked", "whole-logits", "recompute", "compile"


class RandomIds:
    """Random ids of a given number of pictures, in place of `data.ids.Ids`."""

    def __init__(self, count: int, preset: Preset):
        rng, (h, w) = np.random.default_rng(0), preset.model.grid
        self.ids = rng.integers(preset.model.vocab_size, size=(count, 1, h * w)).astype(np.uint16)
        self.labels = rng.integers(preset.model.num_classes, size=count)

    def __len__(self) -> int:
        return len(self.labels)


def whole_logits(model: ARPG):
    """The loss as written most simply: all logits at once."""
    def call(tokens, labels, orders, loss_rows):
        logits = model(tokens, labels, orders)
        return F.cross_entropy(logits.flatten(0, 1), tokens.gather(1, orders).flatten())
    return call


def train_works(preset: Preset, variants: list[str], device: torch.device,
                half: bool) -> dict[str, Work]:
    """Whole steps of `train_arpg` on random ids. All variants share one model."""
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
    """The peak memory of two steps, above what the process held before there was a model."""
    before = peak_bytes(device)
    for _ in train_works(preset, [variant], device, half)[variant].start():
        pass
    results.put(peak_bytes(device) - before)


def bench_train(preset: Preset, options, device: torch.device, dtype: torch.dtype) -> list[dict]:
    """One row per batch size and variant of a training step."""
    half = dtype == torch.bfloat16
    preset.train.loss_rows = options.loss_rows or preset.train.loss_rows
    tokens, rows = preset.model.grid[0] * preset.model.grid[1], []
    rate = matrix_rate(device, dtype)
    for batch in options.batch_size:
        preset.train.batch_size = batch
        # In new processes, where glibc returns freed memory at once, which costs time.
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


SECONDS = {"seconds": "{seconds:.3f}", "fastest to slowest": "{fastest:.3f} to {slowest:.3f}",
           "images/s": "{images_per_second:.3f}"}
COLUMNS = {
    "train": {"images": "{batch}", "variant": "{variant}", **SECONDS,
              "products": "{share_of_floor:.0%}", "peak GB": "{peak_bytes_G:.2f}",
              "planned": "{planned_bytes_G:.2f}"},
    "decode": {"images": "{batch}",
               "decoding": lambda r: r["decoding"] + " (estimated)" * r["estimated"],
               "steps": "{steps}", **SECONDS, "TFLOP": lambda r: f"{r['flops'] / 1e12:.2f}",
               "GB": "{bytes_G:.1f}", "of the limit": "{share_of_floor:.0%}",
               "to products": lambda r: "{median:.2f} ({least:.2f} to {most:.2f})".format(
                   **r["to_products"]) if "to_products" in r else ""},
    "count": {"images": "{images}", "work": "{work}", "kernels": "{kernels:,}",
              "in float64": "{float64:,}", "GB": "{bytes_G:.1f}",
              "TFLOP": lambda r: f"{r['flops'] / 1e12:.2f}",
              "attention shapes": "{attention_shapes}", "waits": "{waits}",
              **{name: lambda r, name=name: f"{r['seconds'][name]:.3f} s, {r['rates'][name]:.0f}/s"
                 for name in count.CARDS}},
    "exact": {"images": "{batch}", "window": "{window}", "seconds of a pass": "{seconds:.4f}",
              "fastest to slowest": "{fastest:.4f} to {slowest:.4f}",
              "to a step of one token":
              lambda r: "{median:.2f} ({least:.2f} to {most:.2f})".format(**r["to_a_step"])},
    "memory": {"images": "{batch}", "model": "{model}", "tokens": "{tokens}", "steps": "{steps}",
               "weights GB": "{weight_bytes_G:.2f}",
               "keys, values: formula": "{cache_formula_G:.3f}", "measured": "{cache_bytes_G:.3f}",
               "ARPG less by": "{cache_saved:.0%}", "peak": "{peak_bytes_G:.3f}",
               "least to most": "{least_peak_G:.3f} to {most_peak_G:.3f}",
               "in all, less by": "{saved:.0%}"},
    "scaling": {"cost against": "{sweep}", "at": lambda r: " ".join(map(str, r["points"])),
                "seconds": lambda r: " ".join(f"{s:.3g}" for s in r["seconds"]),
                "exponent": "{exponent:.2f} ({least_exponent:.2f} to {most_exponent:.2f})",
                "of the FLOPs": "{flops_exponent:.2f}"}}
NOTES = {
    "train": "products: the share of the time that bare products of 2048×2048 matrices would take; "
             "peak: above what\nthe process held before there was a model",
    "decode": "TFLOP: arithmetic; GB: weights, keys and values read; of the limit: share of the "
              "time that these would take\nat the machine's rates; to products: the time divided by"
              " that of the bare products of a plain implementation",
    "count": "seconds and images per second are computed, not measured: a kernel takes 2.5 µs or, "
             "if that is longer,\nits bytes or its FLOPs; assumed TB/s, bfloat16 TFLOP/s, float64 "
             "TFLOP/s: " + "; ".join(
                 f"{name} {c.bandwidth / 1e12:g}, {c.rate / 1e12:g}, {c.float64 / 1e12:g}"
                 for name, c in count.CARDS.items())
             + ";\nin bfloat16, nothing compiled, a host that keeps up",
    "exact": "a window saves time if its passes make more tokens final, on average, than the last "
             "column says",
    "memory": "peak: above what the process held with the model; in all: weights and peak",
    "scaling": "exponent: a in seconds ~ size^a, by least squares over the points of a repetition; "
               "then the exponent of the FLOPs"}


def words(allowed: tuple[str, ...]):
    """A parser of a list of allowed words, separated by commas."""
    def parse(text: str) -> list[str]:
        if wrong := set(text.split(",")) - {*allowed, ""}:
            raise argparse.ArgumentTypeError(f"{wrong.pop()}: must be of {', '.join(allowed)}")
        return [word for word in text.split(",") if word]
    return parse


def whole_numbers(text: str) -> list[int]:
    """A flag that takes whole numbers, separated by commas."""
    if not all(word.isdecimal() and 0 < int(word) < 10**6 for word in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text}: must be whole numbers, 1 or more, with commas")
    return [int(word) for word in text.split(",")]


COUNT = number(int, 1)
GUIDANCE = "--guidance", float, "1: none (default 4)", 4.0
STEPS = [("--steps", whole_numbers, "decoding steps, separated by commas (default: a quarter and "
          "an eighth of the tokens)"), GUIDANCE]
KINDS = {
    "train": ("training steps, with and without what saves time or memory", [
        ("--loss-rows", COUNT, "rows of logits held at once in all but whole-logits (default: the "
         "preset's)"),
        ("--variants", words(VARIANTS), "of " + ", ".join(VARIANTS) + " (default: the first three)",
         VARIANTS[:3])]),
    "decode": ("images per second, also one token per step and raster order", [
        *STEPS, ("--baselines", words(BASELINES), "what else to measure (default: all of "
                 + ", ".join(BASELINES) + ")", BASELINES)]),
    "count": ("what a GPU would do, counted without one: kernels, bytes, FLOPs, waits", STEPS),
    "exact": ("passes of exact decoding by window", [
        ("--windows", whole_numbers, "ranks that a pass asks for (default 1,2,4,8,16,32,64)",
         [1, 2, 4, 8, 16, 32, 64]), GUIDANCE]),
    "memory": ("of keys and values and of a whole decode, also of raster order", STEPS),
    "scaling": ("how the cost of a decode grows with its sizes", [
        *STEPS, ("--sweeps", words(SWEEPS), "what to vary (default: all of " + ", ".join(SWEEPS)
                 + ")", SWEEPS)])}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser("python -m arpg_mini.measure.bench", description=__doc__.split("\n")[0])
    kinds = parser.add_subparsers(dest="what", required=True)
    for what, (text, flags) in KINDS.items():
        few = 2 if what == "scaling" else 8
        kinds.add_parser(what, help=text, description=text).add_flags({"flags": [
            ("--preset", tuple(presets()), "named sizes (default shapes)", "shapes"),
            ("--batch-size", whole_numbers, f"at a time, with commas (default {few})", [few]),
            ("--repeats", COUNT, "repetitions of each measurement (default 3)", 3), DEVICE,
            ("--precision", PRECISION, "of products (default: bfloat16 on cuda)"),
            ("--json", bool, "print rows as JSON"), *flags]})
    return parser.parse_args(arguments)


def main() -> int:
    def work() -> None:
        device, preset = torch.device(pick_device(options.device)), presets()[options.preset]
        dtype = pick_precision(options.precision, device)
        if "steps" in options:
            n = preset.model.grid[0] * preset.model.grid[1]
            options.steps = options.steps or [n // 4, n // 8]
            if max(options.steps) > n:
                raise UserError(f"--steps {max(options.steps)}: {options.preset} has {n} tokens, "
                                "and each step takes at least one")
        if "guidance" in options:
            check_settings(guidance=options.guidance)
        measure = {"train": bench_train, "decode": bench_decode.bench_decode,
                   "exact": bench_decode.bench_exact, "count": count.bench_count,
                   "memory": bench_decode.bench_memory, "scaling": bench_decode.bench_scaling}
        rows = measure[options.what](preset, options, device, dtype)
        if options.json:
            print(json.dumps(rows, indent=1))
        else:
            print_table(rows, COLUMNS[options.what])
            print(NOTES[options.what])
    options = parse()
    return exit_code("python -m arpg_mini.measure.bench", work)


if __name__ == "__main__":
    sys.exit(main())
