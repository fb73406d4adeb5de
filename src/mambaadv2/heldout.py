"""What held-out normal images tell: the scorer's statistics, the thresholds, the colour scale.

Nothing here sees a test image or a defect. Whitening and threshold come from the same images, so
each image is scored with statistics of the *others* of its class (leave one out); scored with its
own share in them, it would look better than the next good part will.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambaadv2.calibrate import ClassCalibration, ColourScale, calibrate_classes, colour_scale
from mambaadv2.data.features import Source
from mambaadv2.model.network import Network
from mambaadv2.model.scoring import ResidualMoments, Scorer, class_descriptor, whitening

BATCH = 16
COLOUR_IMAGES = 16  # per class: enough for a quantile over pixels, little memory

Moments = list[list[ResidualMoments]]
"""By image, then by scale."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What was learned from held-out images: per class thresholds and one colour scale."""

    classes: Mapping[str, ClassCalibration]
    colours: ColourScale


@torch.no_grad()
def fit_on_heldout(
    network: Network, scorer: Scorer, held: Mapping[str, Source], train: Mapping[str, Source]
) -> HeldOut:
    """Fit `scorer` in place and calibrate.

    held, train: class name to features of its held-out and its training images, in the order of the
    scorer's classes. Class centres use all training images; everything else the held-out ones.
    """
    network.eval()
    device = network.feature_scale.device
    scorer.fit_classes([_descriptors(source) for source in train.values()])
    whitened = scorer.kind == "whitened"
    residuals = {name: _moments(network, source) for name, source in held.items() if whitened}
    pooled = _pooled(residuals)
    scores: dict[str, list[float]] = {}
    samples: dict[str, list[NDArray[np.float32]]] = {}
    for index, (name, source) in enumerate(held.items()):
        maps = _maps_without_self(network, scorer, index, source, residuals.get(name, []), pooled)
        label = torch.tensor([index], device=device)
        scores[name], samples[name] = [], []
        for i in range(len(maps)):
            _fit_range(scorer, index, [m for j, m in enumerate(maps) if j != i] or maps)
            joined = scorer.join(maps[i].unsqueeze(0), label)[0].cpu().numpy()
            scores[name].append(float(joined.max()))
            if i < COLOUR_IMAGES:
                samples[name].append(joined)
        _fit_range(scorer, index, maps)
    calibrated = calibrate_classes(scores)
    relative = [v / calibrated[name].threshold for name, maps in samples.items() for v in maps]
    return HeldOut(calibrated, colour_scale(relative))


def _maps_without_self(
    network: Network,
    scorer: Scorer,
    index: int,
    source: Source,
    own: Moments,
    pooled: Sequence[Tensor],
) -> list[Tensor]:
    """Scale maps (scales, H, W) of a class's held-out images, each whitened by the others.

    Leaves the scorer with the whitening of all of them.
    """
    device = network.feature_scale.device
    label = torch.tensor([index], device=device)
    maps: list[Tensor] = []
    for i in range(len(source)):
        if scorer.kind == "whitened":
            others = own[:i] + own[i + 1 :] or own  # a class of one image has only itself
            _fit_whitening(scorer, index, others, _exchanged(pooled, own, others, scorer.classes))
        scaled = network.scaled(_to(source.batch([i]), device))
        maps.append(scorer.scale_maps(scaled, network.reconstruct(scaled), label)[0])
    if scorer.kind == "whitened":
        _fit_whitening(scorer, index, own, pooled)
    return maps


def _fit_range(scorer: Scorer, index: int, maps: Sequence[Tensor]) -> None:
    if scorer.kind == "whitened":
        floor = torch.stack([m.mean(dim=(1, 2)) for m in maps]).mean(dim=0)
        peak = torch.stack([m.amax(dim=(1, 2)) for m in maps]).mean(dim=0)
        scorer.fit_range(index, floor, peak)


def _to(features: Sequence[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    return tuple(f.to(device) for f in features)


def _batches(source: Source) -> list[list[int]]:
    positions = list(range(len(source)))
    return [positions[i : i + BATCH] for i in range(0, len(positions), BATCH)]


def _descriptors(source: Source) -> Tensor:
    return torch.cat([class_descriptor(source.batch(b)) for b in _batches(source)])


def _moments(network: Network, source: Source) -> Moments:
    """Residual moments of every image."""
    device = network.feature_scale.device
    parts: Moments = []
    for positions in _batches(source):
        scaled = network.scaled(_to(source.batch(positions), device))
        residuals = [
            f - r.float() for f, r in zip(scaled, network.reconstruct(scaled), strict=True)
        ]
        for i in range(len(positions)):
            parts.append([ResidualMoments.of(residual[i].cpu()) for residual in residuals])
    return parts


def _covariance(parts: Moments, scale: int) -> Tensor:
    return ResidualMoments.sum([part[scale] for part in parts]).covariance


def _pooled(residuals: Mapping[str, Moments]) -> list[Tensor]:
    """Per scale the mean over classes of the within-class covariance."""
    classes = list(residuals.values())
    scales = len(classes[0][0]) if classes else 0
    return [torch.stack([_covariance(c, s) for c in classes]).mean(dim=0) for s in range(scales)]


def _exchanged(
    pooled: Sequence[Tensor], own: Moments, others: Moments, classes: int
) -> list[Tensor]:
    """`pooled` with `others` in the place of a class's `own` images."""
    return [
        p + (_covariance(others, s) - _covariance(own, s)) / classes for s, p in enumerate(pooled)
    ]


def _fit_whitening(scorer: Scorer, index: int, parts: Moments, pooled: Sequence[Tensor]) -> None:
    for scale, covariance in enumerate(pooled):
        mean, matrix = whitening([p[scale] for p in parts], covariance)
        scorer.fit_whitening(index, scale, mean, matrix)
