"""A manifest: a data set as a list in one file, CSV, JSON lines or Parquet, one image per line.

    path,class,split,label,mask
    cam1/000.png,screw,train,good,
    cam1/417.png,screw,test,scratch,masks/417.png

JSON lines have an object per line with the same keys, a Parquet file columns of text. Paths are
relative to the manifest's folder, or absolute. `mask`, `sample` and `view` may be left out; in JSON
lines and Parquet a mask may be a list of files, whose union it is. Text is UTF-8, with or without a
byte order mark.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from mambaadv2.data.parquet import parquet_rows
from mambaadv2.data.record import (
    GOOD,
    SPLITS,
    Ask,
    Listing,
    Record,
    Split,
    chosen_classes,
    not_a_file,
    record_order,
)
from mambaadv2.errors import DataError, Problem
from mambaadv2.files import write_atomically

MANIFEST_SUFFIXES = frozenset({".csv", ".jsonl", ".parquet"})
"""File name endings taken for manifests, in lower case; any case matches."""

REQUIRED = ("path", "class", "split", "label")
OPTIONAL = ("mask", "sample", "view")
COLUMNS = (*REQUIRED, *OPTIONAL)

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


def manifest_listing(path: Path, ask: Ask) -> Listing:
    """List a manifest (see the top of this file).

    Every line is checked, and each problem names the file and the line: columns or keys that are
    unknown, missing or given twice, a field that is empty or no text, an unknown split, a training
    image that is not good, a mask for a good image, no mask although other defect images of the
    class have one, a path given twice, a file that does not exist, a class without lines of the
    split. Lines of another split or class than asked for are only read, not judged.

    Raises `DataError` for an unknown class, and for a file that is empty, cannot be read, or is
    not UTF-8 text.
    """
    draft = _Draft(path)
    for line, fields in _lines(path, draft):
        if isinstance(fields, str):
            draft.fail(line, fields)
        else:
            _add_line(draft, line, fields, ask)
    if not draft.classes and not draft.problems:
        raise DataError(f"{path}: expected a line per image, found none")
    names = chosen_classes(path, draft.classes, ask.classes) if draft.classes else []
    _demand_masks(draft)
    for name in names:
        wanted = ask.split or "train"
        if wanted not in draft.classes[name]:
            message = f"{path}: expected lines with split {wanted!r} for class {name!r}, found none"
            draft.problems.append((0, Problem(path, message)))
    records = sorted((record for _, record in draft.records), key=record_order)
    problems = sorted(draft.problems, key=lambda item: item[0])
    return Listing(
        tuple(records), tuple(problem for _, problem in problems), dict.fromkeys(names, path)
    )


def _lines(path: Path, draft: _Draft) -> Iterator[Line]:
    if path.suffix.lower() == ".parquet":
        return _parquet_lines(path, draft)
    if path.suffix.lower() == ".csv":
        return _csv_lines(_text(path), draft)
    return _json_lines(_text(path))


def write_manifest(records: Sequence[Record], path: str | os.PathLike[str]) -> None:
    """Write records as a manifest, *.csv or *.jsonl, for example those of a folder.

    Files inside the manifest's folder are given relative to it, all others absolute.

    Raises `DataError` for another file name, a name of a file that is no text, and for what the
    form cannot say: several masks of an image in CSV, masks whose background is not black.
    """
    path = Path(path)
    rows = [_row(record, path.parent) for record in records]
    if path.suffix.lower() == ".csv":
        buffer = io.StringIO(newline="")
        for record in records:
            if len(record.masks) > 1:
                raise DataError(
                    f"{path}: {record.path} has {len(record.masks)} masks, a line of CSV holds "
                    "one; write a .jsonl instead"
                )
        columns = [
            *REQUIRED,
            "mask",
            *(name for name in OPTIONAL[1:] if any(name in r for r in rows)),
        ]
        # Ends lines with CRLF, as RFC 4180 has it: else a bare CR in a name would not be quoted.
        writer = csv.DictWriter(buffer, columns)
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


def _row(record: Record, folder: Path) -> dict[str, str | list[str]]:
    def shown(file: Path) -> str:
        whole, base = Path(os.path.abspath(file)), Path(os.path.abspath(folder))
        return str(whole.relative_to(base) if whole.is_relative_to(base) else whole)

    if record.mask_background is not None:
        raise DataError(
            f"{record.path}: its mask has a background that is not black, which a manifest cannot "
            "say; save the mask with a black background"
        )
    masks = [shown(mask) for mask in record.masks]
    row: dict[str, str | list[str]] = {
        "path": shown(record.path),
        "class": record.class_name,
        "split": record.split,
        "label": record.defect_type,
        "mask": masks if len(masks) > 1 else "".join(masks),
    }
    optional = {"sample": record.sample, "view": record.view}
    return row | {name: value for name, value in optional.items() if value is not None}


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


def _parquet_lines(path: Path, draft: _Draft) -> Iterator[Line]:
    columns, rows = parquet_rows(path)
    if _header_fits(columns, 0, draft):
        yield from enumerate(rows, start=1)


def _json_lines(text: str) -> Iterator[Line]:
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


def _add_line(draft: _Draft, line: int, fields: Mapping[str, object], ask: Ask) -> None:
    wrong = [
        message for name in COLUMNS if (message := _field_error(name, fields.get(name))) is not None
    ]
    # Whom a line with a wrong class or split concerns is not known, so it concerns everybody.
    class_name, published = fields.get("class"), fields.get("split")
    given = ask.given(published) if published in SPLITS else None
    known = _field_error("class", class_name) is None
    if known and ask.classes is not None and class_name not in ask.classes:
        draft.classes.setdefault(str(class_name), set())
        return
    if known:
        draft.classes.setdefault(str(class_name), set()).add(str(given or published))
    if published in SPLITS and given is None:
        return
    if not wrong:
        wrong = _label_errors(fields)
    if wrong:
        for message in wrong:
            draft.fail(line, message)
    elif given == "train" and fields["label"] != GOOD:
        return  # of validation, which may have defects; training may not see them
    elif given is not None:
        _add_record(draft, line, fields, given)


def _add_record(draft: _Draft, line: int, fields: Mapping[str, object], split: Split) -> None:
    path = draft.path.parent / str(fields["path"])
    masks = tuple(draft.path.parent / mask for mask in _masks_of(fields))
    key = os.path.normpath(path)
    first = draft.first_lines.setdefault(key, line)
    if first != line:
        draft.fail(line, f"path: {fields['path']!r} is in line {first} already; remove one", path)
        return
    complete = True
    for name, file in (("path", path), *(("mask", mask) for mask in masks)):
        if (found := not_a_file(file)) is not None:
            draft.fail(line, f"{name}: expected an image file, found {found}: {file}", file)
            complete = False
    if complete:
        record = Record(
            path=path,
            class_name=str(fields["class"]),
            split=split,
            defect=fields["label"] != GOOD,
            defect_type=str(fields["label"]),
            masks=masks,
            sample=cast("str | None", fields.get("sample") or None),
            view=cast("str | None", fields.get("view") or None),
        )
        draft.records.append((line, record))


def _masks_of(fields: Mapping[str, object]) -> list[str]:
    """The mask's files, however many; the field is right by itself."""
    masks = cast("str | list[str] | None", fields.get("mask"))
    return [masks] if isinstance(masks, str) and masks else list(masks or ())


