"""The demo, run once on a small data set: what it writes, and what it leaves alone."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mambaadv2 import recipes
from mambaadv2.data.synthetic import CLASSES
from mambaadv2.errors import DataError
from mambaadv2.train import train

SMALL = {"seed": 3, "size": 64, "train": 4, "good": 1, "defect": 1}
TESTS = sum(1 + len(defects) for _, defects in CLASSES.values())
MINUTES = 0.05


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a demo with few, small images."""
    folder = tmp_path_factory.mktemp("recipes") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "DEMO_DATA", SMALL)
        patch.setattr(recipes, "train", functools.partial(train, image_size=64))
        assert recipes.demo(folder, minutes=MINUTES) == folder / "index.html"
        yield folder


def test_everything_is_where_it_is_said_to_be(out: Path) -> None:
    assert {path.name for path in out.iterdir()} == {
        *["data", "run", "results.json", "predictions", "index.html"]
    }
    assert set(json.loads((out / "results.json").read_text())["classes"]) == set(CLASSES)
    assert len((out / "predictions" / "predictions.jsonl").read_text().splitlines()) == TESTS


def test_the_page_shows_every_class_and_repeats_its_command(out: Path) -> None:
    page = (out / "index.html").read_text(encoding="utf-8")
    # Few images of each kind: all are among the worst or the examples, and have a thumbnail too.
    assert page.count("<figcaption>") == 2 * TESTS
    for name, (_, defects) in CLASSES.items():
        assert f">{name}</h2>" in page
        assert all(f"<br>{defect}<br>" in page for defect in defects)
    assert f"<code>mambaadv2 demo --out {out}</code>" in page
    assert "Training loss" in page


def test_the_run_keeps_what_was_measured(out: Path) -> None:
    kept = json.loads((out / "run" / "evaluation.json").read_text(encoding="utf-8"))
    numbers = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert {name: kept[name] for name in numbers} == numbers
    assert (out / "run" / "MODEL_CARD.md").is_file()


def test_the_marker_says_how_the_data_were_drawn(out: Path) -> None:
    marker = json.loads((out / "data" / recipes.MARKER).read_text(encoding="utf-8"))
    assert marker == {"generator": "mambaadv2.data.synthetic.generate", **SMALL}


def test_its_own_data_are_used_again(out: Path) -> None:
    image = out / "data" / "gear" / "train" / "good" / "000.png"
    before = image.stat().st_mtime_ns
    recipes._draw(out / "data")
    assert image.stat().st_mtime_ns == before


def other_parameters(data: Path) -> None:
    (data / recipes.MARKER).write_text(json.dumps({**SMALL, "seed": 4}), encoding="utf-8")


def no_marker(data: Path) -> None:
    (data / "screw" / "train" / "good").mkdir(parents=True)


def broken_marker(data: Path) -> None:
    (data / recipes.MARKER).write_bytes(b"\xff{")


@pytest.mark.parametrize("fill", [other_parameters, no_marker, broken_marker])
def test_a_data_set_of_others_is_left_alone(tmp_path: Path, fill: Callable[[Path], None]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    fill(data)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"data: expected the demo's own data set, .* --out"):
        recipes.demo(tmp_path, minutes=MINUTES)
    assert sorted(tmp_path.rglob("*")) == before
