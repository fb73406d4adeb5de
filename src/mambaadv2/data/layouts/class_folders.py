"""Folders by class, split and type of defect: what MVTec AD began and many data sets follow.

`class_listing` lists all of them; `Shape` says how they differ. Every rule about masks, and every
problem that is named, is therefore the same for all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mambaadv2.data.layouts.tree import (
    Draft,
    Entries,
    add_foreign,
    described,
    entries_of,
    has,
    images_in,
    tried,
)
from mambaadv2.data.record import GOOD, Ask, Listing, Split, chosen_classes, make_record
from mambaadv2.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The names of folders below a class's folder."""

    good: str = GOOD
    """The folder of normal images, in the train folder as in the test folder."""
    test: str = "test"
    truth: str = "ground_truth"
    """Of one folder with masks per type of defect."""
    validation: str | None = None
    images: str = ""
    """The folder of the images below a type's, where they do not lie in it directly."""
    masks: Literal["<stem>_mask", "<stem>/", "gt/"] = "<stem>_mask"
    """One file <stem>_mask.* or <stem>.* per image in <truth>/<type>/; or a folder <stem>/ there
    with a file per defect; or one file <stem>.* in gt/ beside the images' folder."""
    apart: tuple[str, ...] = ()
    """Folders of the class that have images without labels; they are not looked into."""


def class_folders(root: Path, shape: Shape, draft: Draft) -> dict[str, Path]:
    """Return class name -> folder; what lies beside the classes goes to the draft.

    Raises `DataError` where there is no class.
    """
    if _is_class(root, shape):
        return {root.resolve().name: root}
    entries = entries_of(root)
    classes = {folder.name: folder for folder in entries.folders if _is_class(folder, shape)}
    if classes:
        for folder in entries.folders:
            if folder.name not in classes:
                _add_stranger(draft, folder, shape)
        return classes
    good = Path("train", shape.good, shape.images)
    expected = f"expected class folders ({root}/<class>/{good}/*.png) or one class's folder"
    if entries.images:
        raise DataError(
            f"{root}: {expected}, found {len(entries.images)} image(s) directly in it; "
            f"move normal images to {root / good}"
        )
    if has(root, shape.good):
        raise DataError(
            f"{root}: {expected}, found {shape.good}/ directly in it; "
            f"pass the folder above if this is its train/, or move {shape.good}/ into "
            f"{root / 'train'}"
        )
    raise DataError(
        f"{root}: {expected}, found {described(entries)}; no folder has train/ or {shape.test}/"
    )


def class_listing(root: Path, ask: Ask, shape: Shape) -> Listing:
    """List a folder of classes, or the folder of one.

    Problems, none of which stops the listing of the rest: a class without train/good or, where
    test is asked for, without test; a folder that is empty or cannot be listed; a picture of a
    format that cannot be read (`FOREIGN_SUFFIXES`); a defect image with two masks, or with none
    although its class has ground truth; a mask that matches no image; a folder beside the classes
    that is empty or has its good/ outside train/.

    Raises `DataError` for a root that is none and for an unknown class.
    """
    draft = Draft()
    folders = class_folders(root, shape, draft if ask.classes is None else Draft())
    names = chosen_classes(root, folders, ask.classes)
    for name in names:
        folder = folders[name]
        if ask.given("train"):
            _add_good(draft, folder, name, shape, "train", "train")
        _add_validation(draft, folder, name, shape, ask)
        if ask.split == "test" or (ask.split is None and has(folder, shape.test)):
            _add_test(draft, folder, name, shape)
        draft.ignored += [folder / apart for apart in shape.apart if has(folder, apart)]
    return draft.listing({name: folders[name] for name in names})


def _is_class(folder: Path, shape: Shape) -> bool:
    return has(folder, "train") or has(folder, shape.test)


def _add_stranger(draft: Draft, folder: Path, shape: Shape) -> None:
    """A folder without train/ and test/ beside class folders."""
    expected = f"expected a class folder (train/{shape.good}/*.png in it)"
    entries = tried(draft, folder)
    if entries is None:
        return
    if entries == Entries((), (), ()):
        draft.fail(folder, f"{expected}, found an empty folder; fill it or remove it")
    elif folder / shape.good in entries.folders:
        draft.fail(
            folder,
            f"{expected}, found {shape.good}/ directly in it; "
            f"move it to {folder / 'train' / shape.good}",
        )
    elif entries.images or entries.folders:
        draft.ignored.append(folder)


def _add_validation(draft: Draft, folder: Path, name: str, shape: Shape, ask: Ask) -> None:
    split = ask.given("validation")
    if split is None or (ask.split is None and not has(folder, shape.validation or "validation")):
        return
    if shape.validation is not None:
        _add_good(draft, folder, name, shape, shape.validation, split)
    elif split == "validation" and ask.split == "validation":
        draft.fail(
            folder,
            "expected images for validation, but this layout has none; use train or test, "
            "or a manifest",
        )


def _add_good(draft: Draft, folder: Path, name: str, shape: Shape, part: str, split: Split) -> None:
    good = folder / part / shape.good
    if has(folder / part, shape.good):
        for path in images_in(draft, good / shape.images) or ():
            draft.records.append(make_record(path, name, split, GOOD))
        return
    where = folder / part if has(folder, part) else folder
    entries = tried(draft, where)
    if entries is not None:
        draft.fail(
            good,
            f"expected a folder of normal images for class {name!r}, "
            f"found {described(entries)} in {where}",
        )


