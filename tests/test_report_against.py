"""Two runs in one page: the numbers of `compare`, the images judged otherwise, what is refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.report_parts import FACTS, measured, page

from mambaadv2 import evaluate
from mambaadv2.compare import differences
from mambaadv2.errors import ConfigError, DataError
from mambaadv2.image import write_png
from mambaadv2.metrics import Resampling
from mambaadv2.predict import Prediction
from mambaadv2.protocols import ADER
from mambaadv2.report.table import ORDER
from mambaadv2.results import ClassResult, Evaluation

RESAMPLING = Resampling(replicates=200)


def evaluation(shift: float = 0.0, **changed: ClassResult) -> Evaluation:
    classes = {"nut": measured("nut", 1, shift=shift), "bolt": measured("bolt", 2, shift=shift)}
    return Evaluation(classes={**classes, **changed}, seconds=1, resampling=RESAMPLING)


def signed(value: float) -> str:
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def test_the_table_says_what_compare_says() -> None:
    ours, theirs = evaluation(0.006), evaluation()
    found = page(ours, replace(FACTS, against="old.json"), theirs)
    start = found.html.index('id="against"')
    section = found.html[start : found.html.index("Changed verdicts", start)]
    rows = section.split("<tr")[3:]
    assert len(rows) == 3 + 2
    assert ">old.json</th>" in rows[1]
    expected = {(item.class_name, item.metric): item for item in differences(theirs, ours)}
    marked = 0
    for row, name in zip(rows[2:], (None, "nut", "bolt"), strict=True):
        cells = re.findall(r"<td>(?:<b class=(\w+)>([▲▼]) )?([^<]*)(?:</b>)?<small>([^<]*)<", row)
        assert len(cells) == len(ORDER)
        for metric, (kind, arrow, text, ends) in zip(ORDER, cells, strict=True):
            item = expected[name, metric]
            assert item.interval is not None
            assert text == signed(item.second - item.first)
            assert ends == f"{signed(item.interval.low)} to {signed(item.interval.high)}"
            assert bool(arrow) == item.clear
            assert not arrow or (arrow == "▲") == (kind == "right") == (item.interval.low > 0)
            marked += item.clear
    assert marked > 0, "a shift of all defects is seen"
    assert found.text.count("image, old.json") == 2 * 2, "curves of both, in every class"


def test_images_that_changed_their_verdict_are_shown() -> None:
    ours, theirs = evaluation(0.006), evaluation()
    html = page(ours, FACTS, theirs).html
    part = html[html.index("Changed verdicts") : html.index("How to read what follows")]
    shown = set(re.findall(r'title="([^"]+)"', part))
    changed = {
        one.name
        for name, result in ours.classes.items()
        for one, other in zip(result.images, theirs.classes[name].images, strict=True)
        if one.right != other.right
    }
    assert shown == changed
    assert changed
    assert part.count("<img") == len(changed)
    assert re.search(r"right now, wrong there:</strong> \d+ images? \(\d+ found\)", part)
    same = page(theirs, FACTS, theirs)
    assert "Both runs judge every image alike" in same.text


def test_without_paired_replicates_there_is_no_interval() -> None:
    ours = evaluation(0.006)
    theirs = replace(evaluation(), resampling=Resampling(seed=1, replicates=200))
    found = page(ours, FACTS, theirs)
    assert "They have no intervals" in found.text
    assert "▲" not in found.text


def test_other_images_or_rules_are_refused() -> None:
    ours = evaluation()
    with pytest.raises(ValueError, match="expected protocol exact, got ader"):
        page(ours, FACTS, replace(ours, protocol=ADER))
    with pytest.raises(ValueError, match="expected the same images of class 'nut'"):
        page(ours, FACTS, evaluation(nut=measured("other", 1)))


class Painted:
    """Takes a channel for the anomaly map."""

    classes = ("nut",)

    def __init__(self, channel: int) -> None:
        self.channel = channel

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        maps = [image[:, :, self.channel].astype(np.float32) / np.float32(200) for image in images]
        return [
            Prediction(
                map=values,
                score=float(values.max()),
                threshold=1.0,
                defect=bool(values.max() > 1),
                class_name="nut",
            )
            for values in maps
        ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for kind in ("good", "cut"):
        for number in range(4):
            rgb = rng.integers(0, 190, (12, 10, 3)).astype(np.uint8)
            mask = np.zeros((12, 10), np.uint8)
            if kind == "cut":
                rgb[2:6, 3:7, 0], mask[2:6, 3:7] = 250, 255
                path = tmp_path / "data" / "nut" / "ground_truth" / kind / f"{number}_mask.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_png(path, mask)
            path = tmp_path / "data" / "nut" / "test" / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(path, rgb)
    return tmp_path / "data"


def test_evaluate_compares_with_a_file(data: Path, tmp_path: Path) -> None:
    other, report = tmp_path / "old.json", tmp_path / "page.html"
    evaluate(Painted(1), data, json_path=other, resampling=RESAMPLING, progress=False)
    found = evaluate(
        Painted(0), data, report=report, against=other, resampling=RESAMPLING, progress=False
    )
    html = report.read_text(encoding="utf-8")
    assert "Compared with old.json" in html
    assert "right now, wrong there:</strong> 4 images (4 found)" in html
    assert html.count("loading=lazy") == found.images == 8


class Untouched(Painted):
    """A model that must not be asked."""

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        raise AssertionError("refused only after predictions")


def test_what_cannot_be_compared_is_refused_before_any_prediction(
    data: Path, tmp_path: Path
) -> None:
    other, report, model = tmp_path / "old.json", tmp_path / "page.html", Untouched(0)
    evaluate(Painted(1), data, json_path=other, progress=False)
    with pytest.raises(ConfigError, match="against: expected a report"):
        evaluate(model, data, against=other, progress=False)
    with pytest.raises(DataError, match=r"missing\.json"):
        evaluate(model, data, report=report, against=tmp_path / "missing.json", progress=False)
    with pytest.raises(ConfigError, match=r"expected an evaluation by protocol ader, .* by exact"):
        evaluate(model, data, report=report, against=other, protocol="ader", progress=False)
    with pytest.raises(
        ConfigError, match=r"expected the same file names, .*same data set and folder"
    ):
        evaluate(model, data / "nut", report=report, against=other, progress=False)
    write_png(data / "nut" / "test" / "good" / "9.png", np.zeros((12, 10, 3), np.uint8))
    with pytest.raises(ConfigError, match="expected an evaluation of the same test files"):
        evaluate(model, data, report=report, against=other, progress=False)
    assert not report.exists()
