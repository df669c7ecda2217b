"""The figures of chapter 4, and the run that gives its numbers: python -m tutorial.drawn.ch04"""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from arpg_mini import ARPG, ModelConfig
from arpg_mini.orders import random_orders
from arpg_mini.training import make_optimizer, optimizer_step
from tutorial.figures import (
    BAD,
    GOOD,
    INK,
    WHAT,
    WHERE,
    arrow,
    canvas,
    cells,
    heat,
    label,
    plot,
)

IMAGES = torch.tensor([[3, 7, 0, 5, 1, 6], [6, 2, 4, 7, 3, 0], [1, 4, 5, 0, 2, 7]])
ORDER = [4, 2, 0, 5, 1, 3]


def overfit(steps: int = 400) -> tuple[ARPG, list[float], torch.Tensor]:
    """Learn three images by heart, in all orders. Returns the model, the loss of each step, and the
    loss of each rank (6,) over 200 orders per image."""
    torch.manual_seed(1)
    model = ARPG(ModelConfig(dim=32, content_layers=1, query_layers=1, heads=4, vocab_size=8,
                             num_classes=3, grid=(2, 3), ffn_hidden=64, dropout=0.0,
                             rope_base=100.0))
    optimizer = make_optimizer(model, weight_decay=0.0, betas=(0.9, 0.95))
    draws = torch.Generator().manual_seed(5)
    tokens, labels, losses = IMAGES.repeat(16, 1), torch.arange(3).repeat(16), []
    for step in range(steps):
        orders = torch.rand(48, 6, generator=draws).argsort(1)
        dropped = torch.rand(48, generator=draws) < 0.1
        loss = model(tokens, labels.masked_fill(dropped, model.null_label), orders, loss_rows=100)
        loss.backward()
        optimizer_step(optimizer, model, 0.01 * min(1, (step + 1) / 40) * (1 - step / steps), 1.0)
        losses.append(loss.item())
    tokens, orders = IMAGES.repeat(200, 1), random_orders(range(600), 6)
    with torch.no_grad():
        logits = model(tokens, torch.arange(3).repeat(200), orders)             # (600, N, V)
    ranks = F.cross_entropy(logits.flatten(0, 1), tokens.gather(1, orders).flatten(),
                            reduction="none").view(-1, 6).mean(0)               # (N,)
    return model, losses, ranks


def slots() -> Image.Image:
    """One image as a training sequence: what the slots hold, and what the queries ask."""
    image, draw = canvas(640, 300)
    tokens = IMAGES[0].tolist()
    label(draw, (20, 14), "the image", 14)
    cells(draw, (20, 40), np.full((2, 3, 3), 245, np.uint8), 44,
          [[str(tokens[3 * r + c]) for c in range(3)] for r in range(2)])
    label(draw, (20, 142), "when each is asked", 14)
    ranks = np.argsort(ORDER).reshape(2, 3)
    cells(draw, (20, 168), heat(ranks, -3, 9), 44, [[str(x) for x in row] for row in ranks])
    left, size = 214, 62
    label(draw, (left, 14), "content slots: class, then tokens in their order", 14, WHAT)
    label(draw, (left, 262), "queries: nothing but where (the number is the position)", 14, WHERE)
    words = ["class"] + [f"id {tokens[p]}" for p in ORDER[:-1]]
    places = ["nowhere"] + [f"at {p}" for p in ORDER[:-1]]
    for t in range(6):
        x = left + t * (size + 6)
        draw.rectangle((x, 40, x + size, 84), outline=WHAT, width=2)
        label(draw, (x + size / 2, 54), words[t], 14, WHAT, "mm")
        label(draw, (x + size / 2, 72), places[t], 12, INK, "mm")
        draw.rectangle((x, 212, x + size, 256), outline=WHERE, width=2)
        label(draw, (x + size / 2, 225), f"at {ORDER[t]}?", 14, WHERE, "mm")
        label(draw, (x + size / 2, 243), f"id {tokens[ORDER[t]]}", 12, GOOD, "mm")
    for t, colour in ((0, INK), (2, WHERE)):
        for s in range(t + 1):
            arrow(draw, (left + t * (size + 6) + size / 2, 210),
                  (left + s * (size + 6) + size / 2, 88), colour, 1)
    label(draw, (left + 4 * (size + 6) - 20, 140), "query t sees slots 0 to t", 14)
    label(draw, (left + 4 * (size + 6) - 20, 160), "green: the id it must say", 13, GOOD)
    return image


