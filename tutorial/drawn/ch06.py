"""Figures of chapter 6: guidance on three ids, step sizes, the price of parallelism."""

import json
import math
from pathlib import Path

import torch
from PIL import Image

from arpg_mini.config import SCHEDULES
from arpg_mini.orders import step_sizes
from arpg_mini.sampling import guide
from tutorial.drawn import real
from tutorial.figures import GOOD, INK, PALE, WHAT, WHERE, arrow, canvas, label

RESULTS = Path(__file__).parent.parent / "results.json"


def guidance() -> Image.Image:
    """Bars: the probabilities of the chapter's three ids at four scales, by `sampling.guide`."""
    both = torch.tensor([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]], dtype=torch.float64).log()[:, None]
    scales, (image, draw) = (0.0, 1.0, 2.0, 3.0), canvas(640, 215)
    for column, s in enumerate(scales):
        left = 40 + column * 150
        shares = guide(both, s, "constant", 1.0)[0, 0].softmax(-1)
        for i, (share, colour) in enumerate(zip(shares.tolist(), (WHERE, WHAT, GOOD))):
            x, top = left + 38 * i, 155 - 150 * share
            draw.rectangle((x, top, x + 28, 155), fill=colour)
            label(draw, (x + 14, top - 3), f"{share:.2f}", 12, anchor="md")
            label(draw, (x + 14, 159), f"id {i}", 12, anchor="ma")
        draw.line((left - 8, 155, left + 112, 155), fill=INK)
        words = {0.0: "no class told", 1.0: "class told"}.get(s, "led on")
        label(draw, (left + 52, 183), f"s = {s:g}: {words}", 13, anchor="ma")
    return image


def schedules() -> Image.Image:
    """One row of 36 tokens per schedule, divided where a step ends."""
    image, draw = canvas(640, 215)
    label(draw, (110, 8), "36 tokens in 8 steps: how many each step draws", 13)
    for row, name in enumerate(SCHEDULES):
        y, done = 40 + 46 * row, 0
        label(draw, (100, y + 15), name, 13, anchor="rm")
        for step, size in enumerate(step_sizes(36, 8, name)):
            x, end = 110 + 14 * done, 110 + 14 * (done + size)
            draw.rectangle((x, y, end, y + 30), outline="white", width=2,
                           fill=(WHAT, "#6f9fd0")[step % 2])
            label(draw, ((x + end) / 2, y + 15), str(size), 12, "white", "mm")
            done += size
    arrow(draw, (110, 184), (614, 184), PALE)
    label(draw, (362, 200), "time", 12, anchor="mm")
    return image


def price() -> Image.Image:
    """Quality against passes of the model: three orders in some numbers of steps, and exact
    decoding in random order by window. Bars are standard errors, where they are large enough."""
    results = {key: entry["value"] for key, entry in json.loads(RESULTS.read_text()).items()}
    image, draw = canvas(840, 350)
    panels = (("shapes", "accuracy", "shapes, 36 tokens: class accuracy (more is better)", 36,
               (2, 4, 8, 12, 16, 24, 36), 0.4, 1.0, 0.2,
               {"random": ("random,", 6), "near": ("near", 0), "halton": ("halton", 20)}),
              ("fashion", "distance", "Fashion-MNIST, 49 tokens: distance (less is better)", 49,
               (2, 4, 8, 16, 24, 49), 0, 60, 20,
               {"random": ("random", -8), "near": ("near", 0), "halton": ("halton", 8)}))
    for panel, (data, metric, title, n, windows, low, high, step, names) in enumerate(panels):
        left, bottom, width, height = 50 + 425 * panel, 300, 300, 250

        def at(passes: float, value: float) -> tuple[float, float]:
            return (left + width * (math.log2(passes) - 2) / (math.log2(n) - 2),
                    bottom - height * (value - low) / (high - low))

        label(draw, (left - 36, 10), title, 14)
        for i in range(round((high - low) / step) + 1):
            y = at(4, low + i * step)[1]
            draw.line((left, y, left + width, y), fill=PALE)
            label(draw, (left - 8, y), f"{low + i * step:g}", 12, anchor="rm")
        for passes in (4, 8, 16, n):
            label(draw, (at(passes, 0)[0], bottom + 6), str(passes), 12, anchor="ma")
        label(draw, (left + width / 2, bottom + 24), "passes of the model", 13, anchor="ma")
        lines = {name: [(k, f"price.{data}.{name}_{k}.{metric}") for k in (4, 8, 12, 16, n)]
                 for name in names}
        exact = [f"price.{data}.random_exact_{w}" for w in windows]
        lines["exact"] = [(results[f"{key}.passes"], f"{key}.{metric}") for key in exact]
        for (name, keys), colour in zip(lines.items(), (WHAT, WHERE, "#8a5aa8", GOOD)):
            points = [at(passes, results[key]) for passes, key in keys]
            draw.line(points, fill=colour, width=4 if name == "exact" else 2)
            for (x, y), (_, key) in zip(points, keys):
                error, size = height * results[f"{key}.error"] / (high - low), 3
                if name == "exact":
                    error, size = 0, 5
                draw.line((x, y - error, x, y + error), fill=colour, width=1)
                draw.ellipse((x - size, y - size, x + size, y + size), fill=colour)
            if name == "exact":
                x, y = points[2]
                label(draw, (x, y + (-14, 14)[panel]), "exact decoding", 14, colour, "mm")
            else:
                (x, y), (text, below) = points[-1], names[name]
                label(draw, (x + 8, y + below), text, 13, colour, "lm")
    return image


FIGURES = {"ch06_guidance": guidance, "ch06_schedules": schedules, "ch06_price": price,
           "ch06_guided": real.guided}
