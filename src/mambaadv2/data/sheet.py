"""Contact sheets: the images of a class at a glance, what `check` found marked on them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mambaadv2.data.check import DataReport
from mambaadv2.data.record import Record
from mambaadv2.data.verify import in_threads, read_record
from mambaadv2.errors import ImageError, Problem
from mambaadv2.files import writing_to
from mambaadv2.image import outline, read_image, write_png
from mambaadv2.names import printable
from mambaadv2.tiles import PAPER, Pixels, draw_tile, fitted, write_line

TILE, LABEL, GAP, TITLE = 144, 18, 8, 34
"""Pixels: side of a thumbnail, height of its label, space between, height of the title."""
COLUMNS, MOST = 10, 200
"""A sheet has at most MOST images: the marked ones first, then some of the rest, evenly."""

_MARK, _OUTLINE = (205, 30, 30), (0, 255, 160)

# Kind of finding -> the word on the thumbnail.
_MARKS = {
    "unusable": "cannot be used",
    "constant": "one value",
    "dark": "dark",
    "empty_mask": "empty mask",
    "full_mask": "full mask",
    "lossy_mask": "JPEG mask",
    "copies_across_classes": "copy",
    "copies_across_labels": "copy",
    "leak": "copy, leak",
    "copies_in_train": "copy",
    "copies_in_test": "copy",
    "near_copies_across_labels": "near copy",
    "near_leak": "near copy, leak",
    "near_copies_in_train": "near copy",
    "near_copies_in_test": "near copy",
}


def write_sheets(
    report: DataReport, folder: str | os.PathLike[str], *, progress: bool = True
) -> tuple[Path, ...]:
    """Write one PNG per class, split and label into `folder`, made where missing.

    Masks are outlined in green; what the report found is framed and named in red. Returns the
    files, in the order of the report's parts. Raises `ConfigError` when the folder cannot be
    written to.
    """
    folder = Path(folder)
    marks = _marks(report)
    written: list[Path] = []
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for (name, split, label), members in groupby(
        report.listing.records, lambda record: (record.class_name, record.split, record.defect_type)
    ):
        everything = list(members)
        records = _chosen(everything, marks)
        title = f"{name}, {split}, {label}: {len(everything):,} images"
        if len(records) < len(everything):
            title += f", {len(records)} of them shown"
        tiles = in_threads(_thumbnail, records, label=f"drawing {name} {label}", progress=progress)
        sheet = _sheet(printable(title), records, tiles, marks)
        path = folder / _file_name((name, split, label), written)
        with writing_to(folder):
            write_png(path, sheet)
        written.append(path)
    return tuple(written)


def _marks(report: DataReport) -> dict[Path, str]:
    """File -> the words on its thumbnail."""
    marks: dict[Path, list[str]] = {}
    for finding in report.findings:
        word = _MARKS.get(finding.kind)
        for path in finding.files if word else ():
            words = marks.setdefault(path, [])
            if word not in words:
                words.append(str(word))
    return {path: ", ".join(words) for path, words in marks.items()}


def _mark(record: Record, marks: dict[Path, str]) -> str:
    words = (marks.get(path) for path in (record.path, *record.masks))
    return ", ".join(word for word in words if word)


def _chosen(records: Sequence[Record], marks: dict[Path, str]) -> list[Record]:
    if len(records) <= MOST:
        return list(records)
    marked = [record for record in records if _mark(record, marks)][:MOST]
    rest = [record for record in records if not _mark(record, marks)]
    places = np.linspace(0, len(rest) - 1, MOST - len(marked)).astype(int) if rest else ()
    return marked + [rest[place] for place in places]


def _thumbnail(record: Record) -> Pixels | None:
    """(h, w, 3), the longer side TILE; None for an image that cannot be read."""
    answer = read_record(record)
    if isinstance(answer, Problem):
        try:
            # It may be the mask only.
            image, mask = read_image(record.path), None
        except ImageError:
            return None
    else:
        image, mask = answer
    small = fitted(image, TILE)
    if mask is not None:
        # Any part of a defect counts, or small ones would vanish in the shrinking.
        scale = TILE / max(mask.shape)
        grey = Image.fromarray(mask.astype(np.uint8) * 255).reduce(max(1, int(1 / scale)))
        shrunk = np.array(grey.resize(small.shape[1::-1], Image.Resampling.BILINEAR)) > 0
        small = outline(small, shrunk, colour=_OUTLINE, width=1)
    return small


def _sheet(
    title: str, records: Sequence[Record], tiles: Iterator[Pixels | None], marks: dict[Path, str]
) -> Pixels:
    columns = min(COLUMNS, len(records))
    rows = ceil(len(records) / columns)
    words = [_mark(record, marks) for record in records]
    cell = (TILE + GAP, TILE + GAP + LABEL * (2 if any(words) else 1))
    # Wide enough for a title over a single image.
    size = (max(columns, 3) * cell[0] + GAP, rows * cell[1] + TITLE + GAP)
    page = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(page)
    write_line(draw, (GAP, GAP), title, size[0] - 2 * GAP, 16)
    for index, (record, mark, tile) in enumerate(zip(records, words, tiles, strict=True)):
        x, y = (index % columns) * cell[0] + GAP, (index // columns) * cell[1] + TITLE
        draw_tile(page, (x, y), tile, TILE)
        if mark:
            draw.rectangle((x - 3, y - 3, x + TILE + 2, y + TILE + 2), outline=_MARK, width=3)
            write_line(draw, (x, y + TILE + LABEL), mark, TILE, 12, _MARK)
        write_line(draw, (x, y + TILE + 3), printable(record.path.stem), TILE, 12)
    return np.asarray(page)


def _file_name(parts: Sequence[str], written: Sequence[Path]) -> str:
    """Class, split and label as one file name that is not taken yet."""
    stem = "_".join(re.sub(r"[^\w.-]", "-", part)[:60] for part in parts)
    taken = {path.name.lower() for path in written}
    name, number = f"{stem}.png", 2
    while name.lower() in taken:
        name, number = f"{stem}_{number}.png", number + 1
    return name
