"""Figures of chapter 3: rotations as arrows, where and what, what a query attends to."""

from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from arpg_mini import ARPG, ModelConfig
from arpg_mini.attention import rotary_table, rotate
from tutorial.figures import INK, PALE, WHAT, WHERE, arrow, canvas, cells, heat, label

GRID, COLOURS = (5, 8), 6
HEIGHT, WIDTH = GRID
PALETTE = ("#d9534f", "#e8a33d", "#6aa84f", "#3fa7a3", "#7b6fb5", "#a08060")


def stripes(count: int, seed: int) -> Tensor:
    """Make (count, N) ids of 5 × 8 pictures in which each column has one of six colours."""
    colour = torch.randint(COLOURS, (count, 1, WIDTH),
                           generator=torch.Generator().manual_seed(seed))
    return colour.expand(-1, HEIGHT, -1).flatten(1)


@lru_cache(maxsize=1)
@torch.enable_grad()
def stripes_model(steps: int = 200) -> ARPG:
    """Train a model with one content layer, one query layer and one head on stripes, in seconds.

    All calls share it: do not change it.
    """
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = ARPG(ModelConfig(dim=32, content_layers=1, query_layers=1, heads=1, grid=GRID,
                                 vocab_size=COLOURS, num_classes=1, ffn_hidden=64, dropout=0.0))
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter is not model.head.weight:
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for step in range(steps):
            orders = torch.stack([torch.randperm(HEIGHT * WIDTH) for _ in range(64)])
            loss = model(stripes(64, step), torch.zeros(64, dtype=torch.long), orders,
                         loss_rows=4096)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def known_places() -> list[int]:
    """Return half of the 40 positions, in the order in which they became known."""
    return torch.randperm(HEIGHT * WIDTH, generator=torch.Generator().manual_seed(5))[:20].tolist()


@torch.no_grad()
def weights(model: ARPG, picture: Tensor, known: list[int], targets: list[int]) -> Tensor:
    """Return (M, S) attention: of each query to the class (slot 0) and the tokens at `known`.

    The weights are those of the first query layer of a model with one head.
    """
    table = model.rotary(GRID)                                                 # (N + 1, K/2)
    ids = torch.cat([model.class_ids(torch.tensor([0])), picture[None, known]], dim=1)
    where = table[torch.tensor([[HEIGHT * WIDTH, *known]])]                    # (1, S, K/2)
    keys, _ = model.read(ids, where, causal=True)                              # (1, 1, S, K)
    block, mask = model.query[0], model.embedding.weight[model.mask_id]
    query = block.attention.q(block.attention_norm(mask)).view(1, 1, 1, -1)    # once
    query = rotate(query, table[torch.tensor([targets])])[0, :, 0]             # (M, K)
    return (query @ keys[0, 0].T / query.shape[-1] ** 0.5).softmax(-1)         # (M, S)


def dial(draw, centre: tuple[float, float], radius: int, *hands: tuple[complex, str]) -> None:
    """Draw a circle with hands. Angles grow anticlockwise, as usual in mathematics."""
    x, y = centre
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=PALE)
    for turn, colour in hands:
        arrow(draw, (x, y), (x + radius * turn.real, y - radius * turn.imag), colour, 3)


def pairs_at(place: tuple[int, int], grid: tuple[int, int], start: Tensor) -> list[complex]:
    """Rotate `start` (K = 4) to a position and return its two pairs as complex numbers."""
    row = place[0] * grid[1] + place[1]
    out = rotate(start.view(1, 1, 1, 4), rotary_table(grid, 4)[None, [row]])
    return torch.view_as_complex(out.view(2, 2)).tolist()


