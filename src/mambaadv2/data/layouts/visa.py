"""VisA as it is published: images by class, the split in a table.

    ROOT/split_csv/1cls.csv                         object,split,label,image,mask
    ROOT/<object>/Data/Images/{Normal,Anomaly}/*.JPG
    ROOT/<object>/Data/Masks/Anomaly/*.png

Source: github.com/amazon-science/spot-diff (readme and utils/prepare_data.py); Zou et al.,
ECCV 2022.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from mambaadv2.data.layouts.entries import Entry, entry_listing, shown
from mambaadv2.data.layouts.tree import Draft, head_of
from mambaadv2.data.record import GOOD, Ask, Listing
from mambaadv2.errors import DataError, Problem

TABLE = "split_csv/1cls.csv"
COLUMNS = ["object", "split", "label", "image", "mask"]
LABELS = {"normal": GOOD, "anomaly": "anomaly"}


def visa(root: Path, ask: Ask) -> Listing:
    """List VisA by its one-class split: 90 % of the normal images are for training.

    root: VisA's folder, or the table itself. Labels are "good" and "anomaly": the types of defect
    stand in another table, per object, that the split does not use. Mask values are numbers of
    types; all above 0 are defect.

    Raises `DataError` where the table cannot be read or has other columns.
    """
    table = root / TABLE if root.is_dir() else root
    draft = Draft()
    return entry_listing(table, ask, _entries(table, draft), draft=draft)


def is_table(path: Path) -> bool:
    """Return whether a file begins with the columns of VisA's table."""
    return head_of(path, 200).split("\n", maxsplit=1)[0].strip() == ",".join(COLUMNS)


def recognised(root: Path) -> dict[str, str]:
    """Return {"visa": reason} where VisA's table is in the folder."""
    if is_table(root / TABLE):
        return {"visa": f"{TABLE} with the columns {', '.join(COLUMNS)}"}
    return {}


def _entries(table: Path, draft: Draft) -> Iterator[Entry]:
    try:
        text = table.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table}: expected VisA's table of splits ({error})") from error
    rows = csv.reader(io.StringIO(text, newline=""))
    if (header := next(rows, [])) != COLUMNS:
        raise DataError(
            f"{table}: expected the columns {', '.join(COLUMNS)}, found {', '.join(header)}"
        )
    base = table.parents[1]
    for row in _rows(table, rows):
        where = f"{table}:{rows.line_num}"
        if not row:
            continue
        if len(row) != len(COLUMNS) or row[1] not in ("train", "test") or row[2] not in LABELS:
            message = (
                f"{where}: expected object, split (train, test), label (normal, anomaly), image "
                f"and mask, found {shown(row)}"
            )
            draft.problems.append(Problem(table, message))
            continue
        name, split, label, image, mask = row
        yield Entry(
            where=where,
            path=base / image,
            class_name=name,
            split="train" if split == "train" else "test",
            label=LABELS[label],
            masks=(base / mask,) if mask and LABELS[label] != GOOD else (),
        )


def _rows(table: Path, rows: Iterator[list[str]]) -> Iterator[list[str]]:
    try:
        yield from rows
    except csv.Error as error:
        raise DataError(f"{table}: expected VisA's table of splits ({error})") from error
