"""How good a model is on labelled images; the only place where metrics are run.

The protocol is "exact": every anomaly map is compared with its mask in the image's own size, every
metric is exact over all thresholds (`mambaadv2.metrics`), AUPRO goes to a false positive rate of
0.3. Metrics are taken per class and then averaged over classes. Numbers of other protocols, with
resized masks or a few thresholds, are not comparable.

What a class cannot tell stays undefined: null in JSON, a dash in the table, never a number. It is
left out of the mean, and a note says so.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mambaadv2.data.index import Record, mvtec_records
from mambaadv2.errors import CheckpointError, ConfigError, DataError, UndefinedMetricError
from mambaadv2.image import read_mask
from mambaadv2.metrics import auroc, average_precision, f1_max, pixel_metrics
from mambaadv2.predict import Prediction, Predictor, load, predict_paths

PROTOCOL = "exact"

_HEADINGS = {
    "image_auroc": "I-AUROC",
    "image_ap": "I-AP",
    "image_f1max": "I-F1max",
    "pixel_auroc": "P-AUROC",
    "pixel_ap": "P-AP",
    "pixel_f1max": "P-F1max",
    "pixel_aupro": "P-AUPRO",
    "mad": "mAD",
}
METRICS = tuple(_HEADINGS)
"""Names of the seven metrics and of their mean, in the order of every table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassResult:
    """The metrics of one class."""

    metrics: Mapping[str, float | None]
    """One value for each of `METRICS`, 0..1, None where undefined; `mad` needs all seven."""
    n_good: int
    """Good test images."""
    n_defect: int
    """Test images with a defect."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers should know: what is undefined and why, a class not trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The metrics of all classes and their mean."""

    classes: Mapping[str, ClassResult]
    seconds: float
    """Wall clock for predictions and metrics."""
    protocol: str = field(default=PROTOCOL, init=False)

    @property
    def images(self) -> int:
        """Images evaluated."""
        return sum(result.n_good + result.n_defect for result in self.classes.values())

    @property
    def mean(self) -> dict[str, float | None]:
        """Per metric, the mean over the classes that have it; None where no class has."""
        means: dict[str, float | None] = {}
        for metric in METRICS:
            values = self._values(metric)
            means[metric] = math.fsum(values) / len(values) if values else None
        return means

    @property
    def n_classes(self) -> dict[str, int]:
        """Per metric, the number of classes that have it and so enter the mean."""
        return {metric: len(self._values(metric)) for metric in METRICS}

    def to_json(self) -> str:
        """Return the numbers as JSON text, 0..1 and null where undefined, in a fixed order."""
        content = {
            "protocol": self.protocol,
            "classes": {
                name: {**result.metrics, "n_good": result.n_good, "n_defect": result.n_defect}
                for name, result in self.classes.items()
            },
            "mean": {**self.mean, "n_classes": self.n_classes},
            "notes": {name: result.notes for name, result in self.classes.items() if result.notes},
        }
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def table(self) -> str:
        """Return the numbers as text in percent, a dash where undefined, with footnotes."""
        rows = [["class", *_HEADINGS.values(), "good", "defect"]]
        for name, result in self.classes.items():
            marked = f"{name}*" if result.notes else name
            rows.append(_row(marked, result.metrics, result.n_good, result.n_defect))
        n_good = sum(result.n_good for result in self.classes.values())
        rows.append(_row("mean", self.mean, n_good, self.images - n_good))
        widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
        lines = [f"Protocol {self.protocol}, in percent", ""]
        for name, *cells in rows:
            padded = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
            lines.append("  ".join((name.ljust(widths[0]), *padded)))
        lines += ["", *self._footnotes(), f"{self.images} images in {self.seconds:.1f} s"]
        return "\n".join(lines)

    def _values(self, metric: str) -> list[float]:
        values = (result.metrics[metric] for result in self.classes.values())
        return [value for value in values if value is not None]

    def _footnotes(self) -> list[str]:
        lines = [
            f"* {name}: {note}" for name, result in self.classes.items() for note in result.notes
        ]
        headings_without: dict[tuple[str, ...], list[str]] = {}
        for metric, heading in _HEADINGS.items():
            without = tuple(
                name for name, result in self.classes.items() if result.metrics[metric] is None
            )
            headings_without.setdefault(without, []).append(heading)
        for without, headings in headings_without.items():
            if without and len(without) < len(self.classes):
                lines.append(f"Mean {', '.join(headings)}: without {', '.join(without)}")
        return lines


