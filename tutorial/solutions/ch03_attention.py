"""Chapter 3, where and what: one way to solve the exercises."""

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor


def rotary_angles(grid: tuple[int, int], head_dim: int, base: float = 10000.0) -> Tensor:
    height, width = grid
    i = torch.arange(head_dim // 4, dtype=torch.float64)
    frequencies = base ** (-2 * i / (head_dim // 2))                           # (K/4,)
    position = torch.arange(height * width)
    row, column = position // width, position % width                          # (N,) each
    return torch.cat([row[:, None] * frequencies, column[:, None] * frequencies], dim=1)


def rotate(x: Tensor, where: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos[where][:, :, None], sin[where][:, :, None]                  # (B, S, 1, K/2)
    a, b = x[..., 0::2], x[..., 1::2]                                          # (B, S, H, K/2)
    turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1)       # (B, S, H, K/2, 2)
    return turned.flatten(-2)                                                  # (B, S, H, K)


def query_attention(mask: Tensor, content: Tensor, targets: Tensor, places: Tensor, cos: Tensor,
                    sin: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_out: Tensor,
                    heads: int) -> Tensor:
    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1))                                    # (…, H, K)

    query = split(mask @ w_q.T).expand(*targets.shape, -1, -1)                 # (B, M, H, K)
    query = rotate(query, targets, cos, sin).transpose(1, 2)                   # (B, H, M, K)
    key = rotate(split(content @ w_k.T), places, cos, sin).transpose(1, 2)     # (B, H, S, K)
    value = split(content @ w_v.T).transpose(1, 2)                             # (B, H, S, K)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5            # (B, H, M, S)
    answer = scores.softmax(dim=-1) @ value                                    # (B, H, M, K)
    return answer.transpose(1, 2).flatten(2) @ w_out.T                         # (B, M, D)


def check_displacement(score: Callable) -> None:
    query, key = torch.randn(2, 8, generator=torch.Generator().manual_seed(11),
                             dtype=torch.float64)
    places = list(product(range(6), range(9)))
    known: dict[tuple[int, int], float] = {}                     # displacement -> score
    for at_query, at_key in product(places, places):
        step = at_key[0] - at_query[0], at_key[1] - at_query[1]
        got = score(query, key, at_query, at_key)
        first = known.setdefault(step, got)
        assert abs(got - first) <= 1e-9, \
            f"displacement {step} scores {got:.4g} from {at_query}, elsewhere {first:.4g}"
    ranked = sorted(known, key=known.get)                        # equal scores are neighbours here
    for one, other in zip(ranked, ranked[1:]):
        assert known[other] - known[one] > 1e-9, f"displacements {one} and {other} score alike"
