"""Figures of chapter 8."""

import torch
from PIL import Image

from arpg_mini.run.plan import memory
from arpg_mini.run.presets import presets
from tutorial.figures import BAD, GOOD, INK, PALE, WHAT, WHERE, canvas, label

HUES = (WHAT, "#7fb0df", "#c9def2", WHERE, "#e8b08f", GOOD, "#9bc9a8", "#7a3e9d", BAD)


def rows() -> Image.Image:
    """A global batch of eleven rows on three ranks, in pieces of at most two, with weights."""
    batch, world, micro_batch = 11, 3, 2
    image, draw = canvas(640, 190)
    label(draw, (12, 8), "11 rows of the global batch, drawn from (seed, step) alone")
    side, x = 44, 12
    for rank in range(world):
        mine = torch.arange(batch)[rank * batch // world:(rank + 1) * batch // world]
        start = x
        for piece in mine.split(micro_batch):
            for row in piece.tolist():
                hue = HUES[(1, 4, 6)[rank]]
                draw.rectangle((x, 36, x + side, 36 + side), fill=hue, outline=PALE)
                label(draw, (x + side / 2, 36 + side / 2), str(row), 15, anchor="mm")
                x += side
            left = x - side * len(piece)
            draw.rectangle((left + 2, 38, x - 2, 34 + side), outline=INK, width=2)
            label(draw, ((left + x) / 2, 86), f"{world * len(piece)}/11", 12, anchor="ma")
        label(draw, ((start + x) / 2, 110), f"rank {rank}: {len(mine)} rows", 14, HUES[2 * rank],
              "ma")
        x += 48 if rank < world - 1 else 0
    for y, line in ((140, "Below a piece is its weight. Gradients are added up in a rank and "
                          "averaged over the ranks:"),
                    (160, "each row counts 1/11, whichever piece and rank it is in.")):
        label(draw, (12, y), line, 13)
    return image


def memories() -> Image.Image:
    """Memory of each of eight processes, by part: L, and XXL in three ways."""
    cases = [("arpg-l", {}), ("arpg-xxl", {}), ("arpg-xxl", dict(shard=True)),
             ("arpg-xxl", dict(shard=True, recompute=True))]
    image, draw = canvas(700, 353)
    label(draw, (12, 8), "GB in each of 8 processes, bfloat16, at the preset's micro-batch")
    scale, left, seen = 10.2, 190, []
    for number, (name, how) in enumerate(cases):
        preset, x, y = presets()[name], left, 40 + 46 * number
        parts = memory(preset.model, preset.train, 256, preset.train.micro_batch, 8, half=True,
                       **how)
        label(draw, (12, y + 2), name, 14)
        label(draw, (12, y + 19), " ".join(f"--{word}" for word in how) or "a copy each (DDP)", 12)
        for (part, size), hue in zip(parts.items(), HUES):
            width = size / 1e9 * scale
            draw.rectangle((x, y, x + width, y + 32), fill=hue)
            x += width
        label(draw, (x + 6, y + 16), f"{sum(parts.values()) / 1e9:.1f}", 14, anchor="lm")
        seen = list(parts)
    for number, (part, hue) in enumerate(zip(seen, HUES)):
        at = 12 + 350 * (number % 2), 232 + 23 * (number // 2)
        draw.rectangle((*at, at[0] + 14, at[1] + 14), fill=hue)
        label(draw, (at[0] + 22, at[1] - 1), part, 13)
    return image


FIGURES = {"ch08_rows": rows, "ch08_memory": memories}
