"""Surface defects without a folder per type: KolektorSDD2, DAGM 2007 and ELPV."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from mambaadv2.data.layouts.entries import Entry, entry_listing, shown
from mambaadv2.data.layouts.tree import Draft, add_foreign, entries_of, has, head_of, tried
from mambaadv2.data.record import GOOD, Ask, Listing, Split, chosen_classes
from mambaadv2.errors import DataError, ImageError, Problem

DEFECT = "defect"
GT = "_GT"
SPLIT_FOLDERS: tuple[Split, ...] = ("train", "test")
DAGM_CLASS = re.compile(r"Class[0-9]+")
ELPV_LINE = re.compile(r"images/\S+\s+[01](\.[0-9]+)?\s+(mono|poly)\s*$")


def kolektor_sdd2(root: Path, ask: Ask) -> Listing:
    """List KolektorSDD2: train/ and test/ with <id>.png and its mask <id>_GT.png, good ones too.

    Whether an image is good stands nowhere but in its mask, so the masks are decoded here, and
    only here does a listing look at pixels: an image is defect when its mask has a pixel above 0.
    The answer is remembered while the file stays the same. One class, named as the folder. Defect
    images of train/ are left out: the published split is for supervised training.

    Sources: Bozic et al., Computers in Industry 129 (2021); github.com/vicoslab/
    mixed-segdec-net-comind2021, data/input_ksdd2.py.
    """
    if not any(has(root, split) for split in SPLIT_FOLDERS):
        raise DataError(f"{root}: expected train/ and test/ in it, found no such folder")
    draft = Draft()
    name = root.resolve().name
    entries: list[Entry] = []
    for split in SPLIT_FOLDERS:
        if ask.given(split) and (ask.split == split or has(root, split)):
            entries += _kolektor_entries(root / split, name, split, draft)
    return entry_listing(root, ask, entries, draft=draft, classes={name: root})


def dagm(root: Path, ask: Ask) -> Listing:
    """List DAGM 2007: Class1 to Class10 with Train/ and Test/, masks in Label/ there.

    An image 0001.PNG is defect when Label/0001_label.PNG is there; where Label/Labels.txt is, it
    must say the same (tab-separated: number, 1 for a defect, image, 0, mask). The masks are
    ellipses around the defects, drawn by hand. Defect images of Train/ are left out: the published
    split is for weakly supervised training. Class1/Class1/, which some archives unpack to, is
    looked into.

    Sources: Wieler and Hahn, DAGM 2007 competition, zenodo.org/records/12750201; github.com/
    vicoslab/mixed-segdec-net-comind2021, data/input_dagm.py. The columns of Labels.txt were taken
    from two independent readers of it, not from a description by the authors.
    """
    folders = _dagm_classes(root)
    if not folders:
        raise DataError(f"{root}: expected Class1/Train/ and so on, found no such folder")
    draft = Draft()
    entries: list[Entry] = []
    for name in chosen_classes(root, folders, ask.classes):
        for split, part in (("train", "Train"), ("test", "Test")):
            if ask.split in (None, split):
                entries += _dagm_entries(folders[name] / part, name, draft)
    return entry_listing(root, ask, entries, draft=draft, classes=folders)


def elpv(root: Path, ask: Ask) -> Listing:
    """List ELPV, solar cells in electroluminescence: labels.csv with "image probability type".

    root: the folder of labels.csv and images/, or that of the PyPI package elpv-dataset. The
    classes are the types, "mono" and "poly". Probability 0 is good; 2/3 and 1 are "defect"; 1/3,
    which the annotators were unsure about, is left out. No masks.

    The data set publishes no split for training on good images only; this one is our choice: an
    image is test when it is defect, or when the SHA-256 of its file name, as a number, is
    divisible by 5. So a fifth of the good images is test, and always the same.

    Source: Deitsch et al., Solar Energy 185 (2019); the wheel elpv-dataset 1.0.0.post1.
    """
    table = _elpv_table(root)
    if table is None:
        raise DataError(f"{root}: expected labels.csv with 'images/... probability type' in it")
    draft = Draft()
    return entry_listing(table, ask, _elpv_entries(table, draft), draft=draft)


def recognised(root: Path) -> dict[str, str]:
    """Return layout -> reason for the data sets of this file."""
    found = {}
    # test/ is looked into only where there is no train/.
    part = "train" if has(root, "train") else "test"
    if has(root, part) and (mask := _first_mask(root / part)):
        found["kolektor-sdd2"] = f"{part}/{mask} beside its image"
    if classes := _dagm_classes(root):
        found["dagm"] = f"Train/ and Test/ in {', '.join(list(classes)[:3])}"
    if (table := _elpv_table(root)) is not None:
        found["elpv"] = f"{table.name} with lines of image, probability and type"
    return found


@functools.lru_cache(maxsize=100_000)
def _marks_a_defect(mask: Path, size: int, changed: int) -> bool:
    """Whether any pixel of a mask is above 0; size, changed: what tells that the file is the same.

    Raises `ImageError` as `read_mask` does.
    """
    del size, changed
    # Here, because listing any other layout needs no image library.
    from mambaadv2.image import read_mask

    return bool(read_mask(mask).any())


def _kolektor_entries(folder: Path, name: str, split: Split, draft: Draft) -> Iterator[Entry]:
    entries = tried(draft, folder)
    if entries is None:
        return
    add_foreign(draft, entries)
    by_stem: dict[str, Path] = {}
    for path in entries.images:
        if path.stem in by_stem:
            draft.fail(path, f"has the number of {by_stem[path.stem].name}; keep the right one")
        by_stem.setdefault(path.stem, path)
    for stem, path in by_stem.items():
        if stem.endswith(GT):
            if stem.removesuffix(GT) not in by_stem:
                draft.fail(path, "is a mask without its image; add the image or remove the mask")
            continue
        mask = by_stem.get(stem + GT)
        if mask is None:
            draft.fail(path, f"has no mask; expected {stem}{GT}.png beside it")
            continue
        try:
            status = os.stat(mask)
            defect = _marks_a_defect(mask, status.st_size, status.st_mtime_ns)
        except (ImageError, OSError) as error:
            draft.problems.append(Problem(mask, str(error)))
            continue
        yield Entry(
            where=str(folder),
            path=path,
            class_name=name,
            split=split,
            label=DEFECT if defect else GOOD,
            masks=(mask,) if defect else (),
        )


def _first_mask(folder: Path) -> str | None:
    """A mask of KolektorSDD2's kind in a folder, without reading the whole of it."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if Path(entry.name).stem.endswith(GT):
                    return entry.name
    except OSError:
        return None
    return None


