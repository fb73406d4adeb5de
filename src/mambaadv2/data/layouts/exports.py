"""What labelling tools export: Datumaro JSON and Amazon Lookout for Vision manifests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mambaadv2.data.layouts.entries import Entry, entry_listing, items_of, json_file, shown
from mambaadv2.data.layouts.tree import Draft, files_named, head_of
from mambaadv2.data.record import GOOD, Ask, Listing, Split, not_a_file
from mambaadv2.errors import DataError, Problem

NORMAL_NAMES = frozenset({"good", "normal", "ok", "no anomaly"})
"""Names of the label of good images, in small letters; any case matches."""

CLASSIFICATION = "groundtruth/image-classification"
SEGMENTATION = "groundtruth/semantic-segmentation"
_SPLIT_WORDS: Mapping[Split, frozenset[str]] = {
    "train": frozenset({"train", "training"}),
    "validation": frozenset({"val", "validation"}),
    "test": frozenset({"test", "testing"}),
}
COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


def datumaro(root: Path, ask: Ask) -> Listing:
    """List a Datumaro export: annotations/<subset>.json with images/<subset>/.

    root: the export's folder, or one of its JSON files. The subsets train, val (or validation) and
    test are the splits; of any other ("default") good images are train and the others test, as
    anomalib has it. An item is good when all its labels are (`NORMAL_NAMES`); of several other
    labels the first counts. One class, named as the folder. Shapes (polygons, masks) are not
    drawn, so there are no masks and pixel metrics are undefined.

    Sources: openvinotoolkit.github.io/datumaro, data-formats/datumaro_format; datumaro,
    plugins/data_formats/datumaro/base.py; anomalib, src/anomalib/data/datasets/image/datumaro.py.
    """
    files = _datumaro_files(root / "annotations") if root.is_dir() else [root]
    if not files:
        raise DataError(f"{root}: expected annotations/<subset>.json of a Datumaro export in it")
    base = files[0].parent.parent
    draft = Draft()
    name = base.resolve().name
    entries = [entry for path in files for entry in _datumaro_entries(path, base, name, draft)]
    return entry_listing(root, ask, entries, draft=draft, classes={name: root})


def lookout(root: Path, ask: Ask) -> Listing:
    """List Amazon Lookout for Vision manifests: JSON lines of SageMaker Ground Truth.

    root: the manifest, or a folder of *.manifest files. A manifest with the word "train", "val" or
    "test" in its name ("line2-test.manifest") is that split; one that has it within a longer word
    is refused; of any other good images are train and the others test. An image is good when the
    class-name of its image classification is (`NORMAL_NAMES`). An s3:// name is looked for below
    the manifest's folder by its last parts, as many of them as fit. Masks are the -ref of type
    semantic segmentation; their background is the colour that internal-color-map names BACKGROUND,
    white as a rule. One class, named as the folder.

    Source: Amazon Lookout for Vision developer guide, manifest-file-classification and
    manifest-file-segmentation.
    """
    files = _manifests(root) if root.is_dir() else [root]
    if not files:
        raise DataError(f"{root}: expected *.manifest files in it")
    draft = Draft()
    name = files[0].parent.resolve().name
    entries = [entry for path in files for entry in _lookout_entries(path, name, draft)]
    return entry_listing(root, ask, entries, draft=draft, classes={name: root})


def is_datumaro(path: Path) -> bool:
    """Return whether a JSON file looks like a Datumaro export."""
    head = head_of(path)
    return '"categories"' in head and ('"items"' in head or '"dm_format_version"' in head)


def is_lookout(path: Path) -> bool:
    """Return whether the first line of a file looks like a Lookout manifest's."""
    return '"source-ref"' in head_of(path).lstrip().split("\n", maxsplit=1)[0]


def recognised(root: Path) -> dict[str, str]:
    """Return layout -> reason for the exports of this file."""
    found = {}
    if files := _datumaro_files(root / "annotations"):
        found["datumaro"] = f'annotations/{files[0].name} with "categories" and "items"'
    if files := [path for path in _manifests(root) if is_lookout(path)]:
        found["lookout"] = f'{files[0].name} with "source-ref" lines'
    return found


def _datumaro_files(folder: Path) -> list[Path]:
    return [path for path in files_named(folder, ".json") if is_datumaro(path)]


def _manifests(folder: Path) -> list[Path]:
    return files_named(folder, ".manifest")


def _split_of(path: Path, label: str) -> Split:
    """By a subset's or manifest's name; without train, val or test in it by the label.

    Raises `DataError` for a name that has train or test within a word ("mytest"), or several
    splits: taken for the wrong one, test images would be learned.
    """
    name = path.stem.lower()
    words = set(re.split(r"[^a-z]+", name))
    found = {split for split, names in _SPLIT_WORDS.items() if words & names}
    if len(found) == 1:
        return found.pop()
    hidden = [part for part in ("train", "test") if part in name]
    if hidden:
        raise DataError(
            f"{path}: expected a name that says one split as a word of its own (train, val or "
            f"test, as in line2-test{path.suffix}), found {path.name!r}; rename the file"
        )
    return "train" if label == GOOD else "test"


