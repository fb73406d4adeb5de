"""What an evaluation found: plain values, the table of a terminal and the numbers of a file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mambaadv2.errors import Problem
from mambaadv2.metrics import Interval, Resampling, Sampled, mean_sampled
from mambaadv2.protocols import EXACT, Protocol

SEVEN = (
    *("image_auroc", "image_ap", "image_f1max"),
    *("pixel_auroc", "pixel_ap", "pixel_f1max", "pixel_aupro"),
)
"""The metrics whose mean is mAD."""

METRICS = (*SEVEN, "mad", "pixel_iou_max")
"""The seven metrics, their mean, and mIoU-max, in the order of every table."""

HEADINGS = dict(
    zip(
        METRICS,
        ("I-AUROC", "I-AP", "I-F1max", "P-AUROC", "P-AP", "P-F1max", "P-AUPRO", "mAD", "IoUmax"),
        strict=True,
    )
)

PIECES = {"auroc": "AUROC", "ap": "AP", "f1max": "F1max"}
"""The metrics of pieces that several images show."""

LEVEL = 0.95
"""Of all intervals."""

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
    ranked: float | None = None
    """The protocol's image score, which the image metrics rank; None where it is `score`."""
    sample: str | None = None
    """What names the photographed piece, where several images show it."""
    defect_pixels: int | None = None
    """Pixels of the true defect in the image as it is; None without a mask."""
    pixels: int | None = None
    """Pixels of the image as it is."""

    @property
    def ranking(self) -> float:
        """What the image metrics rank: the protocol's image score."""
        return self.score if self.ranked is None else self.ranked

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
    thumbnails: Mapping[str, bytes] = field(default_factory=dict)
    """Image name to a small picture's file; of every image unless they are too many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassResult:
    """The metrics of one class, and what a report shows of it."""

    metrics: Mapping[str, float | None]
    """One value for each of `METRICS`, 0..1, None where undefined; `mad` needs all seven."""
    sampled: Mapping[str, Sampled] = field(default_factory=dict)
    """The defined ones with their replicates; empty where intervals were not asked for."""
    samples: Mapping[str, float] = field(default_factory=dict)
    """Of pieces that several images show: "auroc", "ap", "f1max" and "n"; empty without any."""
    sampled_pieces: Mapping[str, Sampled] = field(default_factory=dict)
    """The same three with their replicates; empty where intervals were not asked for."""
    grid_bound: float | None = None
    """How far a pixel metric of `exact` can be from full precision; None without pixel metrics."""
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

    def interval(self, metric: str) -> Interval | None:
        """Where a metric lies for other images of this kind; None where undefined or not asked."""
        return interval_of(self.sampled.get(metric))

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
    protocol: Protocol = EXACT
    resampling: Resampling | None = None
    """What the intervals come from; None without any."""

    @property
    def images(self) -> int:
        """Images evaluated."""
        return self.n_good + self.n_defect

    @property
    def n_good(self) -> int:
        """Good test images of all classes."""
        return sum(result.n_good for result in self.classes.values())

    @property
    def n_defect(self) -> int:
        """Test images with a defect of all classes."""
        return sum(result.n_defect for result in self.classes.values())

    @property
    def n_flagged(self) -> int:
        """Good images that the model called a defect, of all classes."""
        return sum(result.n_flagged for result in self.classes.values())

    @property
    def n_found(self) -> int:
        """Defects that the model called a defect, of all classes."""
        return sum(result.n_found for result in self.classes.values())

    @property
    def mean(self) -> dict[str, float | None]:
        """Per metric, the mean over the classes that have it; None where no class has."""
        means: dict[str, float | None] = {}
        for metric in METRICS:
            values = self._values(metric)
            means[metric] = math.fsum(values) / len(values) if values else None
        return means

    def interval(self, metric: str) -> Interval | None:
        """Of the mean over classes; the classes stay as they are, only their images vary."""
        parts = [
            result.sampled.get(metric)
            for result in self.classes.values()
            if result.metrics[metric] is not None
        ]
        known = [part for part in parts if part is not None]
        if not known or len(known) < len(parts):
            return None
        return interval_of(mean_sampled(known))

    @property
    def n_classes(self) -> dict[str, int]:
        """Per metric, the number of classes that have it and so enter the mean."""
        return {metric: len(self._values(metric)) for metric in METRICS}

    def content(self) -> dict[str, object]:
        """The numbers, 0..1 and None where undefined, for JSON."""
        return {
            "protocol": self.protocol.name,
            "rules": self.protocol.rules(),
            "intervals": None if self.resampling is None else _said(self.resampling),
            "classes": {name: _class_content(result) for name, result in self.classes.items()},
            "mean": {
                **self.mean,
                "n_classes": self.n_classes,
                "intervals": _pairs({metric: self.interval(metric) for metric in METRICS}),
            },
            "notes": {name: result.notes for name, result in self.classes.items() if result.notes},
            "skipped": [{"path": str(p.path), "error": p.message} for p in self.skipped],
        }

    def to_json(self) -> str:
        """Return the numbers as JSON text; a file with every image is `evaluate`'s `json_path`."""
        return json_text(self.content())

    def table(self) -> str:
        """Return the numbers as text in percent, a dash where undefined, with footnotes.

        Below each row stand the intervals, where they were asked for. Of the files left out the
        first ten are named; the JSON names them all.
        """
        rows = [["class", *HEADINGS.values(), "good", "defect"]]
        for name, result in self.classes.items():
            marked = f"{name}*" if result.notes else name
            rows.append(_row(marked, result.metrics, result.n_good, result.n_defect))
            if self.resampling is not None:
                rows.append(_interval_row(result.interval))
        rows.append(_row("mean", self.mean, self.n_good, self.n_defect))
        if self.resampling is not None:
            rows.append(_interval_row(self.interval))
        lines = [f"Protocol {self.protocol.name}, in percent", ""]
        if self.resampling is not None:
            lines[0] += f"; below each number its {100 * LEVEL:.0f} % interval over images"
        lines += [*aligned(rows), "", *self.footnotes(), *self.pieces(), *self._decisions()]
        lines += [self.protocol.line(), *_skipped_lines(self.skipped)]
        lines.append(f"{self.images} images in {self.seconds:.1f} s")
        return "\n".join(lines)

    def pieces(self, to: str = "-") -> list[str]:
        """The metrics of pieces, for classes where several images show one; to: as of `ends`."""
        lines = []
        for name, result in self.classes.items():
            if not result.samples:
                continue
            parts = []
            for metric, heading in PIECES.items():
                within = ends(interval_of(result.sampled_pieces.get(metric)), to)
                value = f"{heading} {100 * result.samples[metric]:.1f}"
                parts.append(f"{value} ({within})" if within else value)
            lines.append(
                f"{name}: over {result.samples['n']:.0f} pieces, the highest of each one's views: "
                f"{', '.join(parts)}"
            )
        return lines

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
        for metric, heading in HEADINGS.items():
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


