"""What may be wrong with a class, beyond files that cannot be used. One function per suspicion.

All limits in here are our own choice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mambaadv2.data.facts import Facts

Severity = Literal["error", "warning", "note"]

FEW_TRAIN = 10
"""With fewer good training images the threshold is a guess."""
SEPARATED, SIGNIFICANT = 0.9, 0.001
"""Brightness tells two groups apart: AUROC from the one on (or down from 1 minus it) with a p-value
below the other."""
FULL_MASK = 0.9
"""A mask that marks a larger part of its image is hardly meant."""
DARK = 16
"""An image without a value above this, of 255, shows nothing."""
NETWORK_SIDE, LARGE = 256, 4
"""Images with a side more than LARGE times the network's are noted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One suspicion."""

    severity: Severity
    """"error": training or evaluation would stop; "warning": numbers would lie; "note"."""
    kind: str
    """A fixed word, for programs."""
    class_name: str | None
    """None where it concerns several classes, or none is known."""
    message: str
    """What was found and what it means."""
    advice: str
    """What to do."""
    files: tuple[Path, ...] = ()
    """All files concerned, each once for every group it is in."""
    lines: tuple[str, ...] = ()
    """The same for people: a line per file, group or problem."""


@dataclass(frozen=True, slots=True)
class ClassFacts:
    """The usable images of one class, by what they are for."""

    name: str
    train: Sequence[Facts]
    good: Sequence[Facts]
    """Good test images."""
    defect: Sequence[Facts]
    shown: Callable[[Path], str]
    """How to name a file to people."""

    @property
    def all(self) -> list[Facts]:
        """Training images first."""
        return [*self.train, *self.good, *self.defect]

    def finding(
        self,
        severity: Severity,
        kind: str,
        message: str,
        advice: str,
        files: Iterable[Path] = (),
    ) -> Finding:
        """Make a finding about this class with a line per file."""
        paths = tuple(files)
        return Finding(
            severity=severity,
            kind=kind,
            class_name=self.name,
            message=message,
            advice=advice,
            files=paths,
            lines=tuple(self.shown(path) for path in paths),
        )


def class_findings(facts: ClassFacts) -> Iterator[Finding]:
    """Yield what is suspicious about one class by itself, duplicates excepted."""
    for suspect in (_counts, _masks, _blank, _mixtures, _large, _brightness):
        yield from suspect(facts)


