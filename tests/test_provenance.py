"""What the report is told beside the numbers: names of images left out, and the other run."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mambaadv2.evaluation_file import Filed
from mambaadv2.provenance import Call, _called, _left_out
from mambaadv2.results import Evaluation

CARD: Any = SimpleNamespace(calibration_trimmed={"nut": (2, 0), "bolt": ()})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    held = {"nut": {f"nut/train/good/{n}.png": "hash" for n in range(3)}, "bolt": {}}
    (tmp_path / "data.json").write_text(json.dumps({"held": held}), encoding="utf-8")
    return tmp_path


def test_images_left_out_are_named_as_the_run_names_them(run: Path) -> None:
    assert _left_out(CARD, "nut", run) == ["nut/train/good/2.png", "nut/train/good/0.png"]
    assert _left_out(CARD, "bolt", run) == []
    assert _left_out(CARD, "nut", None) == []


def test_after_calibrating_again_its_file_counts(run: Path) -> None:
    files = {"nut": [["a.png", "hash"], ["b.png", "hash"], ["c.png", "hash"]]}
    (run / "calibration.json").write_text(json.dumps(files), encoding="utf-8")
    assert _left_out(CARD, "nut", run) == ["c.png", "a.png"]


def test_a_run_that_does_not_say_names_none(run: Path) -> None:
    (run / "data.json").write_text(json.dumps({"held": {"nut": {}}}), encoding="utf-8")
    assert _left_out(CARD, "nut", run) == []


def test_the_other_run_is_in_the_command_and_has_a_name(tmp_path: Path) -> None:
    other = Filed(Path("old.json"), Evaluation(classes={}, seconds=1), "ab")
    call = Call(
        folder=Path("run"),
        data=Path("data"),
        classes=None,
        json_path=None,
        report=Path("new.html"),
        on_error="stop",
        device="auto",
        title=None,
        command=None,
        time=datetime(2026, 1, 2, tzinfo=UTC),
        against=other,
    )
    assert call.typed() == "mambaadv2 evaluate run data --report new.html --against old.json"
    assert _called(other.path) == "old.json"
    assert _called(tmp_path / "before" / "evaluation.json") == "before"
