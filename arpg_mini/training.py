"""The optimizer, the learning rate, the running average, and the training loop.

The one idea: no hidden random state. Every random number is a function of (seed, purpose, step or
epoch). So a run continues from step s exactly as if it had never stopped, and only weights and
optimizer need to be saved. Orders and class drops are drawn for the whole batch, and each process
takes its rows of them. So several processes train as one does (only dropout differs).

The loop is a generator: it yields after every step, and the caller saves, logs and stops.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from .config import TrainConfig
from .model import ARPG

Control = Callable[[Tensor], Tensor]

# Purposes of random streams.
DATA, ORDERS, DROPS, VIEWS, DROPOUT, HELD_OUT, PICTURES, CODES, CONTROLS = range(9)


def generator(seed: int, purpose: int, *index: int) -> np.random.Generator:
    return np.random.default_rng([seed, purpose, *(index or (0,))])


@lru_cache(maxsize=2)
def permutation(seed: int, purpose: int, epoch: int, n: int) -> np.ndarray:
    return generator(seed, purpose, epoch).permutation(n)


def visits(seed: int, purpose: int, step: int, batch: int, n: int) -> np.ndarray:
    """(batch,) indices below n for one step. Every epoch visits each index once, in a new order."""
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
    """AdamW with weight decay on tensors of two or more dimensions only, not on gains or biases."""
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    others = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay},
              {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=betas, fused=True)


def optimizer_step(optimizer: torch.optim.Optimizer, module: nn.Module, lr: float, clip: float,
                   keep_gradients: bool = False) -> Tensor:
    """Clip the gradient, step, zero the gradient. Returns the gradient's norm before clipping.

    If the norm is not finite, neither the weights nor the optimizer change: the fused AdamW skips a
    step whose `found_inf` is 1. (Gradient scalers use it in the same way.) The CPU does not wait.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    norm = nn.utils.clip_grad_norm_(module.parameters(), clip)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    optimizer.grad_scale, optimizer.found_inf = None, 1 - norm.isfinite().float()
    optimizer.step()
    optimizer.zero_grad(set_to_none=not keep_gradients)
    return norm


def average_of(model: nn.Module) -> nn.Module:
    """A copy of a model that will hold the running average of its weights."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """average ← average·d + model·(1 - d). d grows from 0.1 to `decay`, so that the initial weights
    are soon forgotten."""
    d = min(decay, (1 + step) / (10 + step))
    a, p = ([t.to_local() if isinstance(t, DTensor) else t for t in module.parameters()]
            for module in (average, model))
    torch._foreach_lerp_(a, p, 1 - d)           # few kernels for all tensors together


def draw_batch(ids, config: TrainConfig, null_label: int, class_dropout: float, seed: int,
               step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """This process's rows of the batch of one step: tokens (b, N), labels (b,), orders (b, N), all
    long.

    ids.ids: (n, views, N) uint16, ids.labels: (n,). Everything is drawn for the global batch and
    then sliced. So the number of processes changes nothing.
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


def train_arpg(model: ARPG, call: nn.Module, average: ARPG, ids, config: TrainConfig,
               seed: int, optimizer: torch.optim.Optimizer, start: int = 0, rank: int = 0,
               world: int = 1, half: bool = False,
               control: Control | None = None) -> Iterator[dict[str, Tensor | float]]:
    """Yield {"loss", "lr", "norm"} after each step from `start` to the last.

    `call` is `model` or its wrapper for several processes. `average` is updated after every step.
    A process with more rows than `config.micro_batch` takes them in pieces and accumulates the
    gradients. `half`: autocast to bfloat16. `control`: (b, N) tokens -> their condition maps; a
    share of `class_dropout` of the maps is hidden from the model. A step whose norm is not finite
    changes neither the weights nor the optimizer.
    """
    device = next(model.parameters()).device
    rows = config.batch_size // world
    pieces = -(-rows // config.micro_batch)
    cuts = [rows * i // pieces for i in range(pieces + 1)]
    ddp = isinstance(call, nn.parallel.DistributedDataParallel)
    model.train()
    for step in range(start, config.steps):
        batch = draw_batch(ids, config, model.null_label, model.config.class_dropout, seed, step,
                           rank, world)
        if device.type == "cuda":                # pinned, so that the copy need not finish first
            batch = [t.pin_memory() for t in batch]
        loss = torch.zeros((), device=device)
        for piece in range(pieces):
            tokens, labels, orders = (t[cuts[piece]:cuts[piece + 1]].to(device, non_blocking=True)
                                      for t in batch)
            torch.manual_seed(int(generator(seed, DROPOUT, step, rank, piece).integers(2**62)))
            maps = {}
            if control:
                hidden = generator(seed, CONTROLS, step, rank, piece).random(len(tokens))
                hidden = torch.from_numpy(hidden < model.config.class_dropout).to(device)
                maps["control"] = control(tokens).masked_fill(hidden[:, None, None, None], -1)
            last = piece == pieces - 1                      # it shares the whole step's gradients
            if isinstance(call, FSDPModule):
                call.set_requires_gradient_sync(last)
            silent = call.no_sync() if ddp and not last else contextlib.nullcontext()
            with silent:
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    part = call(tokens, labels, orders, loss_rows=config.loss_rows, **maps)
                    part = part * (len(tokens) / rows)
                part.backward()
            loss += part.detach()
        lr = learning_rate(step, config.steps, config, config.lr)
        # DDP's gradients are views of what it sends. New ones would be copies: twice the memory.
        norm = optimizer_step(optimizer, model, lr, config.grad_clip, keep_gradients=ddp)
        update_average(average, model, config.ema, step)
        yield {"loss": loss, "lr": lr, "norm": norm}


@torch.no_grad()
def validation_loss(model: ARPG, ids, seed: int, count: int = 2000, batch: int = 250,
                    control: Control | None = None) -> float:
    """Nats per token on held-out pictures, under the causal mask, with one fixed order per picture,
    without dropout and class drops, in the precision of the weights."""
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
