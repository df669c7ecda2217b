"""ARPG (autoregressive image generation with randomized parallel decoding, arXiv 2503.10568) in one
file: draw the tokens of a picture in any order, many at a time.

`python tutorial/micro_arpg.py` trains a small model on two CPU cores in about a minute. Then it
draws pictures from the same noise in 1, 4, 16 and 64 steps, prints how many of them are right, and
writes micro_arpg.png. A picture has 8×8 cells. A token is the number of the colour of one cell.

Letters: B batch, N tokens of a picture, S slots read so far (first the class, then tokens), M
positions at a time, D model width, H heads, K = D / H head width, V vocabulary, C classes.
"""

import math
import time
from functools import partial

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 8                                    # cells per side of a picture
RGB = [(226, 60, 60), (240, 190, 50), (70, 175, 85), (60, 160, 225), (99, 70, 190), (40, 40, 50)]
linear = partial(nn.Linear, bias=False)


def all_pictures() -> Tensor:
    """Every picture that exists: (C, number of pictures, N) tokens.

    A picture has two colours with a straight edge between them. The edge is vertical in class 0 and
    horizontal in class 1. If it lies at the border, only one colour is left.
    """
    row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    place, edge = torch.stack([column, row]).view(2, 1, 1, -1), torch.arange(SIDE).view(-1, 1, 1)
    v = range(len(RGB))
    first, second = torch.tensor([(a, b) for a in v for b in v if a != b]).T[..., None]  # (30, 1)
    return torch.where(place < edge, first, second).flatten(1, 2)                 # (C, 8 · 30, N)


def how_good(tokens: Tensor, labels: Tensor, pictures: Tensor) -> tuple[float, float]:
    """Compare each picture (B, N) with the most similar one of its class (B,). Return the share of
    exact matches, and the share of equal cells."""
    agree = (pictures[labels] == tokens[:, None]).double().mean(dim=2).amax(dim=1)  # (B,)
    return (agree == 1).double().mean().item(), agree.mean().item()


def rotary_table(height: int, width: int, head_width: int, base: float = 100.0) -> Tensor:
    """The cosines and sines of every position: (N + 1, K/2, 2) (section 3.1).

    A position has K/2 angles. Half of them grow with its row, half with its column. The class has
    no position: its entry, the last one, is zero, and makes its key and query zero.
    """
    frequencies = base ** (-torch.arange(head_width // 4) / (head_width // 4))    # (K/4,)
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = torch.cat([row[..., None] * frequencies, column[..., None] * frequencies], dim=-1)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(0, 1)       # (N, K/2, 2)
    return torch.cat([table, torch.zeros_like(table[:1])])


def rotate(x: Tensor, where: Tensor) -> Tensor:
    """Rotate pairs of neighbouring features by the angles of a position (section 3.1).

    x: (B, H, M, K). where: (B, M, K/2, 2). Afterwards the product of a query and a key depends on
    how far apart the two positions are (in rows and columns), not on where they lie.
    """
    cos, sin = where[:, None].unbind(-1)                                          # (B, 1, M, K/2)
    a, b = x[..., 0::2], x[..., 1::2]                                             # (B, H, M, K/2)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


class Block(nn.Module):
    """One layer: attention, then a feed-forward network, each with a norm before it."""

    def __init__(self, dim: int, heads: int, hidden: int, reads: bool):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.ffn_norm = nn.RMSNorm(dim, eps=1e-5), nn.RMSNorm(dim, eps=1e-5)
        self.q, self.out = linear(dim, dim), linear(dim, dim)
        if reads:                           # `read` uses these; the query pass has none
            self.k, self.v = linear(dim, dim), linear(dim, dim)
        self.w1, self.w3, self.w2 = linear(dim, hidden), linear(dim, hidden), linear(hidden, dim)

    def forward(self, x: Tensor, where: Tensor, keys: Tensor, values: Tensor, causal: bool):
        """x: (B, M, D), where: (B, M, K/2, 2), keys and values: (B, H, S, K) -> (B, M, D)."""
        queries = rotate(split(self.q(self.attention_norm(x)), self.heads), where)
        seen = F.scaled_dot_product_attention(queries, keys, values, is_causal=causal)
        x = x + self.out(seen.transpose(1, 2).flatten(2))                         # (B, M, D)
        h = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(h)) * self.w3(h))