def _datumaro_entries(path: Path, base: Path, name: str, draft: Draft) -> Iterator[Entry]:
    content = json_file(path)
    labels = _datumaro_labels(path, content)
    shapes = 0
    for place, item in items_of(content, "items"):
        where = f"{path}: items[{place}]"
        item = item if isinstance(item, dict) else {}  # noqa: PLW2901
        image = _datumaro_image(path, base, item)
        if image is None:
            message = f"{where}: expected an image's path or an id, found {shown(item)}"
            draft.problems.append(Problem(path, message))
            continue
        used = [each for _, each in items_of(item, "annotations") if isinstance(each, dict)]
        shapes += any(each.get("type") not in ("label", None) for each in used)
        ids = [each["label_id"] for each in used if each.get("label_id") is not None]
        if not ids or not all(type(each) is int and 0 <= each < len(labels) for each in ids):
            message = (
                f"{where}: expected a label_id of 0 to {len(labels) - 1} for {image}, "
                f"found {shown(ids) if ids else 'none'}; label the image or remove the item"
            )
            draft.problems.append(Problem(image, message))
            continue
        others = [labels[each] for each in ids if labels[each].casefold() not in NORMAL_NAMES]
        label = others[0] if others else GOOD
        split = _split_of(path, label)
        yield Entry(where=where, path=image, class_name=name, split=split, label=label)
    if shapes:
        images = f"{shapes:,} image{'s' if shapes > 1 else ''}"
        draft.notes.append(f"{path}: shapes of {images} are not read as masks")


def _datumaro_labels(path: Path, content: Mapping[str, Any]) -> list[str]:
    try:
        found = [label["name"] for label in content["categories"]["label"]["labels"]]
    except (KeyError, TypeError):
        found = []
    if not found or not all(isinstance(name, str) for name in found):
        raise DataError(f"{path}: expected categories.label.labels with names, found none")
    return found


def _datumaro_image(path: Path, base: Path, item: Mapping[str, Any]) -> Path | None:
    for key in ("image", "media"):
        media = item.get(key)
        if isinstance(media, dict) and isinstance(media.get("path"), str) and media["path"]:
            name = str(media["path"])
            break
    else:
        if not isinstance(item.get("id"), str) or not item["id"]:
            return None
        name = f"{item['id']}.jpg"  # Datumaro's default
    folder = base / "images"
    older = folder / name
    return older if not_a_file(older) is None else folder / path.stem / name


def _lookout_entries(path: Path, name: str, draft: Draft) -> Iterator[Entry]:
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected JSON lines in UTF-8 ({error})") from error
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{place}"
        try:
            item = json.loads(line)
            source = item["source-ref"]
            metadata = _metadata(item, CLASSIFICATION)
            label = metadata[1]["class-name"]
            if not (isinstance(source, str) and source and isinstance(label, str) and label):
                raise TypeError("source-ref and class-name are texts")
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            message = (
                f"{where}: expected an object with source-ref and a classification with its "
                f"-metadata, found {shown(line)} ({error})"
            )
            draft.problems.append(Problem(path, message))
            continue
        label = GOOD if label.casefold() in NORMAL_NAMES else label
        mask, background = _lookout_mask(item) if label != GOOD else (None, None)
        yield Entry(
            where=where,
            path=_local(path.parent, source),
            class_name=name,
            split=_split_of(path, label),
            label=label,
            masks=(_local(path.parent, mask),) if mask else (),
            mask_background=background,
        )


def _metadata(item: Mapping[str, Any], kind: str) -> tuple[str, Mapping[str, Any]]:
    """The name of the attribute of a type and its metadata. Raises `KeyError` without one."""
    for key, value in item.items():
        if key.endswith("-metadata") and isinstance(value, dict) and value.get("type") == kind:
            return key.removesuffix("-metadata"), value
    raise KeyError(kind)


def _lookout_mask(item: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The mask's name and its background's colour, None where there is none."""
    try:
        key, metadata = _metadata(item, SEGMENTATION)
        mask = item[key]
    except KeyError:
        return None, None
    colours = metadata.get("internal-color-map")
    for entry in colours.values() if isinstance(colours, dict) else ():
        if isinstance(entry, dict) and str(entry.get("class-name")).upper() == "BACKGROUND":
            colour = entry.get("hex-color")
            if isinstance(colour, str) and COLOUR.fullmatch(colour):
                return mask if isinstance(mask, str) else None, colour.lower()
    return mask if isinstance(mask, str) else None, None


def _local(folder: Path, name: str) -> Path:
    """Where a file lies that a manifest names; the bucket's name is not part of the path."""
    if not name.startswith("s3://"):
        return folder / name
    parts = name.removeprefix("s3://").strip().split("/")[1:]
    for start in range(len(parts)):
        if not_a_file(found := folder.joinpath(*parts[start:])) is None:
            return found
    return folder.joinpath(*parts)