def evaluate(
    run: Path | str | Predictor,
    data: Path | str,
    *,
    classes: Sequence[str] | None = None,
    json_path: Path | str | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measure a model on the test images of a data set in the MVTec AD layout.

    run: a run folder, or a predictor already loaded.
    data: the data set's root, or the folder of one class.
    classes: names to evaluate, all by default. Classes the model was not trained on are evaluated
    like the others and carry a note.
    json_path: a file for `Evaluation.to_json`, written at once when all is done; its folder is
    made where missing.
    progress: show a bar on stderr when that is a terminal.

    The maps of one class at a time are held in memory: 4 bytes per pixel, twice that for a moment.

    Raises `DataError` for a wrong data set, or a mask not of its image's size; `CheckpointError`
    for a run that cannot be used or gives scores that are not finite; `ConfigError` if `json_path`
    is a folder.
    """
    start = time.perf_counter()
    target = None if json_path is None else Path(json_path)
    if target is not None:
        # Before the long work, not after it.
        _prepare(target)
    records = mvtec_records(data, split="test", classes=classes)
    predictor = load(run) if isinstance(run, str | Path) else run
    results: dict[str, ClassResult] = {}
    # disable=None: shown on a terminal only.
    with tqdm(total=len(records), unit="image", disable=None if progress else True) as bar:
        for name, members in groupby(records, key=lambda record: record.class_name):
            bar.set_description(name)
            trained = name in predictor.classes
            results[name] = _class_result(predictor, tuple(members), bar, trained=trained)
    evaluation = Evaluation(classes=results, seconds=time.perf_counter() - start)
    if target is not None:
        _write(target, evaluation.to_json())
    return evaluation


def _class_result(
    predictor: Predictor, records: Sequence[Record], bar: tqdm, *, trained: bool
) -> ClassResult:
    labels = np.array([record.defect for record in records])
    notes, has_masks = _missing(records)
    scores: list[float] = []
    masks: list[NDArray[np.bool_]] = []
    maps: list[NDArray[np.float32]] = []
    found = predict_paths(predictor, [record.path for record in records])
    for record, (path, image, prediction, _) in zip(records, found, strict=True):
        assert path == record.path, (path, record.path)
        _require_finite(path, prediction)
        scores.append(prediction.score)
        if has_masks:
            masks.append(_mask(record, (image.shape[0], image.shape[1])))
            maps.append(prediction.map)
        bar.update()
    metrics = _image_metrics(labels, np.array(scores))
    pixel, pixel_notes = _pixel_metrics(labels, masks, maps)
    metrics.update(pixel)
    seven = [value for value in metrics.values() if value is not None]
    metrics["mad"] = math.fsum(seven) / 7 if len(seven) == 7 else None
    if not trained:
        notes.append("the model was not trained on this class")
    return ClassResult(
        metrics=metrics,
        n_good=int(np.count_nonzero(~labels)),
        n_defect=int(np.count_nonzero(labels)),
        notes=(*notes, *pixel_notes),
    )


def _missing(records: Sequence[Record]) -> tuple[list[str], bool]:
    """Notes on what the class lacks, and whether all its defect images have a mask."""
    defects = [record for record in records if record.defect]
    if not defects:
        return ["no test image has a defect: metrics undefined"], False
    notes = []
    if len(defects) == len(records):
        notes.append("no test image is good: image metrics undefined")
    unmasked = sorted({record.defect_type for record in defects if record.mask is None})
    if unmasked:
        notes.append(f"no masks for {', '.join(unmasked)}: pixel metrics undefined")
    return notes, not unmasked


def _require_finite(path: Path, prediction: Prediction) -> None:
    if not (math.isfinite(prediction.score) and np.isfinite(prediction.map).all()):
        raise CheckpointError(
            f"{path}: expected finite scores, the model gave NaN or infinity; its weights are "
            "damaged or its training failed: train again or take another run"
        )


def _mask(record: Record, size: tuple[int, int]) -> NDArray[np.bool_]:
    if record.mask is None:
        return np.zeros(size, dtype=np.bool_)
    mask = read_mask(record.mask)
    if mask.shape != size:
        raise DataError(
            f"{record.mask}: expected the size of its image, {size[1]} x {size[0]} pixels as "
            f"{record.path}, found {mask.shape[1]} x {mask.shape[0]}; "
            "they are compared pixel by pixel: export the mask in the image's size"
        )
    return mask


def _image_metrics(
    labels: NDArray[np.bool_], scores: NDArray[np.float64]
) -> dict[str, float | None]:
    if labels.all() or not labels.any():
        return {"image_auroc": None, "image_ap": None, "image_f1max": None}
    return {
        "image_auroc": auroc(labels, scores),
        "image_ap": average_precision(labels, scores),
        "image_f1max": f1_max(labels, scores)[0],
    }


def _pixel_metrics(
    labels: NDArray[np.bool_],
    masks: Sequence[NDArray[np.bool_]],
    maps: Sequence[NDArray[np.float32]],
) -> tuple[dict[str, float | None], list[str]]:
    """The pixel metrics and notes on them; no masks at all are the caller's to explain."""
    undefined: dict[str, float | None] = {
        "pixel_auroc": None,
        "pixel_ap": None,
        "pixel_f1max": None,
        "pixel_aupro": None,
    }
    if not masks:
        return undefined, []
    empty = sum(not mask.any() for mask, defect in zip(masks, labels, strict=True) if defect)
    notes = []
    if empty:
        notes.append(f"{empty} defect image(s) with an empty mask: good to the pixel metrics")
    try:
        found = pixel_metrics(masks, maps)
    except UndefinedMetricError:
        return undefined, [*notes, "no defect pixel or no good pixel: pixel metrics undefined"]
    return {
        "pixel_auroc": found.auroc,
        "pixel_ap": found.average_precision,
        "pixel_f1max": found.f1_max,
        "pixel_aupro": found.aupro,
    }, notes


def _row(name: str, metrics: Mapping[str, float | None], n_good: int, n_defect: int) -> list[str]:
    values = (metrics[metric] for metric in METRICS)
    percents = ("-" if value is None else f"{100 * value:.1f}" for value in values)
    return [name, *percents, str(n_good), str(n_defect)]


def _prepare(target: Path) -> None:
    if target.is_dir():
        raise ConfigError(f"json_path: expected a file to write, {target} is a folder")
    target.parent.mkdir(parents=True, exist_ok=True)


def _write(target: Path, text: str) -> None:
    """Replace the file in one step, so that no reader and no crash leaves half of it."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