def _dagm_classes(root: Path) -> dict[str, Path]:
    """Class name -> the folder that has Train/ or Test/."""
    try:
        inside = [root, *entries_of(root).folders]
    except DataError:
        return {}
    found = {}
    for folder in inside:
        name = folder.resolve().name if folder == root else folder.name
        if not DAGM_CLASS.fullmatch(name):
            continue
        for place in (folder, folder / name):
            if has(place, "Train") or has(place, "Test"):
                found[name] = place
    return found


def _dagm_entries(folder: Path, name: str, draft: Draft) -> Iterator[Entry]:
    entries = tried(draft, folder)
    if entries is None:
        return
    add_foreign(draft, entries)
    labels = tried(draft, folder / "Label") if has(folder, "Label") else None
    masks = {path.stem: path for path in labels.images} if labels else {}
    told = _dagm_labels(folder / "Label" / "Labels.txt", draft)
    split: Split = "train" if folder.name == "Train" else "test"
    for path in entries.images:
        mask = masks.pop(f"{path.stem}_label", None)
        if told.get(path.name, mask is not None) is not (mask is not None):
            draft.fail(
                path,
                f"{folder / 'Label' / 'Labels.txt'} says that it is "
                f"{'good' if mask else 'a defect'}, but its mask is "
                f"{'there' if mask else 'missing'}; correct one of them",
            )
            continue
        yield Entry(
            where=str(folder),
            path=path,
            class_name=name,
            split=split,
            label=GOOD if mask is None else DEFECT,
            masks=() if mask is None else (mask,),
        )
    for stray in masks.values():
        draft.fail(stray, f"is a mask without its image in {folder}; add it or remove the mask")


def _dagm_labels(path: Path, draft: Draft) -> dict[str, bool]:
    """Image name -> whether Labels.txt calls it a defect; empty where there is no such file."""
    if not path.is_file():
        return {}
    told = {}
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        draft.fail(path, f"cannot be read ({error}); mend or remove it")
        return {}
    for place, line in enumerate(lines, start=1):
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) < 3:  # the first line is a number
            continue
        if fields[1] not in ("0", "1"):
            draft.problems.append(
                Problem(path, f"{path}:{place}: expected 0 or 1 in column 2, found {shown(line)}")
            )
            continue
        told[fields[2]] = fields[1] == "1"
    return told


def _elpv_table(root: Path) -> Path | None:
    """labels.csv of ELPV in a folder or in the package's data/."""
    for table in (root / "labels.csv", root / "data" / "labels.csv"):
        if ELPV_LINE.match(head_of(table, 200).split("\n", maxsplit=1)[0]):
            return table
    return None


def _elpv_entries(table: Path, draft: Draft) -> Iterator[Entry]:
    unsure = 0
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table}: cannot be read ({error})") from error
    for place, fields in enumerate((line.split() for line in lines), 1):
        where = f"{table}:{place}"
        try:
            image, probability, kind = fields
            value = float(probability)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1:
            message = f"{where}: expected image, probability (0 to 1) and type, found "
            draft.problems.append(Problem(table, message + shown(" ".join(fields))))
            continue
        if 0 < value < 0.5:
            unsure += 1
            continue
        digest = hashlib.sha256(Path(image).name.encode(errors="surrogateescape")).digest()
        held = int.from_bytes(digest, "big") % 5 == 0
        yield Entry(
            where=where,
            path=table.parent / image,
            class_name=kind,
            split="test" if value > 0 or held else "train",
            label=DEFECT if value > 0 else GOOD,
        )
    if unsure:
        images = f"{unsure:,} image{'s' if unsure > 1 else ''}"
        draft.notes.append(f"{images} with a probability above 0 and below 1/2 left out")
