"""What a folder holds, and a listing that grows: what every layout is written with."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mambaadv2.data.record import (
    FOREIGN_SUFFIXES,
    IMAGE_SUFFIXES,
    Listing,
    Record,
    foreign_problem,
    record_order,
)
from mambaadv2.errors import DataError, Problem


@dataclass(frozen=True, slots=True)
class Entries:
    """What one folder holds, sorted by name; hidden entries are left out."""

    folders: tuple[Path, ...]
    images: tuple[Path, ...]
    others: tuple[Path, ...]


@dataclass(slots=True)
class Draft:
    """A listing that grows."""

    records: list[Record] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fail(self, path: Path, message: str) -> None:
        """Add the problem of a file or folder; the message goes behind its name."""
        self.problems.append(Problem(path, f"{path}: {message}"))

    def listing(self, classes: Mapping[str, Path]) -> Listing:
        """Return what there is; classes: as in `Listing`."""
        records = tuple(sorted(self.records, key=record_order))
        notes = tuple(dict.fromkeys(self.notes))
        return Listing(
            records, tuple(self.problems), dict(classes), tuple(self.ignored), notes=notes
        )


def has(folder: Path, name: str) -> bool:
    """Return whether there is a folder of this name; False as well where one may not look."""
    return os.path.isdir(folder / name)


def tried(draft: Draft, folder: Path) -> Entries | None:
    """As `entries_of`, but None and a problem when the folder cannot be listed."""
    try:
        return entries_of(folder)
    except DataError as error:
        draft.problems.append(Problem(folder, str(error)))
        return None


def entries_of(folder: Path) -> Entries:
    """Return what a folder holds. Raises `DataError` where it cannot be listed."""
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
    return Entries(*(tuple(sorted(paths)) for paths in (folders, images, others)))


def images_in(draft: Draft, folder: Path) -> tuple[Path, ...] | None:
    """Return the images of a folder that should hold nothing else; None when it cannot be listed.

    Pictures of other formats and a folder without images are problems, its folders are ignored.
    """
    entries = tried(draft, folder)
    if entries is None:
        return None
    add_foreign(draft, entries)
    if not entries.images:
        draft.fail(
            folder,
            f"expected images ({' '.join(sorted(IMAGE_SUFFIXES))}), found {described(entries)}",
        )
    else:
        draft.ignored += entries.folders
    return entries.images


def add_foreign(draft: Draft, entries: Entries) -> None:
    """Name the pictures in formats that cannot be read."""
    draft.problems += [
        foreign_problem(path) for path in entries.others if path.suffix.lower() in FOREIGN_SUFFIXES
    ]


def files_named(folder: Path, suffix: str) -> list[Path]:
    """Return the files of a folder whose names end with `suffix`, sorted; none where none can be
    listed."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name.endswith(suffix))
    except OSError:
        return []
    return [folder / name for name in names]


def described(entries: Entries, limit: int = 5) -> str:
    """Return a few words on what a folder holds, for messages."""
    names = [f"{path.name}/" for path in entries.folders]
    names += [path.name for path in (*entries.images, *entries.others)]
    return some(names, limit) if names else "an empty folder"


def some(names: Iterable[str], limit: int = 5) -> str:
    """Return the first few names with commas between, and how many more there are."""
    listed = list(names)
    rest = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + rest


def head_of(path: Path, size: int = 65_536) -> str:
    """Return the first characters of a text file, as far as they are text; "" where none is."""
    try:
        with open(path, "rb") as file:
            return file.read(size).decode("utf-8-sig", errors="ignore")
    except (OSError, ValueError):
        return ""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """False as well for a link that leads in a circle or where one may not look."""
    try:
        return entry.is_dir()
    except OSError:
        return False
