"""Layouts that are lists: every entry names an image, its class, split, label and masks.

`Entry` is one of them, wherever it was read; `entry_listing` judges all of them in the same way.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mambaadv2.data.layouts.tree import Draft
from mambaadv2.data.record import (
    FOREIGN_SUFFIXES,
    GOOD,
    Ask,
    Listing,
    Record,
    Split,
    chosen_classes,
    foreign_problem,
    not_a_file,
)
from mambaadv2.errors import DataError, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a list says of one image; the fields as in `Record`."""

    where: str
    """The list's name and the place in it, for messages."""
    path: Path
    class_name: str
    split: Split
    """As published; defect images of training are left out and counted."""
    label: str
    masks: tuple[Path, ...] = ()
    mask_background: str | None = None
    sample: str | None = None
    view: str | None = None


def entry_listing(
    source: Path,
    ask: Ask,
    entries: Iterable[Entry],
    *,
    draft: Draft | None = None,
    classes: Mapping[str, Path] | None = None,
) -> Listing:
    """Judge entries and list those that can be used.

    source: the data set, for messages. draft: with the problems found while reading. classes: name
    -> folder or list, by default those of the entries, with `source`.

    Problems: a file that is not there, a picture of a format that cannot be read, an image given
    twice, a mask of a good image, no mask although other defect images of the class have one, a
    class without images of the split. Raises `DataError` without any entry and for an unknown
    class.
    """
    draft = Draft() if draft is None else draft
    known = list(entries)
    found = dict.fromkeys((entry.class_name for entry in known), source)
    found = {**found, **(classes or {})}
    if not found:
        raise DataError(f"{source}: expected a list of images, found none in it")
    names = chosen_classes(source, found, ask.classes)
    left_out: Counter[tuple[str, str]] = Counter()
    seen: dict[str, str] = {}
    records: list[tuple[Entry, Record]] = []
    for entry in known:
        split = ask.given(entry.split)
        if entry.class_name not in names or split is None:
            continue
        if split == "train" and entry.label != GOOD:
            left_out[entry.class_name, entry.split] += 1
            continue
        key = os.path.normpath(entry.path)
        if (first := seen.setdefault(key, entry.where)) != entry.where:
            message = f"{entry.where}: {entry.path} is at {first} already; remove one of them"
            draft.problems.append(Problem(entry.path, message))
        elif _can_be_used(draft, entry):
            records.append((entry, _record(entry, split)))
    _add_with_masks(draft, records)
    for (name, split_name), count in sorted(left_out.items()):
        draft.notes.append(
            f"{name}: {count:,} defect image{'s' if count > 1 else ''} of {split_name} left out, "
            "because training may see good images only"
        )
    _demand_images(draft, source, names, ask, known)
    return draft.listing({name: found[name] for name in names})


def json_file(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises `DataError`, naming the file, where it cannot be read, is no JSON or holds something
    else.
    """
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise DataError(
            f"{path}: expected a JSON file, which cannot be read ({error.strerror})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON text ({error}); is it the right file?") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def texts(
    draft: Draft, where: str, path: Path, item: object, keys: Iterable[str]
) -> dict[str, str] | None:
    """Return the texts of an item of a JSON file; None and a problem when one is missing.

    path: the file that the problem is about.
    """
    if not isinstance(item, dict):
        draft.problems.append(Problem(path, f"{where}: expected an object, found {shown(item)}"))
        return None
    found: dict[str, str] = {}
    for key in keys:
        value = item.get(key)
        if not isinstance(value, str) or not value or "\0" in value:
            message = f"{where}: {key}: expected a text, found {shown(value)}"
            draft.problems.append(Problem(path, message))
            return None
        found[key] = value
    return found


def items_of(content: Mapping[str, Any], key: str) -> Iterator[tuple[int, Any]]:
    """Yield (place, item) of the list under a key; a value that is no list counts as one item."""
    value = content.get(key)
    yield from enumerate(value if isinstance(value, list) else [] if value is None else [value])


def shown(value: object, limit: int = 80) -> str:
    """Return a value as it is written in Python, shortened, for messages."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _can_be_used(draft: Draft, entry: Entry) -> bool:
    usable = True
    for name in (entry.class_name, entry.label):
        if not name.isprintable() or name != name.strip() or not name:
            message = (
                f"{entry.where}: expected names of class and label in one line without blanks "
                f"around them, found {shown(name)}"
            )
            draft.problems.append(Problem(entry.path, message))
            return False
    if entry.path.suffix.lower() in FOREIGN_SUFFIXES:
        draft.problems.append(foreign_problem(entry.path))
        return False
    for name, file in (("image", entry.path), *(("mask", mask) for mask in entry.masks)):
        if (found := not_a_file(file)) is not None:
            message = f"{entry.where}: {name}: expected a file, found {found}: {file}"
            draft.problems.append(Problem(file, message))
            usable = False
    if entry.label == GOOD and entry.masks:
        message = f"{entry.where}: expected no mask for a good image, found {entry.masks[0]}"
        draft.problems.append(Problem(entry.path, message))
        usable = False
    return usable


def _record(entry: Entry, split: Split) -> Record:
    return Record(
        path=entry.path,
        class_name=entry.class_name,
        split=split,
        defect=entry.label != GOOD,
        defect_type=entry.label,
        masks=entry.masks,
        mask_background=entry.mask_background if entry.masks else None,
        sample=entry.sample,
        view=entry.view,
    )


def _add_with_masks(draft: Draft, records: Iterable[tuple[Entry, Record]]) -> None:
    """Take over records, but no defect image without mask where others of its class have one."""
    records = list(records)
    with_masks = {record.class_name for _, record in records if record.masks}
    for entry, record in records:
        if record.defect and not record.masks and record.class_name in with_masks:
            message = (
                f"{entry.where}: {entry.path} has no mask, although other defect images of class "
                f"{record.class_name!r} have one; add it or remove the image"
            )
            draft.problems.append(Problem(entry.path, message))
        else:
            draft.records.append(record)


def _demand_images(
    draft: Draft, source: Path, names: Iterable[str], ask: Ask, entries: Iterable[Entry]
) -> None:
    """Name the classes that have no entry of the split asked for; without one, of train."""
    wanted = ask.split or "train"
    have = {
        entry.class_name
        for entry in entries
        if ask.given(entry.split) == wanted and (wanted != "train" or entry.label == GOOD)
    }
    for name in names:
        if name not in have:
            message = f"expected images of split {wanted!r} for class {name!r}, found none"
            draft.fail(source, message)
