"""Manifests: what is written comes back, and everything else is named with its line."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mambaadv2.data.index import list_records
from mambaadv2.data.manifest import COLUMNS, write_manifest
from mambaadv2.data.record import GOOD, Listing, Record, make_record
from mambaadv2.errors import DataError

HEADER = "path,class,split,label,mask\n"
FILES = ("a.png", "b.png", "c.png", "d.png", "m.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of empty files: a manifest's images are not opened."""
    for name in FILES:
        (tmp_path / name).touch()
    return tmp_path


def listed(folder: Path, text: str | bytes, suffix: str = ".csv") -> Listing:
    path = folder / f"parts{suffix}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list_records(path)


def messages(listing: Listing) -> list[str]:
    """The problems without the folder's name."""
    return [problem.message.rpartition("/parts.")[2] for problem in listing.problems]


GOOD_CSV = HEADER + "a.png,nut,train,good,\nb.png,nut,test,good,\nc.png,nut,test,cut,m.png\n"


def test_a_csv_and_the_same_as_json_lines(folder: Path) -> None:
    found = listed(folder, GOOD_CSV)
    assert found.problems == ()
    assert found.records == (
        make_record(folder / "a.png", "nut", "train", GOOD),
        make_record(folder / "c.png", "nut", "test", "cut", folder / "m.png"),
        make_record(folder / "b.png", "nut", "test", GOOD),
    )
    assert found.classes == {"nut": folder / "parts.csv"}
    columns = HEADER.strip().split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in GOOD_CSV.split()[1:]]
    rows[0]["mask"] = None  # type: ignore[assignment]
    del rows[1]["mask"]
    text = "\n".join(json.dumps(row) for row in rows)
    assert listed(folder, text, ".jsonl").records == found.records


@pytest.mark.parametrize(
    "text",
    [
        GOOD_CSV.replace("\n", "\r\n"),
        "\ufeff" + GOOD_CSV,
        GOOD_CSV.replace("\n", "\n\n"),
        GOOD_CSV.replace("a.png", '"a.png"'),
        "mask,label,split,class,path\n,good,train,nut,a.png\n,good,test,nut,b.png\n"
        "m.png,cut,test,nut,./c.png\n",
    ],
    ids=["crlf", "bom", "blank-lines", "quotes", "other-order"],
)
def test_forms_of_the_same(folder: Path, text: str) -> None:
    assert listed(folder, text) == listed(folder, GOOD_CSV)


def test_names_with_commas_quotes_and_line_breaks(folder: Path) -> None:
    (folder / 'x, "1"\n.png').touch()
    found = listed(folder, HEADER + '"x, ""1""\n.png",nut,train,good,\nz.png,nut,train,good,\n')
    assert [record.path.name for record in found.records] == ['x, "1"\n.png']
    assert messages(found)[0].startswith("csv:4: path: expected an image file, found nothing")


