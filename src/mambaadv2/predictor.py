"""Images in, predictions out: the layer that everything else uses to run a trained model."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mambaadv2.calibrate import (
    ColourScale,
    Region,
    RegionRule,
    colour_marks,
    p_values,
    regions,
)
from mambaadv2.checkpoint import ModelCard, load_run
from mambaadv2.device import choose_device
from mambaadv2.errors import CheckpointError, DataError
from mambaadv2.image import resize_image, resize_map
from mambaadv2.model.network import Network
from mambaadv2.model.scoring import Scorer

RgbImage = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a model says about one image.

    map: (H, W) float32 anomaly map in the image's own size, raw units, >= 0.
    score: raw image score, the maximum of the map at the network's resolution.
    threshold: of the class that was found, raw units.
    threshold_kind: which rule made it: "conformal" and "assumed" from good images alone, "labelled"
    with known defects, "earlier" by the rule of an older version, "" where nothing is known.
    defect: score > threshold. class_name: class found from the encoder's features.
    p_value: share of good images of that class that score this high, at most; from 1 / (n + 1) for
    n held-out images to 1. None where the model does not know their scores.
    """

    map: NDArray[np.float32]
    score: float
    threshold: float
    defect: bool
    class_name: str
    p_value: float | None = None
    threshold_kind: str = ""


class ImageModel(Protocol):
    """What can be run over files and evaluated; `Predictor` is one."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names that the model was trained on."""
        ...

    def predict(self, images: Sequence[RgbImage]) -> list[Prediction]:
        """One prediction for each (H, W, 3) uint8 RGB image, in order; sizes may differ.

        Maps and scores are finite.
        """
        ...