def rank_test(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """How well one number tells `b` from `a`: AUROC, ties counting half, and two-sided p-value.

    Mann and Whitney's U in its normal approximation, corrected for ties and continuity; neither
    may be empty. The p-value is 1 when all values are equal.

    >>> rank_test([1, 2, 3, 4], [5, 6, 7, 8])[0]
    1.0
    """
    values = np.concatenate([np.asarray(a, np.float64), np.asarray(b, np.float64)])
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m, total = len(a), len(b), len(values)
    u = float(ranks[n:].sum()) - m * (m + 1) / 2
    ties = float((counts.astype(np.float64) ** 3 - counts).sum()) / max(1, total * (total - 1))
    variance = n * m / 12 * (total + 1 - ties)
    if variance <= 0:
        return u / (n * m), 1.0
    z = max(0.0, abs(u - n * m / 2) - 0.5) / math.sqrt(variance)
    return u / (n * m), math.erfc(z / math.sqrt(2))


def counted(number: int, noun: str) -> str:
    """A number with its noun in the right form: "1 image", "2 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _counts(facts: ClassFacts) -> Iterator[Finding]:
    number = len(facts.train)
    if number == 0:
        yield facts.finding(
            "error",
            "no_train",
            "no good training image can be used: training would stop, or leave the class out",
            "Add good images to train.",
        )
    elif number < FEW_TRAIN:
        yield facts.finding(
            "warning",
            "few_train",
            f"only {counted(number, 'good training image')}: the threshold will be a guess",
            f"Add good images that show the normal variety, at least {FEW_TRAIN}, better 30.",
        )
    if not facts.good and not facts.defect:
        yield facts.finding(
            "note",
            "no_test",
            "no test images: nothing to measure on",
            "Add good and defect images to test to know how well the model works.",
        )
    elif not facts.good or not facts.defect:
        missing, there = ("defect", "good") if facts.good else ("good", "defect")
        yield facts.finding(
            "warning",
            f"no_test_{missing}",
            f"test has {there} images only: no image metric is defined",
            f"Add {missing} images to test.",
        )


def _masks(facts: ClassFacts) -> Iterator[Finding]:
    masked = [each for each in facts.defect if each.mask_share is not None]
    if facts.defect and not masked:
        yield facts.finding(
            "note",
            "no_masks",
            "no masks: image metrics only, pixel metrics are undefined",
            "Add masks if the place of a defect matters.",
        )
    empty = [each for each in masked if each.mask_share == 0]
    if empty:
        yield facts.finding(
            "warning",
            "empty_mask",
            f"{counted(len(empty), 'defect image')} with a mask that marks nothing: defect to the "
            "image metrics, good to the pixel metrics",
            "Draw the defect, or move the image to test/good and remove the mask.",
            (mask for each in empty for mask in each.record.masks),
        )
    full = [each for each in masked if (each.mask_share or 0) > FULL_MASK]
    if full:
        yield facts.finding(
            "warning",
            "full_mask",
            f"{counted(len(full), 'mask')} marking more than {FULL_MASK:.0%} of the image: every "
            "pixel above 0 counts as defect",
            "Look whether black and white are swapped, or the background is not quite black.",
            (mask for each in full for mask in each.record.masks),
        )
    lossy = [each for each in masked if "JPEG" in each.mask_formats]
    if lossy:
        yield facts.finding(
            "warning",
            "lossy_mask",
            f"{counted(len(lossy), 'mask')} in JPEG: compression leaves traces around what was "
            "drawn, and every pixel above 0 counts as defect",
            "Save the masks as PNG, from the drawing and not from the JPEG.",
            (mask for each in lossy for mask in each.record.masks),
        )


def _blank(facts: ClassFacts) -> Iterator[Finding]:
    constant = [each for each in facts.all if each.darkest == each.brightest]
    if constant:
        yield facts.finding(
            "warning",
            "constant",
            f"{counted(len(constant), 'image')} of a single value: nothing to see",
            "Look at the camera or the export, and remove them.",
            (each.record.path for each in constant),
        )
    dark = [each for each in facts.all if each.darkest < each.brightest <= DARK]
    if dark:
        yield facts.finding(
            "warning",
            "dark",
            f"{counted(len(dark), 'image')} nearly black, no value above {DARK} of 255",
            "Look at the exposure. If they have 16 bits of which the camera fills 10 or 12, scale "
            "them to the full range, all by the same factor.",
            (each.record.path for each in dark),
        )


def _mixtures(facts: ClassFacts) -> Iterator[Finding]:
    """Properties of the files in which images of the class differ."""
    properties: list[tuple[str, str, Callable[[Facts], str]]] = [
        ("size", "sizes", lambda each: f"{each.header.width} x {each.header.height}"),
        ("bits", "bit depths", lambda each: f"{each.header.bits} bits"),
        ("channels", "numbers of channels", lambda each: counted(each.header.channels, "channel")),
        ("format", "file formats", lambda each: each.header.format),
    ]
    for kind, plural, value in properties:
        counts = Counter(value(each) for each in facts.all)
        if len(counts) < 2:
            continue
        pair = _told_apart(facts, value)
        (usual, _), *_ = counts.most_common(1)
        odd = [each.record.path for each in facts.all if value(each) != usual]
        listed = ", ".join(f"{name} ({number:,})" for name, number in counts.most_common(5))
        listed += f" and {len(counts) - 5} more" if len(counts) > 5 else ""
        if pair:
            message = f"different {plural} tell {pair}, whatever is in the picture: {listed}"
            advice = "Take and export all images in the same way."
        else:
            message = f"different {plural}: {listed}"
            advice = "Fine if the line sends such a mixture as well; else export them alike."
        yield facts.finding("warning" if pair else "note", f"mixed_{kind}", message, advice, odd)
    ratios = [each.header.width / each.header.height for each in facts.all]
    if ratios and max(ratios) > 1.02 * min(ratios):
        yield facts.finding(
            "note",
            "mixed_aspect",
            f"width to height varies from {min(ratios):.2f} to {max(ratios):.2f}: all are squeezed "
            "into a square, so the same part looks different",
            "Cut or pad the images to one shape.",
        )


def _told_apart(facts: ClassFacts, value: Callable[[Facts], str]) -> str | None:
    """The groups of images that share no value, in words."""
    train, good, defect = (
        {value(each) for each in group} for group in (facts.train, facts.good, facts.defect)
    )
    if good and defect and not good & defect:
        return "good from defect test images"
    if train and good and not train & good:
        return "good test images from training images"
    return None


def _large(facts: ClassFacts) -> Iterator[Finding]:
    side, width, height = max(
        (
            (max(each.header.width, each.header.height), each.header.width, each.header.height)
            for each in facts.all
        ),
        default=(0, 0, 0),
    )
    if side > LARGE * NETWORK_SIDE:
        yield facts.finding(
            "note",
            "large",
            f"images of up to {width} x {height} pixels: the network sees {NETWORK_SIDE} x "
            f"{NETWORK_SIDE} by default, where {side / NETWORK_SIDE:.0f} pixels become one and "
            "defects of a few pixels are lost",
            "Cut them into tiles if defects are small, or train with a larger --image-size.",
        )


def _brightness(facts: ClassFacts) -> Iterator[Finding]:
    found = _separations(facts.train, facts.good)
    if found:
        yield facts.finding(
            "warning",
            "brightness_train",
            f"good test images differ from training images by {found}: the model will take the "
            "light for a defect, or the test says little about the line",
            "Take both under the same light with the same exposure, or add training images of "
            "both kinds.",
        )
    found = _separations(facts.good, facts.defect)
    if found:
        yield facts.finding(
            "warning",
            "brightness_labels",
            f"defect images differ from good test images by {found}: a model that sees only this "
            "would look good, unless it is the defects that change it",
            "See whether good and defect images were taken together; if not, take them again.",
        )


def _separations(a: Sequence[Facts], b: Sequence[Facts]) -> str:
    """Which simple statistics tell `b` from `a`, in words; empty when none does."""
    if not a or not b:
        return ""
    found = []
    statistics: list[tuple[str, Callable[[Facts], float]]] = [
        ("mean brightness", lambda each: each.mean),
        ("contrast (deviation of the grey values)", lambda each: each.deviation),
    ]
    for name, value in statistics:
        area, p = rank_test([value(each) for each in a], [value(each) for each in b])
        if max(area, 1 - area) >= SEPARATED and p < SIGNIFICANT:
            side = "higher" if area > 0.5 else "lower"
            found.append(f"{name} alone ({side}, AUROC {max(area, 1 - area):.3f}, p = {p:.0e})")
    sizes = f"; {len(a)} against {counted(len(b), 'image')}"
    return " and by ".join(found) + sizes if found else ""
