"""ARPG: a content pass reads tokens, a query pass predicts tokens (paper §3.1, figure 3).

The one idea: split a causal transformer in two. The first half, the content pass, reads the class
and the known tokens and ends in *one* set of keys and values. The second half, the query pass,
holds only queries. Each starts as the [MASK] embedding, and every layer rotates its projection to
the position it asks about. Queries do not see each other, so any number can be asked at once.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .attention import (
    Cache,
    ContentAttention,
    Linear,
    QueryAttention,
    RMSNorm,
    append,
    rotary_table,
    rotate,
)
from .config import ModelConfig
from .control import ControlAdapter


class FeedForward(nn.Module):
    """w2(silu(w1 x) · w3 x), with w1 and w3 in one product."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.w13 = Linear(dim, 2 * hidden)
        self.w2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w13(x).chunk(2, dim=-1)
        return self.w2(F.silu(gate) * value)


class Block(nn.Module):
    """Pre-norm residual block around either kind of attention."""

    recompute = False       # in training, keep only the input and compute the rest a second time

    def __init__(self, config: ModelConfig, attention: type[nn.Module]):
        super().__init__()
        self.attention_norm = RMSNorm(config.dim)
        self.attention = attention(config.dim, config.heads)
        self.ffn_norm = RMSNorm(config.dim)
        self.ffn = FeedForward(config.dim, config.ffn_hidden)

    def forward(self, x: Tensor, *where, **how) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.compute, x, *where, use_reentrant=False, **how)
        return self.compute(x, *where, **how)

    def compute(self, x: Tensor, *where, dropout: float = 0.0, **how) -> Tensor:
        x = x + F.dropout(self.attention(self.attention_norm(x), *where, **how), dropout)
        return x + F.dropout(self.ffn(self.ffn_norm(x)), dropout)


