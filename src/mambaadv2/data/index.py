"""From a data set's folder to a list of records. No pixel is read here.

One function per layout. MVTec AD's layout, ROOT/<class>/..., is:

    train/good/*            normal images, the only ones that training may see
    test/good/*             normal images for evaluation
    test/<defect>/*         images with a defect of that type
    ground_truth/<defect>/  one mask per defect image: <stem>_mask.png or <stem>.png
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mambaadv2.errors import DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
"""File name endings taken for images, in lower case; any case matches."""

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One image of a data set."""

    path: Path
    class_name: str
    split: Split
    defect: bool
    """True for test images outside `good`; training images are never defect."""
    defect_type: str
    """The folder's name, "good" for normal images."""
    mask: Path | None
    """The ground truth's file; None for normal images and for classes without ground truth."""


@dataclass(frozen=True, slots=True)
class _Entries:
    """What one folder holds, sorted by name; hidden entries are left out."""

    folders: tuple[Path, ...]
    images: tuple[Path, ...]
    others: tuple[Path, ...]


def mvtec_records(
    root: str | os.PathLike[str],
    *,
    split: Split | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[Record, ...]:
    """List a data set in MVTec AD's layout (see the top of this file).

    `root` holds one folder per class, or is itself the folder of one class. Folders in it without
    train/ or test/ are no classes and are left out; so are hidden files and, inside train/,
    everything but good/. `split="train"` never looks into test folders; `split="test"` never
    looks into train folders; None lists train, and test where there is one.
    `classes` picks classes by name; the others are not looked into.

    Records are sorted by class, split (train first), defect type and file name.

    Raises `DataError`, saying what was expected and what was found: a wrong root, an unknown
    class, train/good missing or empty, a test folder without images, a mask that is missing
    although the class has ground truth.
    """
    root = Path(root)
    if split not in (None, "train", "test"):
        raise DataError(f'split: expected "train", "test" or None, got {split!r}')
    folders = _class_folders(root)
    records: list[Record] = []
    for name in sorted(folders) if classes is None else _chosen(root, folders, classes):
        if split != "test":
            records.extend(_train_records(folders[name], name))
        if split == "test" or (split is None and (folders[name] / "test").is_dir()):
            records.extend(_test_records(folders[name], name))
    return tuple(records)


def _class_folders(root: Path) -> dict[str, Path]:
    """Class name -> folder."""
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing of that name"
        raise DataError(f"{root}: expected the folder of a data set, found {found}")
    if _is_class(root):
        return {root.resolve().name: root}
    entries = _list(root)
    classes = {folder.name: folder for folder in entries.folders if _is_class(folder)}
    if classes:
        return classes
    expected = f"expected class folders ({root}/<class>/train/good/*.png) or one class's folder"
    if entries.images:
        raise DataError(
            f"{root}: {expected}, found {len(entries.images)} image(s) directly in it; "
            f"move normal images to {root / 'train' / 'good'}"
        )
    if (root / "good").is_dir():
        raise DataError(
            f"{root}: {expected}, found good/ directly in it; "
            f"pass the folder above if this is its train/, or move good/ into {root / 'train'}"
        )
    raise DataError(
        f"{root}: {expected}, found {_describe(entries)}; no folder has train/ or test/"
    )


def _is_class(folder: Path) -> bool:
    return (folder / "train").is_dir() or (folder / "test").is_dir()


def _chosen(root: Path, folders: dict[str, Path], names: Sequence[str]) -> list[str]:
    if isinstance(names, str) or not names:
        raise DataError(f"classes: expected a list of one or more class names, got {names!r}")
    for name in names:
        if name not in folders:
            close = difflib.get_close_matches(name, folders, n=1, cutoff=0.5)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise DataError(f"{root}: no class {name!r}{hint}; found {', '.join(sorted(folders))}")
    return sorted(set(names))


def _train_records(folder: Path, name: str) -> Iterable[Record]:
    good = folder / "train" / "good"
    if not good.is_dir():
        train = folder / "train"
        where = train if train.is_dir() else folder
        raise DataError(
            f"{good}: expected a folder of normal images for class {name!r}, "
            f"found {_describe(_list(where))} in {where}"
        )
    for path in _images(good):
        yield _good_record(path, name, "train")


def _test_records(folder: Path, name: str) -> Iterable[Record]:
    test = folder / "test"
    if not test.is_dir():
        raise DataError(
            f"{test}: expected test/good/ and test/<defect>/ for class {name!r}, "
            f"found {_describe(_list(folder))} in {folder}"
        )
    entries = _list(test)
    if entries.images or not entries.folders:
        raise DataError(
            f"{test}: expected folders (good/ and one per defect type), found {_describe(entries)}"
        )
    truth = folder / "ground_truth"
    for kind in entries.folders:
        images = _images(kind)
        if kind.name == "good":
            yield from (_good_record(path, name, "test") for path in images)
            continue
        masks = _masks(truth / kind.name, images) if truth.is_dir() else [None] * len(images)
        for path, mask in zip(images, masks, strict=True):
            yield Record(
                path=path,
                class_name=name,
                split="test",
                defect=True,
                defect_type=kind.name,
                mask=mask,
            )


def _good_record(path: Path, name: str, split: Split) -> Record:
    return Record(
        path=path, class_name=name, split=split, defect=False, defect_type="good", mask=None
    )


def _images(folder: Path) -> tuple[Path, ...]:
    entries = _list(folder)
    if not entries.images:
        raise DataError(
            f"{folder}: expected images ({' '.join(sorted(IMAGE_SUFFIXES))}), "
            f"found {_describe(entries)}"
        )
    return entries.images


def _masks(folder: Path, images: Sequence[Path]) -> list[Path]:
    """One mask for each image, or an error that names the image without."""
    by_stem: dict[str, Path] = {}
    if folder.is_dir():
        for path in _list(folder).images:
            by_stem.setdefault(path.stem, path)
    masks: list[Path] = []
    for image in images:
        mask = by_stem.get(f"{image.stem}_mask") or by_stem.get(image.stem)
        if mask is None:
            raise DataError(
                f"{image}: has no mask; expected {folder / f'{image.stem}_mask.png'} or "
                f"{image.stem}.png there. Without any masks, remove the class's ground_truth/"
            )
        masks.append(mask)
    return masks


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
                if entry.is_dir():
                    folders.append(path)
                elif path.suffix.lower() in IMAGE_SUFFIXES:
                    images.append(path)
                else:
                    others.append(path)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from error
    return _Entries(*(tuple(sorted(paths)) for paths in (folders, images, others)))


def _describe(entries: _Entries, limit: int = 5) -> str:
    """A few words on what a folder holds, for error messages."""
    names = [f"{path.name}/" for path in entries.folders]
    names += [path.name for path in (*entries.images, *entries.others)]
    if not names:
        return "an empty folder"
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
