"""Image ↔ ids: a convolutional encoder, a codebook, a convolutional decoder (VQ-GAN's backbone).

The one idea: replace every feature vector by the nearest of V codebook rows, and keep only the
number of that row. Both sides are l2-normalised first, so "nearest" means the largest cosine. The
choice has no gradient. The straight-through estimator therefore passes the decoder's gradient to
the encoder as if nothing had been rounded, and two losses pull row and feature together.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import TokenizerConfig


def to_device(images: np.ndarray, device: torch.device) -> Tensor:
    """(n, height, width, 3) uint8 -> (n, 3, height, width) in [-1, 1]."""
    return (torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float()
            / 127.5 - 1)


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class PixelNorm(nn.Module):
    """RMS norm over the channels of each pixel: (B, channels, height, width) -> the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6) * self.gain


class ResidualBlock(nn.Module):
    """Twice norm, swish and convolution, added to a skip (a 1×1 convolution if the width changes).

    With `local`, pixels do not mix: convolutions are 1×1 and norms are per pixel.
    """

    def __init__(self, inputs: int, outputs: int, local: bool = False):
        super().__init__()
        norm, kernel = (PixelNorm, 1) if local else (group_norm, 3)
        self.norm1, self.conv1 = (norm(inputs),
                                  nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))
        self.norm2, self.conv2 = (norm(outputs),
                                  nn.Conv2d(outputs, outputs, kernel, padding=kernel // 2))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))


class SpatialAttention(nn.Module):
    """One-head self-attention over all positions of a feature map, residual."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.q, self.k, self.v, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (f(y).flatten(2).transpose(1, 2)[:, None] for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)[:, 0]                      # (B, h·w, channels)
        return x + self.out(y.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Stride-2 convolution, padded on the right and bottom only, as in the released weights."""

    def __init__(self, channels: int, local: bool):
        super().__init__()
        self.padding = "replicate" if local else "constant"
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1), self.padding))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def middle(channels: int) -> list[nn.Module]:
    return [ResidualBlock(channels, channels), SpatialAttention(channels),
            ResidualBlock(channels, channels)]


def encoder(config: TokenizerConfig) -> nn.Sequential:
    """(B, 3, height, width) -> (B, latent, h, w), with attention at the last level and after it."""
    local, widths = config.local_encoder, [config.channels * m for m in config.multipliers]
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1,
                                         padding_mode="replicate" if local else "zeros")]
    width = widths[0]
    for i, outputs in enumerate(widths):
        last = i == len(widths) - 1
        for _ in range(config.encoder_blocks):
            layers.append(ResidualBlock(width, outputs, local))
            width = outputs
            if last and not local:
                layers.append(SpatialAttention(width))
        if not last:
            layers.append(Downsample(width, local))
    if local:
        return nn.Sequential(*layers, PixelNorm(width), nn.SiLU(),
                             nn.Conv2d(width, config.latent_channels, 1))
    return nn.Sequential(*layers, *middle(width), group_norm(width), nn.SiLU(),
                         nn.Conv2d(width, config.latent_channels, 3, padding=1))


def decoder(config: TokenizerConfig) -> nn.Sequential:
    """(B, latent, h, w) -> (B, 3, height, width): the mirrored encoder."""
    widths = [config.channels * m for m in reversed(config.multipliers)]
    width = widths[0]
    layers = [nn.Conv2d(config.latent_channels, width, 3, padding=1), *middle(width)]
    for i, outputs in enumerate(widths):
        for _ in range(config.decoder_blocks):
            layers.append(ResidualBlock(width, outputs))
            width = outputs
            if i == 0:
                layers.append(SpatialAttention(width))
        if i < len(widths) - 1:
            layers.append(Upsample(width))
    return nn.Sequential(*layers, group_norm(width), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))