def interval_of(sampled: Sampled | None) -> Interval | None:
    """The interval of a metric's replicates, None where no replicate has a value."""
    found = None if sampled is None else sampled.interval(LEVEL)
    return None if found is None or math.isnan(found.low) else found


def ends(interval: Interval | None, to: str = "-") -> str:
    """Both ends in percent with one decimal, `to` between; empty where there is no interval."""
    return "" if interval is None else f"{100 * interval.low:.1f}{to}{100 * interval.high:.1f}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for first, *cells in rows:
        padded = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join((first.ljust(widths[0]), *padded)).rstrip())
    return lines


def interval_cells(interval: Callable[[str], Interval | None]) -> list[str]:
    """The intervals of `METRICS` for below a row, a dash where there is none."""
    return [ends(interval(metric)) or "-" for metric in METRICS]


def json_text(content: Mapping[str, object]) -> str:
    """JSON for a file: readable, no NaN. Escaped, because a file's name may be no text."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _class_content(result: ClassResult) -> dict[str, object]:
    content: dict[str, object] = {**result.metrics}
    content |= {"n_good": result.n_good, "n_defect": result.n_defect}
    if result.images:
        content |= {"n_flagged": result.n_flagged, "n_found": result.n_found}
    if result.samples:
        pieces = {metric: interval_of(result.sampled_pieces.get(metric)) for metric in PIECES}
        content["samples"] = {**result.samples, "intervals": _pairs(pieces)}
    if result.grid_bound is not None:
        content["grid_bound"] = result.grid_bound
    content["intervals"] = _pairs({metric: result.interval(metric) for metric in METRICS})
    return content


def _pairs(intervals: Mapping[str, Interval | None]) -> dict[str, tuple[float, float]]:
    return {name: (found.low, found.high) for name, found in intervals.items() if found}


def _said(resampling: Resampling) -> dict[str, object]:
    return {
        "method": "Poisson bootstrap over images, BCa",
        "level": LEVEL,
        "seed": resampling.seed,
        "replicates": resampling.replicates,
        "groups": resampling.groups,
    }


def _row(name: str, metrics: Mapping[str, float | None], n_good: int, n_defect: int) -> list[str]:
    values = (metrics[metric] for metric in METRICS)
    shown = ("-" if value is None else f"{100 * value:.1f}" for value in values)
    return [name, *shown, str(n_good), str(n_defect)]


def _interval_row(interval: Callable[[str], Interval | None]) -> list[str]:
    return ["", *interval_cells(interval), "", ""]


def _skipped_lines(skipped: Sequence[Problem], most: int = 10) -> list[str]:
    if not skipped:
        return []
    lines = [f"{len(skipped)} left out, because they could not be used:"]
    lines += [f"  {problem.message}" for problem in skipped[:most]]
    if len(skipped) > most:
        lines.append(f"  and {len(skipped) - most} more")
    return lines
