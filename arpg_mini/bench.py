"""How fast, and in how much memory? Measured on the machine at hand, beside what must be.

The one idea: seconds alone say nothing. Each figure stands beside its floor, what the arithmetic
would take at the rate at which this machine multiplies matrices, or what the plan says is held.

    python -m arpg_mini.bench train --preset imagenet-s --batch-size 16
"""

import json
import multiprocessing
import os
import resource
import sys
import time
from dataclasses import replace
from statistics import median
from unittest.mock import patch

import numpy as np
import torch
from torch.nn import functional as F

from . import plan, training
from .config import Parser, Preset, UserError, exit_code, presets
from .distributed import pick_device
from .model import ARPG

VARIANTS = "chunked", "whole-logits", "recompute", "compile"


class RandomIds:
    """As many pictures of random ids as asked for, in place of `ids.Ids`."""

    def __init__(self, count: int, preset: Preset):
        rng, (h, w) = np.random.default_rng(0), preset.model.grid
        self.ids = rng.integers(preset.model.vocab_size, size=(count, 1, h * w)).astype(np.uint16)
        self.labels = rng.integers(preset.model.num_classes, size=count)

    def __len__(self) -> int:
        return len(self.labels)


def peak_bytes(device: torch.device) -> int:
    """The most memory the process (or its share of the device) ever held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":         # where ru_maxrss starts at what the parent process held
        with open("/proc/self/status") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def matrix_rate(device: torch.device, dtype: torch.dtype, n: int = 2048) -> float:
    """FLOP/s of products of n×n matrices, the best of ten."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        (a @ b)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)


def whole_logits(model: ARPG):
    """The loss as one would write it first: all logits at once."""
    def call(tokens, labels, orders, loss_rows):
        logits = model(tokens, labels, orders)
        return F.cross_entropy(logits.flatten(0, 1), tokens.gather(1, orders).flatten())
    return call


def train_steps(preset: Preset, variant: str, device: torch.device, half: bool, repeats: int,
                results) -> None:
    """Time whole steps of `train_arpg` on random ids and watch memory."""
    before = peak_bytes(device)
    torch.manual_seed(0)
    model = ARPG(preset.model).to(device)
    for block in [*model.content, *model.query]:
        block.recompute = variant == "recompute"
        if variant == "compile":
            block.compile()
    call = whole_logits(model) if variant == "whole-logits" else model
    config = replace(preset.train, steps=repeats + 1, micro_batch=preset.train.batch_size)
    optimizer = training.make_optimizer(model, config.weight_decay, config.betas)
    steps = training.train_arpg(model, call, training.average_of(model),
                                RandomIds(config.batch_size, preset), config, 0, optimizer,
                                half=half)
    next(steps)["loss"].item()                          # the first is slower, and is not counted
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        next(steps)["loss"].item()
        seconds.append(time.perf_counter() - start)
    results.put((seconds, peak_bytes(device) - before))


def in_a_process(work, *arguments):
    """What `work(*arguments, results)` puts into `results`, called in a process of its own."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=work, args=(*arguments, results))
    process.start()
    process.join()
    if process.exitcode:
        raise UserError(f"{' '.join(sys.argv[1:])}: the process that measures ended with code "
                        f"{process.exitcode}, likely out of memory")
    return results.get()


def bench_train(options) -> list[dict]:
    """A row for each variant of a training step."""
    preset, device = presets()[options.preset], torch.device(pick_device(options.device))
    half = (options.precision or {"cuda": "bfloat16"}.get(device.type)) == "bfloat16"
    preset.train.batch_size = options.batch_size
    preset.train.loss_rows = options.loss_rows or preset.train.loss_rows
    tokens, rows = preset.model.grid[0] * preset.model.grid[1], []
    variants = options.variants.split(",")
    if wrong := set(variants) - set(VARIANTS):
        raise UserError(f"--variants {wrong.pop()}: must be of {', '.join(VARIANTS)}")
    rate = matrix_rate(device, torch.bfloat16 if half else torch.float32)
    for variant in variants:
        seconds, _ = in_a_process(train_steps, preset, variant, device, half, options.repeats)
        # Once more for memory: glibc keeps freed pieces, unless all large ones are mapped, which
        # costs time.
        with patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_="1000000"):
            _, peak = in_a_process(train_steps, preset, variant, device, half, 1)
        again = variant == "recompute"
        flops = plan.training_flops(preset.model, tokens, again) * options.batch_size
        chunks = replace(preset.train, loss_rows=2**62) if "logits" in variant else preset.train
        parts = plan.memory(preset.model, chunks, tokens, options.batch_size, half=half,
                            recompute=again)
        rows.append({"variant": variant, "seconds": median(seconds), "fastest": min(seconds),
                     "slowest": max(seconds), "images_per_second": options.batch_size
                     / median(seconds), "share_of_floor": flops / rate / median(seconds),
                     "peak_bytes": peak, "planned_bytes": sum(parts.values())})
    return rows


def print_train(rows: list[dict]) -> None:
    print(f"{'variant':>14}{'s/step':>9}{'fastest':>9}{'slowest':>9}{'images/s':>10}"
          f"{'products':>10}{'peak GB':>9}{'planned':>9}")
    for r in rows:
        print(f"{r['variant']:>14}{r['seconds']:>9.3f}{r['fastest']:>9.3f}{r['slowest']:>9.3f}"
              f"{r['images_per_second']:>10.3f}{r['share_of_floor']:>10.0%}"
              f"{r['peak_bytes'] / 1e9:>9.2f}{r['planned_bytes'] / 1e9:>9.2f}")
    print("products: the share of the time that bare products of 2048×2048 matrices would take; "
          "peak: over what\nthe process held before there was a model")


def main() -> int:
    parser = Parser("python -m arpg_mini.bench", description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("train",))
    parser.add_argument("--preset", default="shapes", choices=tuple(presets()))
    parser.add_argument("--batch-size", type=int, default=8, help="images a step (default 8)")
    parser.add_argument("--loss-rows", type=int, help="rows of logits held at once in all but "
                        "whole-logits (default: the preset's)")
    parser.add_argument("--variants", default="chunked,whole-logits,recompute",
                        help="of " + ", ".join(VARIANTS) + " (default: the first three)")
    parser.add_argument("--repeats", type=int, default=3, help="steps to time (default 3)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"),
                        help="of products (default: bfloat16 on cuda, float32 on cpu)")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    options = parser.parse_args()

    def work() -> None:
        for flag in ("batch_size", "repeats", "loss_rows"):
            if getattr(options, flag) is not None and getattr(options, flag) < 1:
                raise UserError(f"--{flag.replace('_', '-')} {getattr(options, flag)}: must be 1 "
                                "or more")
        rows = bench_train(options)
        print(json.dumps(rows, indent=1)) if options.json else print_train(rows)
    return exit_code(parser.prog, work)


if __name__ == "__main__":
    sys.exit(main())