class Predictor:
    """A trained model, ready for images. Made by `load`.

    classes: names the model was trained on. image_size: (height, width) of the network's input.
    colour_scale: range of `prediction.map / prediction.threshold` for heat maps; 1 = threshold.

    >>> from mambaadv2 import load  # doctest: +SKIP
    >>> predictor = load("runs/parts")  # doctest: +SKIP
    >>> [prediction] = predictor.predict([read_image("camera/0001.png")])  # doctest: +SKIP
    >>> prediction.class_name, prediction.defect, prediction.map.shape  # doctest: +SKIP
    ('screw', False, (1024, 1024))
    """

    def __init__(
        self, network: Network, scorer: Scorer, card: ModelCard, device: torch.device
    ) -> None:
        self.network, self.scorer, self.card, self.device = network, scorer, card, device
        self.classes = card.classes
        self.image_size = card.model.image_size
        self.colour_scale = ColourScale(low=card.colour_scale[0], high=card.colour_scale[1])
        self._peaks = {name: card.kept_scores(name) for name in card.classes}

    def predict(self, images: Sequence[RgbImage]) -> list[Prediction]:
        """Predict a batch of (H, W, 3) uint8 RGB images of any sizes, in one pass.

        Raises `DataError` when an image has another shape or type, and `CheckpointError` when a
        map is not finite. Both name the image by its position.
        """
        if not images:
            return []
        for i, image in enumerate(images):
            if not isinstance(image, np.ndarray):
                raise DataError(
                    f"images[{i}]: expected an (H, W, 3) uint8 RGB array, got "
                    f"{type(image).__name__}; mambaadv2.image.read_image decodes a file"
                )
            if image.shape[2:] != (3,) or image.size == 0 or image.dtype != np.uint8:
                raise DataError(
                    f"images[{i}]: expected (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}"
                )
        resized = np.stack([resize_image(image, self.image_size) for image in images])
        maps, classes = self.predict_tensor(torch.from_numpy(resized).permute(0, 3, 1, 2))
        values = maps.cpu().numpy()
        for i, own in enumerate(values):
            if not np.isfinite(own).all():
                raise NotFiniteMapError(i)
        return [
            self._prediction(own, int(index), image.shape[:2])
            for own, index, image in zip(values, classes.tolist(), images, strict=True)
        ]

    @torch.inference_mode()
    def predict_tensor(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Strict, batched form: (B, 3, height, width) uint8 RGB of `image_size`.

        Returns maps (B, height, width) float32 in raw units and class indices (B,). That the maps
        are finite is not checked.
        """
        expected = (3, *self.image_size)
        if images.dim() != 4 or tuple(images.shape[1:]) != expected or images.dtype != torch.uint8:
            raise DataError(
                f"images: expected (B, 3, {self.image_size[0]}, {self.image_size[1]}) uint8, "
                f"got {tuple(images.shape)} {images.dtype}"
            )
        unit = images.to(self.device).float() / 255.0
        raw = self.network.features(unit)
        classes = self.scorer.find_class(raw)
        scaled = self.network.scaled(raw)
        return self.scorer(scaled, self.network.reconstruct(scaled), classes), classes

    def unsmoothed(self) -> Predictor:
        """The same model with maps as they are before the Gaussian; its scores are not comparable
        with the thresholds."""
        scorer = copy.copy(self.scorer)
        scorer.sigma = 0.0
        return Predictor(self.network, scorer, self.card, self.device)

    def regions(self, prediction: Prediction, *, min_area: int = 1) -> list[Region]:
        """Places of a prediction's map above its threshold, in pixels of the image; highest first.

        min_area: pixels that a place has at least. There is any only in an image that is flagged:
        the map is interpolated from the one whose maximum is the score. A place's p-value is the
        share of good images with as high a place anywhere, at most; with a least area above 1 it is
        careful, since the held-out images are ranked by their highest pixel all the same.
        """
        peaks = self._peaks[prediction.class_name]
        if not prediction.defect or min_area > prediction.map.size:
            return []
        return regions(
            prediction.map,
            prediction.threshold,
            rule=RegionRule(min_area=min_area),
            peaks=peaks or None,
        )

    @property
    def unseen_scores(self) -> dict[str, tuple[float, ...]]:
        """By class what a `DriftWatch` may compare a stream with: `ModelCard.unseen_scores`."""
        return self.card.unseen_scores

    def colour_marks(self, class_name: str) -> list[tuple[float, float]]:
        """(map / threshold, p-value) of a class, for the legend of a heat map; p falls.

        As of `calibrate.colour_marks`; none where the model does not know the held-out scores.
        """
        peaks = self._peaks[class_name]
        return colour_marks(peaks, self.card.thresholds[class_name]) if peaks else []

    def _prediction(
        self, values: NDArray[np.float32], index: int, size: tuple[int, int]
    ) -> Prediction:
        name = self.classes[index]
        score, threshold = float(values.max()), self.card.thresholds[name]
        peaks = self._peaks[name]
        return Prediction(
            map=resize_map(values, size),
            score=score,
            threshold=threshold,
            defect=score > threshold,
            class_name=name,
            threshold_kind=self.card.calibration_kinds[name],
            p_value=float(p_values(peaks, score)) if peaks else None,
        )


def load(run: str | os.PathLike[str], *, device: str = "auto") -> Predictor:
    """Load a run folder written by `train`.

    device: "auto" (a GPU when there is one), "cpu" or "cuda". Raises `CheckpointError` when the
    folder is not a complete run and `ConfigError` for a device that does not exist.

    >>> from mambaadv2 import load  # doctest: +SKIP
    >>> load("runs/parts", device="cpu").classes  # doctest: +SKIP
    ('cookie', 'screw')
    """
    chosen = choose_device(device)
    network, scorer, card = load_run(Path(run), chosen)
    return Predictor(network, scorer, card, chosen)


class NotFiniteMapError(CheckpointError):
    """The map of image number `index` of a batch is not finite."""

    def __init__(self, index: int, name: str | None = None) -> None:
        super().__init__(
            f"{name or f'images[{index}]'}: expected a finite anomaly map, the model gave NaN or "
            "infinity; its weights are damaged or its training failed: train again or take "
            "another run"
        )
        self.index = index
