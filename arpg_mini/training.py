"""The optimizer, the learning rate, the running average, and the two loops.

The one idea: no hidden random state. Every random number is a function of (seed, purpose, step or
epoch), so a run continues from step s exactly as if it had never stopped, with nothing to save but
weights; and since orders and class drops are drawn for the whole batch and each process takes its
rows, several processes train as one does.

The loops are generators: they yield after every step and leave saving, logging and stopping to the
caller.
"""

import copy
import csv
import math
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .config import TrainConfig
from .data import Ids, Pictures
from .model import ARPG
from .tokenizer import VQTokenizer

# Purposes of random streams.
DATA, ORDERS, DROPS, VIEWS, DROPOUT, HELD_OUT, PICTURES, CODES = range(8)


def generator(seed: int, purpose: int, index: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, purpose, index])


def visits(seed: int, purpose: int, step: int, batch: int, n: int) -> np.ndarray:
    """(batch,) indices below n for one step: every epoch visits each index once, in an order of
    its own."""
    at = np.arange(step * batch, (step + 1) * batch)
    picked = np.empty(batch, np.int64)
    for epoch in np.unique(at // n):
        permutation = generator(seed, purpose, int(epoch)).permutation(n)
        here = at // n == epoch
        picked[here] = permutation[at[here] % n]
    return picked


def learning_rate(step: int, steps: int, config: TrainConfig, peak: float) -> float:
    """Linear warm-up to the peak over a share of the run, then a cosine down to `final_lr`."""
    warmup = max(1, round(config.warmup * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    floor = min(config.final_lr, peak)
    return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2


def make_optimizer(module: nn.Module, weight_decay: float,
                   betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW with weight decay on tensors of two or more dimensions only: no gain or bias decays."""
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    others = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay},
              {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=betas, fused=True)


def optimizer_step(optimizer: torch.optim.Optimizer, module: nn.Module, lr: float,
                   clip: float) -> Tensor:
    """Clip, step, forget the gradients. Returns the gradient's norm before clipping."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    norm = nn.utils.clip_grad_norm_(module.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def average_of(model: nn.Module) -> nn.Module:
    """A copy of a model to hold the running average of its weights."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """average ← average·d + model·(1 - d), with d growing from 0.1 to `decay` so that it starts
    fresh."""
    d = min(decay, (1 + step) / (10 + step))
    for a, p in zip(average.parameters(), model.parameters()):
        a.lerp_(p, 1 - d)


def train_tokenizer(tokenizer: VQTokenizer, pictures: Pictures, config: TrainConfig, seed: int,
                    optimizer: torch.optim.Optimizer,
                    start: int = 0) -> Iterator[dict[str, Tensor]]:
    """Yield the losses after each step from `start` to the last.

    The first quarter is a plain autoencoder; then the codebook is fitted to its features and used.
    Rows that die are revived until the last fifth, which is left in peace.
    """
    device = next(tokenizer.parameters()).device
    steps, warm = config.tokenizer_steps, config.tokenizer_steps // 4
    tokenizer.train()
    for step in range(start, steps):
        codes = torch.Generator().manual_seed(int(generator(seed, CODES, step).integers(2**62)))
        _, images = pictures.load(
            visits(seed, PICTURES, step, config.tokenizer_batch_size, len(pictures)))
        if step == warm:
            _, sample = pictures.load(
                generator(seed, PICTURES, 2**32).integers(len(pictures), size=1000))
            with torch.no_grad():
                features = torch.cat([
                    tokenizer.features(to_device(sample[i:i + 50], device)).flatten(0, 2)
                    for i in range(0, len(sample), 50)])
            tokenizer.codebook.fit(features, codes)
        _, losses, features, ids = tokenizer(to_device(images, device), quantize=step >= warm)
        used = losses if step >= warm else {"reconstruction": losses["reconstruction"]}
        sum(used.values()).backward()
        optimizer_step(optimizer, tokenizer,
                       learning_rate(step, steps, config, config.tokenizer_lr), config.grad_clip)
        if warm <= step < 0.8 * steps:
            tokenizer.codebook.revive(features, ids, config.tokenizer_patience, codes)
        yield losses


def to_device(images: np.ndarray, device: torch.device) -> Tensor:
    """(n, side, side, 3) uint8 -> (n, 3, side, side) in [-1, 1]."""
    return (torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float()
            / 127.5 - 1)


def draw_batch(ids: Ids, config: TrainConfig, null_label: int, class_dropout: float, seed: int,
               step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """This process's rows of step `step`'s batch: tokens (b, N), labels (b,), orders (b, N), all
    long.

    Everything is drawn for the global batch and then sliced, so the split changes nothing.
    """
    batch, (_, views, n) = config.batch_size, ids.ids.shape
    rows = slice(rank * batch // world, (rank + 1) * batch // world)
    picked = visits(seed, DATA, step, batch, len(ids))[rows]
    view = generator(seed, VIEWS, step).integers(views, size=batch)[rows]
    orders = generator(seed, ORDERS, step).random((batch, n)).argsort(axis=1)[rows]
    dropped = generator(seed, DROPS, step).random(batch)[rows] < class_dropout
    labels = np.where(dropped, null_label, ids.labels[picked])
    return (torch.from_numpy(ids.ids[picked, view].astype(np.int64)), torch.from_numpy(labels),
            torch.from_numpy(orders))


def train_arpg(model: ARPG, call: nn.Module, average: ARPG, ids: Ids, config: TrainConfig,
               seed: int, optimizer: torch.optim.Optimizer, start: int = 0, rank: int = 0,
               world: int = 1) -> Iterator[dict[str, Tensor | float]]:
    """Yield {"loss", "lr", "norm"} after each step from `start` to the last.

    `call` is `model` or its wrapper for several processes; `average` is updated after every step.
    """
    device = model.embedding.weight.device
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    model.train()
    for step in range(start, config.steps):
        tokens, labels, orders = (t.to(device, non_blocking=True) for t in draw_batch(
            ids, config, model.null_label, model.config.class_dropout, seed, step, rank, world))
        torch.manual_seed(int(generator(seed, DROPOUT, step).integers(2**62)) + rank)
        with bf16:
            loss = call(tokens, labels, orders, loss_rows=config.loss_rows)
        loss.backward()
        lr = learning_rate(step, config.steps, config, config.lr)
        norm = optimizer_step(optimizer, model, lr, config.grad_clip)
        update_average(average, model, config.ema, step)
        yield {"loss": loss.detach(), "lr": lr, "norm": norm}


@torch.no_grad()
def validation_loss(model: ARPG, ids: Ids, seed: int, count: int = 2000, batch: int = 250) -> float:
    """Nats per token on held-out pictures: causal mask, one fixed order each, no dropout, no class
    drop."""
    device, n = model.embedding.weight.device, ids.ids.shape[2]
    training, total, count = model.training, 0.0, min(count, len(ids))
    model.eval()
    for start in range(0, count, batch):
        rows = slice(start, min(start + batch, count))
        tokens = torch.from_numpy(ids.ids[rows, 0].astype(np.int64))
        orders = np.stack([generator(seed, HELD_OUT, i).permutation(n)
                           for i in range(rows.start, rows.stop)])
        loss = model(tokens.to(device), torch.from_numpy(ids.labels[rows]).to(device),
                     torch.from_numpy(orders).to(device), loss_rows=8192)
        total += loss.item() * len(tokens)
    model.train(training)
    return total / count


class Log:
    """`log.csv`: a row per logged step; rows after the resumed step are dropped."""

    columns = ["step", "epoch", "train_loss", "val_loss", "lr", "images_per_second"]

    def __init__(self, path: Path, start: int):
        rows = []
        if start and path.exists():
            rows = [r for r in csv.DictReader(path.open()) if r["step"] and int(r["step"]) <= start]
        self.file = path.open("w", newline="")
        self.writer = csv.DictWriter(self.file, self.columns)
        self.writer.writeheader()
        self.writer.writerows(rows)

    def row(self, **values) -> None:
        self.writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v
                              for k, v in values.items()})
        self.file.flush()


class Stop:
    """Remembers that Ctrl-C or SIGTERM came, so that the step can be finished and saved."""

    def __init__(self):
        self.signal = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.remember)

    def remember(self, number: int, frame) -> None:
        """A second signal ends the program at once."""
        self.signal = number
        signal.signal(number, signal.SIG_DFL)