def _add_test(draft: Draft, folder: Path, name: str, shape: Shape) -> None:
    test = folder / shape.test
    has_test = has(folder, shape.test)
    entries = tried(draft, test if has_test else folder)
    if entries is None:
        return
    if not has_test:
        draft.fail(
            test,
            f"expected {shape.test}/{shape.good}/ and {shape.test}/<defect>/ for class {name!r}, "
            f"found {described(entries)} in {folder}",
        )
        return
    truth = folder / shape.truth
    entries = replace(entries, folders=tuple(kind for kind in entries.folders if kind != truth))
    if entries.images or not entries.folders:
        draft.fail(
            test,
            f"expected folders ({shape.good}/ and one per defect type), found {described(entries)}",
        )
    add_kinds(draft, entries.folders, test, truth, name, shape)


def add_kinds(
    draft: Draft, kinds: Sequence[Path], test: Path, truth: Path, name: str, shape: Shape
) -> None:
    """Add the test images of a class from one folder per type of defect.

    kinds: the folders in `test`; the one named `shape.good` has normal images. truth: the folder of
    masks, there or not; without it defect images have none.
    """
    has_truth = shape.masks == "gt/" or os.path.isdir(truth)
    truths = tried(draft, truth) if has_truth and shape.masks != "gt/" else None
    find = mask_folders if shape.masks == "<stem>/" else mask_files
    for kind in kinds:
        images = images_in(draft, kind / shape.images)
        if images is None:
            continue
        if kind.name == shape.good or not has_truth:
            label = GOOD if kind.name == shape.good else kind.name
            draft.records += [make_record(path, name, "test", label) for path in images]
        elif shape.masks == "gt/":
            pairs = mask_files(draft, kind / "gt", kind / shape.images, images)
            _add_masked(draft, name, kind.name, pairs)
        elif truths is not None:
            _add_masked(draft, name, kind.name, find(draft, truth / kind.name, kind, images))
    if truths is not None:
        known = {kind.name for kind in kinds} | {shape.good}
        for stray in (kind for kind in truths.folders if kind.name not in known):
            for _ in find(draft, stray, test / stray.name, ()):
                raise AssertionError("a mask was found for an image that is not there")
        for mask in truths.images:
            draft.fail(mask, f"expected masks in {truth}/<defect>/; move it there or remove it")


def _add_masked(
    draft: Draft, name: str, label: str, pairs: Iterator[tuple[Path, tuple[Path, ...]]]
) -> None:
    for path, masks in pairs:
        draft.records.append(replace(make_record(path, name, "test", label), masks=masks))


def mask_files(
    draft: Draft, folder: Path, beside: Path, images: Sequence[Path]
) -> Iterator[tuple[Path, tuple[Path, ...]]]:
    """Yield an image and its only mask; what is missing, doubled or left over is a problem.

    beside: the folder of the images.
    """
    entries = tried(draft, folder) if os.path.isdir(folder) else Entries((), (), ())
    if entries is None:
        # Nothing is known of the masks: the folder stands for all of its images.
        return
    add_foreign(draft, entries)
    by_stem: dict[str, list[Path]] = {}
    for path in entries.images:
        by_stem.setdefault(path.stem, []).append(path)
    stems = {image.stem for image in images}
    truth = folder.name if folder.name == "gt" else folder.parent.name
    used: set[str] = set()
    for image in images:
        names = [f"{image.stem}_mask"]
        # Beside an image x, the mask x_mask.png is that image's, not the one of an image x_mask.
        if image.stem.removesuffix("_mask") not in stems - {image.stem}:
            names.append(image.stem)
        used.update(names)
        found = [path for name in names for path in by_stem.get(name, [])]
        if len(found) == 1:
            yield image, (found[0],)
        elif found:
            listed = ", ".join(path.name for path in found)
            draft.fail(image, f"has {len(found)} masks in {folder}: {listed}; keep the right one")
        else:
            draft.fail(
                image,
                f"has no mask; expected {folder / f'{image.stem}_mask.png'} or "
                f"{image.stem}.png there. Without any masks, remove the class's {truth}/",
            )
    for path in entries.images:
        if path.stem not in used:
            draft.fail(
                path,
                f"is a mask without its image; expected {path.stem.removesuffix('_mask')}.* in "
                f"{beside}; add the image or remove the mask",
            )


def mask_folders(
    draft: Draft, folder: Path, beside: Path, images: Sequence[Path]
) -> Iterator[tuple[Path, tuple[Path, ...]]]:
    """Yield an image and the files in its folder of masks, one for each of its defects.

    beside: the folder of the images.
    """
    entries = tried(draft, folder) if os.path.isdir(folder) else Entries((), (), ())
    if entries is None:
        return
    by_name = {path.name: path for path in entries.folders}
    for image in images:
        of_image = by_name.pop(image.stem, None)
        if of_image is None:
            draft.fail(
                image,
                f"has no masks; expected the folder {folder / image.stem}/ with 000.png and so on",
            )
        elif masks := images_in(draft, of_image):
            yield image, masks
    for stray in by_name.values():
        draft.fail(
            stray,
            f"holds masks without their image; expected {stray.name}.* in {beside}; "
            "add the image or remove the folder",
        )
    for path in entries.images:
        draft.fail(path, f"expected masks in {folder}/<image>/; move it there or remove it")
