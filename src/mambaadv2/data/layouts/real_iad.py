"""Real-IAD: five views of every piece, splits in one JSON file per class.

    ROOT/realiad_jsons/<class>.json          several views; realiad_jsons_sv/ has one view
    ROOT/realiad_1024/<class>/...            or realiad_512, realiad_256, realiad_raw
    {"meta": {"prefix": "<class>/", "normal_class": "OK"},
     "train": [{"category", "anomaly_class": "OK", "image_path", "mask_path": null}],
     "test": [...]}

Images are OK/S0001/<class>_0001_OK_C1_<time>.jpg and NG/<type>/S0001/<class>_0001_NG_..._C1_... .
Sources: Wang et al., CVPR 2024; anomalib, src/anomalib/data/datasets/image/realiad.py; ADer,
data/ad_dataset.py. That views without visible defect of a defective piece have the class "OK" is
taken from ADer's rule (a piece is defect when any view is) and could not be checked on the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mambaadv2.data.layouts.entries import Entry, entry_listing, items_of, json_file, texts
from mambaadv2.data.layouts.tree import Draft, files_named, head_of
from mambaadv2.data.record import GOOD, Ask, Listing, Split, chosen_classes
from mambaadv2.errors import DataError, Problem

SIZES = ("realiad_1024", "realiad_512", "realiad_256", "realiad_raw")
NORMAL = "OK"
VIEW = re.compile(r"_(C[0-9]+)(?=[_.])")


def real_iad(root: Path, ask: Ask) -> Listing:
    """List Real-IAD by the splits of realiad_jsons/, all views.

    root: the folder with realiad_jsons/ and one folder of images, that folder of images
    (realiad_1024/ for example), or ADer's arrangement with <class>.json beside <class>/.
    `Record.sample` is the image's folder below its class, "NG/BX/S0001" for example, and
    `Record.view` its camera, "C1" to "C5".

    Raises `DataError` where splits or images are missing, or images are there in several sizes.
    """
    return _listing(root, ask, "realiad_jsons")


def real_iad_sv(root: Path, ask: Ask) -> Listing:
    """List Real-IAD by the splits of realiad_jsons_sv/: the single-view setting of the paper."""
    return _listing(root, ask, "realiad_jsons_sv")


def is_split_file(path: Path) -> bool:
    """Return whether a JSON file looks like one class's splits."""
    return '"anomaly_class"' in head_of(path)


def recognised(root: Path) -> dict[str, str]:
    """Return layout -> reason where a folder has Real-IAD's JSON files."""
    found = {}
    for layout, name in (("real-iad", "realiad_jsons"), ("real-iad-sv", "realiad_jsons_sv")):
        folder = _json_folder(root, name)
        if folder is not None and (layout == "real-iad" or folder != root):
            found[layout] = f'{folder} with "anomaly_class" entries'
    return found


def _json_folder(root: Path, name: str) -> Path | None:
    """The folder of the splits: the download nests realiad_jsons/realiad_jsons/."""
    beside = root.parent if root.name in SIZES else root
    places = [beside / name / name, beside / "realiad_jsons" / name, beside / name]
    # Directly in the folder, as ADer arranges it, are the splits of all views.
    places += [root] if name == "realiad_jsons" else []
    for folder in places:
        if any(is_split_file(path) for path in files_named(folder, ".json")[:3]):
            return folder
    return None


def _image_folder(root: Path, splits: Path) -> Path:
    if root.name in SIZES or splits == root:
        return root
    found = [root / size for size in SIZES if (root / size).is_dir()]
    if len(found) != 1:
        raise DataError(
            f"{root}: expected images in one folder of {', '.join(SIZES)}, found "
            f"{', '.join(path.name for path in found) or 'none'}; pass that folder as the data set"
        )
    return found[0]


def _listing(root: Path, ask: Ask, name: str) -> Listing:
    splits = _json_folder(root, name)
    if splits is None:
        raise DataError(
            f"{root}: expected {name}/<class>.json in it or beside it, with the splits of Real-IAD"
        )
    images = _image_folder(root, splits)
    files = {path.stem: path for path in files_named(splits, ".json") if is_split_file(path)}
    chosen = chosen_classes(splits, files, ask.classes)
    draft = Draft()
    entries: list[Entry] = []
    for class_name in chosen:
        entries += _entries(files[class_name], images, class_name, draft)
    return entry_listing(
        splits, ask, entries, draft=draft, classes={name: files[name] for name in chosen}
    )


def _entries(path: Path, images: Path, class_name: str, draft: Draft) -> Iterator[Entry]:
    try:
        content = json_file(path)
    except DataError as error:
        draft.problems.append(Problem(path, str(error)))
        return
    meta = content.get("meta")
    prefix = meta.get("prefix") if isinstance(meta, dict) else None
    base = images / (prefix if isinstance(prefix, str) else class_name)
    if not base.is_dir() and (images / class_name).is_dir():
        base = images / class_name
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        for place, item in items_of(content, split):
            where = f"{path}: {split}[{place}]"
            fields = texts(draft, where, path, item, ("anomaly_class", "image_path"))
            if fields is None:
                continue
            image, mask, kind = fields["image_path"], item.get("mask_path"), fields["anomaly_class"]
            views = VIEW.findall(Path(image).name)
            yield Entry(
                where=where,
                path=base / image,
                class_name=class_name,
                split=split,
                label=GOOD if kind == NORMAL else kind,
                masks=(base / mask,) if kind != NORMAL and isinstance(mask, str) and mask else (),
                sample=str(Path(image).parent),
                view=views[-1] if views else None,
            )
