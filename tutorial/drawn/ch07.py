"""Figures of chapter 7."""

import numpy as np
import torch
from PIL import Image

from arpg_mini import ARPG, ModelConfig
from arpg_mini.data import shapes
from arpg_mini.decoding import make_plan
from arpg_mini.editing import plan_windows, token_mask
from arpg_mini.sampling import Settings
from tutorial.drawn import real
from tutorial.figures import BAD, INK, WHAT, WHERE, canvas, cells, label

KNOWN, ASKED, EMPTY = (190, 212, 235), (245, 203, 176), (255, 255, 255)


def colours(asked: np.ndarray, known: np.ndarray) -> np.ndarray:
    picked = np.where(known, 1, np.where(asked, 2, 0))
    return np.array([EMPTY, KNOWN, ASKED])[picked]


def known() -> Image.Image:
    """A picture and a box of pixels; the known cells; the step that reads or draws each cell."""
    picture = shapes(9, seed=4)[0][6]                                          # (24, 24, 3)
    x0, y0, x1, y1 = 7, 5, 18, 16
    mask = torch.zeros(1, 24, 24, dtype=torch.bool)
    mask[:, y0:y1, x0:x1] = True
    asked = token_mask(mask, 4)[0].numpy()                                     # (6, 6)
    model = ARPG(ModelConfig(dim=16, content_layers=1, query_layers=1, heads=1, vocab_size=9,
                             num_classes=3, grid=(6, 6)))
    plan = make_plan(model, [0], [2], Settings(
        steps=4, guidance=1.0, known=torch.where(torch.from_numpy(asked), -1, 1).flatten()))
    step = np.full(36, 1)
    step[plan.orders[0].numpy()] = np.repeat(np.arange(2, 6), plan.sizes)
    image, draw = canvas(660, 250)
    zoom, tops = 8, [12, 232, 452]
    image.paste(Image.fromarray(picture).resize((192, 192), Image.Resampling.NEAREST), (12, 30))
    for line in range(7):
        at = 12 + line * 4 * zoom, 30 + line * 4 * zoom
        draw.line((at[0], 30, at[0], 222), fill="#888888")
        draw.line((12, at[1], 204, at[1]), fill="#888888")
    draw.rectangle((12 + x0 * zoom, 30 + y0 * zoom, 12 + x1 * zoom, 30 + y1 * zoom),
                   outline=BAD, width=4)
    cells(draw, (232, 30), colours(asked, ~asked), 32,
          [[str(r * 6 + c) for c in range(6)] for r in range(6)])
    cells(draw, (452, 30), colours(asked, ~asked), 32,
          [[str(n) for n in row] for row in step.reshape(6, 6)])
    for left, words in zip(tops, ("a box of pixels", "cells: known or touched",
                                "read or drawn in step")):
        label(draw, (left, 8), words)
    label(draw, (232, 228), "blue: stays known", 12, WHAT)
    label(draw, (345, 228), "orange: unknown", 12, WHERE)
    label(draw, (452, 228), "0 is the class; 1 all that is known", 12)
    return image


def windows() -> Image.Image:
    """Windows of 3x4 over a grid of 4x6, one after the other."""
    grid, size = (4, 6), (3, 4)
    image, draw = canvas(716, 172)
    done = np.zeros(grid, bool)
    plan = plan_windows(done, size, steps=6, usual=12)
    for number, (r, c, steps) in enumerate(plan):
        inside = np.zeros(grid, bool)
        inside[r:r + 3, c:c + 4] = True
        asked = inside & ~done
        at = 12 + number * 176, 34
        words = [[str(number + 1) if asked[i, j] else "" for j in range(6)] for i in range(4)]
        cells(draw, at, colours(asked, done), 26, words)
        draw.rectangle((at[0] + c * 26, at[1] + r * 26, at[0] + (c + 4) * 26,
                        at[1] + (r + 3) * 26), outline=INK, width=3)
        label(draw, (at[0], 10), f"window {number + 1}, at ({r}, {c})")
        label(draw, (at[0], 144), f"{asked.sum()} to draw, steps: {steps}", 13, WHERE)
        done |= inside
    return image


FIGURES = {"ch07_known": known, "ch07_windows": windows, "ch07_filled": real.filled}
