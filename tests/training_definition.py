"""Training, written from its formulas alone: draws, loss, clipping, AdamW, rates, running average.

It shares with the package the models' forward passes (other tests prove them) and the purposes of
the random streams. It is slow but simple: when training and this file differ, you can check this
file by hand.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arpg_mini.config import TrainConfig
from arpg_mini.model import ARPG
from arpg_mini.tokenizer import VQTokenizer
from arpg_mini.training import (
    CODES,
    CONTROLS,
    DATA,
    DROPOUT,
    DROPS,
    HELD_OUT,
    ORDERS,
    PICTURES,
    VIEWS,
)


def stream(seed: int, purpose: int, *index: int) -> np.random.Generator:
    return np.random.default_rng([seed, purpose, *index])


def picked(seed: int, purpose: int, step: int, batch: int, n: int) -> list[int]:
    """The pictures of a step. Training visits all n in a new order in each epoch, without a gap
    between steps or epochs."""
    at = [divmod(step * batch + i, n) for i in range(batch)]
    return [int(stream(seed, purpose, epoch).permutation(n)[place]) for epoch, place in at]


def rate(step: int, steps: int, config: TrainConfig, peak: float) -> float:
    """Up in a straight line to the peak, then half a cosine down to `final_lr`."""
    warm = max(1, round(config.warmup * steps))
    if step < warm:
        return peak * (step + 1) / warm
    low, angle = min(config.final_lr, peak), math.pi * (step - warm) / max(1, steps - warm)
    return low + (peak - low) * (1 + math.cos(angle)) / 2


class AdamW:
    """Clipping by the norm of the whole gradient, then AdamW with decoupled decay of matrices. A
    weight without a gradient stays. If the norm is not finite, everything stays."""

    def __init__(self, module: nn.Module, betas: tuple[float, float], decay: float):
        self.weights, self.betas, self.decay = dict(module.named_parameters()), betas, decay
        self.mean = {k: torch.zeros_like(w) for k, w in self.weights.items()}
        self.square = {k: torch.zeros_like(w) for k, w in self.weights.items()}
        self.count = dict.fromkeys(self.weights, 0)

    @torch.no_grad()
    def step(self, loss: Tensor, rate: float, clip: float) -> Tensor:
        with torch.enable_grad():
            found = torch.autograd.grad(loss, list(self.weights.values()), allow_unused=True)
        gradients = {k: g for k, g in zip(self.weights, found) if g is not None}
        norm = sum((g ** 2).sum() for g in gradients.values()) ** 0.5
        for k, g in gradients.items() if norm.isfinite() else []:
            (a, b), w = self.betas, self.weights[k]
            g = g * min(1.0, clip / (norm + 1e-6))
            self.count[k] += 1
            self.mean[k] = a * self.mean[k] + (1 - a) * g
            self.square[k] = b * self.square[k] + (1 - b) * g ** 2
            mean = self.mean[k] / (1 - a ** self.count[k])
            square = self.square[k] / (1 - b ** self.count[k])
            w -= rate * self.decay * w if w.ndim >= 2 else 0
            w -= rate * mean / (square ** 0.5 + 1e-8)
        return norm


def batch_of(ids, config: TrainConfig, model: ARPG, seed: int, step: int) -> list[tuple]:
    """A step's samples: (tokens, label, order). Each has its own view, class drop and order."""
    size, (n, views, length) = config.batch_size, ids.ids.shape
    view = stream(seed, VIEWS, step).integers(views, size=size)
    luck = stream(seed, DROPS, step).random(size)
    scores = stream(seed, ORDERS, step).random((size, length))
    batch = []
    for i, picture in enumerate(picked(seed, DATA, step, size, n)):
        dropped = luck[i] < model.config.class_dropout
        label = model.config.num_classes if dropped else int(ids.labels[picture])
        order = sorted(range(length), key=scores[i].__getitem__)
        batch.append((ids.ids[picture, view[i]].tolist(), label, order))
    return batch