def _field_error(name: str, value: object) -> str | None:
    """What is wrong with one field by itself."""
    if value is None and name in OPTIONAL:
        return None
    if name == "mask" and isinstance(value, list):
        if "" in value or None in value:
            return f"mask: expected a file's name for every mask, found {_shown(value)}"
        return next((error for each in value if (error := _field_error("mask", each))), None)
    if value is None:
        return f"{name}: expected a text, found nothing"
    if not isinstance(value, str):
        return f"{name}: expected a text, found {_shown(value)}"
    if not value and name not in OPTIONAL:
        return f"{name}: expected a text, found an empty field"
    if name in ("path", "mask"):
        try:
            os.fsencode(value)
        except UnicodeEncodeError:
            return f"{name}: expected a file's name, found {_shown(value)}"
        return f"{name}: expected a file's name, found a NUL" if "\0" in value else None
    if value != value.strip() or not value.isprintable():
        return f"{name}: expected one line without blanks around it, found {_shown(value)}"
    if name == "split" and value not in SPLITS:
        return f'split: expected "train", "validation" or "test", found {_shown(value)}'
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
    with_masks = {record.class_name for _, record in draft.records if record.masks}
    kept = []
    for line, record in draft.records:
        if record.defect and not record.masks and record.class_name in with_masks:
            draft.fail(
                line,
                f"mask: expected one, because other defect images of class "
                f"{record.class_name!r} have masks; found none",
                record.path,
            )
        else:
            kept.append((line, record))
    draft.records = kept


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