def arrows() -> Image.Image:
    image, draw = canvas(760, 466)
    grid, start = (3, 5), torch.tensor([1.0, 0, 1, 0], dtype=torch.float64)
    label(draw, (20, 10), "The vector (1, 0, 1, 0) at the places of a grid, 3 rows by 5 columns",
          15)
    label(draw, (20, 32), "left dial: pair (0, 1), turns with the row;  "
          "right dial: pair (2, 3), turns with the column", 13)
    left, top, wide, high = 92, 84, 128, 68
    for column in range(5):
        label(draw, (left + column * wide + wide / 2, top - 6), f"column {column}", 12, anchor="md")
    for row in range(3):
        label(draw, (left - 8, top + row * high + high / 2), f"row {row}", 12, anchor="rm")
        for column in range(5):
            x, y = left + column * wide, top + row * high
            draw.rectangle((x, y, x + wide, y + high), outline=PALE)
            for i, hand in enumerate(pairs_at((row, column), grid, start)):
                dial(draw, (x + 36 + 56 * i, y + high / 2), 25, (hand, WHAT))
    label(draw, (20, 318), "Query and key, both moved one down and one right: "
          "each turns, the angles between them stay", 15)
    for i, (p, q) in enumerate((((0, 1), (1, 3)), ((1, 2), (2, 4)))):
        x = 20 + 370 * i
        asked, there = pairs_at(p, grid, start), pairs_at(q, grid, start)
        for j in range(2):
            dial(draw, (x + 38 + 84 * j, 396), 34, (asked[j], WHERE), (there[j], WHAT))
            label(draw, (x + 38 + 84 * j, 436), ("row pair", "column pair")[j], 12, anchor="ma")
        score = sum((a * b.conjugate()).real for a, b in zip(asked, there))
        label(draw, (x + 174, 362), f"query at {p}", 14, WHERE)
        label(draw, (x + 174, 384), f"key at {q}", 14, WHAT)
        label(draw, (x + 174, 406), f"score {score:.3f}", 14)
    return image


def split() -> Image.Image:
    """The known tokens in the order they came, three queries, and the attention of each."""
    model, picture = stripes_model(), stripes(1, seed=1000)[0]
    known, targets = known_places()[:5], [2 * WIDTH + 1, 3 * WIDTH + 5, 0 * WIDTH + 6]
    share = weights(model, picture, known, targets)                            # (3, 6)
    image, draw = canvas(760, 430)
    label(draw, (20, 10), "what: slots, in the order they became known", 15, WHAT)
    x0, step, top = 40, 120, 42
    for s in range(6):
        x = x0 + s * step
        draw.rectangle((x, top, x + 96, top + 44), outline=WHAT, width=2)
        if s:
            draw.rectangle((x + 8, top + 12, x + 28, top + 32), fill=PALETTE[picture[known[s - 1]]])
            label(draw, (x + 36, top + 22), f"({known[s - 1] // WIDTH}, {known[s - 1] % WIDTH})",
                  15, anchor="lm")
        else:
            label(draw, (x + 48, top + 22), "class", 15, anchor="mm")
    draw.rectangle((x0 - 10, 106, x0 + 5 * step + 106, 136), fill="#dfe8f4")
    label(draw, (380, 121), "content pass: causal self-attention, once per token", 14, WHAT,
          anchor="mm")
    for s in range(6):
        x = x0 + s * step + 48
        arrow(draw, (x, 136), (x, 160), WHAT)
        key = "key zero" if s == 0 else "key turned"
        label(draw, (x, 164), key, 13, WHAT, anchor="ma")
        label(draw, (x, 180), "value", 13, WHAT, anchor="ma")
    low = 345
    for m, target in enumerate(targets):
        x = 140 + m * 240
        for s in range(6):
            strength = float(share[m, s])
            fade = (255 + strength ** 0.5 * (np.array([194, 87, 26]) - 255)).astype(int)
            if strength > 0.004:
                draw.line((x, low, x0 + s * step + 48, 202), fill=tuple(fade.tolist()),
                          width=max(1, round(6 * strength)))
    for m, target in enumerate(targets):
        x = 140 + m * 240
        draw.rectangle((x - 88, low, x + 88, low + 44), fill="white", outline=WHERE, width=2)
        label(draw, (x, low + 22), f"[MASK] turned to ({target // WIDTH}, {target % WIDTH})", 14,
              WHERE, anchor="mm")
    label(draw, (20, 402), "where: questions, in any number; no line from one to another", 15,
          WHERE)
    label(draw, (740, 404), "width of a line: share of attention, in a trained model", 12,
          anchor="ra")
    return image