def cuts(rows: int, micro: int) -> list[tuple[int, int]]:
    """As few pieces of at most `micro` rows as possible, of nearly equal sizes."""
    pieces = math.ceil(rows / micro)
    return list(pairwise(rows * i // pieces for i in range(pieces + 1)))


def losses_of(model: ARPG, samples: list[tuple], maps: Tensor | None = None) -> Tensor:
    """(b,) −log of the probability of each sample's tokens, per token."""
    tokens, labels, orders = (torch.tensor(x) for x in zip(*samples))
    logits = model(tokens, labels, orders, control=maps)
    return -logits.log_softmax(-1).gather(-1, tokens.gather(1, orders)[..., None])[..., 0].mean(1)


def train_by_hand(model: ARPG, ids, config: TrainConfig, seed: int, start: int = 0, world: int = 1,
                  control: Callable | None = None, bad: set[int] = frozenset()) -> Iterator[dict]:
    """Train on the whole batch, as one process, and yield everything that a step leaves.

    `world` matters only for dropout and hidden maps: each piece of each process draws its own.
    bad: steps whose loss is NaN.
    """
    adam = AdamW(model, config.betas, config.weight_decay)
    average = {k: w.detach().clone() for k, w in adam.weights.items()}
    rows = config.batch_size // world
    model.train()
    for step in range(start, config.steps):
        batch, losses = batch_of(ids, config, model, seed, step), []
        for rank in range(world):
            for piece, (first, last) in enumerate(cuts(rows, config.micro_batch)):
                samples = batch[rank * rows + first:rank * rows + last]
                maps = control(torch.tensor([s[0] for s in samples])) if control else None
                for i, luck in enumerate(stream(seed, CONTROLS, step, rank, piece)
                                         .random(len(samples)) if control else []):
                    if luck < model.config.class_dropout:
                        maps[i] = -1
                torch.manual_seed(int(stream(seed, DROPOUT, step, rank, piece).integers(2**62)))
                losses.append(losses_of(model, samples, maps))
        loss = torch.cat(losses).mean() * (math.nan if step in bad else 1)
        lr = rate(step, config.steps, config, config.lr)
        norm = adam.step(loss, lr, config.grad_clip)
        d = min(config.ema, (1 + step) / (10 + step))
        average = {k: d * average[k] + (1 - d) * w.detach() for k, w in adam.weights.items()}
        yield {"loss": loss.detach(), "lr": lr, "norm": norm, "average": average,
               "weights": {k: w.detach().clone() for k, w in adam.weights.items()},
               "exp_avg": dict(adam.mean), "exp_avg_sq": dict(adam.square),
               "step": dict(adam.count)}


@torch.no_grad()
def validate_by_hand(model: ARPG, ids, seed: int, count: int = 2000,
                     control: Callable | None = None) -> float:
    """The mean over the first `count` pictures: view 0, the true class, an order of its own."""
    total, few = 0.0, min(count, len(ids))
    for i in range(few):
        order = stream(seed, HELD_OUT, i).permutation(ids.ids.shape[2]).tolist()
        tokens = ids.ids[i, 0].tolist()
        maps = control(torch.tensor([tokens])) if control else None
        total += losses_of(model.eval(), [(tokens, int(ids.labels[i]), order)], maps).item()
    return total / few


def fit_by_hand(features: Tensor, size: int, coins: torch.Generator) -> Tensor:
    """Ten rounds of k-means on the unit sphere. The first centre is the first feature. Each further
    one is a feature, drawn by its squared distance from the nearest centre."""
    centres = [features[0]]
    while len(centres) < size:
        squares = torch.stack([((features - c) ** 2).sum(-1) for c in centres]).amin(0)
        centres.append(features[torch.multinomial(squares + 1e-9, 1, generator=coins).item()])
    for _ in range(10):
        near = torch.stack([((features - c) ** 2).sum(-1) for c in centres]).argmin(0)
        centres = [F.normalize(features[near == k].sum(0), dim=0) if (near == k).any() else c
                   for k, c in enumerate(centres)]
    return torch.stack(centres)


def train_tokenizer_by_hand(tokenizer: VQTokenizer, images: np.ndarray, config: TrainConfig,
                            seed: int) -> Iterator[dict]:
    """Train on (n, s, s, 3) uint8 pictures, and yield the losses and weights after each step."""
    steps, warm = config.tokenizer_steps, config.tokenizer_steps // 4
    adam, idle = AdamW(tokenizer, config.betas, 0.0), [0] * tokenizer.config.codebook_size
    rows = tokenizer.codebook.rows

    def pixels(which) -> Tensor:
        small = torch.from_numpy(images[which]).float() / 127.5 - 1
        return small.permute(0, 3, 1, 2).to(rows.dtype)

    for step in range(steps):
        coins = torch.Generator().manual_seed(int(stream(seed, CODES, step).integers(2**62)))
        x = pixels(picked(seed, PICTURES, step, config.tokenizer_batch_size, len(images)))
        if step == warm:
            with torch.no_grad():
                many = stream(seed, PICTURES, 2**32).integers(len(images), size=1000)
                every = tokenizer.features(pixels(range(len(images))))
                rows.copy_(fit_by_hand(every[many].flatten(0, 2), len(rows), coins))
            idle = [0] * len(rows)
        features = tokenizer.features(x)                                       # (B, h, w, code_dim)
        unit = F.normalize(rows, dim=-1)
        ids = ((features.detach()[..., None, :] - unit) ** 2).sum(-1).argmin(-1)
        codes = unit[ids]
        given = features + (codes - features).detach() if step >= warm else features
        error = tokenizer.reconstruct(given) - x
        losses = {"reconstruction": (error ** 2).mean() + error.abs().mean(),
                  "codebook": ((codes - features.detach()) ** 2).sum(-1).mean(),
                  "commitment": tokenizer.config.commitment
                  * ((codes.detach() - features) ** 2).sum(-1).mean()}
        adam.step(sum(losses.values()) if step >= warm else losses["reconstruction"],
                  rate(step, steps, config, config.tokenizer_lr), config.grad_clip)
        if warm <= step < 0.8 * steps:
            idle = [0 if k in ids else idle[k] + 1 for k in range(len(rows))]
            dead = [k for k in range(len(rows)) if idle[k] >= config.tokenizer_patience]
            picks = torch.randint(ids.numel(), (len(dead),), generator=coins)
            for k, pick in zip(dead, picks):
                rows.data[k], idle[k] = features.detach().flatten(0, 2)[pick], 0
        yield {**{k: v.detach() for k, v in losses.items()},
               "weights": {k: w.detach().clone() for k, w in adam.weights.items()}}
