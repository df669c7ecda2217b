"""Figures of chapters 5 to 7 that use the small trained model in tutorial/shapes."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from arpg_mini import ARPG, VQTokenizer
from arpg_mini.data import shapes
from arpg_mini.data.builtin import SHAPES
from arpg_mini.data.images import cover_unknown, grid, to_uint8
from arpg_mini.decoding import decode, decode_steps
from arpg_mini.editing import edit_class, inpaint
from arpg_mini.orders import step_sizes
from arpg_mini.run import checkpoint
from arpg_mini.tokenizer import to_device
from tutorial.figures import canvas, label

FOLDER = Path(__file__).parents[1] / "shapes"
NAMES, SIDE = list(SHAPES), 72                            # pixels of a picture in a figure


@lru_cache
def trained() -> tuple[ARPG, VQTokenizer]:
    return (checkpoint.load_model(FOLDER / "model.pt")[0],
            checkpoint.load_tokenizer(FOLDER / "tokenizer.pt")[0])


def table(rows: list[np.ndarray], left: list[str], top: list[str]) -> Image.Image:
    """Rows of pictures (n, 24, 24, 3), with labels on the left and above the columns."""
    margin, head, step = 128, 26, SIDE + 2
    image, draw = canvas(margin + step * len(rows[0]) + 8, head + step * len(rows) + 8)
    for i, (pictures, words) in enumerate(zip(rows, left)):
        image.paste(grid(pictures, len(pictures), zoom=3), (margin, head + step * i))
        label(draw, (margin - 10, head + step * i + SIDE / 2), words, 13, anchor="rm")
    for i, words in enumerate(top):
        label(draw, (margin + step * i + SIDE / 2, head - 8), words, 13, anchor="ms")
    return image


def pixels(ids: torch.Tensor) -> np.ndarray:
    """(B, 36) ids -> (B, 24, 24, 3) uint8."""
    return to_uint8(trained()[1].decode(ids.view(-1, 6, 6)))


def arriving() -> Image.Image:
    """Three pictures after every second of 16 steps. Cells that are not decoded yet are grey."""
    model, labels = trained()[0], [1, 4, 8]
    frames = []
    for ids in decode_steps(model, labels, seeds=[6, 7, 8], steps=16, guidance=2.0,
                            guidance_schedule="constant"):
        known = (ids >= 0).view(-1, 6, 6).numpy()
        frames.append(cover_unknown(pixels(ids.clamp(min=0)), known, grey=225))
    done = np.cumsum(step_sizes(36, 16))[1::2]
    return table(list(np.stack(frames[1::2], axis=1)), [NAMES[i] for i in labels],
                 [f"{n} of 36" for n in done])


def guided() -> Image.Image:
    """The same ten seeds, one per class, at four strengths of guidance."""
    rows, strengths = [], (1.0, 2.0, 4.0, 8.0)
    for s in strengths:
        rows.append(pixels(decode(trained()[0], range(10), range(10), steps=16, guidance=s,
                                  guidance_schedule="constant")))
    return table(rows, [f"guidance {s:g}" for s in strengths], NAMES)


def filled() -> Image.Image:
    """Held-out pictures, the box that is cut out, three ways to fill it, and a change of class."""
    model, tokenizer = trained()
    real, labels = shapes(40, seed=1)
    chosen = [int(np.flatnonzero(labels == c)[0]) for c in (1, 4, 8)]
    mask = torch.zeros(1, 24, 24, dtype=torch.bool)
    mask[:, 6:18, 6:24] = True
    rows = []
    for i in chosen:
        image, how = to_device(real[i:i + 1], torch.device("cpu")), dict(steps=8, guidance=2.0)
        made = inpaint(model, tokenizer, image, mask, [labels[i]] * 3, [0, 1, 2], **how)
        other = edit_class(model, tokenizer, image, mask, [2], [0], old=[labels[i]], **how)
        taken = real[i].copy()
        taken[mask[0].numpy()] = 225
        rows.append(np.concatenate([real[i:i + 1], taken[None], to_uint8(made), to_uint8(other)]))
    return table(rows, [NAMES[labels[i]] for i in chosen],
                 ["real", "taken away", "seed 0", "seed 1", "seed 2", f"to {NAMES[2]}"])
