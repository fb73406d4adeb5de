"""From a data set to a list of records. No image is opened here.

The one door to data sets of every layout; `mambaadv2.data.layouts` has a function for each.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mambaadv2.data.layouts import LAYOUTS, NOTHING_TELLS, named_layout, recognised_layout
from mambaadv2.data.manifest import MANIFEST_SUFFIXES
from mambaadv2.data.record import (
    IMAGE_SUFFIXES,
    Ask,
    Listing,
    Record,
    Split,
    Validation,
    check_split,
    check_validation,
)
from mambaadv2.errors import DataError

__all__ = ["IMAGE_SUFFIXES", "Listing", "Record", "Split", "list_records", "mvtec_records"]


def list_records(
    data: str | os.PathLike[str],
    *,
    split: Split | None = None,
    classes: Sequence[str] | None = None,
    layout: str | None = None,
    validation: Validation = "apart",
) -> Listing:
    """List a data set, of whatever layout.

    data: its folder, in many layouts also the folder of one class; or a list of images: a manifest
    (.csv, .jsonl, .parquet), a JSON file of ADer or Datumaro, a manifest of Lookout for Vision.
    layout: a name of `mambaadv2.data.layouts.LAYOUTS`. None recognises it by names of files and
    folders; `Listing.reason` says by which.
    split: "train" never looks into test folders, "test" never into train folders, "validation" is
    what some data sets publish beside the two; None lists train, and the others where they are.
    classes: picks classes by name; the others are not looked into.
    validation: "apart" leaves images published for validation in a split of their own, "train"
    adds the good ones among them to training, as some published numbers did.

    Splits are as published; where there is none, the layout's function says by which rule images
    are divided. Training images are always good: defect images that a data set publishes for
    supervised training are left out, and `Listing.notes` counts them. Only KolektorSDD2, whose
    labels are its masks, has its masks (never its images) decoded.

    Problems, none of which stops the listing of the rest, each with a file's name: see the layout's
    function and, for folders by class, `class_listing`. Hidden files, files that are no pictures,
    other folders without train/ or test/, what is in train/ beside good/, and masks of good images
    are no problems and are left out.

    Raises `DataError`, saying what was expected and what was found: no data set, several layouts
    that fit, an unknown layout or class, a list that cannot be read.

    >>> from mambaadv2.data.index import list_records  # doctest: +SKIP
    >>> listing = list_records("VisA_20220922", split="test")  # doctest: +SKIP
    >>> listing.layout, listing.reason  # doctest: +SKIP
    ('visa', 'split_csv/1cls.csv with the columns object, split, label, image, mask')
    """
    check_split(split)
    check_validation(validation)
    data = Path(data)
    ask = Ask(split, classes, validation)
    if layout is None:
        name, reason = recognised_layout(data)
    else:
        name, reason = named_layout(layout), "as named"
        _require_folder_or_file(data)
        _require_suffix(data, name)
    try:
        listing = LAYOUTS[name](data, ask)
    except DataError as error:
        if reason != NOTHING_TELLS:
            raise
        raise DataError(
            f"{error}. No other layout is recognised either; one that is there can be named: "
            f"--layout with one of {', '.join(LAYOUTS)}"
        ) from error
    return replace(listing, layout=name, reason=reason)


def mvtec_records(
    root: str | os.PathLike[str],
    *,
    split: Split | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[Record, ...]:
    """List a folder in MVTec AD's layout as `list_records`, but stop at the first problem.

    Raises `DataError` for a wrong root, an unknown class and for the first problem.
    """
    root = Path(root)
    check_split(split)
    if not os.path.isdir(root):
        found = "a file" if os.path.exists(root) else "nothing of that name"
        raise DataError(f"{root}: expected the folder of a data set, found {found}")
    listing = LAYOUTS["mvtec"](root, Ask(split, classes))
    if listing.problems:
        raise DataError(listing.problems[0].message)
    return listing.records


def _require_suffix(data: Path, layout: str) -> None:
    """A manifest's kind is its file's ending; the name must not say another."""
    if f".{layout}" in MANIFEST_SUFFIXES and data.suffix.lower() != f".{layout}":
        raise DataError(
            f"{data}: expected a file that ends with .{layout} for --layout {layout}; leave the "
            "layout out, or rename the file"
        )


def _require_folder_or_file(data: Path) -> None:
    if not os.path.isdir(data) and not os.path.isfile(data):
        raise DataError(f"{data}: expected a data set, found nothing of that name")
