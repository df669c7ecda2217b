"""Draw every figure of the tutorial into tutorial/figures/, from real tensors and real runs.

    python -m tutorial.figures              all figures
    python -m tutorial.figures ch03_scores  the figures whose names begin with ch03_scores

The functions that draw a chapter's figures are in `tutorial/drawn/chNN.py`. FIGURES there maps each
name to a function that returns a Pillow image. This file holds the helpers they share.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

HERE = Path(__file__).parent
INK, PALE, WHERE, WHAT, GOOD, BAD = "#222222", "#bbbbbb", "#c2571a", "#1f5fa8", "#2d7d46", "#b3261e"


def font(size: int = 14) -> ImageFont.ImageFont:
    return ImageFont.load_default(size)


def canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Return a white image and a pen for it."""
    image = Image.new("RGB", (width, height), "white")
    return image, ImageDraw.Draw(image)


def heat(values, low: float | None = None, high: float | None = None) -> np.ndarray:
    """(h, w) numbers -> (h, w, 3) uint8: white at `low` (default: minimum) to blue at `high`."""
    values = np.asarray(values, dtype=float)
    low, high = (values.min() if low is None else low), (values.max() if high is None else high)
    share = np.clip((values - low) / max(high - low, 1e-12), 0, 1)[..., None]
    return (255 + share * (np.array([31, 95, 168]) - 255)).round().astype(np.uint8)


def cells(draw: ImageDraw.ImageDraw, at: tuple[int, int], colours: np.ndarray, size: int,
          words: Sequence[Sequence[str]] | None = None, ink: str = INK) -> None:
    """Draw a grid of squares, (h, w, 3) uint8, with its top left corner at `at`.

    Each square shows its word if `words` are given.
    """
    for row, line in enumerate(colours):
        for column, colour in enumerate(line):
            x, y = at[0] + column * size, at[1] + row * size
            draw.rectangle((x, y, x + size, y + size), fill=tuple(map(int, colour)), outline=PALE)
            if words is not None:
                draw.text((x + size / 2, y + size / 2), words[row][column], fill=ink,
                          font=font(max(9, size // 3)), anchor="mm")


def label(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int = 14,
          fill: str = INK, anchor: str = "la") -> None:
    draw.text(at, text, fill=fill, font=font(size), anchor=anchor)


def arrow(draw: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float],
          fill: str = INK, width: int = 2) -> None:
    draw.line((*start, *end), fill=fill, width=width)
    direction = np.subtract(end, start) / max(np.hypot(*np.subtract(end, start)), 1e-9)
    side = np.array([-direction[1], direction[0]])
    back = np.array(end) - 9 * direction
    draw.polygon([tuple(end), tuple(back + 4 * side), tuple(back - 4 * side)], fill=fill)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return about `most` round numbers in low..high, multiples of 1, 2 or 5 times a power of ten.
    """
    least = max(high - low, 1e-12) / most
    power = 10.0 ** np.floor(np.log10(least))
    step = next(m * power for m in (1, 2, 5, 10) if m * power > 0.999 * least)
    return [i * step for i in range(int(np.ceil(low / step - 1e-6)),
                                    int(np.floor(high / step + 1e-6)) + 1)]


def plot(lines: dict[str, tuple[Sequence[float], Sequence[float]]], x_title: str, y_title: str,
         size: tuple[int, int] = (520, 320), errors: dict[str, Sequence[float]] | None = None,
         log_x: bool = False) -> Image.Image:
    """Plot named lines, (x, y) each, with error bars where `errors` gives them."""
    image, draw = canvas(*size)
    left, top, right, bottom = 70, 20, size[0] - 20, size[1] - 50
    scale = np.log2 if log_x else np.asarray
    xs = np.concatenate([scale(np.array(x, float)) for x, _ in lines.values()])
    spread = errors or {}
    ys = np.concatenate([np.add.outer((-1, 1), np.zeros(len(y))) * np.array(
        spread.get(name, np.zeros(len(y)))) + np.array(y, float)
        for name, (_, y) in lines.items()], axis=1)
    (x0, x1), (y0, y1) = (xs.min(), xs.max()), (ys.min(), ys.max())

    def place(x, y):
        return (left + (scale(float(x)) - x0) / max(x1 - x0, 1e-12) * (right - left),
                bottom - (y - y0) / max(y1 - y0, 1e-12) * (bottom - top))

    draw.line((left, top, left, bottom, right, bottom), fill=INK)
    for y in ticks(y0, y1, 6):
        at = place(1, y)[1]
        draw.line((left - 4, at, left, at), fill=INK)
        label(draw, (left - 7, at), f"{y:.6g}", 12, anchor="rm")
    powers = 2.0 ** np.arange(np.ceil(x0), np.floor(x1) + 1) if log_x else ()
    for x in powers[::1 + len(powers) // 8] if log_x else ticks(x0, x1, 7):
        at = place(x, y0)[0]
        draw.line((at, bottom, at, bottom + 4), fill=INK)
        label(draw, (at, bottom + 6), f"{x:.6g}", 12, anchor="ma")
    label(draw, ((left + right) / 2, size[1] - 8), x_title, 13, anchor="md")
    label(draw, (left + 4, 2), y_title, 13)
    for (name, (x, y)), colour in zip(lines.items(), (WHAT, WHERE, GOOD, BAD, INK, "#7a3e9d")):
        points = [place(a, b) for a, b in zip(x, y)]
        draw.line(points, fill=colour, width=2)
        for i, (a, b) in enumerate(points):
            draw.ellipse((a - 3, b - 3, a + 3, b + 3), fill=colour)
            if name in spread:
                draw.line((*place(x[i], y[i] - spread[name][i]), *place(x[i], y[i]
                          + spread[name][i])), fill=colour)
        label(draw, (points[-1][0] - 6, points[-1][1] - 6), name, 12, colour, "rd")
    return image


def figures() -> dict[str, Callable[[], Image.Image]]:
    """Return all figures by name."""
    found = {}
    for file in sorted((HERE / "drawn").glob("ch*.py")):
        found |= importlib.import_module(f"tutorial.drawn.{file.stem}").FIGURES
    return found


def main(prefixes: list[str]) -> None:
    wanted = {name: draw for name, draw in figures().items()
              if not prefixes or name.startswith(tuple(prefixes))}
    (HERE / "figures").mkdir(exist_ok=True)
    for name, draw in tqdm(wanted.items(), unit="figure"):
        draw().convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(
            HERE / "figures" / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
