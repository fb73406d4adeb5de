"""What held-out normal images tell: the scorer's statistics, the thresholds, the colour scale.

Nothing here sees a test image or a defect. Whitening and threshold come from the same images, so
each image is scored with statistics of the *others* of its class (leave one out); scored with its
own share in them, it would look better than the next good part will. The next part is scored with
the statistics of all of them, so this is the plain jackknife: what is promised of conformal
thresholds holds as far as one image hardly changes the statistics, and is proved for the cosine
score only, which has none (`calibrate.crossed` has the rule that is proved, at n times the cost).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambaadv2.calibrate import (
    ClassCalibration,
    ColourScale,
    calibrate_classes,
    colour_scale,
    needed_images,
)
from mambaadv2.data.features import Source
from mambaadv2.model.network import Network
from mambaadv2.model.scoring import ResidualMoments, Scorer, class_descriptor, whitening

BATCH = 16
FEW = 10  # held-out images behind a threshold
COLOUR_IMAGES = 16  # per class: enough for a quantile over pixels, little memory

Moments = list[ResidualMoments]
"""By scale, of some images together."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What was learned from held-out images: per class thresholds and one colour scale.

    scores: raw image scores by class, each image scored by the others' statistics.
    """

    classes: Mapping[str, ClassCalibration]
    colours: ColourScale
    scores: Mapping[str, Sequence[float]]


@torch.no_grad()
def fit_on_heldout(
    network: Network,
    scorer: Scorer,
    held: Mapping[str, Source],
    train: Mapping[str, Source],
    *,
    tick: Callable[[], object] = lambda: None,
) -> HeldOut:
    """Fit `scorer` in place and calibrate.

    held, train: class name to features of its held-out and its training images, in the order of the
    scorer's classes. Class centres use all training images; everything else the held-out ones.
    tick: called between batches and images; what it raises ends the work.
    """
    network.eval()
    scorer.fit_classes([_descriptors(source, tick) for source in train.values()])
    whitened = scorer.kind == "whitened"
    totals = {name: _moments(network, source, tick) for name, source in held.items() if whitened}
    pooled = _pooled(totals)
    scores: dict[str, list[float]] = {}
    samples: dict[str, list[NDArray[np.float32]]] = {}
    for index, (name, source) in enumerate(held.items()):
        total = totals.get(name, [])
        maps = _maps_without_self(network, scorer, index, source, total, pooled, tick)
        label = torch.tensor([index], device=maps[0].device)
        floors = torch.stack([m.mean(dim=(1, 2)) for m in maps]).double()
        peaks = torch.stack([m.amax(dim=(1, 2)) for m in maps]).double()
        scores[name], samples[name] = [], []
        for i in range(len(maps)):
            if whitened:
                scorer.fit_range(index, _mean_of_others(floors, i), _mean_of_others(peaks, i))
            joined = scorer.join(maps[i].unsqueeze(0), label)[0].cpu().numpy()
            scores[name].append(float(joined.max()))
            if i < COLOUR_IMAGES:
                samples[name].append(joined)
        if whitened:
            scorer.fit_range(index, floors.mean(dim=0), peaks.mean(dim=0))
    calibrated = calibrate_classes(scores, leave_one_out=whitened)
    relative = [v / calibrated[name].threshold for name, maps in samples.items() for v in maps]
    return HeldOut(calibrated, colour_scale(relative), scores)


def threshold_words(found: HeldOut, files: Mapping[str, Sequence[Path]]) -> Iterator[str]:
    """What people should know about the thresholds, a line each.

    files: by class the held-out images, in the order of the scores.
    """
    for name, calibrated in found.classes.items():
        middle = float(np.median(found.scores[name]))
        for i in calibrated.trimmed:
            yield (
                f"{files[name][i]}: looks mislabelled, its score is "
                f"{found.scores[name][i] / middle:.1f} times the median of the held-out images of "
                f"{name}; the threshold leaves it out. Look at it, in suspects.png too: if it "
                "shows a defect, remove it and train again"
            )
    short = {name: c for name, c in found.classes.items() if c.kind == "assumed"}
    if short:
        counts = ", ".join(f"{name} ({c.kept})" for name, c in short.items())
        one = next(iter(short.values()))
        needed = needed_images(one.rate, confidence=one.confidence)
        yield (
            f"{100 * one.rate:g} % of false alarms is assumed and not guaranteed where fewer than "
            f"{needed} good images are held out: {counts}"
        )
    few = {name: c.images for name, c in found.classes.items() if c.images < FEW}
    if few:
        counts = ", ".join(f"{name} ({count})" for name, count in few.items())
        yield (
            f"thresholds that rest on fewer than {FEW} held-out images are guesses, mostly too "
            f"cautious: {counts}; more good images make them better"
        )


def _maps_without_self(
    network: Network,
    scorer: Scorer,
    index: int,
    source: Source,
    total: Moments,
    pooled: Sequence[Tensor],
    tick: Callable[[], object],
) -> list[Tensor]:
    """Scale maps (scales, H, W) of a class's held-out images, each whitened by the others.

    total: moments per scale of all of them. Leaves the scorer with the whitening of all of them.
    """
    device, count = network.feature_scale.device, len(source)
    label = torch.tensor([index], device=device)
    maps: list[Tensor] = []
    for i in range(count):
        tick()
        scaled = network.scaled(_to(source.batch([i]), device))
        rebuilt = network.reconstruct(scaled)
        for scale, moments in enumerate(total):
            mine = ResidualMoments.of((scaled[scale] - rebuilt[scale].float())[0].cpu())
            # A class of one image has only itself.
            others = moments.without(mine) if count > 1 else moments
            # The pooled covariance must not know the image either.
            change = (others.covariance - moments.covariance) / scorer.classes
            fitted = whitening(others, max(1, count - 1), pooled[scale] + change)
            scorer.fit_whitening(index, scale, *fitted)
        maps.append(scorer.scale_maps(scaled, rebuilt, label)[0])
    for scale, moments in enumerate(total):
        scorer.fit_whitening(index, scale, *whitening(moments, count, pooled[scale]))
    return maps


def _mean_of_others(values: Tensor, i: int) -> Tensor:
    """Mean over the first axis of all rows but the i-th; the row itself where it is alone."""
    count = len(values)
    return (values.sum(dim=0) - values[i]) / (count - 1) if count > 1 else values[i]


def _to(features: Sequence[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    return tuple(f.to(device) for f in features)


def _batches(source: Source) -> list[list[int]]:
    positions = list(range(len(source)))
    return [positions[i : i + BATCH] for i in range(0, len(positions), BATCH)]


def _descriptors(source: Source, tick: Callable[[], object]) -> Tensor:
    found: list[Tensor] = []
    for positions in _batches(source):
        tick()
        found.append(class_descriptor(source.batch(positions)))
    return torch.cat(found)


def _moments(network: Network, source: Source, tick: Callable[[], object]) -> Moments:
    """Residual moments per scale of all images of a source together."""
    device = network.feature_scale.device
    total: Moments = []
    for positions in _batches(source):
        tick()
        scaled = network.scaled(_to(source.batch(positions), device))
        parts = [
            ResidualMoments.sum([ResidualMoments.of(r.cpu()) for r in f - rebuilt.float()])
            for f, rebuilt in zip(scaled, network.reconstruct(scaled), strict=True)
        ]
        total = (
            [ResidualMoments.sum(pair) for pair in zip(total, parts, strict=True)]
            if total
            else parts
        )
    return total


def _pooled(totals: Mapping[str, Moments]) -> list[Tensor]:
    """Per scale the mean over classes of the within-class covariance."""
    by_scale = zip(*totals.values(), strict=True)
    return [torch.stack([m.covariance for m in scale]).mean(dim=0) for scale in by_scale]
