"""Whatever JSON a list holds, the answer is records, problems or one `DataError`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data_layouts.trees import ader, datumaro, lookout_line, real_iad

from mambaadv2.data.index import list_records
from mambaadv2.data.record import Listing
from mambaadv2.errors import DataError

FILES = {
    "ader": "meta.json",
    "datumaro": "annotations/default.json",
    "real-iad": "realiad_jsons/usb.json",
}

names = st.sampled_from(
    ["", "a\0", "\ud800", ".", "x.png", "../x.png", "/", "good", "Normal", "s3://"]
)
leaves = st.one_of(st.none(), st.booleans(), st.integers(-1, 3), st.floats(), names)
values: st.SearchStrategy[Any] = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(["path", "name"]), inner)
    ),
    max_leaves=4,
)


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to everything inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, each in inside:
        found.append((*here, key))
        if isinstance(each, dict | list):
            found += places(each, (*here, key))
    return found


def changed(content: Any, way: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(content))
    at = copy
    for key in way[:-1]:
        at = at[key]
    at[way[-1]] = value
    return copy


def listed(root: Path, layout: str) -> None:
    try:
        found = list_records(root, layout=layout)
    except DataError as error:
        message = str(error)
    else:
        assert_sound(found, root)
        return
    assert str(root) in message


def assert_sound(found: Listing, root: Path) -> None:
    assert found.records or found.problems
    assert all(str(root) in problem.message for problem in found.problems)
    for record in found.records:
        assert record.path.is_file()
        assert not (record.defect and record.split == "train")
        assert record.class_name.isprintable()
        assert record.defect_type.isprintable()


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trees")
    for name, build in (("ader", ader), ("datumaro", datumaro), ("real-iad", real_iad)):
        build(root / name)
    return root


@pytest.mark.parametrize("layout", sorted(FILES))
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_one_value_of_a_list_changed(trees: Path, layout: str, data: st.DataObject) -> None:
    path = trees / layout / FILES[layout]
    before = path.read_text(encoding="utf-8")
    content = json.loads(before)
    try:
        for _ in range(data.draw(st.integers(1, 3))):
            way = data.draw(st.sampled_from(places(content)))
            content = changed(content, way, data.draw(values))
            if not content:
                break
        path.write_text(json.dumps(content), encoding="utf-8")
        listed(trees / layout, layout)
    finally:
        path.write_text(before, encoding="utf-8")


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_one_value_of_a_lookout_line_changed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("lookout")
    (root / "a.png").touch()
    (root / "m.png").touch()
    content = json.loads(lookout_line("a.png", "anomaly", "m.png"))
    way = data.draw(st.sampled_from(places(content)))
    line = json.dumps(changed(content, way, data.draw(values)))
    (root / "test.manifest").write_text(line, encoding="utf-8")
    listed(root, "lookout")