def column() -> Image.Image:
    model, picture, known = stripes_model(), stripes(1, seed=1000)[0], known_places()
    targets = [2 * WIDTH + 1, 1 * WIDTH + 6]
    share = weights(model, picture, known, targets)
    image, draw = canvas(880, 262)
    size, top = 33, 60
    label(draw, (20, 10), "20 known tokens", 15, WHAT)
    label(draw, (20, 32), "in each column one colour", 13)
    grid = np.full((HEIGHT, WIDTH, 3), 232, np.uint8)
    for place in known:
        colour = PALETTE[picture[place]]
        grid[divmod(place, WIDTH)] = [int(colour[i:i + 2], 16) for i in (1, 3, 5)]
    cells(draw, (20, top), grid, size)
    for m, target in enumerate(targets):
        x, (row, col) = 308 + 288 * m, divmod(target, WIDTH)
        label(draw, (x, 10), f"what ({row}, {col}) looks at", 15, WHERE)
        label(draw, (x, 32), "percent; grey: not known yet", 13)
        shown = np.full((HEIGHT, WIDTH, 3), 232, np.uint8)
        for place, weight in zip(known, share[m, 1:].tolist()):
            shown[divmod(place, WIDTH)] = heat([[weight]], 0, 0.5)[0, 0]
        cells(draw, (x, top), shown, size)
        for place, weight in zip(known, share[m, 1:].tolist()):
            label(draw, (x + (place % WIDTH + 0.5) * size, top + (place // WIDTH + 0.5) * size),
                  f"{100 * weight:.0f}", 13, anchor="mm")
        draw.rectangle((x + col * size, top + row * size, x + (col + 1) * size,
                        top + (row + 1) * size), outline=WHERE, width=4)
        label(draw, (x, top + HEIGHT * size + 10), f"class slot: {100 * share[m, 0]:.0f} %", 13,
              INK)
    return image


@torch.no_grad()
def measures(pictures: int = 500) -> dict[str, float]:
    """Measure what the stripes model has learned.

    "loss" is in nats per token on new pictures. "own_column" and "class" are shares of a query's
    attention: to its own column and to the class, if it knows 20 random tokens and at least one of
    them is in its column. "class_of_5" and "class_of_20" are the class's shares for one query of
    the figures, with 5 and with 20 known tokens.
    """
    model, n = stripes_model(), HEIGHT * WIDTH
    draw = torch.Generator().manual_seed(17)
    orders = torch.stack([torch.randperm(n, generator=draw) for _ in range(pictures)])
    images = stripes(pictures, seed=2000)
    loss = model(images, torch.zeros(pictures, dtype=torch.long), orders, loss_rows=4096)
    own, to_class = [], []
    for image, order in zip(images, orders.tolist()):
        share = weights(model, image, order[:20], [order[20]])[0]
        same = torch.tensor([place % WIDTH == order[20] % WIDTH for place in order[:20]])
        if same.any():
            own.append(share[1:][same].sum())
            to_class.append(share[0])
    few, many = (weights(model, stripes(1, seed=1000)[0], known_places()[:k], [2 * WIDTH + 1])[0, 0]
                 for k in (5, 20))
    return {"loss": loss.item(), "own_column": torch.stack(own).mean().item(),
            "class": torch.stack(to_class).mean().item(), "class_of_5": few.item(),
            "class_of_20": many.item()}


FIGURES = {"ch03_arrows": arrows, "ch03_split": split, "ch03_column": column}
