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
    residuals = {name: _moments(network, source) for name, source in held.items()}
    pooled = _pooled(residuals)
    if scorer.kind == "whitened":
        for index, parts in enumerate(residuals.values()):
            _fit_class(scorer, index, parts, pooled)
    scores: dict[str, list[float]] = {}
    samples: dict[str, list[NDArray[np.float32]]] = {}
    for index, (name, source) in enumerate(held.items()):
        scores[name], samples[name] = [], []
        for i in range(len(source)):
            if scorer.kind == "whitened" and len(source) > 1:
                others = residuals[name][:i] + residuals[name][i + 1 :]
                _fit_class(scorer, index, others, pooled)
            scaled = network.scaled(_to(source.batch([i]), device))
            label = torch.tensor([index], device=device)
            values = scorer(scaled, network.reconstruct(scaled), label)[0].cpu().numpy()
            scores[name].append(float(values.max()))
            if i < COLOUR_IMAGES:
                samples[name].append(values)
        if scorer.kind == "whitened":
            _fit_class(scorer, index, residuals[name], pooled)
    calibrated = calibrate_classes(scores)
    relative = [v / calibrated[name].threshold for name, maps in samples.items() for v in maps]
    return HeldOut(calibrated, colour_scale(relative))


def _to(features: Sequence[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    return tuple(f.to(device) for f in features)


def _batches(source: Source) -> list[list[int]]:
    positions = list(range(len(source)))
    return [positions[i : i + BATCH] for i in range(0, len(positions), BATCH)]


def _descriptors(source: Source) -> Tensor:
    return torch.cat([class_descriptor(source.batch(b)) for b in _batches(source)])


def _moments(network: Network, source: Source) -> list[list[ResidualMoments]]:
    """Residual moments per image and scale."""
    device = network.feature_scale.device
    parts: list[list[ResidualMoments]] = []
    for positions in _batches(source):
        scaled = network.scaled(_to(source.batch(positions), device))
        residuals = [
            f - r.float() for f, r in zip(scaled, network.reconstruct(scaled), strict=True)
        ]
        for i in range(len(positions)):
            parts.append([ResidualMoments.of(residual[i].cpu()) for residual in residuals])
    return parts


def _pooled(residuals: Mapping[str, list[list[ResidualMoments]]]) -> list[Tensor]:
    """Per scale the mean over classes of the within-class covariance."""
    scales = len(next(iter(residuals.values()))[0])
    return [
        torch.stack(
            [ResidualMoments.sum([p[s] for p in parts]).covariance for parts in residuals.values()]
        ).mean(dim=0)
        for s in range(scales)
    ]


def _fit_class(
    scorer: Scorer, index: int, parts: Sequence[Sequence[ResidualMoments]], pooled: Sequence[Tensor]
) -> None:
    for scale, covariance in enumerate(pooled):
        mean, matrix = whitening([p[scale] for p in parts], covariance)
        scorer.fit_whitening(index, scale, mean, matrix)
