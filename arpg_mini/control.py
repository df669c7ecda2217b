"""Control: condition maps become part of the queries (paper §3.2).

The one idea: a query says where, and it can say more. A condition map, for example the edges of a
picture, gives one vector per token. That vector is added to the [MASK] embedding of the query at
that token. Keys, values, the cache and every property of decoding stay the same.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def edges(images: Tensor) -> Tensor:
    """(B, 3, height, width) in [-1, 1] -> (B, 1, height, width) in [0, 1]: the length of the Sobel
    gradient, in the channel where it is largest. 1 is an edge from black to white."""
    right = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=images.device) / 8
    kernels = torch.stack([right, right.T])[:, None].to(images.dtype)          # (2, 1, 3, 3)
    each = F.pad(images.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    slope = F.conv2d(each, kernels).square().sum(1).sqrt()                     # (B·3, …)
    return slope.view(images.shape).amax(1, keepdim=True).clamp(max=1)


class ControlAdapter(nn.Module):
    """Condition maps -> one vector per token, which is added to the [MASK] embedding.

    Convolutions halve the map until a pixel is a token, so a vector knows its own cell and a little
    around it. The last layer starts at zero, so a new adapter does not change a trained model.
    """

    def __init__(self, dim: int, stride: int):
        super().__init__()
        if stride & (stride - 1):
            raise ValueError(f"control_stride {stride}: must be a power of two")
        layers: list[nn.Module] = [nn.Conv2d(1, 32, 3, padding=1), nn.SiLU()]
        width = 32
        while stride > 1:
            layers += [nn.Conv2d(width, min(dim, 2 * width), 3, stride=2, padding=1), nn.SiLU()]
            width, stride = min(dim, 2 * width), stride // 2
        self.layers = nn.Sequential(*layers)
        self.out = nn.Conv2d(width, dim, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, 1, height, width) in [0, 1] -> (B, N, D). A map of -1 means no map: zeros."""
        given = (maps[:, 0, :1, :1] >= 0).to(maps.dtype)                       # (B, 1, 1)
        return self.out(self.layers(maps)).flatten(2).transpose(1, 2) * given


def hints(model: nn.Module, control: Tensor | None, batch: int,
          grid: tuple[int, int]) -> Tensor | None:
    """The vectors that an ARPG computes from condition maps: (B, N, D), or None without maps."""
    if control is None:
        return None
    if model.control is None:
        raise ValueError("control: this model was not trained with condition maps")
    sides = tuple(g * model.config.control_stride for g in grid)
    if control.ndim != 4 or len(control) not in (1, batch) or control.shape[1:] != (1, *sides):
        raise ValueError(f"control {tuple(control.shape)}: must be {(batch, 1, *sides)}")
    weight = model.embedding.weight
    return model.control(control.to(weight.device, weight.dtype)).expand(batch, -1, -1)