def test_one_split_or_class_judges_only_its_lines(folder: Path) -> None:
    path = folder / "parts.csv"
    path.write_text(GOOD_CSV + "gone.png,nut,test,good,\nd.png,bolt,train,cut,\n")
    assert [r.path.name for r in list_records(path, split="train", classes=["nut"]).records] == [
        "a.png"
    ]
    assert list_records(path, split="train", classes=["nut"]).problems == ()
    assert len(list_records(path, split="test", classes=["nut"]).problems) == 1
    assert len(list_records(path).problems) == 2
    assert "bolt" in list_records(path, split="test").problems[0].message
    with pytest.raises(
        DataError, match=r"no class 'nit' \(did you mean 'nut'\?\); found bolt, nut"
    ):
        list_records(path, classes=["nit"])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("path,class,split\n", "csv:1: expected the columns .*, found no 'label'"),
        (HEADER.replace("mask", "path"), "csv:1: expected the columns .*, found 'path' twice"),
        (
            "path,class,split,label,note\na.png,nut,train,good,x\n",
            "csv:1: .*found 'note'; remove that column",
        ),
        (HEADER + "a.png,nut,train\n", "csv:2: expected 5 fields as in the first line, found 3"),
        (HEADER + ",nut,train,good,\n", "csv:2: path: expected a text, found an empty field"),
        (HEADER + "a.png,,train,good,\n", "csv:2: class: expected a text, found an empty field"),
        (HEADER + "a.png, nut,train,good,\n", "csv:2: class: expected one line without blanks"),
        (HEADER + "a.png,nut,valid,good,\n", "csv:2: split: expected .*, found 'valid'"),
        (HEADER + "a.png,nut,train,cut,\n", 'csv:2: label: expected "good" for a training image'),
        (HEADER + "a.png,nut,test,Good,\n", 'csv:2: label: expected "good" in small letters'),
        (HEADER + "a.png,nut,test,good,m.png\n", "csv:2: mask: expected none for a good image"),
        (
            HEADER + "a.png,nut,train,good,\n./a.png,nut,train,good,\n",
            "csv:3: path: './a.png' is in line 2 already",
        ),
        (HEADER + "x.png,nut,train,good,\n", "csv:2: path: expected an image file, found nothing"),
        (HEADER + ".,nut,train,good,\n", "csv:2: path: expected an image file, found a folder"),
        (HEADER + "a.png,nut,test,cut,x.png\n", "csv:2: mask: expected an image file, found noth"),
        (
            HEADER + "a.png,nut,test,cut,m.png\n\nb.png,nut,test,cut,\n",
            "csv:4: mask: expected one, because other defect images of class 'nut' have masks",
        ),
        (HEADER + 'a.png,nut,train,"good,\n', "csv:2: cannot be read as CSV"),
        (HEADER + 'a.png,nut,train,"go"od,\nb.png,nut,train,good,\n', "csv:2: cannot be read"),
        (HEADER + "a.png,nut,test,good,\n", "csv: expected lines with split 'train' for class"),
    ],
)
def test_a_problem_of_a_csv_is_named_with_its_line(folder: Path, lines: str, message: str) -> None:
    found = listed(folder, lines)
    assert any(_matches(text, message) for text in messages(found)), messages(found)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", r"jsonl:2: expected a JSON object, found \[1\]"),
        ("{", "jsonl:2: expected a JSON object, found something else"),
        ("[" * 100_000, "jsonl:2: expected a JSON object, found something else"),
        ('{"path": "b.png", "path": "c.png"}', "jsonl:2: expected every key once, found 'path'"),
        ('{"note": 1}', "jsonl:2: expected the keys .*, found 'note'; remove it"),
        ('{"path": 5}', "jsonl:2: path: expected a text, found 5"),
        ('{"path": "b.png"}', "jsonl:2: split: expected a text, found nothing"),
        (r'{"path": "b\u0000"}', "jsonl:2: path: expected a file's name, found a NUL"),
        (r'{"path": "\ud800"}', "jsonl:2: path: expected a file's name"),
        (r'{"class": "\ud800"}', "jsonl:2: class: expected one line without blanks"),
    ],
)
def test_a_problem_of_json_lines_is_named_with_its_line(
    folder: Path, line: str, message: str
) -> None:
    first = json.dumps({"path": "a.png", "class": "nut", "split": "train", "label": "good"})
    found = listed(folder, f"{first}\n{line}\n", ".jsonl")
    assert [record.path.name for record in found.records] == ["a.png"]
    assert any(_matches(text, message) for text in messages(found)), messages(found)


