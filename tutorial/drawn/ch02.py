"""Figures of chapter 2."""

import numpy as np
from PIL import Image

from arpg_mini.orders import named_order, random_orders, step_sizes
from tutorial.figures import BAD, GOOD, INK, PALE, WHAT, WHERE, canvas, cells, heat, label


def six_orders() -> Image.Image:
    """When each position of a 6×6 grid is generated: the package's orders and a random one."""
    names = ("raster", "column", "spiral", "outward", "checkerboard")
    orders = {name: named_order(name, (6, 6)) for name in names}
    orders["random, of seed 7"] = random_orders([7], 36)[0]
    image, draw = canvas(3 * 206 + 10, 2 * 224)
    for k, (name, order) in enumerate(orders.items()):
        left, top = 12 + 206 * (k % 3), 28 + 222 * (k // 3)
        when = order.argsort().view(6, 6)                       # the inverse: position -> time
        label(draw, (left, top - 20), name)
        cells(draw, (left, top), heat(when, 0, 60), 31, [[str(t) for t in row]
                                                        for row in when.tolist()])
    return image


def work() -> Image.Image:
    """The positions computed in each step, for 12 tokens and three ways to generate an image."""
    n, size = 12, 21
    sizes, order = step_sizes(n, 4), random_orders([7], n)[0].tolist()
    steps = [order[sum(sizes[:s]):sum(sizes[:s + 1])] for s in range(4)]
    image, draw = canvas(3 * 290 + 10, 375)
    panels = (("raster, cached: 12 steps", [[t] for t in range(n)]),
              ("masked, not cached: 4 steps", [list(range(n))] * 4),
              ("ARPG, cached: 4 steps", steps))
    for k, (title, computed) in enumerate(panels):
        left, top = 28 + 290 * k, 66
        label(draw, (left, 12), title, 16)
        label(draw, (left, 42), "raster position", 12, "#666666")
        for s, positions in enumerate(computed):
            label(draw, (left - 6, top + size * s + size / 2), str(s), 12, "#666666", "rm")
            for p in range(n):
                x, y = left + size * p, top + size * s
                draw.rectangle((x, y, x + size, y + size), outline=PALE)
                inner = (x + 2, y + 2, x + size - 2, y + size - 2)
                if k < 2 and p in positions:
                    draw.rectangle(inner, fill="#888888")
                if k == 2 and p in positions:
                    draw.rectangle(inner, fill=WHERE)
                if k == 2 and s and p in computed[s - 1]:
                    draw.rectangle(inner, fill=WHAT)
                if k == 1 and p in steps[s]:
                    draw.rectangle(inner, outline=INK, width=3)
    for k, (colour, words) in enumerate((
            ("#888888", "through all layers"), ("#888888", "... and its result kept"),
            (WHERE, "asked: half of the layers"), (WHAT, "read: the other half"))):
        x = 28 + 215 * k
        draw.rectangle((x, 345, x + 17, 362), fill=colour)
        if k == 1:
            draw.rectangle((x, 345, x + 17, 362), outline=INK, width=3)
        label(draw, (x + 24, 353), words, 14, anchor="lm")
    return image


PICTURES = {(1, 1, 1, 0, 0, 0): 0.5, (1, 0, 0, 1, 0, 0): 0.25, (0, 0, 0, 1, 1, 1): 0.25}


def draw_toy(steps: list[list[int]], rng: np.random.Generator) -> tuple[int, ...]:
    """Sample a picture of the chapter's toy distribution; pixels of one step are independent."""
    known: dict[int, int] = {}
    for step in steps:
        fits = {x: p for x, p in PICTURES.items() if all(x[i] == v for i, v in known.items())}
        white = {i: sum(p * x[i] for x, p in fits.items()) / sum(fits.values()) for i in step}
        known |= {i: int(rng.random() < white[i]) for i in step}
    return tuple(known[i] for i in range(6))


def toy_samples() -> Image.Image:
    """Twelve samples for each of three ways to split six pixels into steps."""
    ways = (("1 step: all six at once", [[0, 1, 2, 3, 4, 5]]),
            ("2 steps: pixel 2; the other five", [[2], [0, 1, 3, 4, 5]]),
            ("3 steps: pixel 2; pixel 0; the other four", [[2], [0], [1, 3, 4, 5]]))
    image, draw = canvas(12 * 62 + 14, 3 * 82)
    for k, (title, steps) in enumerate(ways):
        rng = np.random.default_rng(3)
        label(draw, (10, 82 * k + 4), title)
        for j in range(12):
            picture = draw_toy(steps, rng)
            left, top = 14 + 62 * j, 82 * k + 30
            colours = np.where(np.array(picture).reshape(2, 3, 1) == 1, 255, [34, 34, 34])
            draw.rectangle((left - 5, top - 5, left + 50, top + 37), width=3,
                           outline=GOOD if picture in PICTURES else BAD)
            cells(draw, (left, top), colours.astype(np.uint8), 15)
    return image


FIGURES = {"ch02_orders": six_orders, "ch02_work": work, "ch02_toy": toy_samples}
