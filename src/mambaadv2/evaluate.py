"""How good a model is on labelled images; the only place where metrics are run.

The protocol is "exact": every anomaly map is compared with its mask in the image's own size, every
metric is exact over all thresholds (`mambaadv2.metrics`), AUPRO goes to a false positive rate of
0.3. Metrics are taken per class and then averaged over classes. Numbers of other protocols, with
resized masks or a few thresholds, are not comparable.

What a class cannot tell stays undefined: null in JSON, a dash in the table, never a number. It is
left out of the mean, and a note says so.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mambaadv2.data.record import Record
from mambaadv2.data.verify import read_masks, usable_records
from mambaadv2.errors import ConfigError, UndefinedMetricError
from mambaadv2.files import write_atomically, writing_to
from mambaadv2.image import read_header
from mambaadv2.memory import free_memory
from mambaadv2.metrics import PixelPool, image_metrics, pooled
from mambaadv2.predict import ImageModel, Prediction, load, predict_paths
from mambaadv2.provenance import Call, colour_range, data_sha256, facts, write_evaluation
from mambaadv2.report import GalleryPicker, report_page
from mambaadv2.results import METRICS, PROTOCOL, ClassResult, Curves, Evaluation, ImageResult

__all__ = ["METRICS", "PROTOCOL", "ClassResult", "Evaluation", "class_metrics", "evaluate"]


def evaluate(
    run: Path | str | ImageModel,
    data: Path | str,
    *,
    classes: Sequence[str] | None = None,
    json_path: Path | str | None = None,
    report: Path | str | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    layout: str | None = None,
    device: str = "auto",
    title: str | None = None,
    command: str | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measure a model on the test images of a data set.

    run: a run folder; or a model in memory, a `Predictor` or anything else with `classes` and
    `predict`. A run folder that can be written to also gets evaluation.json and a fresh model card.
    data: the data set's root, the folder of one class, or a manifest.
    classes: names to evaluate, all by default. Classes the model was not trained on are evaluated
    like the others and carry a note.
    json_path, report: files for `Evaluation.to_json` and for a page with charts and pictures,
    written at once when all is done; their folders are made where missing.
    on_error: "stop" lists all files that cannot be used and does nothing else; "skip" goes on
    without them and says how many and which.
    layout: of the data set, as in `list_records`; None recognises it.
    device: of a run folder: "auto" (a GPU where there is one), "cpu" or "cuda".
    title, command: what the report says instead of the run's name and this call.
    progress: say the memory needed and show a bar on stderr when that is a terminal.

    The pixels' scores of one class at a time are held in memory: 4 bytes per pixel, and up to 4
    more per pixel of images with a defect.

    Before any prediction: `BadFilesError` with all files that cannot be used, `DataError` for a
    wrong data set, `CheckpointError` for a run that cannot be used, `ConfigError` if a file to
    write is a folder or the memory is too small. Then `CheckpointError` for maps that are not
    finite.

    >>> from mambaadv2 import evaluate  # doctest: +SKIP
    >>> result = evaluate("runs/parts", "parts", report="parts.html")  # doctest: +SKIP
    >>> print(result.table())  # doctest: +SKIP
    >>> result.mean["image_auroc"], result.classes["screw"].n_good  # doctest: +SKIP
    (0.93, 41)
    """
    start = time.perf_counter()
    call = Call(
        folder=Path(run) if isinstance(run, str | os.PathLike) else None,
        data=Path(data),
        classes=classes,
        json_path=_target("json_path", json_path),
        report=_target("report", report),
        on_error=on_error,
        device=device,
        title=title,
        command=command,
        time=datetime.now(UTC),
        layout=layout,
    )
    model = load(run, device=device) if isinstance(run, str | os.PathLike) else run
    chosen = usable_records(
        data, split="test", classes=classes, on_error=on_error, layout=layout, progress=progress
    )
    results = _results(call, model, chosen.records, progress)
    evaluation = Evaluation(
        classes=results, seconds=time.perf_counter() - start, skipped=chosen.skipped
    )
    _write(call, model, evaluation, chosen.records, progress)
    return evaluation


