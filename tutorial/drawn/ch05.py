"""The figures of chapter 5: the step of each position, the slots of the cache, the step sizes."""

from unittest.mock import patch

import numpy as np
import torch
from PIL import Image, ImageDraw

from arpg_mini import ARPG, ModelConfig, decoding
from arpg_mini.attention import Cache
from arpg_mini.config import PARALLEL_ORDERS, SCHEDULES
from arpg_mini.decoding import decode_steps
from arpg_mini.orders import named_order, random_orders, step_sizes
from tutorial.drawn import real
from tutorial.figures import GOOD, INK, PALE, WHAT, WHERE, arrow, canvas, cells, label, plot


def colours_of(steps: int) -> np.ndarray:
    """(steps, 3) uint8: from blue (early) over pale colours to orange (late)."""
    stops = np.array([[105, 160, 220], [190, 218, 242], [250, 228, 175], [232, 145, 80]], float)
    at = np.linspace(0, len(stops) - 1, steps)
    return np.stack([np.interp(at, range(len(stops)), stop) for stop in stops.T], -1).astype(
        np.uint8)


def decoded(grid: tuple[int, int], steps: int, seed: int = 2, orders=None
            ) -> tuple[np.ndarray, list[int]]:
    """(h, w): the step in which a real decode fills each position; the cache's growing lengths."""
    lengths = []

    class Watched(Cache):
        def advance(self, slots: int) -> None:
            super().advance(slots)
            lengths.append(self.length)

    torch.manual_seed(0)
    model = ARPG(ModelConfig(dim=16, content_layers=1, query_layers=1, heads=2, vocab_size=9,
                             num_classes=2, grid=grid, dropout=0.0))
    when = np.zeros(grid[0] * grid[1], int)
    with patch.object(decoding, "Cache", Watched):
        for step, ids in enumerate(decode_steps(model, [1], [seed], steps=steps, guidance=1,
                                                orders=orders), start=1):
            when[(ids[0].numpy() >= 0) & (when == 0)] = step
    return when.reshape(grid), lengths


def arrival() -> Image.Image:
    """6×6 positions in 8 steps, in three orders, coloured by step."""
    grid, steps, size = (6, 6), 8, 34
    image, draw = canvas(760, 330)
    colours, sizes = colours_of(steps), step_sizes(36, steps)
    for i, (name, orders) in enumerate((("random, seed 2", None), ("spiral", "spiral"),
                                        ("raster", "raster"))):
        orders = None if orders is None else named_order(orders, grid)
        when, _ = decoded(grid, steps, orders=orders)
        x = 24 + i * 248
        label(draw, (x, 10), name, 16)
        cells(draw, (x, 36), colours[when - 1], size, when.astype(str).tolist())
    label(draw, (24, 258), "step", 14)
    label(draw, (24, 298), "tokens", 14)
    for step in range(steps):
        x = 90 + step * 44
        cells(draw, (x, 252), colours[step][None, None], 30, [[str(step + 1)]])
        label(draw, (x + 15, 298), str(sizes[step]), 14, anchor="ma")
    label(draw, (460, 258), "All cells of one number are asked for", 14)
    label(draw, (460, 278), "at once, in one step.", 14)
    return image


def together() -> Image.Image:
    """6×6 positions in 8 steps, in the orders made for parallel steps, coloured by step."""
    grid, steps, size = (6, 6), 8, 29
    image, draw = canvas(760, 216)
    for i, name in enumerate(PARALLEL_ORDERS):
        when, _ = decoded(grid, steps, orders=name)
        label(draw, (16 + i * 186, 8), name, 16)
        cells(draw, (16 + i * 186, 32), colours_of(steps)[when - 1], size,
              when.astype(str).tolist())
    return image


def cache() -> Image.Image:
    """4×4 positions in 4 steps: the filled slots when a step asks, and the step that wrote each."""
    grid, steps, seed, size = (4, 4), 4, 2, 36
    _, lengths = decoded(grid, steps, seed)
    sizes, order = step_sizes(16, steps), random_orders([seed], 16)[0].tolist()
    ends = np.cumsum([0, *sizes])
    image, draw = canvas(760, 310)
    colours, slots = colours_of(steps), lengths[-1]
    label(draw, (86, 12), f"slots of the cache ({slots}, one per column): who is in it", 15)
    label(draw, (530, 12), "positions asked for", 15)
    wrote = [None] + [s for s, n in enumerate(sizes[:-1]) for _ in range(n)]
    names = ["cls"] + [str(p) for p in order[:slots - 1]]
    for step in range(steps):
        y, filled = 44 + step * 52, lengths[step]
        label(draw, (16, y + size / 2), f"step {step + 1}", 15, anchor="lm")
        row = np.full((1, slots, 3), 255, np.uint8)
        for slot in range(filled):
            row[0, slot] = (222, 222, 222) if wrote[slot] is None else colours[wrote[slot]]
        cells(draw, (86, y), row, size,
              [[name if i < filled else "" for i, name in enumerate(names)]])
        start = lengths[step - 1] if step else 0
        draw.rectangle((86 + start * size, y, 86 + filled * size, y + size), outline=INK, width=3)
        arrow(draw, (86 + slots * size + 10, y + size / 2), (516, y + size / 2), INK)
        asked = order[ends[step]:ends[step + 1]]
        cells(draw, (530, y), colours[step][None, None].repeat(len(asked), 1), 31,
              [[str(p) for p in asked]])
    label(draw, (86, 262), "Framed: written in this step, from the tokens of the step before.", 14)
    label(draw, (86, 282), "The last step's tokens never enter the cache: nobody asks after them.",
          14, WHAT)
    draw.line((16, 256, 744, 256), fill=PALE)
    return image


def sizes() -> Image.Image:
    """256 tokens in 16 steps: the step sizes of the three schedules."""
    steps = range(1, 17)
    image = plot({" " * i: (steps, step_sizes(256, 16, name))
                  for i, name in enumerate(SCHEDULES)},
                 "step", "tokens a step (256 tokens, 16 steps)", size=(620, 320))
    draw = ImageDraw.Draw(image)
    for name, at, colour in zip(SCHEDULES, ((556, 40), (340, 168), (110, 186)),
                                (WHAT, WHERE, GOOD)):
        label(draw, at, name, 14, colour, "la" if name == "constant" else "ra")
    return image


FIGURES = {"ch05_arrival": arrival, "ch05_together": together, "ch05_cache": cache,
           "ch05_sizes": sizes, "ch05_arriving": real.arriving}
