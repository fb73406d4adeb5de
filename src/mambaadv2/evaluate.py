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
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mambaadv2.data.index import Record, mvtec_records
from mambaadv2.errors import ConfigError, DataError, UndefinedMetricError
from mambaadv2.files import write_atomically
from mambaadv2.image import read_mask
from mambaadv2.metrics import auroc, average_precision, f1_max, pixel_metrics
from mambaadv2.predict import ImageModel, load, predict_paths

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
    run: Path | str | ImageModel,
    data: Path | str,
    *,
    classes: Sequence[str] | None = None,
    json_path: Path | str | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measure a model on the test images of a data set in the MVTec AD layout.

    run: a run folder; or a model in memory, a `Predictor` or anything else with `classes` and
    `predict`.
    data: the data set's root, or the folder of one class.
    classes: names to evaluate, all by default. Classes the model was not trained on are evaluated
    like the others and carry a note.
    json_path: a file for `Evaluation.to_json`, written at once when all is done; its folder is
    made where missing.
    progress: show a bar on stderr when that is a terminal.

    The maps of one class at a time are held in memory: 4 bytes per pixel, twice that for a moment.

    Raises `DataError` for a wrong data set, or a mask not of its image's size; `CheckpointError`
    for a run that cannot be used or gives maps that are not finite; `ConfigError` if `json_path`
    is a folder.

    >>> from mambaadv2 import evaluate  # doctest: +SKIP
    >>> result = evaluate("runs/parts", "parts", json_path="numbers.json")  # doctest: +SKIP
    >>> print(result.table())  # doctest: +SKIP
    >>> result.mean["image_auroc"], result.classes["screw"].n_good  # doctest: +SKIP
    (0.93, 41)
    """
    start = time.perf_counter()
    target = None if json_path is None else Path(json_path)
    if target is not None:
        # Before the long work, not after it.
        _prepare(target)
    records = mvtec_records(data, split="test", classes=classes)
    model = load(run) if isinstance(run, str | Path) else run
    results: dict[str, ClassResult] = {}
    # disable=None: shown on a terminal only.
    with tqdm(total=len(records), unit="image", disable=None if progress else True) as bar:
        for name, members in groupby(records, key=lambda record: record.class_name):
            bar.set_description(name)
            results[name] = _class_result(model, name, tuple(members), bar)
    evaluation = Evaluation(classes=results, seconds=time.perf_counter() - start)
    if target is not None:
        write_atomically(target, evaluation.to_json().encode())
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
    notes: list[str] = []
    metrics: dict[str, float | None] = dict.fromkeys(METRICS)
    if not labels.any():
        notes.append("no test image has a defect: metrics undefined")
    elif labels.all():
        notes.append("no test image is good: image metrics undefined")
    else:
        metrics["image_auroc"] = auroc(labels, scores)
        metrics["image_ap"] = average_precision(labels, scores)
        metrics["image_f1max"] = f1_max(labels, scores)[0]
    if masks is not None and labels.any():
        pixel, pixel_notes = _pixel_metrics(labels, masks, maps)
        metrics.update(pixel)
        notes += pixel_notes
    seven = [value for value in metrics.values() if value is not None]
    metrics["mad"] = math.fsum(seven) / 7 if len(seven) == 7 else None
    n_defect = int(np.count_nonzero(labels))
    return ClassResult(
        metrics=metrics, n_good=len(labels) - n_defect, n_defect=n_defect, notes=tuple(notes)
    )


def _pixel_metrics(
    labels: NDArray[np.bool_],
    masks: Sequence[NDArray[np.bool_]],
    maps: Sequence[NDArray[np.floating]],
) -> tuple[dict[str, float | None], list[str]]:
    """The pixel metrics, none where they are undefined, and notes on them."""
    empty = sum(not mask.any() for mask, defect in zip(masks, labels, strict=True) if defect)
    notes = []
    if empty:
        notes.append(f"{empty} defect image(s) with an empty mask: good to the pixel metrics")
    try:
        found = pixel_metrics(masks, maps)
    except UndefinedMetricError:
        return {}, [*notes, "no defect pixel or no good pixel: pixel metrics undefined"]
    return {
        "pixel_auroc": found.auroc,
        "pixel_ap": found.average_precision,
        "pixel_f1max": found.f1_max,
        "pixel_aupro": found.aupro,
    }, notes


def _class_result(
    model: ImageModel, name: str, records: Sequence[Record], bar: tqdm
) -> ClassResult:
    defects = [record for record in records if record.defect]
    unmasked = sorted({record.defect_type for record in defects if record.mask is None})
    scores: list[float] = []
    # Without a defect no pixel metric is defined, so nothing need be held.
    masks: list[NDArray[np.bool_]] | None = None if unmasked or not defects else []
    maps: list[NDArray[np.float32]] = []
    found = predict_paths(model, [record.path for record in records])
    for record, (path, image, prediction, _) in zip(records, found, strict=True):
        assert path == record.path, (path, record.path)
        scores.append(prediction.score)
        if masks is not None:
            masks.append(_mask(record, (image.shape[0], image.shape[1])))
            maps.append(prediction.map)
        bar.update()
    labels = np.array([record.defect for record in records])
    result = class_metrics(labels, np.array(scores), masks, maps)
    notes = []
    if unmasked:
        notes.append(f"no masks for {', '.join(unmasked)}: pixel metrics undefined")
    if name not in model.classes:
        notes.append("the model was not trained on this class")
    return dataclasses.replace(result, notes=(*notes, *result.notes))


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


def _row(name: str, metrics: Mapping[str, float | None], n_good: int, n_defect: int) -> list[str]:
    values = (metrics[metric] for metric in METRICS)
    percents = ("-" if value is None else f"{100 * value:.1f}" for value in values)
    return [name, *percents, str(n_good), str(n_defect)]


def _prepare(target: Path) -> None:
    if target.is_dir():
        raise ConfigError(f"json_path: expected a file to write, {target} is a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
