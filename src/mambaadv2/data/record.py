"""What a data set is to everything else: records, and problems of what could not become one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mambaadv2.errors import DataError, Problem

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
"""File name endings taken for images, in lower case; any case matches."""

FOREIGN_SUFFIXES = frozenset(
    {
        *(".arw", ".avif", ".cr2", ".cr3", ".dcm", ".dicom", ".dng", ".exr", ".gif", ".hdr"),
        *(".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jxl", ".jxr", ".nef", ".orf", ".pbm"),
        *(".pgm", ".pnm", ".ppm", ".psd", ".raf", ".raw", ".rw2", ".tga"),
    }
)
"""Endings of pictures that cannot be read: left out silently they would be lost."""

Split = Literal["train", "test"]

GOOD = "good"
"""The label of normal images: a folder's name, or a manifest's label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One image of a data set."""

    path: Path
    class_name: str
    split: Split
    defect: bool
    """True for test images outside `good`; training images are never defect."""
    defect_type: str
    """The folder's name or the manifest's label, "good" for normal images."""
    mask: Path | None
    """The ground truth's file; None for normal images and for classes without ground truth."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A data set's files: what can be used, as far as names tell, and what cannot."""

    records: tuple[Record, ...]
    """Sorted by class, split (train first), defect type and file name."""
    problems: tuple[Problem, ...]
    """In the data set's order; each stands for a file, folder or line that gives no record."""
    classes: Mapping[str, Path] = field(default_factory=dict)
    """Every class asked for, usable or not -> its folder, or the manifest."""
    ignored: tuple[Path, ...] = ()
    """Folders that are not looked into although they lie where images or classes do."""


def make_record(
    path: Path, class_name: str, split: Split, label: str, mask: Path | None = None
) -> Record:
    """Return the record of an image from its label, `GOOD` or a defect type's name."""
    return Record(
        path=path,
        class_name=class_name,
        split=split,
        defect=label != GOOD,
        defect_type=label,
        mask=mask,
    )


def check_split(split: object) -> None:
    """Raise `DataError` unless `split` is "train", "test" or None (both)."""
    if split not in (None, "train", "test"):
        raise DataError(f'split: expected "train", "test" or None, got {split!r}')


def chosen_classes(root: Path, found: Iterable[str], names: Sequence[str] | None) -> list[str]:
    """Return the sorted class names, all of them or those in `names`.

    Raises `DataError` for a name that was not found, with the closest one that was.
    """
    known = sorted(found)
    if names is None:
        return known
    if isinstance(names, str) or not names:
        raise DataError(f"classes: expected a list of one or more class names, got {names!r}")
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise DataError(f"{root}: no class {name!r}{hint}; found {', '.join(known)}")
    return sorted(set(names))


def foreign_problem(path: Path) -> Problem:
    """Return the problem of a picture in a format that cannot be read."""
    return Problem(
        path,
        f"{path}: expected a PNG, JPEG, BMP, TIFF or WebP image, found {path.suffix}, which "
        "cannot be read; convert the file or remove it",
    )
