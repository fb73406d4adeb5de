"""A manifest: a data set as a list in one file, CSV or JSON lines, one image per line.

    path,class,split,label,mask
    cam1/000.png,screw,train,good,
    cam1/417.png,screw,test,scratch,masks/417.png

JSON lines have an object per line with the same keys. Paths are relative to the manifest's folder,
or absolute. `mask` may be left out. Text is UTF-8, with or without a byte order mark.
"""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from mambaadv2.data.record import GOOD, Listing, Record, Split, chosen_classes, make_record
from mambaadv2.errors import DataError, Problem
from mambaadv2.files import write_atomically

MANIFEST_SUFFIXES = frozenset({".csv", ".jsonl"})
"""File name endings taken for manifests, in lower case; any case matches."""

REQUIRED = ("path", "class", "split", "label")
COLUMNS = (*REQUIRED, "mask")

Line = tuple[int, Mapping[str, object] | str]
"""(number from 1, fields by name), or what is wrong with the line."""


@dataclass(slots=True)
class _Draft:
    """What has been read so far."""

    path: Path
    records: list[tuple[int, Record]] = field(default_factory=list)
    problems: list[tuple[int, Problem]] = field(default_factory=list)
    first_lines: dict[str, int] = field(default_factory=dict)
    classes: dict[str, set[str]] = field(default_factory=dict)
    """Class -> the splits that it has lines of, usable or not."""

    def fail(self, line: int, message: str, path: Path | None = None) -> None:
        problem = Problem(path or self.path, f"{self.path}:{line}: {message}")
        self.problems.append((line, problem))


def manifest_listing(
    path: Path, *, split: Split | None = None, classes: Sequence[str] | None = None
) -> Listing:
    """List a manifest (see the top of this file); the arguments are those of `list_records`.

    Every line is checked, and each problem names the file and the line: columns or keys that are
    unknown, missing or given twice, a field that is empty or no text, an unknown split, a training
    image that is not good, a mask for a good image, no mask although other defect images of the
    class have one, a path given twice, a file that does not exist, a class without lines of the
    split. Lines of another split or class than asked for are only read, not judged.

    Raises `DataError` for an unknown class, and for a file that is empty, cannot be read, or is
    not UTF-8 text.
    """
    text = _text(path)
    draft = _Draft(path)
    read = _csv_lines if path.suffix.lower() == ".csv" else _json_lines
    chosen = (split, None if classes is None else set(classes))
    for line, fields in read(text, draft):
        if isinstance(fields, str):
            draft.fail(line, fields)
        else:
            _add_line(draft, line, fields, *chosen)
    if not draft.classes and not draft.problems:
        raise DataError(f"{path}: expected a line per image, found none")
    names = chosen_classes(path, draft.classes, classes) if draft.classes else []
    _demand_masks(draft)
    for name in names:
        wanted = "test" if split == "test" else "train"
        if wanted not in draft.classes[name]:
            message = f"{path}: expected lines with split {wanted!r} for class {name!r}, found none"
            draft.problems.append((0, Problem(path, message)))
    records = sorted((record for _, record in draft.records), key=_order)
    problems = sorted(draft.problems, key=lambda item: item[0])
    return Listing(
        tuple(records), tuple(problem for _, problem in problems), dict.fromkeys(names, path)
    )