def split(x: Tensor, heads: int) -> Tensor:
    """(B, M, D) -> (B, H, M, K)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def extend(cache: dict, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Append new keys and values to a layer of the cache. Return all of it, (B, H, S, K) each.

    The cache holds one pair per content layer, and one that all query layers share (section 3.2).
    """
    if layer in cache:
        keys, values = (torch.cat(both, dim=2) for both in zip(cache[layer], (keys, values)))
    cache[layer] = keys, values
    return keys, values


class MicroARPG(nn.Module):
    """Two passes: one reads tokens, the other predicts them (section 3.1)."""

    def __init__(self, vocabulary: int, classes: int, height: int, width: int, dim: int = 64,
                 heads: int = 4, hidden: int = 128, layers: int = 2):
        super().__init__()
        self.heads, self.mask_id = heads, vocabulary
        # One row per token, one for [MASK], one per class, and two that are not used here.
        self.embedding = nn.Embedding(vocabulary + classes + 3, dim)
        self.content = nn.ModuleList(Block(dim, heads, hidden, reads=True) for _ in range(layers))
        self.query = nn.ModuleList(Block(dim, heads, hidden, reads=False) for _ in range(layers))
        self.kv_norm, self.norm = nn.RMSNorm(dim, eps=1e-5), nn.RMSNorm(dim, eps=1e-5)
        self.k, self.v, self.head = linear(dim, dim), linear(dim, dim), linear(dim, vocabulary)
        self.register_buffer("table", rotary_table(height, width, dim // heads))
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
        nn.init.zeros_(self.head.weight)    # so the first loss is exactly ln V

    def read(self, ids: Tensor, positions: Tensor, cache: dict, causal: bool):
        """The content pass: WHAT is there. Keys are rotated to the real positions of their tokens.

        ids, positions: (B, M) new slots. Returns the keys and values of all slots so far, (B, H, S,
        K) each. All layers of the query pass share this one pair.
        """
        x, where = self.embedding(ids), self.table[positions]                     # (B, M, D)
        for layer, block in enumerate(self.content):
            h = block.attention_norm(x)
            keys, values = split(block.k(h), self.heads), split(block.v(h), self.heads)
            x = block(x, where, *extend(cache, layer, rotate(keys, where), values), causal)
        h = self.kv_norm(x)
        keys, values = split(self.k(h), self.heads), split(self.v(h), self.heads)
        return extend(cache, len(self.content), rotate(keys, where), values)

    def ask(self, targets: Tensor, keys: Tensor, values: Tensor, causal: bool) -> Tensor:
        """The query pass: WHERE to predict. Queries start as [MASK] and differ only by rotation.

        targets: (B, M) positions. Returns logits (B, M, V). Queries do not see each other, so any
        number of positions can be asked at once, in any order.
        """
        x = self.embedding.weight[self.mask_id].expand(*targets.shape, -1)           # (B, M, D)
        for block in self.query:
            x = block(x, self.table[targets], keys, values, causal)
        return self.head(self.norm(x))

    def forward(self, tokens: Tensor, labels: Tensor, orders: Tensor) -> Tensor:
        """Training: predict every token from the class and the tokens before it in its order.

        tokens: (B, N), labels: (B,), orders: (B, N) permutations. Logits (B, N, V): the t-th
        predict the token at orders[:, t]. Query t sees the class and the order's first t tokens.
        """
        ids, positions = self.class_slot(labels)
        ids = torch.cat([ids, tokens.gather(1, orders)[:, :-1]], dim=1)           # (B, S = N)
        positions = torch.cat([positions, orders[:, :-1]], dim=1)                 # (B, S = N)
        return self.ask(orders, *self.read(ids, positions, {}, causal=True), causal=True)

    def class_slot(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The first slot: the class's row numbers in embedding and rotary table, (B, 1) each."""
        labels = labels[:, None]
        return self.mask_id + 1 + labels, torch.full_like(labels, len(self.table) - 1)


def loss_of(model: MicroARPG, tokens: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over all tokens, with a fresh random order per picture (equation 5)."""
    orders = torch.rand(tokens.shape).argsort(dim=1)                              # (B, N)
    logits = model(tokens, labels, orders)                                        # (B, N, V)
    return F.cross_entropy(logits.flatten(0, 1), tokens.gather(1, orders).flatten())


def step_sizes(n: int, steps: int) -> list[int]:
    """How many of n tokens each step draws: few at first, many at the end (section 3.2)."""
    sizes = []
    for s in range(1, steps):
        done = sum(sizes)
        left = max(1, min(n - done - 1, int(n * math.acos(s / steps) / (math.pi / 2))))
        sizes.append(n - done - left)
    return [*sizes, n - sum(sizes)]


@torch.no_grad()
def decode(model: MicroARPG, labels: Tensor, orders: Tensor, noise: Tensor, steps: int) -> Tensor:
    """Draw pictures (B, N), many tokens per step (section 3.2).

    orders: (B, N) permutations. noise: (B, N) in [0, 1), which picks each colour. A step reads the
    tokens of the previous step, which now see each other, and asks for all of its own positions at
    once. These are drawn without knowing each other: that is the price of parallelism.
    """
    tokens, cache, done = torch.full_like(orders, -1), {}, 0
    ids, positions = model.class_slot(labels)                                     # (B, 1)
    for size in step_sizes(orders.shape[1], steps):
        keys, values = model.read(ids, positions, cache, causal=False)
        positions = orders[:, done:done + size]                                   # (B, M)
        logits = model.ask(positions, keys, values, causal=False)                 # (B, M, V)
        cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)               # (B, M, V)
        ids = (cumulative[..., :-1] <= noise.gather(1, positions)[..., None]).sum(dim=-1)  # (B, M)
        tokens.scatter_(1, positions, ids)
        done += size
    return tokens


def train(model: MicroARPG, pictures: Tensor, steps: int, batch: int = 32, rate: float = 6e-3):
    """AdamW. The learning rate rises in the first 5 % of the steps, and then falls to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.05)
    started = time.time()
    for step in range(steps):
        warm, cosine = min(1, 20 * (step + 1) / steps), (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.param_groups[0]["lr"] = rate * warm * cosine
        labels, which = (torch.randint(n, (batch,)) for n in pictures.shape[:2])
        loss = loss_of(model, pictures[labels, which], labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:4}   loss {loss.item():.3f}   {time.time() - started:3.0f} s")


def write_png(path: str, rows: list[Tensor], cell: int = 8) -> None:
    """Write rows of pictures, (B, N) tokens each, as one PNG file."""
    colours = torch.tensor([*RGB, (255, 255, 255)], dtype=torch.uint8)
    framed = [F.pad(row.view(-1, SIDE, SIDE), (0, 1, 0, 1), value=len(RGB)) for row in rows]
    cells = torch.cat([torch.cat(list(row), dim=1) for row in framed])
    pixels = colours[cells].repeat_interleave(cell, 0).repeat_interleave(cell, 1)
    Image.fromarray(pixels.numpy()).save(path)


def main() -> None:
    torch.manual_seed(0)
    pictures, rows = all_pictures(), []
    model = MicroARPG(len(RGB), len(pictures), SIDE, SIDE)
    train(model, pictures, steps=800)
    labels = torch.arange(500) % len(pictures)
    orders = torch.rand(500, SIDE * SIDE).argsort(dim=1)
    noise = torch.rand(500, SIDE * SIDE, dtype=torch.float64)
    for steps in (1, 4, 16, 64):
        rows.append(decode(model, labels, orders, noise, steps))
        right, cells = how_good(rows[-1], labels, pictures)
        print(f"{steps:2} steps: {right:.1%} of 500 pictures are right, {cells:.1%} of their cells")
    write_png("micro_arpg.png", [row[:12] for row in rows])
    print("micro_arpg.png: 12 pictures from the same noise in 1, 4, 16, 64 steps, top to bottom")


if __name__ == "__main__":
    main()
