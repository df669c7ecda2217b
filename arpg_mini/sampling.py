"""From logits to ids: guidance, temperature, top-k, top-p, and the draw itself.

The one idea: noise belongs to a sample and a position, never to a step. A sample's seed gives one
uniform number per raster position, and the token there is the inverse CDF of its distribution at
that number. So an image is a function of (weights, class, seed, settings) and of nothing else.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .config import GUIDANCE_SCHEDULES, ORDERS, POSITIONS, SCHEDULES, WITHIN_STEP
from .orders import NOISE

MOST_GUIDANCE = 1e4                         # larger values would overflow float32 logits


@dataclass(frozen=True)
class Settings:
    """How to decode: the keyword arguments of `decode`. ValueError names a value that is wrong."""

    steps: int | Sequence[int] | None = 64  # T, at most the number of unknown positions; or the T
                                     # sizes; None: one token a step
    schedule: str = "arccos"         # or "cosine", "constant": see `step_sizes`
    guidance: float = 4.0            # see `guide`; 1 needs no second half of the batch
    guidance_schedule: str = "linear"  # or "constant"
    temperature: float = 1.0         # these three: see `filter_logits`
    top_k: int = 0
    top_p: float = 1.0
    orders: Tensor | str | None = None  # (N,) or (B, N) positions, or one of `ORDERS`; None: random
    known: Tensor | None = None      # (N,) or (B, N) raster ids that stay fixed, -1 where unknown
    grid: tuple[int, int] | None = None  # (h, w) if not the trained one
    within_step: str = "block"       # tokens of a step see each other when encoded; or "causal"
    positions: str = "extrapolate"   # on another grid: see `attention.rotary_table`
    control: Tensor | None = None    # (1 or B, 1, height, width) condition maps: see `control.py`
    against: Tensor | None = None    # (B,) classes that guidance leads away from; None: no class

    def __post_init__(self):
        named = [("orders", ORDERS)] if isinstance(self.orders, str) else []
        for name, allowed in (("schedule", SCHEDULES), ("guidance_schedule", GUIDANCE_SCHEDULES),
                              ("within_step", WITHIN_STEP), ("positions", POSITIONS), *named):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r}: must be one of "
                                 f"{', '.join(allowed)}")
        if not abs(self.guidance) <= MOST_GUIDANCE:
            raise ValueError(f"guidance {self.guidance}: must be a number of at most "
                             f"{MOST_GUIDANCE:g}")
        if self.temperature != 0 and not 1e-4 <= self.temperature < math.inf:
            raise ValueError(f"temperature {self.temperature}: must be 0, or 0.0001 or more")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k}: must be 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p}: must be above 0 and at most 1 (all)")


def position_noise(seeds: Sequence[int], n: int) -> Tensor:
    """(B, n) float64 in [0, 1): for each seed one uniform number per raster position."""
    return torch.from_numpy(np.stack([np.random.default_rng([NOISE, s]).random(n) for s in seeds]))


def guide(logits: Tensor, guidance: float, schedule: str, share_done: float | Tensor) -> Tensor:
    """Classifier-free guidance: conditional half c and unconditional half u -> u + (c - u)·s.

    logits (or hidden vectors): (2B, M, V), conditional rows first -> (B, M, V). "linear" raises s
    from 1 to `guidance` with `share_done`, the share decoded when this step is over.
    """
    c, u = logits.to(torch.promote_types(logits.dtype, torch.float32)).chunk(2)
    s = guidance if schedule == "constant" else 1 + (guidance - 1) * share_done
    return (u + (c - u) * s).to(logits.dtype)


def filter_logits(logits: Tensor, temperature: float = 1.0, top_k: int = 0,
                  top_p: float = 1.0) -> Tensor:
    """(..., V) logits divided by the temperature, with all but the likely ids at -inf.

    top_k keeps the k largest and all that equal the smallest of them; 0 keeps all. top_p keeps the
    likeliest ids until their total reaches p, including the id that crosses it. Temperature 0 keeps
    only the largest and its equals.
    """
    if temperature == 0:
        top_k, temperature = 1, 1.0
    logits = logits if temperature == 1 else logits / temperature
    if 0 < top_k < logits.shape[-1]:
        smallest_kept = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
    if top_p < 1:
        ranked, ids = logits.sort(dim=-1, descending=True)
        probabilities = ranked.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities                   # total of likelier ids
        cut = torch.zeros_like(before, dtype=torch.bool).scatter(-1, ids, before >= top_p)
        logits = logits.masked_fill(cut, -torch.inf)
    return logits


def inverse_cdf(logits: Tensor, noise: Tensor) -> Tensor:
    """Ids distributed as softmax(logits), from uniform numbers.

    logits: (..., V), -inf for impossible ids. noise: (...) in [0, 1). Returns the (...) ids i with
    P(id < i) <= noise < P(id <= i).
    """
    rows = logits.reshape(-1, logits.shape[-1])
    at_once = 32 if rows.device.type == "cpu" else max(1, len(rows))    # a CPU's cache holds 32
    drawn = [in_two_levels(*part) for part in zip(rows.split(at_once),
                                                  noise.reshape(-1, 1).split(at_once))]
    return torch.cat(drawn).view(noise.shape)


def in_two_levels(rows: Tensor, noise: Tensor) -> Tensor:
    """(R, V) logits, (R, 1) noise -> (R, 1) ids. One float32 sum over V = 16384 ids would add up
    its rounding errors, and most GPUs are slow in float64. So many ids are cut into √V blocks of √V
    ids. Only the sums of the blocks, and then the ids of one block, are added in float64."""
    weights, v = (rows - rows.amax(-1, keepdim=True)).exp_(), rows.shape[-1]    # (R, V)
    if v <= 1024:
        sums = weights.double().cumsum_(-1)
        return first_above(sums, noise.to(sums) * sums[:, -1:])
    size = math.isqrt(v - 1) + 1
    blocks = F.pad(weights, (0, -v % size)).unflatten(-1, (-1, size))       # (R, V / size, size)
    sums = blocks.sum(-1).double().cumsum_(-1)                              # (R, V / size)
    at = noise.to(sums) * sums[:, -1:]
    block = first_above(sums, at)                                           # (R, 1)
    inner = blocks.gather(1, block[..., None].expand(-1, -1, size))[:, 0]   # (R, size)
    before = F.pad(sums, (1, 0)).gather(1, block)                           # of earlier blocks
    return block * size + first_above(inner.double().cumsum_(-1), at - before)


def first_above(sums: Tensor, at: Tensor) -> Tensor:
    """(R, n) running sums, (R, 1) numbers -> (R, 1) the first index whose sum is above the number.
    Rounding must not lift the number to the last sum."""
    return torch.searchsorted(sums, torch.minimum(at, sums[:, -1:] * (1 - 2**-52)), right=True)


def sample(logits: Tensor, noise: Tensor, share_done: float, settings: Settings) -> Tensor:
    """(B or 2B, M, V) logits of a step's targets, and their (B, M) noise -> (B, M) ids. (`decode`
    guides before the head, so its logits are already (B, M, V).)"""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if len(logits) != len(noise):
        logits = guide(logits, settings.guidance, settings.guidance_schedule, share_done)
    return inverse_cdf(
        filter_logits(logits, settings.temperature, settings.top_k, settings.top_p), noise)
