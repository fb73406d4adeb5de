"""ADer's meta.json, and COCO-AD, which exists in this form only.

    {"train": {CLASS: [ENTRY, ...]}, "test": {...}, "validation": {...} for MVTec 3D and LOCO}
    ENTRY: {"img_path", "mask_path", "cls_name", "specie_name", "anomaly": 0 or 1}

Paths are relative to the file's folder. Source: github.com/zhangzjn/ADer, data/README.md,
data/ad_dataset.py and data/gen_benchmark/.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mambaadv2.data.layouts.entries import Entry, entry_listing, items_of, json_file, shown, texts
from mambaadv2.data.layouts.tree import Draft, head_of
from mambaadv2.data.record import GOOD, SPLITS, Ask, Listing, Split
from mambaadv2.errors import DataError, Problem

COCO_NAME = re.compile(r"meta_20_[0-3]\.json")


def ader(root: Path, ask: Ask) -> Listing:
    """List what ADer's meta.json lists. root: the file, or a folder with meta.json in it.

    ADer itself merges "validation" into training; here it is the split "validation".

    Raises `DataError` where the file cannot be read or is of another form.
    """
    path = root / "meta.json" if root.is_dir() else root
    return _listing(path, ask)


def coco_ad(root: Path, ask: Ask) -> Listing:
    """List one of the four splits of COCO-AD. root: meta_20_0.json (to 3), or its folder.

    Made from COCO 2017 by ADer's data/gen_benchmark/coco.py: 20 of the 80 categories are anomalies,
    the other 60 normal; train images come from train2017, test images from val2017, masks from
    val2017_mask_ad_20_<split>/. One class, "coco". What is published is the mean over the four.

    Raises `DataError` as `ader`, and for a folder with several of the files.
    """
    if not root.is_dir():
        return _listing(root, ask)
    files = _coco_files(root)
    if len(files) != 1:
        found = ", ".join(str(path) for path in files) or "none"
        raise DataError(
            f"{root}: expected one meta_20_<split>.json, found {found}; each is a data set of its "
            "own: pass the file instead of the folder"
        )
    return _listing(files[0], ask)


def is_meta(path: Path) -> bool:
    """Return whether a JSON file looks like ADer's."""
    return '"img_path"' in head_of(path)


def recognised(root: Path) -> dict[str, str]:
    """Return layout -> reason where the folder has one of ADer's files."""
    found = {}
    if is_meta(root / "meta.json"):
        found["ader"] = 'meta.json with "img_path" entries'
    if files := _coco_files(root):
        found["coco-ad"] = ", ".join(path.name for path in files)
    return found


def name_of(path: Path) -> str:
    """Return which of the two layouts a JSON file has, by its name."""
    return "coco-ad" if COCO_NAME.fullmatch(path.name) else "ader"


def _coco_files(root: Path) -> list[Path]:
    return [path for place in range(4) if is_meta(path := root / f"meta_20_{place}.json")]


def _listing(path: Path, ask: Ask) -> Listing:
    draft = Draft()
    return entry_listing(path, ask, _entries(path, json_file(path), draft), draft=draft)


def _entries(path: Path, content: dict[str, Any], draft: Draft) -> Iterator[Entry]:
    if not any(isinstance(content.get(split), dict) for split in SPLITS):
        raise DataError(
            f'{path}: expected an object with "train" and "test", found {shown(sorted(content))}'
        )
    for split in SPLITS:
        by_class = content.get(split)
        for name, items in by_class.items() if isinstance(by_class, dict) else ():
            for place, item in items_of({name: items}, name):
                entry = _entry(path, f"{path}: {split}.{name}[{place}]", item, split, draft)
                if entry is not None:
                    yield entry


def _entry(path: Path, where: str, item: Any, split: Split, draft: Draft) -> Entry | None:
    fields = texts(draft, where, path, item, ("img_path", "cls_name"))
    if fields is None:
        return None
    anomaly, mask, kind = item.get("anomaly"), item.get("mask_path"), item.get("specie_name")
    wrong = None
    if anomaly not in (0, 1):
        wrong = f"anomaly: expected 0 or 1, found {shown(anomaly)}"
    elif not isinstance(mask, str | None):
        wrong = f"mask_path: expected a text, found {shown(mask)}"
    elif not isinstance(kind, str | None):
        wrong = f"specie_name: expected a text, found {shown(kind)}"
    if wrong:
        draft.problems.append(Problem(path, f"{where}: {wrong}"))
        return None
    # Good images keep what the script left in the other fields; a defect may have no type's name.
    label = (kind if kind and kind != GOOD else "anomaly") if anomaly else GOOD
    return Entry(
        where=where,
        path=path.parent / fields["img_path"],
        class_name=fields["cls_name"],
        split=split,
        label=label,
        masks=(path.parent / mask,) if anomaly and mask else (),
    )