def class_metrics(
    labels: NDArray[np.bool_],
    scores: NDArray[np.floating],
    masks: Sequence[NDArray[np.bool_]] | None,
    maps: Sequence[NDArray[np.floating]],
) -> ClassResult:
    """All metrics of one class, from the truth about its N test images and what was predicted.

    labels: (N,), True for a defect. scores: (N,) of the images, any unit. masks: N of (H, W), all
    False for a good image; None where there is no ground truth. maps: N anomaly maps, each of its
    mask's size, any unit; not looked at without masks.

    Undefined metrics are None, and a note says why unless masks are missing. Raises `ValueError`
    where a metric meets scores that are not finite or shapes that do not match.

    >>> maps = [np.array([[0.1, 0.9]]), np.array([[0.2, 0.3]])]
    >>> masks = [np.array([[False, True]]), np.array([[False, False]])]
    >>> labels, scores = np.array([True, False]), np.array([0.9, 0.3])
    >>> class_metrics(labels, scores, masks, maps).metrics["mad"]
    1.0
    """
    marked, pool, empty = masks is not None and labels.any(), None, 0
    if masks is not None and marked:
        pool = pooled(masks, maps)
        empty = sum(not mask.any() for mask, defect in zip(masks, labels, strict=True) if defect)
    return _metrics(labels, scores, pool, empty)


def _metrics(
    labels: NDArray[np.bool_], scores: NDArray[np.floating], pool: PixelPool | None, empty: int
) -> ClassResult:
    """As `class_metrics`; empty: defect images whose mask marks nothing."""
    notes: list[str] = []
    metrics: dict[str, float | None] = dict.fromkeys(METRICS)
    image_curves = pixel_curves = None
    if not labels.any():
        notes.append("no test image has a defect: metrics undefined")
    elif labels.all():
        notes.append("no test image is good: image metrics undefined")
    else:
        image = image_metrics(labels, scores)
        metrics["image_auroc"] = image.auroc
        metrics["image_ap"] = image.average_precision
        metrics["image_f1max"] = image.f1_max
        image_curves = Curves(roc=image.roc, precision_recall=image.precision_recall)
    if empty:
        notes.append(f"{empty} defect image(s) with an empty mask: good to the pixel metrics")
    if pool is not None:
        try:
            pixel = pool.metrics()
        except UndefinedMetricError:
            notes.append("no defect pixel or no good pixel: pixel metrics undefined")
        else:
            metrics["pixel_auroc"] = pixel.auroc
            metrics["pixel_ap"] = pixel.average_precision
            metrics["pixel_f1max"] = pixel.f1_max
            metrics["pixel_aupro"] = pixel.aupro
            pixel_curves = Curves(roc=pixel.roc, precision_recall=pixel.precision_recall)
    seven = [value for value in metrics.values() if value is not None]
    metrics["mad"] = math.fsum(seven) / 7 if len(seven) == 7 else None
    n_defect = int(np.count_nonzero(labels))
    return ClassResult(
        metrics=metrics,
        n_good=len(labels) - n_defect,
        n_defect=n_defect,
        notes=tuple(notes),
        image_curves=image_curves,
        pixel_curves=pixel_curves,
    )


@dataclass(frozen=True, slots=True)
class _Size:
    """What of a class must be held: known from the headers of its files."""

    images: int
    pixels: int
    """0 where pixel metrics are undefined and so no map is held."""
    marked: int
    """Pixels of the images with a defect."""

    @classmethod
    def of(cls, records: Sequence[Record]) -> _Size:
        defects = [record for record in records if record.defect]
        if not defects or any(not record.masks for record in defects):
            return cls(len(records), 0, 0)
        pixels = marked = 0
        for record in records:
            header = read_header(record.path)
            pixels += header.width * header.height
            marked += header.width * header.height if record.defect else 0
        return cls(len(records), pixels, marked)

    @property
    def need(self) -> int:
        """Bytes of memory, at most."""
        return PixelPool.bytes_for(self.pixels, self.marked)


def _results(
    call: Call, model: ImageModel, records: Sequence[Record], progress: bool
) -> dict[str, ClassResult]:
    """Class by class, so that the maps of one class at a time are held."""
    by_class: dict[str, list[Record]] = {}
    for record in records:
        by_class.setdefault(record.class_name, []).append(record)
    sizes = {name: _Size.of(members) for name, members in by_class.items()}
    _require_memory(sizes, progress)
    results: dict[str, ClassResult] = {}
    # disable=None: shown on a terminal only.
    with tqdm(total=len(records), unit="image", disable=None if progress else True) as bar:
        for name, members in by_class.items():
            bar.set_description(name)
            results[name] = _class_result(call, model, members, sizes[name], bar)
    return results


