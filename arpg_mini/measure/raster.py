"""The model to compare with: a decoder-only transformer, one token per step, row by row.

The one idea: it has as many of ARPG's content blocks as ARPG has blocks. So speed and memory differ
only by the way of decoding. Each of its layers has its own keys and values.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..attention import Cache, ContentAttention, Linear, RMSNorm, rotary_table
from ..config import ModelConfig
from ..model import Block
from ..sampling import Settings, position_noise, sample


class Raster(nn.Module):
    """A model with the sizes of a `ModelConfig`. `raster_steps` draws images with it."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = c = config
        self.embedding = nn.Embedding(c.vocab_size + c.num_classes + 1, c.dim)
        self.blocks = nn.ModuleList(Block(c, ContentAttention)
                                    for _ in range(c.content_layers + c.query_layers))
        self.norm = RMSNorm(c.dim)
        self.head = Linear(c.dim, c.vocab_size)

    def forward(self, ids: Tensor, where: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (B, 1, V) of the token after the last given one. ids: (B, S) rows of the embedding
        table. where: (1, S, K/2), their rotary rows. With a cache S is 1."""
        x = self.embedding(ids)                                                # (B, S, D)
        for layer, block in enumerate(self.blocks):
            past = None if cache is None else cache.layer(layer)
            x = block(x, where, causal=cache is None, past=past)
        if cache is not None:
            cache.advance(ids.shape[1])
        return self.head(self.norm(x[:, -1:]))


@torch.no_grad()
def raster_steps(model: Raster, labels: Tensor, seeds: Sequence[int], guidance: float = 4.0,
                 cached: bool = True) -> Iterator[Tensor]:
    """After each of N steps, yield the (B, N) raster ids so far, -1 where there is none yet.
    labels: (B,). Without `cached`, every step computes all earlier tokens again."""
    c, device = model.config, model.embedding.weight.device
    (height, width), batch = c.grid, len(labels)
    n, how = height * width, Settings(guidance=guidance)
    dtype = torch.complex128 if model.head.weight.dtype == torch.float64 else torch.complex64
    table = rotary_table(c.grid, c.head_dim, c.rope_base, device, dtype).roll(1, 0)[None]
    labels = labels.to(device)
    if guidance != 1:
        labels = torch.cat([labels, torch.full_like(labels, c.num_classes)])
    cache = Cache(len(model.blocks), len(labels), c.heads, n, c.head_dim, device=device,
                  dtype=model.head.weight.dtype) if cached else None
    noise, tokens = position_noise(seeds, n).to(device), torch.full((batch, n), -1, device=device)
    content = torch.empty(len(labels), n + 1, dtype=torch.long, device=device)
    content[:, 0] = c.vocab_size + labels                       # then the tokens: (rows, N + 1)
    for t in range(n):
        first = t if cached else 0
        logits = model(content[:, first:t + 1], table[:, first:t + 1], cache)
        tokens[:, t:t + 1] = sample(logits, noise[:, t:t + 1], (t + 1) / n, how)
        content[:, t + 1] = tokens[:, t].repeat(len(labels) // batch)
        yield tokens
    if cache is not None:
        cache.release()
