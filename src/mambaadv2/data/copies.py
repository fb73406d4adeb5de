"""Findings about pictures that are in a data set more than once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mambaadv2.data.duplicates import near_groups
from mambaadv2.data.facts import Facts
from mambaadv2.data.findings import ClassFacts, Finding, Severity, counted

Group = Sequence[Facts]
"""Two or more images that show the same."""

# Kind -> severity, what it means, what to do.
_KINDS: dict[str, tuple[Severity, str, str]] = {
    "copies_across_classes": (
        "warning",
        "in more than one class: at most one of the classes is right",
        "Keep each picture in the class that it shows.",
    ),
    "copies_across_labels": (
        "warning",
        "labelled good and defect: at most one label is right, unless the defect is tiny",
        "Look at them, and keep the right one.",
    ),
    "leak": (
        "warning",
        "in train and in test: the test asks for what was learned",
        "Remove them from one side.",
    ),
    "copies_in_train": (
        "warning",
        "within train: what is held out for the threshold may have been learned",
        "Keep one of each.",
    ),
    "copies_in_test": ("note", "within test: they count more than once", "Keep one of each."),
}
_LOOK = " Look at them first: near duplicates are guessed from small grey pictures."


def exact_copies(facts: Sequence[Facts], shown: Callable[[Path], str]) -> Iterator[Finding]:
    """Yield groups of equal pictures of a whole data set, whatever their file format."""
    by_pixels: dict[str, list[Facts]] = {}
    for each in facts:
        # Blank images equal each other without being copies; they are a finding of their own.
        if each.darkest < each.brightest:
            by_pixels.setdefault(each.pixels_sha256, []).append(each)
    groups = [group for group in by_pixels.values() if len(group) > 1]
    yield from _findings(groups, shown, near=False)


def near_copies(facts: ClassFacts) -> Iterator[Finding]:
    """Yield groups of images of one class that show the same shot without being equal."""
    first: dict[str, Facts] = {}
    for each in facts.all:
        first.setdefault(each.pixels_sha256, each)
    different = list(first.values())
    training = sum(each.record.split == "train" for each in different)
    vectors = np.array([each.cells for each in different])
    groups = [[different[i] for i in group] for group in near_groups(vectors, training)]
    yield from _findings(groups, facts.shown, near=True)


def _findings(
    groups: Sequence[Group], shown: Callable[[Path], str], *, near: bool
) -> Iterator[Finding]:
    """One finding for all groups of the same kind and class."""
    alike: dict[tuple[str, str | None], list[Group]] = {}
    for group in groups:
        names = {each.record.class_name for each in group}
        name = next(iter(names)) if len(names) == 1 else None
        alike.setdefault((_kind(group), name), []).append(group)
    for (kind, name), members in alike.items():
        severity, meaning, advice = _KINDS[kind]
        what = "near duplicates" if near else "equal pictures"
        yield Finding(
            severity=severity,
            kind=f"near_{kind}" if near else kind,
            class_name=name,
            message=f"{counted(len(members), 'group')} of {what} {meaning}",
            advice=advice + (_LOOK if near else ""),
            files=tuple(each.record.path for group in members for each in group),
            lines=tuple(_line(group, shown, near=near) for group in members),
        )


def _kind(group: Group) -> str:
    records = [each.record for each in group]
    if len({record.class_name for record in records}) > 1:
        return "copies_across_classes"
    if len({record.defect for record in records}) > 1:
        return "copies_across_labels"
    splits = {record.split for record in records}
    return "leak" if len(splits) > 1 else f"copies_in_{splits.pop()}"


def _line(group: Group, shown: Callable[[Path], str], *, near: bool) -> str:
    line = (" ~ " if near else " = ").join(shown(each.record.path) for each in group)
    if not near and len({each.file_sha256 for each in group}) > 1:
        return f"{line} (different files, the same pixels)"
    return line
