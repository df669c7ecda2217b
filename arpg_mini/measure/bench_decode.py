"""Measurements of decoding: speed, memory, and how the cost grows. `bench.py` is the command.

The one idea: a saving needs something to compare with. Every decode is measured together with one
token per step, a raster-order model of the same blocks, and the bare products of a plain program.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import UserError, decoding
from ..attention import Cache
from ..config import ModelConfig
from ..decoding import decode_steps
from ..exact import exact_steps
from ..model import ARPG
from ..orders import step_sizes
from ..run import plan
from ..sampling import inverse_cdf
from . import raster
from .raster import Raster, raster_steps
from .timing import Work, bandwidth, in_a_process, matrix_rate, paired, peak_bytes, spread

BASELINES = "products", "one-token", "raster", "raster-uncached"
SWEEPS = "tokens", "batch", "steps", "depth", "width"


def build(kind: type[nn.Module], config: ModelConfig, device: torch.device,
          dtype: torch.dtype) -> nn.Module:
    """A model with a random head, because a new model's head is zero."""
    torch.manual_seed(0)
    with device:
        model = kind(config).to(dtype).requires_grad_(False)
    nn.init.normal_(model.head.weight, std=0.02)
    return model


@torch.no_grad()
def bare_products(model: ARPG, sizes: list[int], rows: int) -> Iterator[None]:
    """The `F.linear` products of a plain implementation, step by step: q, k, v, w1, w3 separately,
    and every query projected."""
    def weights(block: nn.Module) -> list[Tensor]:
        joint = block.attention.qkv.weight.chunk(3) if hasattr(block.attention, "qkv") else [
            block.attention.q.weight]
        return [*joint, block.attention.out.weight, *block.ffn.w13.weight.chunk(2),
                block.ffn.w2.weight]

    def multiply(matrices: list[Tensor], s: int) -> None:
        inputs = {w.shape[1]: w.new_ones(rows, s, w.shape[1]) for w in matrices}
        for w in matrices:
            F.linear(inputs[w.shape[1]], w)

    content = [w for block in model.content for w in weights(block)] + [*model.kv.weight.chunk(2)]
    query = [w for block in model.query for w in weights(block)] + [model.head.weight]
    for before, size in zip([1, *sizes], sizes):
        multiply(content, before)
        multiply(query, size)
        yield


@torch.no_grad()
def prefixes(model: Raster, lengths: list[int], rows: int) -> Iterator[Tensor]:
    """Steps of the raster-order model without a cache, at some lengths of the prefix."""
    c = model.config
    table = raster.rotary_table(c.grid, c.head_dim, c.rope_base, model.head.weight.device,
                                torch.complex64)[None]
    for length in lengths:
        ids = torch.zeros(rows, length, dtype=torch.long, device=table.device)
        logits = model(ids, table[:, :length])[:, -1:].float()
        yield inverse_cdf(logits, torch.zeros(rows, 1, device=table.device))


def between(lengths: list[int], seconds: np.ndarray) -> np.ndarray:
    """(repeats, lengths) as measured -> (repeats, N), at every length up to the last, by linear
    interpolation."""
    every = range(1, lengths[-1] + 1)
    return np.array([np.interp(every, lengths, one) for one in seconds])


def decode_work(model: ARPG, batch: int, steps: int, guidance: float, **settings) -> Work:
    labels = torch.arange(batch) % model.config.num_classes
    return Work(steps, lambda: decode_steps(model, labels, range(batch), steps=steps,
                                            guidance=guidance, **settings))


def floor_seconds(costs: list[tuple[int, int]], rate: float, bytes_a_second: float) -> float:
    """A step takes at least as long as its arithmetic or its reading, whichever is longer."""
    return sum(max(flops / rate, numbers / bytes_a_second) for flops, numbers in costs)


