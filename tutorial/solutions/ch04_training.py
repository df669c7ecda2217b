"""Solutions of chapter 4, learning all orders at once: one way to do each exercise."""

import torch
from torch import Tensor
from torch.nn import functional as F


def training_batch(tokens: Tensor, labels: Tensor, orders: Tensor, drop: Tensor, vocab_size: int,
                   num_classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Content ids and places, targets and their places, each (B, N)."""
    n = tokens.shape[1]
    known = torch.where(drop, num_classes, labels)                         # (B,)
    class_slot = vocab_size + 1 + known[:, None]                           # (B, 1)
    targets = tokens.gather(1, orders)                                     # (B, N)
    content_ids = torch.cat([class_slot, targets[:, :-1]], dim=1)          # (B, N)
    class_place = torch.full_like(class_slot, n)                           # (B, 1)
    content_places = torch.cat([class_place, orders[:, :-1]], dim=1)       # (B, N)
    return content_ids, content_places, targets, orders


def chunked_loss(hidden: Tensor, weight: Tensor, targets: Tensor, rows: int) -> Tensor:
    """Mean cross entropy of hidden @ weight.T, with at most `rows` rows of logits at once."""
    total = hidden.new_zeros(())
    for h, t in zip(hidden.split(rows), targets.split(rows)):              # (rows, D), (rows,)
        total = total + F.cross_entropy(h @ weight.T, t, reduction="sum")
    return total / len(targets)


def check_no_peeking(implementation) -> None:
    """Assert that query t depends on no token at or after t of its order."""
    b, n, v, c = 3, 6, 7, 3
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        tokens = torch.randint(v, (b, n), generator=generator)
        labels = torch.randint(c, (b,), generator=generator)
        orders = torch.rand(b, n, generator=generator).argsort(1)
        before = implementation(tokens, labels, orders)                    # (B, N, V)
        for t in range(n):
            for number in (torch.randint(v, (b, n), generator=generator) for _ in range(3)):
                later = orders[:, t:]                                      # (B, N - t)
                changed = tokens.scatter(1, later, number.gather(1, later))
                after = implementation(changed, labels, orders)
                gap = (after[:, :t + 1] - before[:, :t + 1]).abs().max()
                assert gap < 1e-9, (
                    f"queries 0 to {t} moved by {gap:.2g} when tokens {t} to {n - 1} of the orders "
                    f"{orders.tolist()} changed from {tokens.tolist()} to {changed.tolist()}")


def average_step(average: list[Tensor], weights: list[Tensor], decay: float, step: int) -> None:
    """average <- d average + (1 - d) weights in place, d = min(decay, (1 + step) / (10 + step))."""
    d = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for a, w in zip(average, weights):
            a.mul_(d).add_(w, alpha=1 - d)
