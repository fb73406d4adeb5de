"""What an evaluation found: plain values, the table of a terminal and the JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mambaadv2.errors import Problem

PROTOCOL = "exact"

METRICS = (
    *("image_auroc", "image_ap", "image_f1max"),
    *("pixel_auroc", "pixel_ap", "pixel_f1max", "pixel_aupro", "mad"),
)
"""Names of the seven metrics and of their mean, in the order of every table."""

_HEADINGS = dict(
    zip(
        METRICS,
        ("I-AUROC", "I-AP", "I-F1max", "P-AUROC", "P-AP", "P-F1max", "P-AUPRO", "mAD"),
        strict=True,
    )
)

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResult:
    """One test image: the truth and what the model said."""

    name: str
    """The file, relative to the data set where it lies inside."""
    kind: str
    """The truth: "good" or the defect type."""
    defect: bool
    """The truth: True for a defect."""
    score: float
    """Raw units, as `threshold`."""
    threshold: float
    """Above 0; of the class that the model found."""
    flagged: bool
    """The model's decision: True for a defect."""
    found_class: str
    p_value: float | None = None
    """Share of good images that score this high, at most; None where the model does not know."""

    @property
    def ratio(self) -> float:
        """Score / threshold: 1 is the threshold, whatever the class."""
        return self.score / self.threshold

    @property
    def right(self) -> bool:
        """Whether the decision is the truth."""
        return self.flagged == self.defect


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """ROC, (false positive rate, true positive rate), and precision at recall, as points 0..1."""

    roc: Points
    precision_recall: Points


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One test image as pictures, each the content of an image file of at most 320 pixels."""

    image: ImageResult
    picture: bytes
    map: bytes
    """The anomaly map in colours."""
    overlay: bytes
    """The map's heat over the image."""
    outline: bytes | None
    """The true defect outlined; None for a good image and where there is no mask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """The figures of one class."""

    misses: tuple[Figure, ...]
    """Defects of the lowest score / threshold, lowest first, whether missed or not."""
    alarms: tuple[Figure, ...]
    """Good images of the highest score / threshold, highest first, whether flagged or not."""
    examples: tuple[Figure, ...]
    """The first good image and the first defect that are not among the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassResult:
    """The metrics of one class, and what a report shows of it."""

    metrics: Mapping[str, float | None]
    """One value for each of `METRICS`, 0..1, None where undefined; `mad` needs all seven."""
    n_good: int
    """Good test images."""
    n_defect: int
    """Test images with a defect."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers should know: what is undefined and why, a class not trained."""
    images: tuple[ImageResult, ...] = ()
    """Every test image, in the order of the records."""
    image_curves: Curves | None = None
    """None where the image metrics are undefined."""
    pixel_curves: Curves | None = None
    """None where the pixel metrics are undefined."""
    gallery: Gallery | None = None
    """None unless a report was asked for."""

    @property
    def n_flagged(self) -> int:
        """Good images that the model called a defect."""
        return sum(image.flagged and not image.defect for image in self.images)

    @property
    def n_found(self) -> int:
        """Defects that the model called a defect."""
        return sum(image.flagged and image.defect for image in self.images)

    def by_kind(self) -> dict[str, list[ImageResult]]:
        """The images of every defect type and of "good", which comes first."""
        kinds: dict[str, list[ImageResult]] = {}
        for image in sorted(self.images, key=lambda image: (image.defect, image.kind)):
            kinds.setdefault(image.kind, []).append(image)
        return kinds


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The metrics of all classes and their mean."""

    classes: Mapping[str, ClassResult]
    seconds: float
    """Wall clock for checking the files, predictions and metrics."""
    skipped: tuple[Problem, ...] = ()
    """Files that could not be used and were left out."""
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

    def content(self) -> dict[str, object]:
        """The numbers as `to_json` writes them, 0..1 and None where undefined."""
        return {
            "protocol": self.protocol,
            "classes": {name: _class_content(result) for name, result in self.classes.items()},
            "mean": {**self.mean, "n_classes": self.n_classes},
            "notes": {name: result.notes for name, result in self.classes.items() if result.notes},
            "skipped": [{"path": str(p.path), "error": p.message} for p in self.skipped],
        }

    def to_json(self) -> str:
        """Return the numbers as JSON text, 0..1 and null where undefined, in a fixed order."""
        return json_text(self.content())

    def table(self) -> str:
        """Return the numbers as text in percent, a dash where undefined, with footnotes.

        Of the files left out the first ten are named; the JSON names them all.
        """
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
        lines += ["", *self.footnotes(), *self._decisions(), *_skipped_lines(self.skipped)]
        lines.append(f"{self.images} images in {self.seconds:.1f} s")
        return "\n".join(lines)

    def _decisions(self) -> list[str]:
        """What the stored thresholds make of the images: a good ranking may go with a poor one."""
        return [
            f"{name}: at the stored threshold {result.n_flagged} of {result.n_good} good images "
            f"flagged, {result.n_found} of {result.n_defect} defects found"
            for name, result in self.classes.items()
            if result.images
        ]

    def footnotes(self) -> list[str]:
        """What a reader of the table should know: notes, and which classes a mean is without."""
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

    def _values(self, metric: str) -> list[float]:
        values = (result.metrics[metric] for result in self.classes.values())
        return [value for value in values if value is not None]


def json_text(content: Mapping[str, object]) -> str:
    """JSON for a file: readable, no NaN. Escaped, because a file's name may be no text."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _class_content(result: ClassResult) -> dict[str, object]:
    content: dict[str, object] = {**result.metrics}
    content |= {"n_good": result.n_good, "n_defect": result.n_defect}
    if result.images:
        content |= {"n_flagged": result.n_flagged, "n_found": result.n_found}
    return content


def _row(name: str, metrics: Mapping[str, float | None], n_good: int, n_defect: int) -> list[str]:
    values = (metrics[metric] for metric in METRICS)
    percents = ("-" if value is None else f"{100 * value:.1f}" for value in values)
    return [name, *percents, str(n_good), str(n_defect)]


def _skipped_lines(skipped: Sequence[Problem], most: int = 10) -> list[str]:
    if not skipped:
        return []
    lines = [f"{len(skipped)} left out, because they could not be used:"]
    lines += [f"  {problem.message}" for problem in skipped[:most]]
    if len(skipped) > most:
        lines.append(f"  and {len(skipped) - most} more")
    return lines
