"""Figures of chapter 9."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from arpg_mini import ARPG, ModelConfig
from arpg_mini.data import shapes
from arpg_mini.measure.distances import frechet_distance, moments, root
from arpg_mini.pretrained import arpg_names
from arpg_mini.run.export import released
from tutorial.figures import INK, PALE, WHAT, WHERE, arrow, canvas, cells, heat, label, plot


def sharpness(images: np.ndarray) -> Tensor:
    """(n, 2): how much red and blue change from a pixel to its right neighbour, on average."""
    return torch.from_numpy(images).double().diff(dim=2).abs().mean((1, 2))[:, [0, 2]]


def through_jpeg(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file))


def ellipses() -> Image.Image:
    """Pictures as points, and each set as the ellipse of its mean and covariance."""
    images, _ = shapes(1500, seed=5)
    real, others = images[:750], images[750:]
    sets = sharpness(real), sharpness(others), sharpness(np.stack([through_jpeg(i) for i in real]))
    image, draw = canvas(760, 400)
    circle = torch.linspace(0, 2 * torch.pi, 100, dtype=torch.float64)
    circle = torch.stack([circle.cos(), circle.sin()], dim=1)                # one deviation
    for left, other, colour, title in ((90, sets[1], WHERE, "other pictures of the same kind"),
                                       (460, sets[2], WHERE, "the same pictures, as JPEG")):
        def place(points: Tensor) -> list[tuple[float, float]]:
            return [(left + 5.4 * x, 310 - 5.4 * y) for x, y in points.tolist()]
        draw.line((left, 60, left, 310, left + 270, 310), fill=PALE)
        for points, ink in ((sets[0], WHAT), (other, colour)):
            for x, y in place(points[:150].clamp(max=45)):
                draw.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=ink)
        for points, ink in ((sets[0], WHAT), (other, colour)):
            mean, covariance = moments(points)
            draw.line(place(mean + circle @ root(covariance)), fill=ink, width=3)
        distance = frechet_distance(*moments(sets[0]), *moments(other))
        label(draw, (left + 120, 6), title, 15, anchor="ma")
        label(draw, (left + 120, 26), f"distance {distance:.1f}", 15, anchor="ma")
        label(draw, (left + 270, 318), "change of red", 13, anchor="ra")
    label(draw, (12, 62), "change\nof blue", 13)
    label(draw, (40, 372), "blue: 750 pictures", 13, WHAT)
    label(draw, (190, 372), "orange: the set they are compared with (150 points of each shown)",
          13, WHERE)
    return image


def bias() -> Image.Image:
    """Two samples of one distribution: their distance falls as their size grows."""
    rng, sizes = np.random.default_rng(0), [20, 40, 80, 160, 320, 640]
    trials = {n: [frechet_distance(*moments(a), *moments(b)) for a, b in
                  torch.from_numpy(rng.standard_normal((20, 2, n, 8)))] for n in sizes}
    return plot({"": (sizes, [52 / n for n in sizes]),
                 " ": (sizes, [float(np.mean(trials[n])) for n in sizes])},
                "pictures in each set (logarithmic); blue: 52 / n, orange: measured",
                "distance of two samples of one distribution, 20 trials ± their deviation",
                errors={" ": [float(np.std(trials[n])) for n in sizes]}, log_x=True)


def names() -> Image.Image:
    """Released tensors on the left, and the tensors of this package that they make on the right."""
    torch.manual_seed(0)
    model = ARPG(ModelConfig(dim=8, heads=2, content_layers=1, query_layers=1, vocab_size=5,
                             num_classes=3, grid=(2, 2), ffn_hidden=12))
    table, theirs = arpg_names(model.config), released(model)
    image, draw = canvas(760, 465)
    for left, name, size in ((0, "content.0.attention.qkv.weight", 13),
                             (390, "content.0.ffn.w13.weight", 13)):
        ours, parts = dict(model.named_parameters())[name].detach(), table[name]
        low, high = ours.min().item(), ours.max().item()
        y, gap, top = 60, 22, 60 + (len(parts) - 1) * 11
        label(draw, (left + 20, 20), "released", 14)
        label(draw, (left + 240, 20), "here", 14)
        for i, part in enumerate(parts):
            rows = theirs[part]
            cells(draw, (left + 20, y), heat(rows, low, high), size)
            label(draw, (left + 132, y + size * len(rows) / 2),
                  part.split(".")[-2], 15, WHERE, "lm")
            arrow(draw, (left + 176, y + size * len(rows) / 2),
                  (left + 232, top + size * len(rows) * (i + 0.5)))
            y += size * len(rows) + gap
        cells(draw, (left + 240, top), heat(ours, low, high), size)
        label(draw, (left + 240, top + size * len(ours) + 6), name.split(".")[-2], 15, WHAT)
    label(draw, (380, 458), "every weight is (outputs, inputs): stacking rows stacks outputs", 13,
          INK, "md")
    return image


FIGURES = {"ch09_ellipses": ellipses, "ch09_bias": bias, "ch09_names": names}