def gradient() -> Image.Image:
    """The gradient of each query's logits at each token, in the trained model and in the same model
    with its content in raster order."""
    model, _, _ = overfit()
    image, draw = canvas(640, 330)
    for x, title, raster in ((70, "as it is", False), (380, "slots filled in raster order", True)):
        reach = reached(model, raster)                                          # (N, N)
        shown = heat(np.log10(reach + 1e-12), -5, 0.5)
        for t in range(6):
            for s in range(t, 6):
                if reach[t, s] > 0:
                    shown[t, s] = (240, 190, 185)
        cells(draw, (x, 60), shown, 36,
              [["0" if v == 0 else "peek" if s >= t else "" for s, v in enumerate(row)]
               for t, row in enumerate(reach)])
        label(draw, (x, 8), title, 15, BAD if raster else GOOD)
        label(draw, (x + 108, 300), "token s of the order", 13, WHAT, "ma")
        for s in range(6):
            label(draw, (x + 18 + 36 * s, 280), str(s), 13, WHAT, "ma")
            label(draw, (x - 8, 78 + 36 * s), str(s), 13, WHERE, "rm")
        label(draw, (x - 8, 34), "query t", 13, WHERE)
    return image


def reached(model: ARPG, raster: bool) -> np.ndarray:
    """(N, N): size of the gradient of query t's logits at the embedding of token s of the order.

    All tokens of the image have different ids, so each row of the gradient belongs to one token.
    """
    tokens, orders = IMAGES[:1], torch.tensor([ORDER])
    content = tokens if raster else tokens.gather(1, orders)
    ids = torch.cat([model.class_ids(torch.tensor([0])), content[:, :-1]], dim=1)
    table, where = model.rotary((2, 3)), torch.tensor([[6] + ORDER[:-1]])
    keys, values = model.read(ids, table[where], causal=True)
    logits = model.head(model.ask(table[orders], keys, values, causal=True))[0]
    gradients = [torch.autograd.grad(row.square().sum().sqrt(), model.embedding.weight,
                                     retain_graph=True)[0].norm(dim=1) for row in logits]
    return torch.stack(gradients)[:, tokens[0, ORDER]].numpy()


def learning() -> Image.Image:
    """The loss while the model learns three images by heart, and the smallest possible loss."""
    _, losses, _ = overfit()
    blocks = np.array(losses).reshape(-1, 20).mean(1)
    at = [20 * i + 10 for i in range(len(blocks))]
    floor = math.log(6) / 6
    picture = plot({"": (at[::2], blocks[::2]), " ": (at[::2], [floor] * 10)},
                   "step", "nats a token")
    draw = ImageDraw.Draw(picture)
    label(draw, (150, 120), "training loss, a tenth of it without the class", 13, WHAT)
    label(draw, (150, 142), f"ln 6 / 6 = {floor:.3f}: the least there is with the class", 13, WHERE)
    return picture


FIGURES = {"ch04_slots": slots, "ch04_gradient": gradient, "ch04_learning": learning}

if __name__ == "__main__":
    _, losses, ranks = overfit()
    print(f"first loss {losses[0]:.4f}, mean over 600 orders {ranks.mean():.4f}; by rank "
          + " ".join(f"{x:.4f}" for x in ranks))