class ChunkedCrossEntropy(torch.autograd.Function):
    """The sum of cross-entropies of `hidden @ weight.T`, at most `rows` rows of logits at a time.

    The gradient of a row's loss is softmax - one-hot. It is known together with the row's logits,
    so the forward pass computes both gradients, and the backward pass only scales them.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, rows: int) -> Tensor:
        needs_gradient, kind = any(ctx.needs_input_grad), hidden.device.type
        if torch.is_autocast_enabled(kind):     # cast once, not in every chunk
            hidden, weight = (x.to(torch.get_autocast_dtype(kind)) for x in (hidden, weight))
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32),
                            device=hidden.device)
        d_hidden = torch.empty_like(hidden) if needs_gradient else None
        d_weight = torch.zeros_like(weight, dtype=total.dtype) if needs_gradient else None
        for start in range(0, len(hidden), rows):
            h, t = hidden[start:start + rows], targets[start:start + rows, None]
            logits = F.linear(h, weight).to(total.dtype)                       # (rows, V)
            norms = logits.logsumexp(-1, keepdim=True)                         # (rows, 1)
            total += (norms - logits.gather(1, t)).sum()
            if needs_gradient:
                p = logits.sub_(norms).exp_().scatter_add_(1, t, -torch.ones_like(norms))
                p = p.to(weight.dtype)
                d_hidden[start:start + rows] = p @ weight
                d_weight += p.T @ h
        if needs_gradient:
            ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    def backward(ctx, d_total: Tensor):
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * d_total, d_weight * d_total, None, None       # autograd casts them back


class ARPG(nn.Module):
    """The model. `ModelConfig` gives its sizes; `decoding.decode` draws images with it.

    Causality and dropout are arguments of `read` and `ask`. Only `forward` looks at `training`, and
    only for dropout. So decoding is the same in either mode.
    """

    run_steps = None        # `run/replay.py` may put its recorder in place of decoding.run_steps

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        c = config
        # V ids, [MASK], C classes, no class, and one unused row, as in the released weights.
        self.embedding = nn.Embedding(c.vocab_size + c.num_classes + 3, c.dim)
        self.content = nn.ModuleList(Block(c, ContentAttention) for _ in range(c.content_layers))
        self.kv_norm = RMSNorm(c.dim)
        self.kv = Linear(c.dim, 2 * c.dim)
        self.query = nn.ModuleList(Block(c, QueryAttention) for _ in range(c.query_layers))
        self.norm = RMSNorm(c.dim)
        self.head = Linear(c.dim, c.vocab_size)
        self.control = ControlAdapter(c.dim, c.control_stride) if c.control_stride else None
        self.mask_id = c.vocab_size
        self.null_label = c.num_classes
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with std 0.02 for every matrix. The head is zero, so the first loss is ln V. (The
        last layer of a control is zero as well.)"""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.head.weight)

    def rotary(self, grid: tuple[int, int], positions: str = "extrapolate") -> Tensor:
        """The rotary table (N + 1, K/2) of a grid; complex64, or complex128 for float64 weights."""
        weight = self.embedding.weight
        dtype = torch.complex128 if weight.dtype == torch.float64 else torch.complex64
        return rotary_table(grid, self.config.head_dim, self.config.rope_base, weight.device, dtype,
                            positions, self.config.grid)

    def class_ids(self, labels: Tensor) -> Tensor:
        """(B,) classes, or `null_label` for none -> (B, 1) rows of the embedding table."""
        return (self.config.vocab_size + 1 + labels)[:, None]

    def read(self, ids: Tensor, where: Tensor, mask: Tensor | None = None, causal: bool = False,
             cache: Cache | None = None, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """The content pass: encode slots, return the keys and values that all query layers share.

        ids: (B, S) rows of the embedding table. where: (B, S, K/2), their rotary rows.
        Returns keys (rotated) and values, each (B, H, S, K); with L cached slots (B, H, L + S, K).
        """
        x = F.dropout(self.embedding(ids), dropout)                            # (B, S, D)
        for layer, block in enumerate(self.content):
            past = None if cache is None else cache.layer(layer)
            x = block(x, where, mask=mask, causal=causal, past=past, dropout=dropout)
        kv = self.kv(self.kv_norm(x)).contiguous().unflatten(-1, (2, self.config.heads, -1))
        k, v = kv.unbind(2)                                                    # (B, S, H, K)
        k, v = rotate(k, where).transpose(1, 2), v.transpose(1, 2)             # (B, H, S, K)
        if cache is not None:
            k, v = append(*cache.layer(len(self.content)), k, v)
            cache.advance(ids.shape[1])
        return k, v

    def ask(self, where: Tensor, keys: Tensor, values: Tensor, causal: bool = False,
            dropout: float = 0.0, hints: Tensor | None = None,
            mask: Tensor | None = None) -> Tensor:
        """The query pass: one query per target position.

        where: (B, M, K/2), the targets' rotary rows. keys, values: (B, H, S, K).
        mask: (B, 1, M, S), the slots that each query sees, if not all.
        hints: (B, M, D), the control's vectors for the targets (see `control.py`).
        Returns (B, M, D), normed, ready for the head.

        Without hints, every query starts as the same vector. It enters as (1, 1, D), and the first
        layer projects it once. Its rotation to each target then makes one query per target.
        """
        x = self.embedding.weight[self.mask_id].view(1, 1, -1)
        x = x if hints is None else x + hints                                  # (B, M, D)
        for block in self.query:
            x = block(x, where, keys, values, causal=causal, dropout=dropout,
                      mask=mask)                                               # (B, M, D)
        return self.norm(x)

    def forward(self, tokens: Tensor, labels: Tensor, orders: Tensor, loss_rows: int = 0,
                control: Tensor | None = None) -> Tensor:
        """Teacher forcing: predict every token from the class and the tokens before it in `orders`.

        tokens: (B, N) raster ids. labels: (B,) classes or `null_label`.
        orders: (B, N) permutations.
        control: (B, 1, height, width) condition maps, if the model was built for them.
        Returns logits (B, N, V), at least float32; logits[:, t] predicts tokens[orders[:, t]].
        With `loss_rows` = r > 0 it returns the mean cross-entropy over all targets instead
        (equation 5), computed from r rows of logits at a time.
        """
        content = tokens.gather(1, orders)                                     # (B, N)
        ids = torch.cat([self.class_ids(labels), content[:, :-1]], dim=1)      # (B, S = N)
        class_slot = torch.full_like(orders[:, :1], orders.shape[1])           # (B, 1)
        slots = torch.cat([class_slot, orders[:, :-1]], dim=1)                 # (B, S)
        table = self.rotary(self.config.grid)                                  # (N + 1, K/2)
        dropout = self.config.dropout if self.training else 0.0
        keys, values = self.read(ids, table[slots], causal=True, dropout=dropout)
        hints = None if control is None else self.control(control).gather(     # (B, N, D)
            1, orders[..., None].expand(-1, -1, self.config.dim))
        x = self.ask(table[orders], keys, values, causal=True, dropout=dropout,
                     hints=hints)                                              # (B, N, D)
        if loss_rows:
            weight = self.head.weight if torch.is_grad_enabled() else self.head.weight.detach()
            total = ChunkedCrossEntropy.apply(x.flatten(0, 1), weight, content.flatten(), loss_rows)
            return total / content.numel()
        return self.head(x).to(torch.promote_types(x.dtype, torch.float32))
