"""Chapter 1, images as ids: one way to solve the exercises."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F


def nearest_ids(features: Tensor, rows: Tensor) -> Tensor:
    """Find, for each feature vector, the number of the codebook row with the largest cosine.

    Only the rows must be normalised. To normalise a feature would multiply all its products by one
    factor, so the largest would stay the largest.
    """
    return (features @ F.normalize(rows, dim=-1).T).argmax(dim=-1)


def straight_through(features: Tensor, codes: Tensor) -> Tensor:
    """Return the value of the codes, but let the gradient go to the features."""
    return features + (codes - features).detach()


def usage(ids: Tensor, size: int) -> tuple[float, float]:
    """Measure how much of a codebook is in use: the share of rows that occur, and the perplexity.
    """
    counts = ids.flatten().bincount(minlength=size).double()
    entropy = torch.special.entr(counts / counts.sum()).sum()               # entr(0) is 0
    return (counts > 0).double().mean().item(), entropy.exp().item()


def check_round_trip(quantizer: type) -> None:
    """Test a property: raise AssertionError unless ids survive the round trip through their codes.

    The coordinates are small whole numbers. So rows of very different lengths are likely, and so
    are rows that are opposites. Every id is tried, in a tensor with two axes.
    """
    @settings(max_examples=50, deadline=None, database=None)
    @given(st.lists(st.tuples(*[st.integers(-3, 3)] * 2).filter(any), min_size=2, max_size=7))
    def holds(points):
        unit = F.normalize(torch.tensor(points, dtype=torch.float64), dim=-1)
        different = [i for i in range(len(points)) if (unit[:i] @ unit[i] < 0.999).all()]
        rows = torch.tensor([points[i] for i in different], dtype=torch.float64)
        quantized = quantizer(rows)
        ids = torch.arange(len(rows)).flip(0).repeat(3, 1)                  # (3, V)
        codes = quantized.lookup(ids)
        assert torch.allclose(codes.norm(dim=-1), torch.ones(ids.shape, dtype=codes.dtype))
        assert torch.equal(quantized.nearest(codes), ids)

    holds()