def _class_result(
    call: Call, model: ImageModel, records: Sequence[Record], size: _Size, bar: tqdm
) -> ClassResult:
    pool = PixelPool(size.pixels, size.marked, np.dtype(np.float32)) if size.pixels else None
    picker = None if call.report is None else GalleryPicker(colour_range(model))
    images: list[ImageResult] = []
    empty = 0
    found = predict_paths(model, [record.path for record in records])
    for record, (path, rgb, prediction, _) in zip(records, found, strict=True):
        assert path == record.path, (path, record.path)
        mask = None
        if record.masks and (pool is not None or picker is not None):
            mask = read_masks(record)
            empty += pool is not None and mask is not None and not mask.any()
        images.append(_image_result(record, prediction, call.data))
        if pool is not None:
            good = np.zeros(rgb.shape[:2], dtype=np.bool_)
            pool.add(good if mask is None else mask, prediction.map)
        if picker is not None:
            _require_threshold(prediction)
            picker.add(images[-1], rgb, prediction.map, mask)
        bar.update()
    labels = np.array([image.defect for image in images])
    result = _metrics(labels, np.array([image.score for image in images]), pool, empty)
    return dataclasses.replace(
        result,
        notes=(*_notes(model, records), *result.notes),
        images=tuple(images),
        gallery=None if picker is None else picker.gallery(),
    )


def _image_result(record: Record, prediction: Prediction, data: Path) -> ImageResult:
    root = data if data.is_dir() else data.parent
    inside = record.path.is_relative_to(root)
    return ImageResult(
        name=(record.path.relative_to(root) if inside else record.path).as_posix(),
        kind=record.defect_type,
        defect=record.defect,
        score=prediction.score,
        threshold=prediction.threshold,
        flagged=prediction.defect,
        found_class=prediction.class_name,
        p_value=prediction.p_value,
    )


def _notes(model: ImageModel, records: Sequence[Record]) -> list[str]:
    """What the records and the model alone tell about a class."""
    unmasked = {record.defect_type for record in records if record.defect and not record.masks}
    notes = []
    if unmasked:
        notes.append(f"no masks for {', '.join(sorted(unmasked))}: pixel metrics undefined")
    if records[0].class_name not in model.classes:
        notes.append("the model was not trained on this class")
    return notes


def _require_memory(sizes: Mapping[str, _Size], progress: bool) -> None:
    name, size = max(sizes.items(), key=lambda item: item[1].need)
    if not size.need:
        return
    free = free_memory()
    if size.need > free:
        raise ConfigError(
            f"class {name!r}: its maps ({size.images} images, {size.pixels / 1e6:.0f} million "
            f"pixels) need up to {_amount(size.need)} of memory, {_amount(free)} are free; "
            "evaluate where there is more, or fewer or smaller test images of this class"
        )
    images = f"{size.images} image{'s' if size.images > 1 else ''}"
    need = _amount(size.need)
    _say(f"memory: up to {need} for the maps of the largest class, {name} ({images})", progress)


def _amount(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 0.95e9 else f"{size / 1e6:.1f} MB"


def _require_threshold(prediction: Prediction) -> None:
    if not 0 < prediction.threshold < math.inf:
        raise ConfigError(
            "report: expected a model with a threshold above 0 for every image, got "
            f"{prediction.threshold}; without one there is nothing to call a miss"
        )


def _write(
    call: Call,
    model: ImageModel,
    evaluation: Evaluation,
    records: Sequence[Record],
    progress: bool,
) -> None:
    """Everything that was asked for, and what belongs into the run folder."""
    if call.json_path is not None:
        write_atomically(call.json_path, evaluation.to_json().encode())
    if call.folder is None and call.report is None:
        return
    digest = data_sha256(records)
    if call.report is not None:
        page = report_page(evaluation, facts(call, model, evaluation, digest))
        # The name of a file may be no text.
        write_atomically(call.report, page.encode(errors="backslashreplace"))
    if call.folder is not None:
        try:
            write_evaluation(call.folder, evaluation, call.time, digest)
        except OSError as error:
            _say(f"{call.folder}: left as it is, it cannot be written to ({error})", progress)


def _target(name: str, path: Path | str | None) -> Path | None:
    """A file to write, checked before the long work and not after it."""
    if path is None:
        return None
    target = Path(path).resolve()  # a link stays one, what it leads to is written
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "no regular file"
        raise ConfigError(f"{name}: expected a file to write, {target} is {kind}")
    with writing_to(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(target.parent, os.W_OK):
        raise ConfigError(f"{name}: cannot write to {target.parent}; choose another folder")
    return target


def _say(text: str, progress: bool) -> None:
    if progress:
        tqdm.write(text, file=sys.stderr)
