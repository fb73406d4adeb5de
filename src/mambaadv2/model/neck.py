"""Half feature pyramid: all encoder scales into one stride-32 map, the decoder's only input."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn


class ConvNorm(nn.Sequential):
    """Convolution without bias and BatchNorm."""

    def __init__(self, dim_in: int, dim_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(dim_in, dim_out, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(dim_out),
        )


class Bottleneck(nn.Module):
    """ResNet bottleneck (1x1, 3x3, 1x1, expansion 4)."""

    def __init__(self, dim_in: int, dim_out: int, stride: int) -> None:
        super().__init__()
        width = dim_out // 4
        self.reduce = ConvNorm(dim_in, width, 1)
        self.spatial = ConvNorm(width, width, 3, stride)
        self.restore = ConvNorm(width, dim_out, 1)
        self.shortcut = (
            ConvNorm(dim_in, dim_out, 1, stride) if stride > 1 or dim_in != dim_out else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C', h/stride, w/stride)."""
        y = F.relu(self.spatial(F.relu(self.reduce(x))))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu(self.restore(y) + shortcut)


class Neck(nn.Module):
    """f1 -> 3x3 s2 conv; add 1x1(f2); 3x3 s2 conv; add 1x1(f3); 1x1; three bottlenecks, first s2.

    Input: features (B, C_i, H/s_i, W/s_i), shallow to deep, each half the size of the one before.
    Output: (B, dim, H/32, W/32). Source: MambaAD's MFF and OCE as in RD4AD.
    """

    def __init__(self, channels: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(ConvNorm(c, c, 1) for c in channels[1:])
        self.downs = nn.ModuleList(ConvNorm(a, b, 3, 2) for a, b in itertools.pairwise(channels))
        self.merge = ConvNorm(channels[-1], channels[-1], 1)
        self.stage = nn.Sequential(
            Bottleneck(channels[-1], dim, 2), Bottleneck(dim, dim, 1), Bottleneck(dim, dim, 1)
        )

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Features, shallow to deep, to (B, dim, H/32, W/32)."""
        x = features[0]
        for down, lateral, feature in zip(self.downs, self.laterals, features[1:], strict=True):
            x = F.relu(down(x)) + F.relu(lateral(feature))
        y: Tensor = self.stage(F.relu(self.merge(x)))
        return y
