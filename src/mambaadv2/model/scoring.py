"""From residuals to anomaly maps: the paper's cosine, or the residual whitened by its covariance.

Cosine (MambaAD): sum over scales of bilinear(1 - cos(feature, reconstruction)).

Whitened (our choice): what a decoder fails to rebuild on *normal* images has a covariance, by
class. A residual r is scored by sqrt((r - mean)' inverse(covariance) (r - mean) / C), which is 1
for a typical normal residual. Scales differ in how far normal images stray, so each scale's map is
put on its own: 0 is the mean of normal images, 1 the mean of their maxima, z = max(0, .); and the
scales are joined by sqrt(mean z^2). Everything is closed-form, from held-out normal images. No
label is given at test, so the class is found from the encoder's own features: the nearest class
centre of the pooled deepest map.

Maps are smoothed by a Gaussian of sigma pixels; the image's score is the maximum of its map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Features = tuple[Tensor, ...]

RIDGE = 0.01  # of the mean variance, on the diagonal
SHRINK_IMAGES = 4.0  # the pooled covariance weighs as much as this many images of the class


def class_descriptor(features: Features) -> Tensor:
    """Mean and deviation of every channel of the deepest map: (B, 2C) float32."""
    deepest = features[-1].float()
    deviation, mean = torch.std_mean(deepest, dim=(2, 3), correction=0)
    return torch.cat((mean, deviation), dim=1)


@dataclass(frozen=True, slots=True)
class ResidualMoments:
    """Sums over one image and one scale that whitening needs, and nothing else is kept.

    count: positions; total: (C,) sum of residuals; products: (C, C) sum of outer products; float64.
    """

    count: int
    total: Tensor
    products: Tensor

    @classmethod
    def of(cls, residual: Tensor) -> ResidualMoments:
        """Moments of a residual map (C, h, w)."""
        rows = residual.flatten(1).T.double()
        return cls(len(rows), rows.sum(dim=0), rows.T @ rows)

    @classmethod
    def sum(cls, parts: Sequence[ResidualMoments]) -> ResidualMoments:
        """Moments of several maps together."""
        return cls(
            sum(p.count for p in parts),
            torch.stack([p.total for p in parts]).sum(dim=0),
            torch.stack([p.products for p in parts]).sum(dim=0),
        )

    def without(self, part: ResidualMoments) -> ResidualMoments:
        """What is left when one of the summed maps is taken out again."""
        return ResidualMoments(
            self.count - part.count, self.total - part.total, self.products - part.products
        )

    @property
    def mean(self) -> Tensor:
        """(C,) mean residual."""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """(C, C) covariance."""
        return self.products / self.count - torch.outer(self.mean, self.mean)


def whitening(moments: ResidualMoments, images: int, pooled: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (C,) and whitening matrix W (C, C) with W' W = inverse covariance, of a class.

    moments: of its `images` images together. The covariance is drawn towards `pooled` (C, C), the
    mean over classes, by SHRINK_IMAGES / (images + SHRINK_IMAGES), and gets a small ridge.
    """
    share = SHRINK_IMAGES / (images + SHRINK_IMAGES)
    covariance = (1 - share) * moments.covariance + share * pooled
    ridge = RIDGE * covariance.diagonal().mean().clamp(min=1e-12)
    covariance = covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype)
    values, vectors = torch.linalg.eigh(covariance)
    return moments.mean.float(), (vectors / values.sqrt()).T.float().contiguous()


