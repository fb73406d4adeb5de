"""From a data set to a list of records. No pixel is read here.

A data set is a manifest (see manifest.py) or a folder in MVTec AD's layout, ROOT/<class>/...:

    train/good/*            normal images, the only ones that training may see
    test/good/*             normal images for evaluation
    test/<defect>/*         images with a defect of that type
    ground_truth/<defect>/  one mask per defect image: <stem>_mask.png or <stem>.png
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mambaadv2.data.manifest import MANIFEST_SUFFIXES, manifest_listing
from mambaadv2.data.record import (
    FOREIGN_SUFFIXES,
    GOOD,
    IMAGE_SUFFIXES,
    Listing,
    Record,
    Split,
    check_split,
    chosen_classes,
    foreign_problem,
    make_record,
)
from mambaadv2.errors import DataError, Problem

__all__ = ["IMAGE_SUFFIXES", "Listing", "Record", "Split", "list_records", "mvtec_records"]


@dataclass(frozen=True, slots=True)
class _Entries:
    """What one folder holds, sorted by name; hidden entries are left out."""

    folders: tuple[Path, ...]
    images: tuple[Path, ...]
    others: tuple[Path, ...]


@dataclass(slots=True)
class _Draft:
    """A listing that grows."""

    records: list[Record] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)

    def fail(self, path: Path, message: str) -> None:
        self.problems.append(Problem(path, f"{path}: {message}"))


def list_records(
    data: str | os.PathLike[str],
    *,
    split: Split | None = None,
    classes: Sequence[str] | None = None,
) -> Listing:
    """List a data set: a folder in MVTec AD's layout (see the top of this file) or a manifest.

    A folder holds one folder per class, or is itself the folder of one class; a manifest is a file
    named *.csv or *.jsonl. `split="train"` never looks into test folders, `split="test"` never
    into train folders; None lists train, and test where there is one. `classes` picks classes by
    name; the others are not looked into.

    Problems, none of which stops the listing of the rest: a class without train/good or, where
    test is asked for, without test; a folder that is empty or cannot be listed; a picture of a
    format that cannot be read (`FOREIGN_SUFFIXES`); a defect image with two masks, or with none
    although its class has ground truth; a mask that matches no image; a folder beside the classes
    that is empty or has its good/ outside train/. Hidden files, files that are no pictures, other
    folders without train/ or test/, what is in train/ beside good/, and ground_truth/good/ are no
    problems and are left out.

    Raises `DataError`, saying what was expected and what was found: a root that is no data set, an
    unknown class, a manifest that cannot be read as text.
    """
    check_split(split)
    data = Path(data)
    if data.suffix.lower() in MANIFEST_SUFFIXES and os.path.isfile(data):
        return manifest_listing(data, split=split, classes=classes)
    if not os.path.isdir(data):
        found = "a file" if os.path.exists(data) else "nothing of that name"
        raise DataError(
            f"{data}: expected the folder of a data set or a manifest (.csv or .jsonl), "
            f"found {found}"
        )
    return _folder_listing(data, split, classes)


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
    listing = _folder_listing(root, split, classes)
    if listing.problems:
        raise DataError(listing.problems[0].message)
    return listing.records


def _folder_listing(root: Path, split: Split | None, classes: Sequence[str] | None) -> Listing:
    draft = _Draft()
    if _is_class(root):
        folders = {root.resolve().name: root}
    else:
        folders = _class_folders(root, draft if classes is None else _Draft())
    names = chosen_classes(root, folders, classes)
    for name in names:
        folder = folders[name]
        if split != "test":
            _add_train(draft, folder, name)
        if split == "test" or (split is None and _has(folder, "test")):
            _add_test(draft, folder, name)
    return Listing(
        tuple(draft.records),
        tuple(draft.problems),
        {name: folders[name] for name in names},
        tuple(draft.ignored),
    )


def _class_folders(root: Path, draft: _Draft) -> dict[str, Path]:
    """Class name -> folder; what lies beside the classes goes to the draft."""
    entries = _list(root)
    classes = {folder.name: folder for folder in entries.folders if _is_class(folder)}
    if classes:
        for folder in entries.folders:
            if folder.name not in classes:
                _add_stranger(draft, folder)
        return classes
    expected = f"expected class folders ({root}/<class>/train/good/*.png) or one class's folder"
    if entries.images:
        raise DataError(
            f"{root}: {expected}, found {len(entries.images)} image(s) directly in it; "
            f"move normal images to {root / 'train' / 'good'}"
        )
    if _has(root, GOOD):
        raise DataError(
            f"{root}: {expected}, found good/ directly in it; "
            f"pass the folder above if this is its train/, or move good/ into {root / 'train'}"
        )
    raise DataError(
        f"{root}: {expected}, found {_describe(entries)}; no folder has train/ or test/"
    )


def _is_class(folder: Path) -> bool:
    return _has(folder, "train") or _has(folder, "test")


def _has(folder: Path, name: str) -> bool:
    """Whether there is a folder of this name; False as well where one may not look."""
    return os.path.isdir(folder / name)


def _add_stranger(draft: _Draft, folder: Path) -> None:
    """A folder without train/ and test/ beside class folders."""
    expected = "expected a class folder (train/good/*.png in it)"
    entries = _tried(draft, folder)
    if entries is None:
        return
    if entries == _Entries((), (), ()):
        draft.fail(folder, f"{expected}, found an empty folder; fill it or remove it")
    elif folder / GOOD in entries.folders:
        draft.fail(
            folder, f"{expected}, found good/ directly in it; move it to {folder / 'train' / GOOD}"
        )
    elif entries.images or entries.folders:
        draft.ignored.append(folder)


def _add_train(draft: _Draft, folder: Path, name: str) -> None:
    train, good = folder / "train", folder / "train" / GOOD
    if _has(train, GOOD):
        for path in _images(draft, good) or ():
            draft.records.append(make_record(path, name, "train", GOOD))
        return
    where = train if _has(folder, "train") else folder
    entries = _tried(draft, where)
    if entries is not None:
        draft.fail(
            good,
            f"expected a folder of normal images for class {name!r}, "
            f"found {_describe(entries)} in {where}",
        )


def _add_test(draft: _Draft, folder: Path, name: str) -> None:
    test = folder / "test"
    has_test = _has(folder, "test")
    entries = _tried(draft, test if has_test else folder)
    if entries is None:
        return
    if not has_test:
        draft.fail(
            test,
            f"expected test/good/ and test/<defect>/ for class {name!r}, "
            f"found {_describe(entries)} in {folder}",
        )
        return
    if entries.images or not entries.folders:
        draft.fail(
            test, f"expected folders (good/ and one per defect type), found {_describe(entries)}"
        )
    truth = folder / "ground_truth"
    has_truth = _has(folder, "ground_truth")
    truths = _tried(draft, truth) if has_truth else None
    for kind in entries.folders:
        images = _images(draft, kind)
        if images is None:
            continue
        if kind.name == GOOD or not has_truth:
            draft.records += [make_record(path, name, "test", kind.name) for path in images]
        elif truths is not None:
            for path, mask in _masks(draft, truth / kind.name, images):
                draft.records.append(make_record(path, name, "test", kind.name, mask))
    if truths is not None:
        kinds = {kind.name for kind in entries.folders}
        for stray in (kind for kind in truths.folders if kind.name not in kinds | {GOOD}):
            _masks(draft, stray, ())
        for mask in truths.images:
            draft.fail(mask, f"expected masks in {truth}/<defect>/; move it there or remove it")


def _images(draft: _Draft, folder: Path) -> tuple[Path, ...] | None:
    """The images of a folder that should hold nothing else; None when it cannot be listed."""
    entries = _tried(draft, folder)
    if entries is None:
        return None
    draft.problems += [foreign_problem(path) for path in entries.others if _foreign(path)]
    if not entries.images:
        draft.fail(
            folder,
            f"expected images ({' '.join(sorted(IMAGE_SUFFIXES))}), found {_describe(entries)}",
        )
    else:
        draft.ignored += entries.folders
    return entries.images


def _masks(draft: _Draft, folder: Path, images: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pairs of an image and its only mask; what is missing, doubled or left over is a problem."""
    entries = _tried(draft, folder) if os.path.isdir(folder) else _Entries((), (), ())
    if entries is None:
        # Nothing is known of the masks: the folder stands for all of its images.
        return []
    draft.problems += [foreign_problem(path) for path in entries.others if _foreign(path)]
    by_stem: dict[str, list[Path]] = {}
    for path in entries.images:
        by_stem.setdefault(path.stem, []).append(path)
    stems = {image.stem for image in images}
    used: set[str] = set()
    pairs: list[tuple[Path, Path]] = []
    for image in images:
        names = [f"{image.stem}_mask"]
        # Beside an image x, the mask x_mask.png is that image's, not the one of an image x_mask.
        if image.stem.removesuffix("_mask") not in stems - {image.stem}:
            names.append(image.stem)
        used.update(names)
        found = [path for name in names for path in by_stem.get(name, [])]
        if len(found) == 1:
            pairs.append((image, found[0]))
        elif found:
            listed = ", ".join(path.name for path in found)
            draft.fail(image, f"has {len(found)} masks in {folder}: {listed}; keep the right one")
        else:
            draft.fail(
                image,
                f"has no mask; expected {folder / f'{image.stem}_mask.png'} or "
                f"{image.stem}.png there. Without any masks, remove the class's ground_truth/",
            )
    test = folder.parents[1] / "test" / folder.name
    for path in entries.images:
        if path.stem not in used:
            draft.fail(
                path,
                f"is a mask without its image; expected {path.stem.removesuffix('_mask')}.* in "
                f"{test}; add the image or remove the mask",
            )
    return pairs


def _foreign(path: Path) -> bool:
    return path.suffix.lower() in FOREIGN_SUFFIXES


def _tried(draft: _Draft, folder: Path) -> _Entries | None:
    """As `_list`, None and a problem when the folder cannot be listed."""
    try:
        return _list(folder)
    except DataError as error:
        draft.problems.append(Problem(folder, str(error)))
        return None


def _list(folder: Path) -> _Entries:
    folders: list[Path] = []
    images: list[Path] = []
    others: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = folder / entry.name
                if _is_folder(entry):
                    folders.append(path)
                elif path.suffix.lower() in IMAGE_SUFFIXES:
                    images.append(path)
                else:
                    others.append(path)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be listed ({error.strerror}); allow reading it or remove it"
        ) from error
    return _Entries(*(tuple(sorted(paths)) for paths in (folders, images, others)))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """False as well for a link that leads in a circle or where one may not look."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _describe(entries: _Entries, limit: int = 5) -> str:
    """A few words on what a folder holds, for error messages."""
    names = [f"{path.name}/" for path in entries.folders]
    names += [path.name for path in (*entries.images, *entries.others)]
    if not names:
        return "an empty folder"
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
