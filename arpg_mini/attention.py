"""Attention where queries say *where* and keys and values say *what*.

The one idea: a position enters only as a rotation. The key of a content token is rotated to the
token's real position, and a query is rotated to the position it asks about. So their product
depends on the displacement between the two positions and not on the order in which tokens arrived.
One set of keys and values can therefore answer queries about any position, many at a time.

Letters, here and in every other file: B batch, N tokens of an image, S slots of the content
sequence (the class slot, then tokens), M queries of one step, D model width, H heads,
K = D / H head width, V vocabulary, C classes.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
LARGE = 2**18                                   # from so many weights on, oneDNN is faster
FEW = 64 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 0  # rows; see `Linear`


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def rotary_table(grid: tuple[int, int], head_dim: int, base: float = 10000.0,
                 device: torch.device | str = "cpu", dtype: torch.dtype = torch.complex128,
                 positions: str = "extrapolate", trained: tuple[int, int] | None = None) -> Tensor:
    """The rotations cos a + i sin a of every raster position of a grid, and of the class slot.

    A position has K/2 angles. The first half are proportional to its row, the second half to its
    column, with K/4 frequencies base^(-2i/(K/2)) each (paper §3.1, 2-D RoPE).

    A grid s times as long as the `trained` one has distances that training never saw. `positions`
    says how to treat them: "extrapolate" keeps the frequencies; "interpolate" divides all of them
    by s, so almost all angles are known; "ntk" divides the lowest by s and the highest by 1, so
    the distance between neighbours stays the same.

    Returns (N + 1, K/2) complex. Calls share the tensor, so never write to it. Row N is the class
    slot: it is *zero*, so the key and the query of the class are zero vectors, and every query
    scores the class 0 whatever its content. That is not a rotation, but the released weights were
    trained so. A class key at a fixed place would show absolute positions; a zero key shows none.
    So a query knows only displacements between tokens, not where the border of the picture is.
    """
    height, width = grid
    frequencies = base ** (-torch.arange(0, head_dim // 2, 2, dtype=torch.float64)
                           / (head_dim // 2))
    share = {"extrapolate": 0.0, "interpolate": 1.0,
             "ntk": torch.linspace(0, 1, len(frequencies), dtype=torch.float64)}[positions]
    rows, columns = (                                                          # (h or w, K/4)
        torch.arange(n, dtype=torch.float64)[:, None] * frequencies * max(1, n / usual)**-share
        for n, usual in zip(grid, trained or grid))
    angles = torch.cat([rows[:, None].expand(-1, width, -1),
                        columns[None].expand(height, -1, -1)], dim=-1)         # (h, w, K/2)
    table = torch.polar(torch.ones_like(angles), angles).flatten(0, 1)         # (N, K/2)
    return torch.cat([table, torch.zeros_like(table[:1])]).to(device, dtype)   # (N + 1, K/2)


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotate each pair (a, b) of neighbouring features to (a cos - b sin, b cos + a sin).

    That is the product of a + ib and cos + i sin.
    x: (B, S, H, K). rotary: (B, S, K/2) complex, rows of `rotary_table`. Leading sizes may
    broadcast: one unrotated query becomes one query per position.
    Half precision is rotated in float32 and cast back.
    """
    wide = x.to(rotary.real.dtype).unflatten(-1, (-1, 2))                      # (B, S, H, K/2, 2)
    if torch.compiler.is_compiling():           # it has no complex numbers, but fuses this
        cos, sin = torch.view_as_real(rotary)[:, :, None].unbind(-1)           # (B, S, 1, K/2)
        a, b = wide.unbind(-1)                                                 # (B, S, H, K/2)
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(wide) * rotary[:, :, None])
    return turned.flatten(-2).to(x.dtype)                                      # (B, S, H, K)


class Linear(nn.Linear):
    """x @ weight.T, without a bias.

    Decoding multiplies few rows by a matrix. For large float32 matrices on a CPU, oneDNN is faster
    than what `F.linear` calls; for small ones it is slower. With AVX-512 and fewer than `FEW` rows,
    (W @ x.T).T takes 0.5 to 0.9 of oneDNN's time. The result is then transposed in memory, so a
    caller that splits it must first make it contiguous.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        if (ONEDNN and w.numel() >= LARGE and x.dtype == w.dtype == torch.float32
                and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
                and not torch.is_grad_enabled() and not torch.compiler.is_compiling()):
            if x.numel() < FEW * x.shape[-1]:
                return (w @ x.flatten(0, -2).T).T.unflatten(0, x.shape[:-1])
            return torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")
        return F.linear(x, w)


class RMSNorm(nn.Module):
    """x / rms(x) · gain over the last axis, in at least float32. A GPU does all of it in one
    kernel; on a CPU it is faster to cast back before the gain."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return F.rms_norm(x, self.gain.shape, self.gain.to(x.dtype), self.eps)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.rms_norm(wide, self.gain.shape, eps=self.eps).to(x.dtype) * self.gain