def _matches(text: str, pattern: str) -> bool:

    return re.match(pattern, text) is not None


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file"),
        (b"\xef\xbb\xbf \r\n", "found an empty file"),
        (b"\x89PNG\r\n\x1a\n\0\0", "1: expected UTF-8 text, found the byte 0x89"),
        (b"path\n\xe4.png", "2: expected UTF-8 text, found the byte 0xe4"),
        ("path".encode("utf-16"), "expected UTF-8 text"),
        (b"path\na\0b", "2: expected text, found a NUL byte"),
    ],
)
def test_what_is_no_text_is_one_error(
    folder: Path, content: bytes, message: str, suffix: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        listed(folder, content, suffix)
    assert str(caught.value).startswith(str(folder / f"parts{suffix}"))


def test_a_header_alone_is_an_error_and_a_folder_may_be_named_like_a_manifest(
    folder: Path,
) -> None:
    with pytest.raises(DataError, match="expected a line per image, found none"):
        listed(folder, HEADER)
    with pytest.raises(DataError, match=r"list of images .*, found an empty file"):
        list_records(folder / "a.png")
    with pytest.raises(DataError, match="found nothing of that name"):
        list_records(folder / "gone.csv")
    (folder / "set.csv/train/good").mkdir(parents=True)
    (folder / "set.csv/train/good/0.png").touch()
    assert len(list_records(folder / "set.csv").records) == 1


def test_writing_needs_a_known_ending_and_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ends with \.csv or \.jsonl"):
        write_manifest([], tmp_path / "parts.txt")
    record = make_record(tmp_path / os.fsdecode(b"\xff.png"), "nut", "train", GOOD)
    for suffix in (".csv", ".jsonl"):
        with pytest.raises(DataError, match="a file's name is no text"):
            write_manifest([record], tmp_path / f"parts{suffix}")
    assert list(tmp_path.iterdir()) == []


visible = st.characters(categories=["L", "N", "P", "S"])
words = st.one_of(st.just("two words"), st.text(visible, min_size=1, max_size=8)).filter(
    lambda text: text.casefold() != GOOD
)
names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=12
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 200)


# Files are written and the generator is slow to start: a busy machine must not fail it.
@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(
    stems=st.lists(names, min_size=1, max_size=6, unique=True),
    kinds=st.lists(words, min_size=1, max_size=6),
    class_names=st.lists(words, min_size=1, max_size=6),
    suffix=st.sampled_from([".csv", ".jsonl"]),
)
def test_what_is_written_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    stems: list[str],
    kinds: list[str],
    class_names: list[str],
    suffix: str,
) -> None:
    root = tmp_path_factory.mktemp("set")
    (root / "images").mkdir()
    (root / "mask.png").touch()
    records: list[Record] = []
    for i, stem in enumerate(stems):
        path = root / "images" / stem
        path.touch()
        name, kind = class_names[i % len(class_names)], kinds[i % len(kinds)]
        records.append(make_record(path, name, "train", GOOD))
        other = root / "images" / f"{i} {stem}"
        other.touch()
        records.append(make_record(other, name, "test", kind, root / "mask.png"))
    write_manifest(records, root / f"parts{suffix}")
    found = list_records(root / f"parts{suffix}")
    assert found.problems == ()
    assert set(found.records) == set(records)
    assert len(found.records) == len(records)
    # Relative to the manifest, so that the folder can move.
    assert str(root) not in (root / f"parts{suffix}").read_text()


tokens = st.sampled_from([*COLUMNS, *FILES, "good", "train", "test", "nut", *',,,"\r\n{}[]:'])
texts = st.one_of(
    st.text(max_size=60),
    st.lists(tokens, max_size=30).map("".join),
    st.lists(tokens, max_size=30).map(lambda parts: HEADER + ",".join(parts)),
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(text=texts, suffix=st.sampled_from([".csv", ".jsonl"]), raw=st.binary(max_size=8))
def test_any_text_gives_records_problems_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, text: str, suffix: str, raw: bytes
) -> None:
    root = tmp_path_factory.mktemp("set")
    for name in FILES:
        (root / name).touch()
    for content in (text.encode("utf-8", "surrogatepass"), text.encode(errors="replace") + raw):
        try:
            found = listed(root, content, suffix)
        except DataError:
            continue
        assert found.records or found.problems
        assert all(str(root / f"parts{suffix}") in p.message for p in found.problems)


def test_a_folder_and_its_manifest_list_the_same(tmp_path: Path) -> None:
    for name in ("train/good/0.png", "train/good/1.png", "test/good/0.png", "test/cut/0.png"):
        path = tmp_path / "nut" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "nut/ground_truth/cut").mkdir(parents=True)
    (tmp_path / "nut/ground_truth/cut/0_mask.png").touch()
    records = list_records(tmp_path).records
    write_manifest(records, tmp_path / "parts.csv")
    assert list_records(tmp_path / "parts.csv").records == records
    assert "nut/ground_truth/cut/0_mask.png" in (tmp_path / "parts.csv").read_text()


