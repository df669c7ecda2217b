"""How good is editing? Scores on shapes, whose colours and classes can be read exactly.

The one idea: every score has a baseline, the same model without the hint. It samples freely, or it
draws the class from nothing.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .. import UserError
from ..control import edges
from ..data.builtin import COLOURS, FASHION_CLASSES, SHAPES, fashion_pictures, shapes
from ..data.images import captioned, grid, save_png, to_uint8
from ..decoding import decode
from ..editing import edit_class, expand, inpaint, outpaint
from ..run import checkpoint
from ..run.command import DEVICE, Parser, exit_code, number
from ..run.drawing import check_settings
from ..run.processes import pick_device
from ..tokenizer import to_device
from . import judge as judging
from .judge import Classifier, colour_coherence, palette_counts, shapes_classifier, shapes_scores

METHODS = "windows", "extrapolate", "interpolate", "ntk"


class Scorer:
    """A run of shapes (or of Fashion-MNIST, for outlines) and held-out pictures to edit."""

    def __init__(self, run: Path, count: int, steps: int, guidance: float, device: torch.device,
                 outlines: bool):
        self.model, saved = checkpoint.load_model(run / "model.pt")
        self.tokenizer, _ = checkpoint.load_tokenizer(run / "tokenizer.pt")
        self.of_shapes = saved.get("classes") == list(SHAPES)
        of_fashion = saved.get("classes") == list(FASHION_CLASSES)
        if not (self.of_shapes or (outlines and of_fashion)):
            raise UserError(f"{run}: its pictures are not shapes, so there are no such scores "
                            "(--control also works for Fashion-MNIST)")
        self.model.to(device), self.tokenizer.to(device)
        self.count, self.device, self.none = count, device, self.model.null_label
        self.settings = dict(steps=steps, guidance=guidance, guidance_schedule="constant")
        if self.of_shapes:                       # of a seed that no run trains on
            self.pictures, self.labels = shapes(count, seed=1)
        else:
            held_out = fashion_pictures("t10k")
            self.pictures, self.labels = held_out.images[:count], held_out.labels[:count]
        self.images, self.side = to_device(self.pictures, device), self.pictures.shape[1]
        self.examples: list[tuple[str, np.ndarray]] = []     # rows of pictures with captions

    def batches(self, name: str, work) -> np.ndarray:
        """The uint8 pictures of `work(rows, seeds)` for all rows, a hundred at a time."""
        rows = [slice(i, min(i + 100, self.count)) for i in range(0, self.count, 100)]
        made = [to_uint8(work(r, range(r.start, r.stop))) for r in tqdm(rows, name, leave=False)]
        return np.concatenate(made)

    def keep(self, caption: str, images: np.ndarray, few: int = 10) -> None:
        self.examples.append((caption, images[:few]))


def shown_colour(images: np.ndarray, least: int = 8) -> np.ndarray:
    """(n,) index of the palette colour with the most pixels; -1 if it has fewer than `least`."""
    counts = palette_counts(images)[:, :len(COLOURS)]
    return np.where(counts.max(1) >= least, counts.argmax(1), -1)


def inpainting(s: Scorer) -> list[tuple[str, float, float]]:
    """Hide the right half of a picture and give no class. Does the new half have the colour of the
    visible one? Baseline: pictures drawn freely."""
    half, mask = s.side // 2, torch.zeros(1, s.side, s.side, dtype=torch.bool, device=s.device)
    mask[:, :, half:] = True
    labels, free = [s.none] * s.count, s.settings | dict(guidance=1)
    made = s.batches("inpaint", lambda r, seeds: inpaint(
        s.model, s.tokenizer, s.images[r], mask, labels[r], seeds, **free))
    sampled = s.batches("sample", lambda r, seeds: expand(
        s.model, s.tokenizer, labels[r], seeds, s.model.config.grid, **free))
    seen = shown_colour(s.pictures[:, :, :half])
    cases = seen >= 0
    s.keep("shown", to_uint8(torch.where(mask[:, None], 0, s.images)))
    s.keep("inpainted", made)
    agree = [(shown_colour(x[:, :, half:]) == seen)[cases].mean() for x in (made, sampled)]
    return [(f"inpainting: colour of the shown half kept ({cases.sum()} cases)", *agree)]


def class_editing(s: Scorer, judge: Classifier) -> list[tuple[str, float, float]]:
    """Turn all but a strip on the left into the next class. Does the judge read the new class?
    Baseline: pictures drawn as that class. And does the colour stay?"""
    labels, rows = (s.labels + 1) % len(SHAPES), []
    drawn = s.batches("draw", lambda r, seeds: expand(
        s.model, s.tokenizer, labels[r], seeds, s.model.config.grid, **s.settings))
    away = s.settings | dict(guidance=1.5 * s.settings["guidance"], guidance_schedule="linear")
    s.keep("before", s.pictures)
    for name, kept in (("a sixth", s.side // 6), ("a third", s.side // 3)):
        mask = torch.ones(1, s.side, s.side, dtype=torch.bool, device=s.device)
        mask[:, :, :kept] = False
        made = s.batches(f"edit, {name}", lambda r, seeds: edit_class(
            s.model, s.tokenizer, s.images[r], mask, labels[r], seeds, old=s.labels[r], **away))
        s.keep(f"{name} kept", made)
        parts, seen = [x[:, :, kept:] for x in (made, drawn)], shown_colour(s.pictures[:, :, :kept])
        rows += [(f"class editing, {name} kept: new class read",
                  *((judge.predict(x) == labels).mean() for x in parts)),
                 (f"class editing, {name} kept: its colour kept",
                  *((judging.dominant_colour(x) == seen)[seen >= 0].mean() for x in parts))]
    return rows


def ground(images: np.ndarray) -> np.ndarray:
    """(n,) whether the light ground has more pixels than the dark one."""
    counts = palette_counts(images)[:, len(COLOURS):]
    return counts[:, 1] > counts[:, 0]


def outpainting(s: Scorer) -> list[tuple[str, float, float]]:
    """Put pictures into the middle of a doubled grid. Does the new part have their ground?"""
    small = s.model.config.grid
    at, large = tuple(g // 2 for g in small), tuple(2 * g for g in small)
    made = s.batches("outpaint", lambda r, seeds: outpaint(
        s.model, s.tokenizer, s.images[r], large, at, s.labels[r], seeds, **s.settings))
    free = s.batches("expand", lambda r, seeds: expand(
        s.model, s.tokenizer, s.labels[r], seeds, large, **s.settings))
    s.keep("outpainted", made)
    around = np.ones((2 * s.side, 2 * s.side), bool)
    around[s.side // 2:-(s.side // 2), s.side // 2:-(s.side // 2)] = False
    parts = [x[:, around][:, None] for x in (made, free)]
    scores = [("outpainting: ground kept", *((ground(x) == ground(s.pictures)).mean()
                                             for x in parts))]
    seen = shown_colour(s.pictures)
    return scores + [("outpainting: colour kept",
                      *((shown_colour(x) == seen).mean() for x in parts))]


def larger(s: Scorer, judge: Classifier) -> list[tuple[str, float, float]]:
    """Class and coherence on larger grids by each method. Baseline: the trained size."""
    h, w = s.model.config.grid
    usual = s.batches("draw", lambda r, seeds: expand(
        s.model, s.tokenizer, s.labels[r], seeds, (h, w), **s.settings))
    base, rows = list(shapes_scores(usual, s.labels, judge).values()), []
    for name, size in (("2x2", (2 * h, 2 * w)), ("1x4", (h, 4 * w))):
        for method in METHODS:
            made = s.batches(f"{name} {method}", lambda r, seeds: expand(
                s.model, s.tokenizer, s.labels[r], seeds, size, positions=method, **s.settings))
            s.keep(f"{name} {method}", made[:5] if name == "2x2" else made[:2])
            scores = shapes_scores(made, s.labels, judge).values()
            rows += [(f"{name}, {method}: {what}", *pair)
                     for what, pair in zip(("class accuracy", "coherence"), zip(scores, base))]
    return rows


def outline_iou(images: Tensor, others: Tensor, threshold: float = 0.2) -> float:
    """Mean intersection over union of the pixels where two sets of pictures have edges."""
    a, b = (edges(x).flatten(1) > threshold for x in (images, others))
    return float(((a & b).sum(1) / (a | b).sum(1).clamp(min=1)).mean())


def control(s: Scorer) -> list[tuple[str, float, float]]:
    """Draw by outlines: are the edges where they were given? Baseline: the class alone."""
    given = edges(s.images)

    def by(told: bool):
        return s.batches("control", lambda r, seeds: s.tokenizer.decode(decode(
            s.model, s.labels[r], seeds, control=given[r] if told else None,
            **s.settings).view(len(seeds), *s.model.config.grid)))

    made, free = by(True), by(False)
    s.keep("outline of", s.pictures)
    s.keep("drawn by it", made)
    s.keep("by class alone", free)
    rows = [("control: IoU of the outline", *(outline_iou(to_device(x, s.device), s.images)
                                              for x in (made, free)))]
    if s.of_shapes:
        rows.append(("control: colour coherence", *(colour_coherence(x).mean()
                                                    for x in (made, free))))
    return rows


FLAGS = {"options": [
    ("--control", bool, "score a run of --control edges"),
    ("--count", number(int, 10, 10_000), "pictures to edit (default 500)", 500),
    ("--steps", number(int, 1), "for a whole picture (default 16)", 16),
    ("--guidance", float, "constant (default 2)", 2.0),
    ("--out", Path, "a picture of examples"), DEVICE]}


def main() -> int:
    parser = Parser("python -m arpg_mini.measure.edit_scores", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="a run of shapes")
    parser.add_flags(FLAGS)
    options = parser.parse_args()

    def work() -> None:
        s = Scorer(options.run, options.count, options.steps, options.guidance,
                   torch.device(pick_device(options.device)), options.control)
        n = s.model.config.grid[0] * s.model.config.grid[1]
        if options.steps > n:
            raise UserError(f"--steps {options.steps}: must be 1 to {n}")
        check_settings(guidance=1.5 * options.guidance)
        if options.control and s.model.control is None:
            raise UserError(f"{options.run}: was not trained with --control edges")
        if options.control:
            rows = control(s)
        else:
            judge = shapes_classifier()
            rows = [*inpainting(s), *class_editing(s, judge), *outpainting(s), *larger(s, judge)]
        print(f"{'':58}{'edited':>9}{'baseline':>9}")
        for name, score, baseline in rows:
            print(f"{name:58}{score:>9.3f}{baseline:>9.3f}")
        if options.out:
            sheets = [grid(images, len(images), 2) for _, images in s.examples]
            save_png(options.out, captioned(sheets, [name for name, _ in s.examples], 110))
    return exit_code(parser.prog, work)


if __name__ == "__main__":
    sys.exit(main())
