"""Chapter 2, any order: one way to solve the exercises."""

from collections.abc import Callable
from itertools import permutations, product

import torch
from torch import Tensor


def log_conditionals(joint: Tensor, image: Tensor, order: Tensor) -> Tensor:
    """The chain rule along an order: ln p(x[order[t]] | x[order[0]], …, x[order[t-1]]), for all t.

    p(known) is the sum over all images that agree with what is known: fix the known axes, add up
    the others. A conditional is the quotient of two such sums, one token apart.
    """
    where = [slice(None)] * joint.ndim
    totals = [joint.sum()]
    for position in order.tolist():
        where[position] = image[position].item()
        totals.append(joint[tuple(where)].sum())
    return torch.stack(totals).log().diff()


def to_raster(content: Tensor, orders: Tensor) -> Tensor:
    """Put tokens that stand in the order they were drawn back to where they belong."""
    raster = torch.empty_like(content)
    raster[torch.arange(len(orders))[:, None], orders] = content
    return raster


def inputs_and_targets(tokens: Tensor, class_ids: Tensor, orders: Tensor) -> tuple[Tensor, Tensor]:
    """What a causal model reads and what it shall predict, along each sample's own order."""
    targets = tokens.gather(1, orders)
    return torch.cat([class_ids[:, None], targets[:, :-1]], dim=1), targets


def check_any_order(implementation: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """A property of `log_conditionals`: raise AssertionError unless it holds.

    Three tokens have so few images and orders that all of them can be tried.
    """
    sizes = (2, 3, 4)
    noise = torch.randn(sizes, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    joint = noise.flatten().softmax(0).view(sizes)
    for order in map(torch.tensor, permutations(range(3))):
        for image in map(torch.tensor, product(*map(range, sizes))):
            logs = implementation(joint, image, order)
            assert torch.allclose(logs.sum(), joint[tuple(image)].log())
            for t in range(3):
                later, changed = order[t + 1:], image.clone()
                changed[later] = ((image + 1) % torch.tensor(sizes))[later]
                assert torch.allclose(implementation(joint, changed, order)[:t + 1], logs[:t + 1])
