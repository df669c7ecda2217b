"""Chapter 6: steering. Solutions."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def guide(logits: Tensor, guidance: float, schedule: str, sizes: Sequence[int],
          step: int) -> Tensor:
    """By Bayes' rule p(c|x) is proportional to p(x|c) / p(x). So the logarithm of
    p(x|c) · p(c|x)^(s-1) is c + (c - u)(s - 1) = u + (c - u)s, up to a constant."""
    c, u = logits.chunk(2)                                                  # (B, M, V) each
    s = guidance
    if schedule == "linear":
        s = 1 + (guidance - 1) * sum(sizes[:step + 1]) / sum(sizes)
    return u + (c - u) * s


def top_p(logits: Tensor, p: float) -> Tensor:
    """An id stays if the total of the likelier ids is below p."""
    ranked, ids = logits.sort(dim=-1, descending=True)                      # (..., V)
    probabilities = ranked.softmax(-1)
    likelier = probabilities.cumsum(-1) - probabilities
    cut = torch.zeros_like(likelier, dtype=torch.bool).scatter(-1, ids, likelier >= p)
    return logits.masked_fill(cut, -torch.inf)


def check_guidance(implementation: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """Assert the four things for fifty pairs of random logits."""
    def close(a: Tensor, b: Tensor) -> bool:
        return torch.allclose(a.softmax(-1), b.softmax(-1), rtol=0, atol=1e-9)

    scales = [0.0, 0.4, 1.0, 1.7, 3.0, 5.0]
    for seed in range(50):
        g = torch.Generator().manual_seed(seed)
        c, u = 2 * torch.randn(2, 2 + seed % 5, generator=g, dtype=torch.float64)
        assert close(implementation(c, u, 1.0), c), "s = 1 is not the conditional model"
        assert close(implementation(c, u, 0.0), u), "s = 0 is not the unconditional model"
        for s in scales:
            guided = implementation(c, u, s)
            for constant in (-3.0, 5.0):
                assert close(implementation(c + constant, u, s), guided), "c + constant differs"
                assert close(implementation(c, u + constant, s), guided), "u + constant differs"
        favoured, before = (c - u).argmax(), None
        for s in scales:
            guided = implementation(c, u, s)
            odds = guided[favoured] - guided                                # (V,) log odds
            assert before is None or (odds >= before - 1e-9).all(), "a larger s lowers the odds"
            before = odds


def agreement(joint: Tensor) -> Tensor:
    """The distribution of each token is a sum over the other token."""
    first, second = joint.sum(2), joint.sum(1)                              # (B, V) each
    return (first * second).sum(1)
