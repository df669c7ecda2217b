"""Figures of chapter 6: guidance on three ids, step sizes, the price of parallelism."""

import json
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
    """The `block` scores of the README's table, with the standard errors of 500 pictures."""
    results, steps = json.loads(RESULTS.read_text()), (1, 2, 4, 8, 16, 32)
    image, draw = canvas(560, 320)
    left, step, bottom, height = 60, 90, 265, 225
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = bottom - height * share
        draw.line((left, y, left + 5 * step + 10, y), fill=PALE)
        label(draw, (left - 8, y), f"{share:g}", 12, anchor="rm")
    for column, t in enumerate(steps):
        label(draw, (left + step * column, bottom + 6), str(t), 12, anchor="ma")
    label(draw, (left + 2.5 * step, 312), "steps for 36 tokens", 13, anchor="md")
    label(draw, (left, 14), "share of 500 drawn pictures", 13)
    for metric, name, colour, at in (("accuracy", "class accuracy", WHAT, (3.7, 178)),
                                     ("coherence", "colour coherence", WHERE, (2.5, 105))):
        shares = [results[f"ch06.block_{t}.{metric}"]["value"] for t in steps]
        points = [(left + step * i, bottom - height * p) for i, p in enumerate(shares)]
        draw.line(points, fill=colour, width=2)
        for (x, y), p in zip(points, shares):
            error = height * (p * (1 - p) / 500) ** 0.5
            draw.line((x, y - error, x, y + error), fill=colour, width=1)
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        label(draw, (left + step * at[0], at[1] - 40), name, 13, colour, "mm")
    return image


FIGURES = {"ch06_guidance": guidance, "ch06_schedules": schedules, "ch06_price": price,
           "ch06_guided": real.guided}
