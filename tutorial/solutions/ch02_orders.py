"""Chapter 2, any order: one way to solve the exercises."""

from collections.abc import Callable
from itertools import permutations, product

import torch
from torch import Tensor


def log_conditionals(joint: Tensor, image: Tensor, order: Tensor) -> Tensor:
    """Apply the chain rule along an order: ln p(x[order[t]] | x[order[0]], …, x[order[t-1]]).

    p(known) is the sum over all images that agree with the known tokens: fix the known axes and sum
    over the others. A conditional is the quotient of two such sums. The first has one more token.
    """
    where = [slice(None)] * joint.ndim
    totals = [joint.sum()]
    for position in order.tolist():
        where[position] = image[position].item()
        totals.append(joint[tuple(where)].sum())
    return torch.stack(totals).log().diff()


def to_raster(content: Tensor, orders: Tensor) -> Tensor:
    """Put tokens from the order in which they were generated back into raster order."""
    raster = torch.empty_like(content)
    raster[torch.arange(len(orders))[:, None], orders] = content
    return raster


def inputs_and_targets(tokens: Tensor, class_ids: Tensor, orders: Tensor) -> tuple[Tensor, Tensor]:
    """Make the inputs and targets of a causal model, along each sample's own order."""
    targets = tokens.gather(1, orders)
    return torch.cat([class_ids[:, None], targets[:, :-1]], dim=1), targets


def check_any_order(implementation: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Test a property of `log_conditionals`: raise AssertionError unless it holds.

    With three tokens there are so few images and orders that all of them can be tried.
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
