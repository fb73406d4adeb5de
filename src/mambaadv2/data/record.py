"""What a data set is to everything else: records, and problems of what could not become one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mambaadv2.errors import DataError, Problem
from mambaadv2.names import did_you_mean

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

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
"""In the order of a `Listing`."""

Validation = Literal["apart", "train"]
"""What becomes of the images that a data set publishes for validation."""

GOOD = "good"
"""The label of normal images: a folder's name, or a manifest's label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One image of a data set."""

    path: Path
    class_name: str
    split: Split
    defect: bool
    """True for images that are not good; those of training never are."""
    defect_type: str
    """The folder's name or the manifest's label, "good" for normal images."""
    masks: tuple[Path, ...] = ()
    """The ground truth's files, whose union it is; empty for normal images and where there is no
    ground truth. Most data sets have one file per image, MVTec LOCO AD one per defect."""
    mask_background: str | None = None
    """Colour of the masks' good pixels as "#rrggbb"; None where they are black (all samples 0)."""
    sample: str | None = None
    """What names the photographed piece within its class, where several images show it."""
    view: str | None = None
    """The camera of a multi-view data set, for example "C1"."""

    @property
    def mask(self) -> Path | None:
        """The ground truth's only file, or None.

        Raises `ValueError` where there are several, so that no part is taken for the whole.
        """
        if len(self.masks) > 1:
            raise ValueError(
                f"{self.path}: has {len(self.masks)} masks, whose union counts; read `masks`"
            )
        return self.masks[0] if self.masks else None


@dataclass(frozen=True, slots=True)
class Listing:
    """A data set's files: what can be used, as far as names tell, and what cannot."""

    records: tuple[Record, ...]
    """Sorted by class, split (as in `SPLITS`), defect type and file name."""
    problems: tuple[Problem, ...]
    """In the data set's order; each stands for a file, folder or line that gives no record."""
    classes: Mapping[str, Path] = field(default_factory=dict)
    """Every class asked for, usable or not -> its folder, or the file that lists it."""
    ignored: tuple[Path, ...] = ()
    """Folders that are not looked into although they lie where images or classes do."""
    layout: str = ""
    """The layout's name, as in `mambaadv2.data.layouts.LAYOUTS`."""
    reason: str = ""
    """Why it is this layout: "as named", or what was recognised."""
    notes: tuple[str, ...] = ()
    """Sentences on what was left out or decided by rule, for people."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked of a data set; the fields are the arguments of `list_records`."""

    split: Split | None = None
    classes: Sequence[str] | None = None
    validation: Validation = "apart"

    def given(self, published: Split) -> Split | None:
        """Return the split that images published as `published` get, None if not asked for."""
        merged = published == "validation" and self.validation == "train"
        split: Split = "train" if merged else published
        return split if self.split in (None, split) else None


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
        masks=() if mask is None else (mask,),
    )


def record_order(record: Record) -> tuple[str, int, str, Path]:
    """Return the key by which a `Listing` is sorted."""
    return (record.class_name, SPLITS.index(record.split), record.defect_type, record.path)


def check_split(split: object) -> None:
    """Raise `DataError` unless `split` is "train", "validation", "test" or None (all)."""
    if split not in (None, *SPLITS):
        raise DataError(f'split: expected "train", "validation", "test" or None, got {split!r}')


def check_validation(validation: object) -> None:
    """Raise `DataError` unless `validation` is "apart" or "train"."""
    if validation not in ("apart", "train"):
        raise DataError(f'validation: expected "apart" or "train", got {validation!r}')


def chosen_classes(root: Path, found: Iterable[str], names: Sequence[str] | None) -> list[str]:
    """Return the sorted class names, all of them or those in `names`.

    Raises `DataError` for a name that was not found, with the closest one that was.
    """
    known = sorted(found)
    for name in known:
        if any(ord(sign) < 32 or ord(sign) == 127 for sign in name):
            raise DataError(
                f"{root}: expected class names in one line, found {name!r}; rename it: tables, "
                "lists and logs have one line per name"
            )
    if names is None:
        return known
    if isinstance(names, str) or not names:
        raise DataError(f"classes: expected a list of one or more class names, got {names!r}")
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known, cutoff=0.5)
            raise DataError(f"{root}: no class {name!r}{hint}; found {', '.join(known)}")
    return sorted(set(names))


def foreign_problem(path: Path) -> Problem:
    """Return the problem of a picture in a format that cannot be read."""
    return Problem(
        path,
        f"{path}: expected a PNG, JPEG, BMP, TIFF or WebP image, found {path.suffix}, which "
        "cannot be read; convert the file or remove it",
    )


def not_a_file(path: Path) -> str | None:
    """Return in words what stands in the place of a file; None where there is one."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "nothing of that name"
    except (OSError, ValueError) as error:
        return f"what cannot be opened ({getattr(error, 'strerror', None) or error})"
    if stat.S_ISREG(mode):
        return None
    return "a folder" if stat.S_ISDIR(mode) else "no regular file"