class Codebook(nn.Module):
    """V rows, normalised when used, and for each a count of the batches since its last use."""

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.rows = nn.Parameter(F.normalize(torch.randn(size, dim), dim=-1))
        self.register_buffer("idle", torch.zeros(size, dtype=torch.long))  # batches since last use

    def lookup(self, ids: Tensor) -> Tensor:
        """(...) ids -> (..., dim) unit rows."""
        return F.normalize(F.embedding(ids, self.rows), dim=-1)

    def nearest(self, features: Tensor) -> Tensor:
        """(..., dim) unit vectors -> (...) ids of the rows with the largest cosine.

        On the unit sphere ‖f - e‖² = 2 - 2 f·e, so the largest cosine is the smallest distance.
        """
        return (features @ F.normalize(self.rows, dim=-1).T).argmax(dim=-1)

    @torch.no_grad()
    def fit(self, features: Tensor, generator: torch.Generator, rounds: int = 10) -> None:
        """Set the rows to the centres of a spherical k-means on (n, dim) features.

        The first centres are far apart (k-means++: a feature becomes the next centre with a
        probability proportional to its squared distance from the nearest centre).
        """
        centres = features[:1].clone()
        distance = torch.full((len(features),), 4.0, device=features.device)
        for _ in range(len(self.rows) - 1):
            distance = torch.minimum(distance, (2 - 2 * features @ centres[-1]).clamp(min=0))
            odds = (distance + 1e-9).cpu()
            pick = torch.multinomial(odds, 1, generator=generator).to(features.device)
            centres = torch.cat([centres, features[pick]])
        self.rows.copy_(centres)
        for _ in range(rounds):
            ids = self.nearest(features)
            sums = torch.zeros_like(self.rows).index_add_(0, ids, features)
            empty = sums.square().sum(-1, keepdim=True) == 0
            self.rows.copy_(torch.where(empty, self.rows, F.normalize(sums, dim=-1)))
        self.idle.zero_()

    @torch.no_grad()
    def revive(self, features: Tensor, ids: Tensor, patience: int,
               generator: torch.Generator) -> int:
        """Move rows that no feature chose in `patience` batches onto features of this batch.

        A row that is never the nearest gets no gradient, so it stays unused unless it is moved.
        features: (n, dim), ids: (n,). Returns how many rows were moved.
        """
        self.idle += 1
        self.idle[ids] = 0
        dead = (self.idle >= patience).nonzero()[:, 0]
        picks = torch.randint(len(features), (len(dead),), generator=generator)
        self.rows[dead] = features[picks.to(features.device)]
        self.idle[dead] = 0
        return len(dead)


class VQTokenizer(nn.Module):
    """`encode` and `decode` between pixels in [-1, 1] and ids; `forward` for training."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = encoder(config), decoder(config)
        self.to_code = nn.Conv2d(config.latent_channels, config.code_dim, 1)
        self.from_code = nn.Conv2d(config.code_dim, config.latent_channels, 1)
        self.codebook = Codebook(config.codebook_size, config.code_dim)

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, height, width) -> (B, h, w, code_dim) on the unit sphere."""
        height, width = images.shape[-2:]
        if height % self.config.stride or width % self.config.stride:
            raise ValueError(f"an image of {height}×{width} pixels: both sides must be multiples "
                             f"of the tokenizer's stride, {self.config.stride}")
        return F.normalize(self.to_code(self.encoder(images)).permute(0, 2, 3, 1), dim=-1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        """(B, h, w, code_dim) -> (B, 3, height, width), not clamped."""
        return self.decoder(self.from_code(codes.permute(0, 3, 1, 2)))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, height, width) in [-1, 1] -> (B, h, w) ids; sides are multiples of the stride."""
        return self.codebook.nearest(self.features(images))

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """(B, h, w) ids -> (B, 3, height, width), clamped to [-1, 1]."""
        codes = self.codebook.lookup(ids).split(32)     # one of 256×256 takes 0.13 GB
        return torch.cat([self.reconstruct(part) for part in codes]).clamp_(-1, 1)

    def forward(self, images: Tensor, quantize: bool = True):
        """Returns pictures, losses by name, features (n, code_dim) and ids (n,), n = B · h · w.

        Without `quantize` this is a plain autoencoder on the unit sphere. A short warm-up of that
        kind gives features that distinguish pictures; then the codebook is fitted to them. Without
        the warm-up, features stay near the first rows they meet, and never learn what those rows
        do not distinguish (colour, for example).
        """
        features = self.features(images)                                       # (B, h, w, code_dim)
        ids = self.codebook.nearest(features.detach())                         # (B, h, w)
        codes = self.codebook.lookup(ids)
        straight_through = features + (codes - features).detach()
        images_out = self.reconstruct(straight_through if quantize else features)
        losses = {
            "reconstruction": F.mse_loss(images_out, images) + F.l1_loss(images_out, images),
            "codebook": (codes - features.detach()).square().sum(-1).mean(),
            "commitment": (self.config.commitment
                           * (features - codes.detach()).square().sum(-1).mean()),
        }
        return images_out, losses, features.detach().flatten(0, 2), ids.flatten()