def bench_decode(preset, options, device: torch.device, dtype: torch.dtype) -> list[dict]:
    """One row per batch size and way to decode."""
    config, rows = preset.model, []
    n = config.grid[0] * config.grid[1]
    model, other = build(ARPG, config, device, dtype), None
    if any("raster" in name for name in options.baselines):
        other = build(Raster, config, device, dtype)
    rate, speed = matrix_rate(device, dtype), bandwidth(device)
    for batch in options.batch_size:
        twice = batch * (1 if options.guidance == 1 else 2)
        labels = torch.arange(batch) % config.num_classes
        lengths = sorted({round(1 + (n - 1) * i / 6) for i in range(7)})
        works, costs = {}, {}
        for steps in options.steps + [n] * ("one-token" in options.baselines):
            sizes, name = step_sizes(n, steps), "one token a step" if steps == n else "parallel"
            works[name, steps] = decode_work(model, batch, steps, options.guidance)
            costs[name, steps] = plan.decode_costs(config, sizes, batch, twice > batch,
                                                      width=dtype.itemsize)
            if "products" in options.baselines:
                works["products", steps] = Work(
                    steps, lambda sizes=sizes: bare_products(model, sizes, twice))
        if "raster" in options.baselines:
            works["raster", n] = Work(n, lambda: raster_steps(other, labels, range(batch),
                                                              options.guidance))
            costs["raster", n] = plan.raster_costs(config, n, twice, width=dtype.itemsize)
        if "raster-uncached" in options.baselines:
            works["raster, no cache", n] = Work(len(lengths),
                                                lambda: prefixes(other, lengths, twice))
            costs["raster, no cache", n] = plan.raster_costs(config, n, twice, False,
                                                             dtype.itemsize)
        seconds = paired(works, options.repeats, device)
        for name, steps in costs:
            each = seconds[name, steps]                                     # (repeats, steps)
            if name == "raster, no cache":
                each = between(lengths, each)
            whole, least = each.sum(1), floor_seconds(costs[name, steps], rate, speed)
            row = {"preset": options.preset, "batch": batch, "decoding": name, "steps": steps,
                   **spread(whole), "images_per_second": batch / float(np.median(whole)),
                   "flops": sum(flops for flops, _ in costs[name, steps]),
                   "bytes": sum(numbers for _, numbers in costs[name, steps]),
                   "floor_seconds": least, "share_of_floor": least / float(np.median(whole)),
                   "estimated": name == "raster, no cache"}
            if ("products", steps) in works and name in ("parallel", "one token a step"):
                ratios = whole / seconds["products", steps].sum(1)
                row["to_products"] = dict(zip(("median", "least", "most"), spread(ratios).values()))
            rows.append(row)
    return rows


def bench_exact(preset, options, device: torch.device, dtype: torch.dtype) -> list[dict]:
    """One row per batch size and window of exact decoding: seconds of a pass, and how many times
    those of a step of one token. The first two passes are left out: they have few guesses to
    encode. A decode that is finished too early is followed by another."""
    model, n, rows = build(ARPG, preset.model, device, dtype), math.prod(preset.model.grid), []
    passes = min(12, n)
    for batch in options.batch_size:
        one = decode_work(model, batch, n, options.guidance)
        labels = torch.arange(batch) % preset.model.num_classes
        works = {"one token": Work(passes, one.start)} | {
            window: Work(passes, lambda window=window: chain.from_iterable(
                exact_steps(model, labels, range(batch), window, guidance=options.guidance)
                for _ in range(passes))) for window in options.windows}
        seconds = {name: each[:, 2:].mean(1)
                   for name, each in paired(works, options.repeats, device).items()}
        for name, each in seconds.items():
            ratios = each / seconds["one token"]
            rows.append({"preset": options.preset, "batch": batch, "window": name, **spread(each),
                         "to_a_step": dict(zip(("median", "least", "most"),
                                               spread(ratios).values()))})
    return rows


def decode_memory(kind: str, config: ModelConfig, batch: int, steps: int, guidance: float,
                  device: torch.device, dtype: torch.dtype, results) -> None:
    """Decode once; what the cache took, and the peak over what the model itself holds."""
    torch.set_default_dtype(dtype)
    model = build(Raster if kind == "raster" else ARPG, config, device, dtype)
    before, caches = peak_bytes(device), []

    class Watched(Cache):
        def __init__(self, *arguments, **factory):
            super().__init__(*arguments, **factory)
            caches.append(self.pairs.nbytes)

    with patch.object(decoding, "Cache", Watched), patch.object(raster, "Cache", Watched):
        if kind == "raster":
            work = raster_steps(model, torch.arange(batch) % config.num_classes, range(batch),
                                guidance)
        else:
            work = decode_work(model, batch, steps, guidance).start()
        for _ in work:
            pass
    weights = sum(p.nbytes for p in model.parameters())
    results.put((weights, sum(caches), peak_bytes(device) - before))


