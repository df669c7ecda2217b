"""Figures of chapter 1. `python -m tutorial.drawn.ch01` makes the runs that the chapter quotes."""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from arpg_mini import VQTokenizer
from arpg_mini.data import shapes
from arpg_mini.data.builtin import shapes_pictures
from arpg_mini.run.presets import presets
from arpg_mini.run.tokenizing import train_tokenizer
from arpg_mini.tokenizer import Codebook, to_device
from arpg_mini.training import learning_rate, make_optimizer, optimizer_step, visits
from tutorial.figures import GOOD, INK, PALE, WHAT, WHERE, arrow, canvas, label, plot

PICTURE, SIZES = 7, (2, 6, 16, 48, 256)    # the picture shown; codebook sizes
NEVER = 10**9                               # batches of patience: no row is ever revived


def trained(how: str, steps: int = 600) -> VQTokenizer:
    """Train the default run's tokenizer: as usual, without revival, or cold.

    "Cold" quantises from the first step on. Its rows are random and are never fitted or revived.
    """
    preset, pictures = presets()["shapes"], shapes_pictures(10_000, seed=0)
    patience = preset.train.tokenizer_patience if how == "usual" else NEVER
    config = replace(preset.train, tokenizer_steps=steps, tokenizer_patience=patience)
    torch.manual_seed(0)
    tokenizer = VQTokenizer(preset.tokenizer)
    optimizer = make_optimizer(tokenizer, 0.0, config.betas)
    if how != "cold":
        for _ in train_tokenizer(tokenizer, pictures, config, 0, optimizer):
            pass
        return tokenizer
    for step in range(steps):
        _, images = pictures.load(
            visits(0, 0, step, config.tokenizer_batch_size, len(pictures)))
        _, losses, _, _ = tokenizer(to_device(images, torch.device("cpu")))
        sum(losses.values()).backward()
        optimizer_step(optimizer, tokenizer,
                       learning_rate(step, steps, config, config.tokenizer_lr), config.grad_clip)
    return tokenizer


def measure() -> None:
    """Print the PSNR on 500 held-out pictures, the number of ids in use, and the perplexity."""
    images = to_device(shapes(500, seed=1)[0], torch.device("cpu"))
    for how in ("usual", "no revival", "cold"):
        tokenizer = trained(how)
        ids = tokenizer.encode(images)
        error = ((tokenizer.decode(ids) - images) / 2).square().mean()
        share = ids.flatten().bincount(minlength=48) / ids.numel()
        print(f"{how}: PSNR {-10 * error.log10():.4f} dB, {(share > 0).sum()} of 48 ids used, "
              f"perplexity {torch.special.entr(share).sum().exp():.4f}")



# A tokenizer without a network: a feature is a 4×4 patch, an id is decoded to its mean patch.

def to_patches(images: np.ndarray) -> torch.Tensor:
    """(n, 24, 24, 3) uint8 -> (n, 6, 6, 48) in [-1, 1]."""
    x = torch.from_numpy(images).float() / 127.5 - 1
    return x.view(-1, 6, 4, 6, 4, 3).transpose(2, 3).flatten(3)


def to_pixels(patches: torch.Tensor) -> np.ndarray:
    """(n, 6, 6, 48) -> (n, 24, 24, 3) uint8."""
    x = patches.unflatten(3, (4, 4, 3)).transpose(2, 3).reshape(-1, 24, 24, 3)
    return ((x + 1) * 127.5).round().clamp(0, 255).byte().numpy()


def patch_tokenizer(size: int) -> tuple[Codebook, torch.Tensor]:
    """Return a fitted codebook of `size` rows and the (size, 48) patches that its ids decode to."""
    patches = to_patches(shapes(300, seed=0)[0]).flatten(0, 2)
    torch.manual_seed(0)
    book = Codebook(size, 48)
    book.fit(F.normalize(patches, dim=-1), torch.Generator().manual_seed(0))
    ids = book.nearest(F.normalize(patches, dim=-1))
    sums = torch.zeros(size, 48).index_add_(0, ids, patches)
    return book, sums / ids.bincount(minlength=size).clamp(min=1)[:, None]