def write_manifest(records: Sequence[Record], path: str | os.PathLike[str]) -> None:
    """Write records as a manifest, *.csv or *.jsonl, for example those of a folder.

    Files inside the manifest's folder are given relative to it, all others absolute.

    Raises `DataError` for another file name, or a name of a file that is no text.
    """
    path = Path(path)
    rows = [_row(record, path.parent) for record in records]
    if path.suffix.lower() == ".csv":
        buffer = io.StringIO(newline="")
        # Ends lines with CRLF, as RFC 4180 has it: else a bare CR in a name would not be quoted.
        writer = csv.DictWriter(buffer, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    elif path.suffix.lower() == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        raise DataError(f"{path}: expected a name that ends with .csv or .jsonl")
    try:
        write_atomically(path, text.encode())
    except UnicodeEncodeError as error:
        name = error.object[max(0, error.start - 40) : error.end]
        raise DataError(f"{path}: a file's name is no text: {name!r}") from error


def _row(record: Record, folder: Path) -> dict[str, str]:
    def shown(file: Path) -> str:
        whole, base = Path(os.path.abspath(file)), Path(os.path.abspath(folder))
        return str(whole.relative_to(base) if whole.is_relative_to(base) else whole)

    row = {
        "path": shown(record.path),
        "class": record.class_name,
        "split": record.split,
        "label": record.defect_type,
    }
    return row | {"mask": shown(record.mask) if record.mask else ""}


def _order(record: Record) -> tuple[str, bool, str, Path]:
    return (record.class_name, record.split != "train", record.defect_type, record.path)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not data.strip(b"\xef\xbb\xbf \t\r\n"):
        raise DataError(f"{path}: expected a manifest with a line per image, found an empty file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: expected UTF-8 text, found the byte 0x{data[error.start]:02x}; "
            "save the manifest as UTF-8"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}:{line}: expected text, found a NUL byte; is it a manifest?")
    return text


def _csv_lines(text: str, draft: _Draft) -> Iterator[Line]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, f"cannot be read as CSV ({error}); look for a quote that is not closed"
            if header is None:
                return
            continue
        if not row:
            continue
        if header is None:
            header = row
            if not _header_fits(header, line, draft):
                return
        elif len(row) != len(header):
            yield line, f"expected {len(header)} fields as in the first line, found {len(row)}"
        else:
            yield line, dict(zip(header, row, strict=True))


def _header_fits(header: Sequence[str], line: int, draft: _Draft) -> bool:
    """Whether lines can be read by this header; what is wrong with it goes to the draft."""
    expected = f"expected the columns {', '.join(REQUIRED)} and, if there are masks, mask"
    doubled = sorted({name for name in header if header.count(name) > 1})
    missing = [name for name in REQUIRED if name not in header]
    for name in doubled:
        draft.fail(line, f"{expected}, found {name!r} twice")
    for name in dict.fromkeys(header):
        if name not in COLUMNS:
            draft.fail(line, f"{expected}, found {name!r}; remove that column")
    for name in missing:
        draft.fail(line, f"{expected}, found no {name!r}; no line below was read")
    return not doubled and not missing


def _json_lines(text: str, draft: _Draft) -> Iterator[Line]:
    del draft  # no header, so nothing to say beside the lines
    # Not splitlines, which also splits at characters that JSON allows inside text.
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        doubled: list[str] = []

        def take(pairs: list[tuple[str, Any]], doubled: list[str] = doubled) -> dict[str, Any]:
            found = dict(pairs)
            if len(found) < len(pairs):
                names = [name for name, _ in pairs]
                doubled += sorted({name for name in names if names.count(name) > 1})
            return found

        try:
            value = json.loads(content, object_pairs_hook=take)
        except (ValueError, RecursionError) as error:
            yield line, f"expected a JSON object, found something else ({error})"
            continue
        if not isinstance(value, dict):
            yield line, f"expected a JSON object, found {_shown(value)}"
        elif doubled:
            yield line, f"expected every key once, found {doubled[0]!r} twice"
        elif unknown := [name for name in value if name not in COLUMNS]:
            yield line, f"expected the keys {', '.join(COLUMNS)}, found {unknown[0]!r}; remove it"
        else:
            yield line, value


def _add_line(
    draft: _Draft,
    line: int,
    fields: Mapping[str, object],
    split: Split | None,
    classes: set[str] | None,
) -> None:
    wrong = [
        message for name in COLUMNS if (message := _field_error(name, fields.get(name))) is not None
    ]
    # Whom a line with a wrong class or split concerns is not known, so it concerns everybody.
    class_name = fields.get("class")
    known = _field_error("class", class_name) is None
    if known and classes is not None and class_name not in classes:
        draft.classes.setdefault(str(class_name), set())
        return
    if known:
        splits = draft.classes.setdefault(str(class_name), set())
        splits.add(str(fields.get("split")))
    if split is not None and fields.get("split") in ("train", "test") and fields["split"] != split:
        return
    if not wrong:
        wrong = _label_errors(fields)
    if wrong:
        for message in wrong:
            draft.fail(line, message)
        return
    _add_record(draft, line, cast("Mapping[str, str]", fields))


def _add_record(draft: _Draft, line: int, fields: Mapping[str, str]) -> None:
    path = draft.path.parent / fields["path"]
    mask = draft.path.parent / fields["mask"] if fields.get("mask") else None
    key = os.path.normpath(path)
    first = draft.first_lines.setdefault(key, line)
    if first != line:
        draft.fail(line, f"path: {fields['path']!r} is in line {first} already; remove one", path)
        return
    complete = True
    for name, file in (("path", path), ("mask", mask)):
        if file is not None and (found := _not_a_file(file)) is not None:
            draft.fail(line, f"{name}: expected an image file, found {found}: {file}", file)
            complete = False
    if complete:
        split = cast("Split", fields["split"])
        record = make_record(path, fields["class"], split, fields["label"], mask)
        draft.records.append((line, record))


def _field_error(name: str, value: object) -> str | None:
    """What is wrong with one field by itself."""
    if value is None and name == "mask":
        return None
    if value is None:
        return f"{name}: expected a text, found nothing"
    if not isinstance(value, str):
        return f"{name}: expected a text, found {_shown(value)}"
    if not value and name != "mask":
        return f"{name}: expected a text, found an empty field"
    if name in ("path", "mask"):
        try:
            os.fsencode(value)
        except UnicodeEncodeError:
            return f"{name}: expected a file's name, found {_shown(value)}"
        return f"{name}: expected a file's name, found a NUL" if "\0" in value else None
    if value != value.strip() or not value.isprintable():
        return f"{name}: expected one line without blanks around it, found {_shown(value)}"
    if name == "split" and value not in ("train", "test"):
        return f'split: expected "train" or "test", found {_shown(value)}'
    if name == "label" and value != GOOD and value.casefold() == GOOD:
        return f'label: expected "good" in small letters, found {_shown(value)}'
    return None


def _label_errors(fields: Mapping[str, object]) -> list[str]:
    """What is wrong between fields that are right by themselves."""
    if fields["split"] == "train" and fields["label"] != GOOD:
        return [
            f'label: expected "good" for a training image, found {_shown(fields["label"])}; '
            "training may see good images only: move it to test or remove it"
        ]
    if fields["label"] == GOOD and fields.get("mask"):
        return [f"mask: expected none for a good image, found {_shown(fields['mask'])}"]
    return []


def _demand_masks(draft: _Draft) -> None:
    """Take out defect images without mask where others of their class have one."""
    with_masks = {record.class_name for _, record in draft.records if record.mask}
    kept = []
    for line, record in draft.records:
        if record.defect and record.mask is None and record.class_name in with_masks:
            draft.fail(
                line,
                f"mask: expected one, because other defect images of class "
                f"{record.class_name!r} have masks; found none",
                record.path,
            )
        else:
            kept.append((line, record))
    draft.records = kept


def _not_a_file(path: Path) -> str | None:
    """What stands in the place of a file; None where there is one."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "nothing of that name"
    except OSError as error:
        return f"what cannot be opened ({error.strerror})"
    if stat.S_ISREG(mode):
        return None
    return "a folder" if stat.S_ISDIR(mode) else "no regular file"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
