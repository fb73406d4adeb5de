"""Images in, predictions out: the layer that everything else uses to run a trained model."""

from __future__ import annotations

import glob
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mambaadv2.calibrate import ColourScale
from mambaadv2.checkpoint import ModelCard, load_run
from mambaadv2.data.index import IMAGE_SUFFIXES
from mambaadv2.device import choose_device
from mambaadv2.errors import CheckpointError, DataError, ImageError
from mambaadv2.files import writing_to
from mambaadv2.image import overlay, read_image, resize_image, resize_map, write_png
from mambaadv2.model.network import Network
from mambaadv2.model.scoring import Scorer

OVERLAYS, MAPS = "overlays", "maps"  # folders of heat maps and of raw maps

RgbImage = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a model says about one image.

    map: (H, W) float32 anomaly map in the image's own size, raw units, >= 0.
    score: raw image score, the maximum of the map at the network's resolution.
    threshold: of the class that was found, raw units; from held-out normal images.
    defect: score > threshold. class_name: class found from the encoder's features.
    """

    map: NDArray[np.float32]
    score: float
    threshold: float
    defect: bool
    class_name: str


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

    def predict(self, images: Sequence[RgbImage]) -> list[Prediction]:
        """Predict a batch of (H, W, 3) uint8 RGB images of any sizes, in one pass.

        Raises `DataError` when an image has another shape or type, and `CheckpointError` when a
        map is not finite. Both name the image by its position.
        """
        if not images:
            return []
        for i, image in enumerate(images):
            if image.shape[2:] != (3,) or image.size == 0 or image.dtype != np.uint8:
                raise DataError(
                    f"images[{i}]: expected (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}"
                )
        resized = np.stack([resize_image(image, self.image_size) for image in images])
        maps, classes = self.predict_tensor(torch.from_numpy(resized).permute(0, 3, 1, 2))
        values = maps.cpu().numpy()
        for i, own in enumerate(values):
            if not np.isfinite(own).all():
                raise _NotFiniteError(i)
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

    def _prediction(
        self, values: NDArray[np.float32], index: int, size: tuple[int, int]
    ) -> Prediction:
        name = self.classes[index]
        score, threshold = float(values.max()), self.card.thresholds[name]
        return Prediction(
            map=resize_map(values, size),
            score=score,
            threshold=threshold,
            defect=score > threshold,
            class_name=name,
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


class _NotFiniteError(CheckpointError):
    """The map of image number `index` of a batch is not finite."""

    def __init__(self, index: int, name: str | None = None) -> None:
        super().__init__(
            f"{name or f'images[{index}]'}: expected a finite anomaly map, the model gave NaN or "
            "infinity; its weights are damaged or its training failed: train again or take "
            "another run"
        )
        self.index = index


def predict_paths(
    predictor: ImageModel, paths: Iterable[Path], *, batch_size: int = 8
) -> Iterator[tuple[Path, RgbImage, Prediction, float]]:
    """Yield (path, image, prediction, milliseconds) for every path, in order.

    Milliseconds are the batch's time in the predictor divided by its size, decoding not counted.
    Memory stays constant: one batch is read ahead. Raises `ImageError` at an unreadable file.
    """
    for item in _predict_each(predictor, paths, batch_size):
        path, image, outcome, ms = item
        if isinstance(outcome, ImageError):
            raise outcome
        assert image is not None
        yield path, image, outcome, ms


def _predict_each(
    predictor: ImageModel, paths: Iterable[Path], batch_size: int
) -> Iterator[tuple[Path, RgbImage | None, Prediction | ImageError, float]]:
    """As `predict_paths`, but an unreadable image gives its error in its place."""
    remaining = iter(paths)
    with ThreadPoolExecutor(max_workers=2) as pool:

        def submit() -> list[tuple[Path, Future[RgbImage]]]:
            return [(p, pool.submit(read_image, p)) for p in islice(remaining, batch_size)]

        current = submit()
        while current:
            following = submit()
            images: dict[Path, RgbImage] = {}
            errors: dict[Path, ImageError] = {}
            for path, future in current:
                try:
                    images[path] = future.result()
                except ImageError as error:
                    errors[path] = error
            start = time.perf_counter()
            try:
                outcomes = predictor.predict(list(images.values()))
            except _NotFiniteError as error:
                raise _NotFiniteError(error.index, str(list(images)[error.index])) from None
            predictions = dict(zip(images, outcomes, strict=True))
            ms = (time.perf_counter() - start) * 1e3 / max(1, len(images))
            for path, _ in current:
                if path in errors:
                    yield path, None, errors[path], 0.0
                else:
                    yield path, images[path], predictions[path], ms
            current = following


def find_images(inputs: Sequence[str], *, exclude: Path | None = None) -> Iterator[Path]:
    """Image files behind files, folders (searched to the bottom) and glob patterns, sorted.

    A pattern may match files and folders; an image that it reaches twice counts once. Hidden files
    and folders inside a folder are left out, and so is what folders and patterns find inside
    `exclude`, a resolved path. Raises `DataError` when an input gives no image.
    """
    for text in inputs:
        if Path(text).is_file():
            yield Path(text)
            continue
        # A name with brackets may be an existing folder and no pattern.
        matches = [text] if Path(text).is_dir() else sorted(glob.glob(text, recursive=True))
        found = dict.fromkeys(path for match in matches for path in _images_at(Path(match)))
        if exclude is not None:
            found = {p: None for p in found if not p.resolve().is_relative_to(exclude)}
        if not found:
            raise DataError(
                f"{text}: expected an image, a folder with images or a pattern; found no image "
                f"({', '.join(sorted(IMAGE_SUFFIXES))})"
            )
        yield from found


def _images_at(path: Path) -> list[Path]:
    """The file itself, or the images in a folder."""
    return [path] if path.is_file() else [p for p in sorted(path.rglob("*")) if _is_image(p, path)]


def _is_image(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden and path.is_file()


def predict_to_folder(
    run: str | os.PathLike[str],
    inputs: Sequence[str],
    out: str | os.PathLike[str],
    *,
    raw: bool = False,
    device: str = "auto",
    batch_size: int = 8,
    progress: bool = True,
) -> int:
    """Score images and write `predictions.jsonl`, `overlays/*.png` and, if `raw`, `maps/*.npy`.

    A line has path, score, threshold, defect, class, width, height, ms, overlay and, if `raw`, map,
    the last two relative to `out`; or path and error for an image that cannot be read; the others
    go on. Returns the number of errors. All heat maps share the model's colour scale, so they can
    be compared. Heat maps of an earlier call that lie inside an input are not taken for images.
    """
    from tqdm import tqdm

    predictor = load(run, device=device)
    folder = Path(out)
    paths = list(find_images(inputs, exclude=(folder / OVERLAYS).resolve()))
    with writing_to(folder):
        for name in (OVERLAYS, MAPS) if raw else (OVERLAYS,):
            (folder / name).mkdir(parents=True, exist_ok=True)
    errors = defects = 0
    names = _UniqueNames()
    bar = tqdm(total=len(paths), unit="image", desc="predict", disable=None if progress else True)
    with (folder / "predictions.jsonl").open("w", encoding="utf-8") as lines, bar:
        for path, image, outcome, ms in _predict_each(predictor, paths, batch_size):
            if isinstance(outcome, ImageError) or image is None:
                errors += 1
                line: dict[str, object] = {"path": str(path), "error": str(outcome)}
                if progress:
                    tqdm.write(str(outcome), file=sys.stderr)
            else:
                name = names.of(path)
                line = _line(path, outcome, ms) | {"overlay": f"{OVERLAYS}/{name}.png"}
                defects += outcome.defect
                scale = predictor.colour_scale
                picture = overlay(image, outcome.map / outcome.threshold, scale.low, scale.high)
                write_png(folder / OVERLAYS / f"{name}.png", picture)
                if raw:
                    line["map"] = f"{MAPS}/{name}.npy"
                    np.save(folder / MAPS / f"{name}.npy", outcome.map, allow_pickle=False)
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            bar.update()
    if progress:
        summary = f"{len(paths)} images: {defects} with a defect, {errors} could not be read"
        print(f"{summary}; results in {folder}", file=sys.stderr)
    return errors


def _line(path: Path, prediction: Prediction, ms: float) -> dict[str, object]:
    height, width = prediction.map.shape
    return {
        "path": str(path),
        "score": prediction.score,
        "threshold": prediction.threshold,
        "defect": prediction.defect,
        "class": prediction.class_name,
        "width": width,
        "height": height,
        "ms": round(ms, 3),
    }


class _UniqueNames:
    """Output names from the last three folders and the stem; equal ones get a number."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}

    def of(self, path: Path) -> str:
        parts = [*path.parts[-4:-1], path.stem]
        base = name = "_".join(part for part in parts if part not in ("/", "..", "."))
        while name in self._taken:  # a numbered name may itself be another file's
            self._next[base] = self._next.get(base, 0) + 1
            name = f"{base}_{self._next[base]}"
        self._taken.add(name)
        return name