def ids_and_pictures() -> Image.Image:
    """A picture, its patches, its ids, and its reconstruction with codebooks of five sizes."""
    picture = shapes(40, seed=1)[0][[PICTURE]]
    patches, zoom = to_patches(picture), 6
    side, cell = 24 * zoom, 4 * zoom
    image, draw = canvas(5 * (side + 16) + 8, 2 * side + 90)

    def paste(pixels: np.ndarray, column: int, top: int, title: str) -> int:
        left = 12 + column * (side + 16)
        label(draw, (left, top - 20), title)
        big = pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)
        image.paste(Image.fromarray(big), (left, top))
        return left

    top = 28
    paste(picture[0], 0, top, "24 by 24 pixels")
    left = paste(picture[0], 1, top, "36 patches")
    for at in range(0, side + 1, cell):
        draw.line((left + at, top, left + at, top + side), fill="white", width=2)
        draw.line((left, top + at, left + side, top + at), fill="white", width=2)
    left = 12 + 2 * (side + 16)
    label(draw, (left, top - 20), "36 ids, below 256")
    for column, size in enumerate(SIZES):
        book, table = patch_tokenizer(size)
        ids = book.nearest(F.normalize(patches, dim=-1))                        # (1, 6, 6)
        paste(to_pixels(table[ids])[0], column, side + 76, f"decoded, {size} ids")
    for r, row in enumerate(ids[0].tolist()):
        for c, number in enumerate(row):
            x, y = left + c * cell, top + r * cell
            draw.rectangle((x, y, x + cell, y + cell), outline=PALE)
            label(draw, (x + cell / 2, y + cell / 2), str(number), 12, INK, "mm")
    return image


def on_the_circle() -> Image.Image:
    """The row that each unit feature on a circle gets: by cosine, and by the raw product."""
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.5], [-5.0, 0.0]])
    book = Codebook(3, 2)
    book.rows.data.copy_(rows)
    turn = torch.arange(0, 2 * torch.pi, 2 * torch.pi / 720)
    features = torch.stack([turn.cos(), turn.sin()], dim=-1)                    # (720, 2)
    image, draw = canvas(660, 350)
    colours, unit = (WHERE, GOOD, WHAT), F.normalize(rows, dim=-1)
    for left, title, arrows, ids in (
            (10, "rows normalised: largest cosine", unit, book.nearest(features)),
            (340, "rows as they are: largest product", rows / 5, (features @ rows.T).argmax(-1))):
        label(draw, (left + 155, 8), title, 16, anchor="ma")
        x0, y0, radius = left + 155, 180, 125
        for (x, y), i in zip(features.tolist(), ids.tolist()):
            px, py = x0 + radius * x, y0 - radius * y
            draw.ellipse((px - 4, py - 4, px + 4, py + 4), fill=colours[i])
        for i in (0, 2, 1):                                     # the short row on top
            (x, y), (a, b) = arrows[i].tolist(), unit[i].tolist()
            arrow(draw, (x0, y0), (x0 + 80 * x, y0 - 80 * y), colours[i], 3)
            label(draw, (x0 + 80 * x + 16 * a, y0 - 80 * y - 16 * b), str(i), 16, colours[i], "mm")
            share = (ids == i).double().mean().item()
            label(draw, (x0 - 100 + 100 * i, 340), f"row {i}: {share:.1%}", 14, colours[i], "mb")
    return image


def rows_in_use(revive: bool, batches: int = 200) -> list[int]:
    """Return how many rows each batch uses.

    The features form 32 clusters. The 32 rows start at random and follow the codebook loss.
    """
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(32, 8, generator=generator), dim=-1)
    torch.manual_seed(1)
    book, used = Codebook(32, 8), []
    optimizer = torch.optim.SGD(book.parameters(), lr=2.0)
    for _ in range(batches):
        pick = torch.randint(32, (256,), generator=generator)
        features = F.normalize(
            centres[pick] + 0.05 * torch.randn(256, 8, generator=generator), dim=-1)
        ids = book.nearest(features)
        (book.lookup(ids) - features).square().sum(-1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if revive:
            book.revive(features, ids, 20, generator)
        used.append(len(ids.unique()))
    return used


def dead_rows() -> Image.Image:
    """Rows in use with and without revival. Each point is a mean of twenty batches."""
    at = list(range(0, 200, 20))
    lines = {name: (at, [float(np.mean(rows_in_use(revive)[i:i + 20])) for i in at])
             for name, revive in (("idle rows are moved", True), ("rows are left alone", False))}
    return plot(lines, "batch", "rows in use, of 32")


FIGURES = {"ch01_ids": ids_and_pictures, "ch01_circle": on_the_circle, "ch01_dead": dead_rows}

if __name__ == "__main__":
    measure()