class Scorer(nn.Module):
    """Residuals to smoothed maps (B, H, W) float32, in the units of the chosen score.

    Buffers (all float32, saved with the model): class centres and scale of the descriptor, and for
    the whitened score per feature scale the means (classes, C), the whitening matrices
    (classes, C, C), and the map's mean and mean maximum on normal images (classes, scales).
    """

    centres: Tensor
    descriptor_scale: Tensor
    floor: Tensor
    peak: Tensor

    def __init__(
        self, kind: str, channels: Sequence[int], classes: int, sigma: float, size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.kind, self.sigma, self.size, self.classes = kind, sigma, size, classes
        self.scales = len(channels)
        descriptor = 2 * channels[-1]
        self.register_buffer("centres", torch.zeros(classes, descriptor))
        self.register_buffer("descriptor_scale", torch.ones(descriptor))
        if kind == "whitened":
            self.register_buffer("floor", torch.zeros(classes, self.scales))
            self.register_buffer("peak", torch.ones(classes, self.scales))
            for i, c in enumerate(channels):
                self.register_buffer(f"mean_{i}", torch.zeros(classes, c))
                self.register_buffer(f"whiten_{i}", torch.eye(c).repeat(classes, 1, 1))

    def fit_classes(self, descriptors: Sequence[Tensor]) -> None:
        """Set class centres from the descriptors (n, 2C) of each class's normal images."""
        centres = torch.stack([d.double().mean(dim=0) for d in descriptors])
        within = torch.cat([d.double() - c for d, c in zip(descriptors, centres, strict=True)])
        deviation = within.square().mean(dim=0).sqrt()
        floor = 0.05 * deviation.mean() + 1e-6  # a channel that never varies must not decide
        self.centres.copy_(centres.float())
        self.descriptor_scale.copy_((deviation + floor).float())

    def fit_whitening(self, index: int, scale: int, mean: Tensor, whiten: Tensor) -> None:
        """Set one class's mean and whitening matrix at one feature scale."""
        self.get_buffer(f"mean_{scale}")[index].copy_(mean)
        self.get_buffer(f"whiten_{scale}")[index].copy_(whiten)

    def fit_range(self, index: int, floor: Tensor, peak: Tensor) -> None:
        """Set one class's mean and mean maximum (scales,) of the smoothed maps of normal images."""
        self.floor[index].copy_(floor)
        self.peak[index].copy_(torch.maximum(peak, floor + 1e-6))

    def find_class(self, features: Features) -> Tensor:
        """Index (B,) of the class whose centre is nearest to each image."""
        descriptor = class_descriptor(features) / self.descriptor_scale
        return torch.cdist(descriptor, self.centres / self.descriptor_scale).argmin(dim=1)

    def forward(self, features: Features, rebuilt: Features, classes: Tensor) -> Tensor:
        """Maps (B, H, W) from features and reconstructions (B, C_i, h_i, w_i), classes (B,)."""
        return self.join(self.scale_maps(features, rebuilt, classes), classes)

    def scale_maps(self, features: Features, rebuilt: Features, classes: Tensor) -> Tensor:
        """Smoothed maps of each scale (B, scales, H, W), before they are joined."""
        levels = [
            self._cosine(f, r) if self.kind == "cosine" else self._whitened(i, f, r, classes)
            for i, (f, r) in enumerate(zip(features, rebuilt, strict=True))
        ]
        resized = [
            F.interpolate(level, size=self.size, mode="bilinear", align_corners=False)
            for level in levels
        ]
        return gaussian_smooth(torch.cat(resized, dim=1), self.sigma)

    def join(self, maps: Tensor, classes: Tensor) -> Tensor:
        """Scale maps (B, scales, H, W) to one map (B, H, W)."""
        if self.kind == "cosine":
            return maps.sum(dim=1)
        floor, peak = self.floor[classes], self.peak[classes]
        z = (maps - floor[:, :, None, None]) / (peak - floor)[:, :, None, None]
        return z.clamp(min=0).square().mean(dim=1).sqrt()

    @staticmethod
    def _cosine(feature: Tensor, rebuilt: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(feature, rebuilt.float(), dim=1).unsqueeze(1)

    def _whitened(self, scale: int, feature: Tensor, rebuilt: Tensor, classes: Tensor) -> Tensor:
        b, _, h, w = feature.shape
        mean = self.get_buffer(f"mean_{scale}")[classes]
        whiten = self.get_buffer(f"whiten_{scale}")[classes]
        residual = (feature - rebuilt.float()).flatten(2) - mean.unsqueeze(2)
        return torch.bmm(whiten, residual).square().mean(dim=1).sqrt().view(b, 1, h, w)


def gaussian_smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian of `sigma` pixels on maps (B, M, H, W), cut at 4 sigma, mirrored at the border."""
    if sigma == 0:
        return maps
    radius = min(int(4 * sigma + 0.5), min(maps.shape[-2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = kernel / kernel.sum()
    single = maps.flatten(0, 1).unsqueeze(1)
    padded = F.pad(single, (radius, radius, radius, radius), mode="reflect")
    rows = F.conv2d(padded, kernel.view(1, 1, 1, -1))
    smooth = F.conv2d(rows, kernel.view(1, 1, -1, 1))
    return smooth.view(maps.shape)
