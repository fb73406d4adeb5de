"""A data set looked at before training: what is in it, what cannot be used, what would mislead."""

from __future__ import annotations

import json
import os
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from mambaadv2.data.copies import exact_copies, near_copies
from mambaadv2.data.facts import Facts, examine
from mambaadv2.data.findings import ClassFacts, Finding, class_findings, counted
from mambaadv2.data.index import list_records
from mambaadv2.data.record import GOOD, Listing, Record
from mambaadv2.data.verify import in_threads
from mambaadv2.errors import Problem
from mambaadv2.names import printable

_SEVERITIES = ("error", "warning", "note")
_LINES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The images of one class with the same split and label."""

    class_name: str
    split: str
    label: str
    images: int
    """All that are listed; `unusable` of them cannot be used and are in nothing below."""
    unusable: int
    masks: int
    sizes: Mapping[str, int]
    """ "width x height" -> images; as the following, the most common first."""
    formats: Mapping[str, int]
    bits: Mapping[str, int]
    """Bits per sample as stored -> images."""
    channels: Mapping[str, int]
    """Samples per pixel as stored, alpha included -> images."""
    brightness: tuple[float, float, float] | None
    """Mean, lowest and highest of the images' mean grey values, 0 to 255; None without images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """What `check_data` found."""

    data: Path
    parts: tuple[Part, ...]
    """Sorted by class, split (train first) and label."""
    findings: tuple[Finding, ...]
    """Errors first, then warnings, then notes."""
    listing: Listing
    """The files themselves, for contact sheets."""

    @property
    def clean(self) -> bool:
        """Whether there is nothing but notes."""
        return all(finding.severity == "note" for finding in self.findings)

    def counts(self) -> dict[str, int]:
        """Return the number of findings of every severity."""
        found = Counter[str](finding.severity for finding in self.findings)
        return {severity: found[severity] for severity in _SEVERITIES}

    def text(self) -> str:
        """Return a table, then the findings, each with at most five of its lines."""
        listing = self.listing
        lines = _wrapped(f"layout: {listing.layout} ({printable(listing.reason)})")
        lines += ["", *_table(self.parts)]
        counts = self.counts()
        summary = ", ".join(counted(counts[name], name) for name in _SEVERITIES)
        lines += ["", summary if self.findings else "Nothing to complain about."]
        for finding in self.findings:
            where = f"{printable(finding.class_name)}: " if finding.class_name else ""
            lines += ["", *_wrapped(f"{finding.severity.upper()}  {where}{finding.message}")]
            lines += _wrapped(f"  {finding.advice}")
            lines += [f"    {line}" for line in finding.lines[:_LINES]]
            if len(finding.lines) > _LINES:
                lines.append(f"    and {len(finding.lines) - _LINES:,} more; --json has all")
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return everything as JSON text, in a fixed order."""
        content = {
            "data": str(self.data),
            "layout": {"name": self.listing.layout, "reason": self.listing.reason},
            **self.counts(),
            "parts": [_part_json(part) for part in self.parts],
            "findings": [
                {
                    "severity": finding.severity,
                    "kind": finding.kind,
                    "class": finding.class_name,
                    "message": finding.message,
                    "advice": finding.advice,
                    "files": [str(path) for path in finding.files],
                    "lines": list(finding.lines),
                }
                for finding in self.findings
            ],
        }
        # ASCII, because a file's name may be no text.
        return json.dumps(content, indent=2, allow_nan=False)


def check_data(
    data: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    layout: str | None = None,
    progress: bool = True,
) -> DataReport:
    """Look at every file of a data set, without any model.

    data, classes, layout: as in `list_records`. progress: show a bar on stderr when
    that is a terminal.

    Every image and mask is read once, in threads; about 5 kB of each image are kept.

    Raises `DataError` when the data set cannot be listed at all.

    >>> from mambaadv2.data.check import check_data  # doctest: +SKIP
    >>> report = check_data("parts")  # doctest: +SKIP
    >>> print(report.text())  # doctest: +SKIP
    """
    data = Path(data)
    listing = list_records(data, classes=classes, layout=layout)
    problems = [(_class_of(problem, listing), problem) for problem in listing.problems]
    facts: list[Facts] = []
    unusable: Counter[tuple[str, str, str]] = Counter()
    answers = in_threads(examine, listing.records, label="checking images", progress=progress)
    for record, answer in zip(listing.records, answers, strict=True):
        if isinstance(answer, Problem):
            problems.append((record.class_name, answer))
            unusable[_part_of(record)] += 1
        else:
            facts.append(answer)
    findings = [*_unusable(problems), *_ignored(listing, data), *_left_out(listing)]
    findings += exact_copies(facts, lambda path: _shown(path, data))
    for name in listing.classes:
        findings += _of_class(name, [f for f in facts if f.record.class_name == name], data)
    return DataReport(
        data=data,
        parts=tuple(_parts(listing.records, facts, unusable)),
        findings=tuple(sorted(findings, key=_order)),
        listing=listing,
    )


def _of_class(name: str, facts: Sequence[Facts], data: Path) -> Iterator[Finding]:
    train = [each for each in facts if each.record.split == "train"]
    test = [each for each in facts if each.record.split == "test"]
    sides = ClassFacts(
        name=name,
        train=train,
        good=[each for each in test if not each.record.defect],
        defect=[each for each in test if each.record.defect],
        shown=lambda path: _shown(path, data),
    )
    yield from class_findings(sides)
    yield from near_copies(sides)


def _unusable(problems: Iterable[tuple[str | None, Problem]]) -> Iterator[Finding]:
    by_class: dict[str | None, list[Problem]] = {}
    for name, problem in problems:
        by_class.setdefault(name, []).append(problem)
    for name, members in by_class.items():
        yield Finding(
            severity="error",
            kind="unusable",
            class_name=name,
            message=f"{counted(len(members), 'item')} that cannot be used: training or evaluation "
            "would stop",
            advice="Mend or remove them, or go on without them: --on-error skip.",
            files=tuple(problem.path for problem in members),
            lines=tuple(problem.message for problem in members),
        )


def _ignored(listing: Listing, data: Path) -> Iterator[Finding]:
    if listing.ignored:
        yield Finding(
            severity="note",
            kind="ignored",
            class_name=None,
            message=f"{counted(len(listing.ignored), 'folder')} not looked into: no part of this "
            "layout, or among images",
            advice="Move images that belong to a class to where the layout expects them.",
            files=listing.ignored,
            lines=tuple(_shown(path, data) for path in listing.ignored),
        )


def _left_out(listing: Listing) -> Iterator[Finding]:
    if listing.notes:
        yield Finding(
            severity="note",
            kind="left_out",
            class_name=None,
            message="images that the layout leaves out, or divides by a rule",
            advice="Nothing to do, unless they are wanted: a manifest takes any images.",
            files=(),
            lines=listing.notes,
        )


def _class_of(problem: Problem, listing: Listing) -> str | None:
    for name, folder in listing.classes.items():
        if problem.path.is_relative_to(folder) and not folder.is_file():
            return name
    return None


def _order(finding: Finding) -> tuple[int, str]:
    return (_SEVERITIES.index(finding.severity), finding.class_name or "")


def _part_of(record: Record) -> tuple[str, str, str]:
    return (record.class_name, record.split, record.defect_type)


def _parts(
    records: Sequence[Record], facts: Sequence[Facts], unusable: Mapping[tuple[str, str, str], int]
) -> Iterator[Part]:
    by_part: dict[tuple[str, str, str], list[Facts]] = {}
    for each in facts:
        by_part.setdefault(_part_of(each.record), []).append(each)
    for key, members in groupby(records, _part_of):
        listed, usable = list(members), by_part.get(key, [])
        means = [each.mean for each in usable]
        yield Part(
            class_name=key[0],
            split=key[1],
            label=key[2],
            images=len(listed),
            unusable=unusable.get(key, 0),
            masks=sum(bool(record.masks) for record in listed),
            sizes=_common(f"{each.header.width} x {each.header.height}" for each in usable),
            formats=_common(each.header.format for each in usable),
            bits=_common(str(each.header.bits) for each in usable),
            channels=_common(str(each.header.channels) for each in usable),
            brightness=(sum(means) / len(means), min(means), max(means)) if means else None,
        )


def _common(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _part_json(part: Part) -> dict[str, object]:
    brightness = dict(zip(("mean", "lowest", "highest"), part.brightness or (), strict=False))
    return {
        "class": part.class_name,
        "split": part.split,
        "label": part.label,
        "images": part.images,
        "unusable": part.unusable,
        "masks": part.masks,
        "sizes": part.sizes,
        "formats": part.formats,
        "bits": part.bits,
        "channels": part.channels,
        "brightness": {name: round(value, 3) for name, value in brightness.items()} or None,
    }


def _table(parts: Sequence[Part]) -> list[str]:
    heading = ["class", "split", "label", "images", "bad", "masks", "size", "format"]
    rows = [[*heading, "bits", "channels", "brightness"]]
    before = ("", "")
    for part in parts:
        here = (part.class_name, part.split)
        light = part.brightness
        rows.append(
            [
                printable(part.class_name) if here[0] != before[0] else "",
                part.split if here != before else "",
                printable(part.label),
                f"{part.images:,}",
                f"{part.unusable:,}" if part.unusable else "-",
                f"{part.masks:,}" if part.label != GOOD and part.masks else "-",
                _summary(part.sizes),
                _summary(part.formats),
                _summary(part.bits),
                _summary(part.channels),
                f"{light[0]:.0f} ({light[1]:.0f} to {light[2]:.0f})" if light else "-",
            ]
        )
        before = here
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    numbers = {3, 4, 5}
    lines = []
    for row in rows:
        cells = (
            cell.rjust(width) if place in numbers else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100, subsequent_indent="  ", break_on_hyphens=False)


def _summary(counts: Mapping[str, int]) -> str:
    """The most common value, and how many others there are."""
    if not counts:
        return "-"
    first = next(iter(counts))
    return first if len(counts) == 1 else f"{first} and {len(counts) - 1} more"


def _shown(path: Path, data: Path) -> str:
    folder = data if data.is_dir() else data.parent
    inside = path.relative_to(folder) if path.is_relative_to(folder) else path
    return printable(str(inside))
