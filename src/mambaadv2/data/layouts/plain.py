"""Plain folders: one of good images, and if there are any, folders of defects beside it."""

from __future__ import annotations

from pathlib import Path

from mambaadv2.data.layouts.class_folders import Shape, add_kinds
from mambaadv2.data.layouts.tree import Draft, Entries, described, entries_of, has, images_in, tried
from mambaadv2.data.record import GOOD, Ask, Listing, chosen_classes, make_record
from mambaadv2.errors import DataError

GOOD_TEST = "good_test"
TRUTH = "ground_truth"
PARTS = frozenset({"train", "test", "validation", TRUTH})
"""Names of folders that are a part of a data set and not one."""


def folder(root: Path, ask: Ask) -> Listing:
    """List plain folders. Our layout, for images that somebody sorted by hand.

        good/                     normal images, for training
        good_test/                normal images for evaluation, may be missing
        <defect>/                 images with a defect of that type, for evaluation
        ground_truth/<defect>/    masks, as in MVTec AD, may be missing

    root: such a folder, one with several of them (the classes), or a folder of images that are all
    good. Nothing is divided by chance or by name: without good_test/ there are no good test images,
    and the image metrics are undefined.

    Raises `DataError` where there is no good/ and no image.
    """
    entries = entries_of(root)
    if has(root, GOOD):
        folders = {root.resolve().name: root}
    else:
        folders = {path.name: path for path in entries.folders if has(path, GOOD)}
    bare = not folders and bool(entries.images)
    if bare:
        folders = {root.resolve().name: root}
    if not folders:
        raise DataError(
            f"{root}: expected good/ with normal images, or images, found {described(entries)}"
        )
    draft = Draft()
    if not bare and not has(root, GOOD):
        draft.ignored += [path for path in entries.folders if path.name not in folders]
    names = chosen_classes(root, folders, ask.classes)
    for name in names:
        if bare:
            _add_bare(draft, root, name, ask)
        else:
            _add_class(draft, folders[name], name, ask)
    return draft.listing({name: folders[name] for name in names})


def recognised(root: Path) -> dict[str, str]:
    """Return {"folder": reason} where good/ lies in the folder or in those inside it.

    Not for a part of a data set: trained on test/, a model would have seen the test images.
    """
    if root.resolve().name in PARTS:
        return {}
    if has(root, GOOD):
        return {"folder": "good/ directly in it"}
    inside = [path.name for path in entries_of(root).folders if has(path, GOOD)]
    return {"folder": f"good/ directly in {', '.join(inside[:3])}"} if inside else {}


def _add_bare(draft: Draft, root: Path, name: str, ask: Ask) -> None:
    if ask.given("train"):
        draft.records += [
            make_record(path, name, "train", GOOD) for path in images_in(draft, root) or ()
        ]
    elif ask.split is not None:
        draft.fail(root, f"expected images for {ask.split}, found only good ones for training")


def _add_class(draft: Draft, root: Path, name: str, ask: Ask) -> None:
    entries = tried(draft, root)
    if entries is None:
        return
    if ask.given("train"):
        for path in images_in(draft, root / GOOD) or ():
            draft.records.append(make_record(path, name, "train", GOOD))
    if ask.given("test"):
        _add_test(draft, root, name, entries, demanded=ask.split == "test")
    elif ask.split == "validation":
        draft.fail(root, "expected images for validation, but this layout has none")


def _add_test(draft: Draft, root: Path, name: str, entries: Entries, *, demanded: bool) -> None:
    kinds = [path for path in entries.folders if path.name not in (GOOD, TRUTH)]
    if kinds:
        add_kinds(draft, kinds, root, root / TRUTH, name, Shape(good=GOOD_TEST))
    elif demanded:
        draft.fail(
            root,
            f"expected images to test on: {GOOD_TEST}/ and a folder per type of defect, "
            f"found {described(entries)}",
        )
