"""The optimizer, the learning rate, the running average, and the two loops.

The one idea: no hidden random state. Every random number is a function of (seed, purpose, step or
epoch), so a run continues from step s exactly as if it had never stopped, with nothing to save but
weights; and since orders and class drops are drawn for the whole batch and each process takes its
rows, several processes train as one does.

The loops are generators: they yield after every step and leave saving, logging and stopping to the
caller.
"""

import contextlib
import copy
import csv
import io
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .checkpoint import write_whole
from .config import TrainConfig, UserError
from .data import Pictures
from .ids import Ids
from .model import ARPG
from .tokenizer import VQTokenizer

Control = Callable[[Tensor], Tensor]

# Purposes of random streams.
DATA, ORDERS, DROPS, VIEWS, DROPOUT, HELD_OUT, PICTURES, CODES, CONTROLS = range(9)


def generator(seed: int, purpose: int, *index: int) -> np.random.Generator:
    return np.random.default_rng([seed, purpose, *(index or (0,))])


@lru_cache(maxsize=2)
def permutation(seed: int, purpose: int, epoch: int, n: int) -> np.ndarray:
    return generator(seed, purpose, epoch).permutation(n)


def visits(seed: int, purpose: int, step: int, batch: int, n: int) -> np.ndarray:
    """(batch,) indices below n for one step: every epoch visits each index once, in an order of
    its own."""
    at = np.arange(step * batch, (step + 1) * batch)
    picked = np.empty(batch, np.int64)
    for epoch in np.unique(at // n):
        here = at // n == epoch
        picked[here] = permutation(seed, purpose, int(epoch), n)[at[here] % n]
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
    """Clip, step, forget the gradients. Returns the gradient's norm before clipping.

    If it is not finite nothing changes, weights or optimizer: the fused AdamW leaves out a step
    whose `found_inf` is 1 (gradient scalers use it so), without the CPU having to look.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    norm = nn.utils.clip_grad_norm_(module.parameters(), clip)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    optimizer.grad_scale, optimizer.found_inf = None, 1 - norm.isfinite().float()
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
    for pair in zip(average.parameters(), model.parameters()):
        a, p = (t.to_local() if isinstance(t, DTensor) else t for t in pair)
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
    orders = generator(seed, ORDERS, step).random((batch, n))[rows].argsort(axis=1)
    dropped = generator(seed, DROPS, step).random(batch)[rows] < class_dropout
    labels = np.where(dropped, null_label, ids.labels[picked])
    return (torch.from_numpy(ids.ids[picked, view].astype(np.int64)), torch.from_numpy(labels),
            torch.from_numpy(orders))


def train_arpg(model: ARPG, call: nn.Module, average: ARPG, ids: Ids, config: TrainConfig,
               seed: int, optimizer: torch.optim.Optimizer, start: int = 0, rank: int = 0,
               world: int = 1, half: bool = False,
               control: Control | None = None) -> Iterator[dict[str, Tensor | float]]:
    """Yield {"loss", "lr", "norm"} after each step from `start` to the last.

    `call` is `model` or its wrapper for several processes; `average` is updated after every step.
    A process whose rows are more than `config.micro_batch` takes them in pieces and adds up the
    gradients. `half`: autocast to bfloat16. `control`: (b, N) tokens -> their condition maps, of
    which a share of `class_dropout` is kept from the model. A step whose norm is not finite changed
    nothing.
    """
    device = next(model.parameters()).device
    rows = config.batch_size // world
    pieces = -(-rows // config.micro_batch)
    cuts = [rows * i // pieces for i in range(pieces + 1)]
    model.train()
    for step in range(start, config.steps):
        batch = draw_batch(ids, config, model.null_label, model.config.class_dropout, seed, step,
                           rank, world)
        if device.type == "cuda":                # pinned, so that copying need not be waited for
            batch = [t.pin_memory() for t in batch]
        loss = torch.zeros((), device=device)
        for piece in range(pieces):
            tokens, labels, orders = (t[cuts[piece]:cuts[piece + 1]].to(device, non_blocking=True)
                                      for t in batch)
            torch.manual_seed(int(generator(seed, DROPOUT, step, rank, piece).integers(2**62)))
            ddp = isinstance(call, nn.parallel.DistributedDataParallel)
            maps = {}
            if control:
                hidden = generator(seed, CONTROLS, step, rank, piece).random(len(tokens))
                hidden = torch.from_numpy(hidden < model.config.class_dropout).to(device)
                maps["control"] = control(tokens).masked_fill(hidden[:, None, None, None], -1)
            silent = call.no_sync() if ddp and piece < pieces - 1 else contextlib.nullcontext()
            with silent:
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    part = call(tokens, labels, orders, loss_rows=config.loss_rows, **maps)
                    part = part * (len(tokens) / rows)
                part.backward()
            loss += part.detach()
        lr = learning_rate(step, config.steps, config, config.lr)
        norm = optimizer_step(optimizer, model, lr, config.grad_clip)
        update_average(average, model, config.ema, step)
        yield {"loss": loss, "lr": lr, "norm": norm}


@torch.no_grad()
def validation_loss(model: ARPG, ids: Ids, seed: int, count: int = 2000, batch: int = 250,
                    control: Control | None = None) -> float:
    """Nats per token on held-out pictures: causal mask, one fixed order each, no dropout, no class
    drop, in the weights' precision."""
    device, n = model.embedding.weight.device, ids.ids.shape[2]
    training, total, count = model.training, 0.0, min(count, len(ids))
    model.eval()
    for start in range(0, count, batch):
        rows = slice(start, min(start + batch, count))
        tokens = torch.from_numpy(ids.ids[rows, 0].astype(np.int64)).to(device)
        orders = np.stack([generator(seed, HELD_OUT, i).permutation(n)
                           for i in range(rows.start, rows.stop)])
        loss = model(tokens, torch.from_numpy(ids.labels[rows]).to(device),
                     torch.from_numpy(orders).to(device), loss_rows=8192,
                     control=control(tokens) if control else None)
        total += loss.item() * len(tokens)
    model.train(training)
    return total / count


class Log:
    """`log.csv`: a row per logged step; rows after the resumed step are dropped.

    A row that can't be written (a full disk) comes with the next that can. `tensorboard`: write
    the numbers there too, for who has that package.
    """

    columns = ["step", "epoch", "train_loss", "val_loss", "lr", "images_per_second",
               "gradient_norm", "skipped_steps"]

    def __init__(self, path: Path, start: int, tensorboard: bool = False):
        self.path, self.rows, self.board = path, [], None
        if start and path.exists():
            with open(path, newline="", errors="replace") as file:
                self.rows = [row for row in csv.DictReader(file)
                             if set(row) == set(self.columns) and None not in row.values()
                             and row["step"].isdecimal() and int(row["step"]) <= start]
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter
            self.board = SummaryWriter(path.parent / "tensorboard", purge_step=start + 1)
        self.write()

    def write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(self.rows)
        with contextlib.suppress(UserError):
            write_whole(self.path, lambda file: file.write(text.getvalue().encode()))

    def row(self, **values) -> None:
        self.rows.append({k: f"{v:.6g}" if isinstance(v, float) else v
                          for k, v in values.items()})
        self.write()
        if self.board:
            for name in set(values) - {"step"}:
                if values[name] != "":
                    self.board.add_scalar(name, values[name], values["step"])


class Stop:
    """Remembers that a signal to stop came, so that the step can be finished and saved."""

    def __init__(self, signals: Sequence[int]):
        self.signal, self.since = 0, 0.0
        for number in signals:
            signal.signal(number, self.remember)

    def remember(self, number: int, frame) -> None:
        """A later signal ends the program at once. One that follows within a second is the same:
        a terminal sends Ctrl-C to all processes, and the first hands it on to the others."""
        if not self.signal:
            self.signal, self.since = number, time.monotonic()
        elif time.monotonic() - self.since > 1:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
