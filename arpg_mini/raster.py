"""What one would run otherwise: a decoder-only transformer, one token a step, row by row.

The one idea: built of ARPG's own content blocks, as many and as wide as ARPG has of both kinds, so
that whatever differs in speed and memory is the order of decoding and nothing else. Each of its
layers has keys and values of its own, where ARPG's query layers share one pair.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from .attention import Cache, ContentAttention, Linear, RMSNorm, rotary_table
from .config import ModelConfig
from .decoding import Settings, position_noise, sample
from .model import Block


class Raster(nn.Module):
    """The sizes of a `ModelConfig`; `raster_steps` draws images from it."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = c = config
        self.embedding = nn.Embedding(c.vocab_size + c.num_classes + 1, c.dim)
        self.blocks = nn.ModuleList(Block(c, ContentAttention)
                                    for _ in range(c.content_layers + c.query_layers))
        self.norm = RMSNorm(c.dim)
        self.head = Linear(c.dim, c.vocab_size)

    def forward(self, ids: Tensor, where: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (B, 1, V) of the token behind the last one given.

        ids: (B, S) rows of the embedding table. where: (1, S, K/2), their rotary rows. With a
        cache S is 1, and what it holds stands before.
        """
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
    """Yields the (B, N) raster ids so far, -1 where there is none yet, after each of N steps.

    labels: (B,) classes. guidance, seeds: as in `decoding.decode`. Without `cached`, every step
    computes all tokens before it anew.
    """
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