def test_validation_samples_and_several_masks(folder: Path) -> None:
    lines = [
        {"path": "a.png", "class": "nut", "split": "train", "label": "good", "sample": "1"},
        {"path": "b.png", "class": "nut", "split": "validation", "label": "good", "view": "C1"},
        {"path": "c.png", "class": "nut", "split": "validation", "label": "cut", "mask": "m.png"},
        {
            **{"path": "d.png", "class": "nut", "split": "test", "label": "cut"},
            "mask": ["m.png", "c.png"],
        },
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    found = listed(folder, text, ".jsonl")
    assert found.problems == ()
    assert [(r.split, r.path.name, len(r.masks)) for r in found.records] == [
        ("train", "a.png", 0),
        ("validation", "c.png", 1),
        ("validation", "b.png", 0),
        ("test", "d.png", 2),
    ]
    assert (found.records[0].sample, found.records[2].view) == ("1", "C1")
    # Written and read again; a line of CSV has one mask.
    write_manifest(found.records, folder / "again.jsonl")
    assert list_records(folder / "again.jsonl").records == found.records
    with pytest.raises(DataError, match=r"d\.png has 2 masks, a line of CSV holds one; write a"):
        write_manifest(found.records, folder / "again.csv")
    write_manifest(found.records[:3], folder / "again.csv")
    assert list_records(folder / "again.csv").records == found.records[:3]
    # What is good for validation may be trained on when asked; defects never.
    merged = list_records(folder / "again.jsonl", split="train", validation="train")
    assert [r.path.name for r in merged.records] == ["a.png", "b.png"]
    assert merged.problems == ()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (["m.png", ""], "mask: expected a file's name for every mask, found ['m.png', '']"),
        (["m.png", 3], "mask: expected a text, found 3"),
        (["m.png", "x.png"], "mask: expected an image file, found nothing of that name"),
        ({"a": 1}, "mask: expected a text, found {'a': 1}"),
    ],
)
def test_a_wrong_list_of_masks_is_named(folder: Path, mask: object, message: str) -> None:
    line = {"path": "a.png", "class": "nut", "split": "test", "label": "cut", "mask": mask}
    found = messages(listed(folder, json.dumps(line), ".jsonl"))
    assert found[1:] or message in found[0]
    assert any(message in text for text in found)


def test_a_mask_on_another_colour_cannot_be_written(folder: Path) -> None:
    record = Record(
        path=folder / "a.png",
        class_name="nut",
        split="test",
        defect=True,
        defect_type="cut",
        masks=(folder / "m.png",),
        mask_background="#ffffff",
    )
    with pytest.raises(DataError, match=r"a\.png: its mask has a background that is not black"):
        write_manifest([record], folder / "parts.csv")


def test_a_parquet_file_is_the_same_manifest(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra mambaadv2[parquet]")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = HEADER.strip().split(",")
    rows = [line.split(",") for line in GOOD_CSV.split()[1:]]
    table = {name: [row[i] for row in rows] for i, name in enumerate(columns)}
    path = folder / "parts.parquet"
    parquet.write_table(pyarrow.table(table), path)
    found = list_records(path)
    assert (found.layout, found.problems) == ("parquet", ())
    assert found.records == listed(folder, GOOD_CSV).records
    # A list of masks, a missing one, and what is wrong with its row.
    table = {name: [*values, value] for (name, values), value in zip(
        table.items(), ["d.png", "nut", "test", "cut", "x.png"], strict=True
    )}  # fmt: skip
    masks = [[mask] if mask else None for mask in table["mask"]]
    parquet.write_table(pyarrow.table(table | {"mask": masks}), path)
    (problem,) = list_records(path).problems
    assert problem.message.startswith(f"{path}:4: mask: expected an image file, found nothing of")
    parquet.write_table(pyarrow.table({"path": ["a.png"], "note": [1]}), path)
    assert any("found 'note'; remove that column" in p.message for p in list_records(path).problems)
    path.write_bytes(b"no Parquet")
    with pytest.raises(DataError, match=r"parts\.parquet: cannot be read as Parquet"):
        list_records(path)


def test_parquet_without_pyarrow_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (folder / "parts.parquet").touch()
    with pytest.raises(DataError, match=r"needs pyarrow.*pip install '\.\[parquet\]'"):
        list_records(folder / "parts.parquet")