class Cache:
    """Keys and values of everything encoded so far: one pair per content layer, one shared pair.

    The memory is allocated once for all slots of a decode. The function `append` writes the slots
    in place, in order and once each, and no slot is read before it is written. Every layer of a
    step writes the same slots; then `ARPG.read` calls `advance`, once per step.

    On a CPU, a new cache reuses the memory of the last released one if the shapes are equal,
    because allocating memory takes longer than filling it.
    """

    spare: Tensor | None = None

    @torch.inference_mode(False)
    def __init__(self, layers: int, batch: int, heads: int, slots: int, head_dim: int,
                 dtype: torch.dtype | None = None, device: torch.device | str = "cpu"):
        shape, spare, Cache.spare = (layers, 2, batch, heads, slots, head_dim), Cache.spare, None
        fits = spare is not None and (spare.shape, spare.dtype, spare.device) == (
            shape, dtype or torch.get_default_dtype(), torch.device(device))
        self.pairs = spare if fits else torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    def release(self) -> None:
        """At the end of a decode: neither the memory nor what `append` returned is read again."""
        if self.pairs.device.type == "cpu":             # on CUDA, PyTorch itself reuses memory
            Cache.spare = self.pairs

    def layer(self, i: int) -> tuple[Tensor, int]:
        """The keys and values of one layer, (2, B, H, slots, K), and how many slots are filled."""
        return self.pairs[i], self.length

    def advance(self, slots: int) -> None:
        self.length += slots


def append(pair: Tensor, length: int | Tensor, keys: Tensor,
           values: Tensor) -> tuple[Tensor, Tensor]:
    """Write (B, H, s, K) keys and values after the `length` filled slots of one layer, or at the
    (B, s) slots `length`, and return all keys and values of the layer so far."""
    if isinstance(length, Tensor):              # exact decoding, see `exact.GuessCache`
        at = length[:, None, :, None].expand_as(keys)
        return pair[0].scatter_(2, at, keys), pair[1].scatter_(2, at, values)
    end = length + keys.shape[2]
    if torch.compiler.is_compiling():           # it would copy the whole cache for two writes
        pair[:, :, :, length:end] = torch.stack([keys, values])
    else:
        pair[0, :, :, length:end], pair[1, :, :, length:end] = keys, values
    return pair[0, :, :, :end], pair[1, :, :, :end]


class ContentAttention(nn.Module):
    """Self-attention among content tokens, each rotated to its real position."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim)
        self.out = Linear(dim, dim)

    def forward(self, x: Tensor, rotary: Tensor, mask: Tensor | None = None, causal: bool = False,
                past: tuple[Tensor, int | Tensor] | None = None) -> Tensor:
        """x: (B, S, D), rotary: (B, S, K/2) -> (B, S, D).

        `mask` (S, S) says which slots (columns) each slot (row) attends to. `causal` means the
        lower triangle. With neither, all slots see each other. `past` is a layer of a `Cache`: if L
        of its slots are filled, there are L + S keys, and the mask is (S, L + S), or one for each
        sample, (B, 1, S, L + S).
        """
        qkv = self.qkv(x).contiguous().unflatten(-1, (3 * self.heads, -1))     # (B, S, 3H, K)
        qk, v = qkv.split((2 * self.heads, self.heads), dim=2)
        q, k = rotate(qk, rotary).transpose(1, 2).chunk(2, dim=1)              # (B, H, S, K) each
        v = v.transpose(1, 2)                                                  # (B, H, S, K)
        if past is not None:
            k, v = append(*past, k, v)                                         # (B, H, L + S, K)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.out(x.transpose(1, 2).flatten(2))                          # (B, S, D)


class QueryAttention(nn.Module):
    """Cross-attention from target positions to the shared keys and values. Queries never see each
    other."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = Linear(dim, dim)
        self.out = Linear(dim, dim)

    def forward(self, x: Tensor, rotary: Tensor, keys: Tensor, values: Tensor,
                causal: bool = False, mask: Tensor | None = None) -> Tensor:
        """x: (B, M, D) or (1, 1, D), rotary: (B, M, K/2), keys, values: (B, H, S, K) -> (B, M, D).

        `causal`: query t sees slots 0..t (in training, where M = S). `mask` (B, 1, M, S) says which
        slots each query sees. With neither, it sees all slots.
        """
        q = self.q(x).contiguous().unflatten(-1, (self.heads, -1))             # (B, M, H, K)
        q = rotate(q, rotary)
        x = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=mask,
                                           is_causal=causal)
        return self.out(x.transpose(1, 2).flatten(2))                          # (B, M, D)