def bench_memory(preset, options, device: torch.device, dtype: torch.dtype) -> list[dict]:
    """One row per batch size and model. The last model has 1.5 times as many tokens per side."""
    rows, (h, w) = [], preset.model.grid
    larger = replace(preset.model, grid=(3 * h // 2, 3 * w // 2))
    for batch in options.batch_size:
        for kind, config in (("ARPG", preset.model), ("raster", preset.model), ("raster", larger)):
            n, twice = math.prod(config.grid), batch * (1 if options.guidance == 1 else 2)
            steps = n if kind == "raster" else options.steps[0]
            with patch.dict("os.environ", MALLOC_MMAP_THRESHOLD_="1000000"):   # see bench_train
                taken = [in_a_process(decode_memory, kind, config, batch, steps, options.guidance,
                                      device, dtype) for _ in range(options.repeats)]
            slots = n - step_sizes(n, steps)[-1] + 1
            weights, cache, _ = taken[0]
            peaks = sorted(peak for *_, peak in taken)
            rows.append({"preset": options.preset, "batch": batch, "model": kind, "tokens": n,
                         "steps": steps, "weight_bytes": weights,
                         "cache_formula": plan.cache_bytes(config, slots, twice, kind == "raster",
                                                           dtype.itemsize),
                         "cache_bytes": cache, "peak_bytes": peaks[len(peaks) // 2],
                         "least_peak": peaks[0], "most_peak": peaks[-1]})
        ours = rows[-3]
        for row in rows[-3:]:
            row["cache_saved"] = 1 - ours["cache_bytes"] / row["cache_bytes"]
            row["saved"] = 1 - (ours["weight_bytes"] + ours["peak_bytes"]) / (
                row["weight_bytes"] + row["peak_bytes"])
    return rows


def sweep(what: str, c: ModelConfig, batch: int, steps: int) -> Iterator[tuple]:
    """(size, config, batch, steps) of the points of one sweep. The rest stays as given."""
    if what == "tokens":
        for side in (8, 12, 16, 24, 32, 48):
            yield side * side, replace(c, grid=(side, side)), batch, min(steps, side * side)
    elif what == "batch":
        yield from ((b, c, b, steps) for b in (1, 2, 4, 8, 16))
    elif what == "steps":
        n = math.prod(c.grid)
        yield from ((s, c, batch, s) for s in (1, 2, 4, 8, 16, 32, 64, 128, 256) if s <= n)
    elif what == "depth":
        for times in (1, 2, 3, 4):
            part = dict(content_layers=max(1, c.content_layers * times // 2),
                        query_layers=max(1, c.query_layers * times // 2))
            yield sum(part.values()), replace(c, **part), batch, steps
    else:
        for times in (1, 2, 3, 4):
            heads = max(1, c.heads * times // 2)
            config = replace(c, dim=heads * c.head_dim, heads=heads, ffn_hidden=None)
            yield config.dim, config, batch, steps


def slope(x: list[float], y) -> float:
    """The exponent a of y = b·xᵃ, by least squares of the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def bench_scaling(preset, options, device: torch.device, dtype: torch.dtype) -> list[dict]:
    """One row per sweep: seconds of a decode and FLOPs at each point, and their exponents."""
    rows = []
    for what in options.sweeps:
        points = list(sweep(what, preset.model, options.batch_size[0], options.steps[0]))
        works, flops, models = {}, [], {}
        for size, config, batch, steps in points:
            if str(config) not in models:       # points with the same sizes share a model
                models[str(config)] = build(ARPG, config, device, dtype)
            works[size] = decode_work(models[str(config)], batch, steps, options.guidance)
            costs = plan.decode_costs(config, step_sizes(math.prod(config.grid), steps), batch,
                                      options.guidance != 1)
            flops.append(sum(f for f, _ in costs))
        x = list(works)
        if len(x) < 2:
            raise UserError(f"--steps {options.steps[0]}: no two points to sweep {what} over")
        seconds = np.stack([s.sum(1) for s in paired(works, options.repeats, device).values()], 1)
        exponents = [slope(x, one) for one in seconds]                      # (repeats,)
        rows.append({"preset": options.preset, "sweep": what, "points": x,
                     "seconds": np.median(seconds, 0).tolist(),
                     "fastest": seconds.min(0).tolist(), "slowest": seconds.max(0).tolist(),
                     "flops": flops, "exponent": float(np.median(exponents)),
                     "least_exponent": min(exponents), "most_exponent": max(exponents),
                     "flops_exponent": slope(x, flops)})
    return rows
