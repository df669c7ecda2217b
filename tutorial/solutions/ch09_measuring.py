"""Solutions of chapter 9."""

import re
from collections.abc import Callable

import torch
from torch import Tensor

TABLE = {"attention_norm.gain": ["attn_norm.weight"],
         "attention.qkv.weight": ["attn.to_q.weight", "attn.to_k.weight", "attn.to_v.weight"],
         "attention.out.weight": ["attn.proj.weight"],
         "ffn_norm.gain": ["ffn_norm.weight"],
         "ffn.w13.weight": ["ffn.w1.weight", "ffn.w3.weight"],
         "ffn.w2.weight": ["ffn.w2.weight"]}


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """|m - m'|² + tr(C) + tr(C') - 2 tr((C C')^½).

    C C' is not symmetric, but it has the same eigenvalues as C^½ C' C^½, which is symmetric. The
    sum of their square roots is the trace.
    """
    features, others = features.double(), others.double()
    apart = features.mean(0) - others.mean(0)
    covariance, other = (torch.cov(x.T).reshape(x.shape[1], -1) for x in (features, others))
    values, vectors = torch.linalg.eigh(covariance)
    half = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(half @ other @ half).clamp(min=0).sqrt().sum()
    return float(apart @ apart + covariance.trace() + other.trace() - 2 * cross)


def rename(state: dict[str, Tensor], back: bool = False) -> dict[str, Tensor]:
    """Apply the table once for every block number that occurs."""
    pattern = r"content\.(\d+)\." if back else r"layers\.self_dec\.(\d+)\."
    left, renamed = dict(state), {}
    for i in dict.fromkeys(m[1] for name in state if (m := re.match(pattern, name))):
        for ours, theirs in TABLE.items():
            whole, parts = f"content.{i}.{ours}", [f"layers.self_dec.{i}.{t}" for t in theirs]
            if back and whole in left:
                renamed |= zip(parts, left.pop(whole).chunk(len(parts)))
            elif not back and parts[0] in left:
                renamed[whole] = torch.cat([left.pop(part) for part in parts])
    if left:
        raise KeyError(f"no place for {', '.join(left)}")
    return renamed


def check_distance(distance: Callable[[Tensor, Tensor], float]) -> None:
    """Five properties, on sets of different sizes, centres and shapes."""
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, dtype=torch.float64, generator=g)
        x = normal(9, 3) @ normal(3, 3) + normal(3)
        y = normal(14, 3) @ normal(3, 3) + normal(3)
        t, turn = 2 * normal(3), torch.linalg.qr(normal(3, 3)).Q
        far = distance(x, y)
        assert abs(distance(x, x)) < 1e-6, "distance from itself"
        assert abs(distance(y, x) - far) < 1e-6, "sets exchanged"
        assert abs(distance(x @ turn, y @ turn) - far) < 1e-6, "both turned"
        assert abs(distance(x + t, y + t) - far) < 1e-6, "both shifted"
        for step in (t, 2 * t):
            assert abs(distance(x, x + step) - float(step @ step)) < 1e-6, "one shifted"


def standard_error(first: Tensor, second: Tensor) -> float:
    """The standard error of the mean of the paired differences."""
    apart = first.double() - second.double()
    return float(apart.std() / len(apart) ** 0.5)
