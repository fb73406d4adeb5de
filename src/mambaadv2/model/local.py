"""Local branches: depth-wise convolutions with a frequency enhancement, and stochastic depth.

Frequency-enhanced convolution (MobileMamba, CVPR 2025): y = DW_k(x) + IDWT(s DW_k(DWT_haar(x))),
one level, s per channel, initially 0.1. With s = 0 it is MambaAD's depth-wise branch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaadv2.model.config import Frequency
from mambaadv2.model.fused import depthwise, norm_silu

FREQUENCY_SCALE = 0.1  # [lineage]


def haar_transform(x: Tensor) -> Tensor:
    """One orthonormal Haar level: (B, C, h, w) to (B, 4C, h/2, w/2), bands LL, LH, HL, HH.

    Odd sides are extended by their last row or column.
    """
    return haar_sums(x) * 0.5


def inverse_haar_transform(bands: Tensor, height: int, width: int) -> Tensor:
    """Inverse of `haar_transform`, cut to height x width."""
    return inverse_haar_sums(bands * 0.5, height, width)


def haar_sums(x: Tensor) -> Tensor:
    """Twice `haar_transform`: sums and differences alone."""
    if x.shape[-1] % 2 or x.shape[-2] % 2:
        x = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2), mode="replicate")
    # unbind, not slices: the gradient of a slice is a full map of zeros. Rows of channels stay
    # together in memory (channels last) from here to the inverse.
    rows = x.permute(0, 2, 3, 1)
    top, bottom = rows.unflatten(1, (-1, 2)).unbind(2)
    (a, b), (c, d) = (half.unflatten(2, (-1, 2)).unbind(3) for half in (top + bottom, top - bottom))
    return torch.cat((a + b, a - b, c + d, c - d), dim=-1).permute(0, 3, 1, 2)


def inverse_haar_sums(bands: Tensor, height: int, width: int) -> Tensor:
    """Twice `inverse_haar_transform`."""
    ll, lh, hl, hh = bands.permute(0, 2, 3, 1).chunk(4, dim=-1)
    sums = torch.stack((ll + lh, ll - lh), dim=3).flatten(2, 3)  # (B, h/2, w, C)
    differences = torch.stack((hl + hh, hl - hh), dim=3).flatten(2, 3)
    full = torch.stack((sums + differences, sums - differences), dim=2).flatten(1, 2)
    return full[:, :height, :width].permute(0, 3, 1, 2)


class DepthwiseConv(nn.Conv2d):
    """Depth-wise k x k convolution without bias, its channels scaled where a scale is given."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=False)

    def forward(self, input: Tensor, scale: Tensor | None = None) -> Tensor:
        """Map (B, C, h, w) to one of the same shape; scale (C,)."""
        weight = self.weight if scale is None else self.weight * scale.view(-1, 1, 1, 1)
        return depthwise(input, weight)


class FrequencyConv(nn.Module):
    """Depth-wise k x k convolution plus a second path through a frequency transform."""

    def __init__(
        self, dim: int, kernel: int, frequency: Frequency, band_kernel: int | None = None
    ) -> None:
        super().__init__()
        self.frequency = frequency
        # No biases here and in the branch: the InstanceNorm behind each takes them out again.
        self.conv = DepthwiseConv(dim, kernel)
        if frequency == "wavelet":
            self.band_conv = DepthwiseConv(4 * dim, band_kernel or kernel)
            self.scale = nn.Parameter(torch.full((4 * dim,), FREQUENCY_SCALE))
        elif frequency == "fft":
            # A complex gain on a k x k grid of frequencies, resampled to any size (our choice).
            self.gain = nn.Parameter(torch.zeros(2, dim, kernel, kernel))
            self.scale = nn.Parameter(torch.full((dim,), FREQUENCY_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to one of the same shape."""
        y: Tensor = self.conv(x)
        if self.frequency == "wavelet":
            # The weights are scaled, not the maps: s and the transforms' halves cost no pass then.
            bands = self.band_conv(haar_sums(x), 0.25 * self.scale)
            y = y + inverse_haar_sums(bands, *x.shape[-2:])
        elif self.frequency == "fft":
            y = y + self._filtered(x)
        return y

    def _filtered(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        spectrum = torch.fft.rfft2(x.float(), norm="ortho")
        size = spectrum.shape[-2:]
        gain = F.interpolate(self.gain, size=size, mode="bilinear", align_corners=False)
        shaped = spectrum * torch.complex(1.0 + gain[0], gain[1])
        y = torch.fft.irfft2(shaped, s=(h, w), norm="ortho").to(x.dtype)
        filtered: Tensor = y * self.scale.view(1, -1, 1, 1)
        return filtered


class LocalBranch(nn.Module):
    """F_k = CB(1x1) -> frequency-enhanced depth-wise k x k -> IN + SiLU -> CB(1x1).

    CB is convolution, InstanceNorm, SiLU (MambaAD). Maps (B, C, h, w) to (B, C, h, w).
    """

    def __init__(
        self, dim: int, kernel: int, frequency: Frequency, band_kernel: int | None = None
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(dim, dim, 1, bias=False)
        self.spatial = FrequencyConv(dim, kernel, frequency, band_kernel)
        self.last = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to one of the same shape."""
        x = norm_silu(self.first(x))
        x = norm_silu(self.spatial(x))
        return norm_silu(self.last(x))


class DropPath(nn.Module):
    """Stochastic depth: drop a residual branch per sample with probability `rate` in training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """The branch, kept or dropped per sample; batch first."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        shape = (x.shape[0], *([1] * (x.dim() - 1)))
        return x * x.new_empty(shape).bernoulli_(keep).div_(keep)
