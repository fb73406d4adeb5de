"""The model card: says what the run's files say, whatever they hold, in Markdown that holds."""

from __future__ import annotations

import ast
import getpass
import hashlib
import json
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambaadv2.errors import CheckpointError
from mambaadv2.markdown import escape
from mambaadv2.modelcard import UNKNOWN, write_model_card

WEIGHTS = "f" * 64
ODD = 'a|b`c<script>*d*\n# e & [f](g) "h"'


def model(*names: str) -> dict[str, Any]:
    return {
        "schema_version": 3,
        "weights_sha256": WEIGHTS,
        "model": {
            "encoder": "tf_efficientnet_lite0",
            "image_size": [256, 320],
            "dims": [384, 192, 96],
            "directions": [1, 1, 2],
            "score": "whitened",
        },
        "encoder": {
            "name": "tf_efficientnet_lite0",
            "source": "packaged",
            "file": "efficientnet-lite0-0aa007d2.pth",
            "sha256": "0aa007d2" * 8,
            "licence": "Apache-2.0",
        },
        "classes": list(names),
        "thresholds": dict.fromkeys(names, 2.5),
        "calibration_images": dict.fromkeys(names, 4),
        "calibration_scores": {name: [1.0, 2.0, 2.4, 2.6] for name in names},
        "calibration_kinds": dict.fromkeys(names, "assumed"),
        "calibration_trimmed": {name: [] for name in names},
        "false_alarm_rate": 0.01,
        "false_alarm_confidence": None,
        "leave_one_out": True,
        "colour_scale": [0.8, 2.0],
        "training": {
            "version": "0.1.0",
            "steps": 1458,
            "seconds": 577.2,
            "seed": 7,
            "images": dict.fromkeys(names, 36),
            "data_sha256": "d" * 64,
            "skipped": 0,
        },
    }


def evaluation(*names: str) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "image_auroc": 0.9631,
        "pixel_auroc": None,
        "n_good": 12,
        "n_defect": 6,
    }
    numbers["intervals"] = {"image_auroc": [0.91, 0.99]}
    return {
        "protocol": "exact",
        "rules": {"image": "as it is", "mask": "as | drawn"},
        "classes": dict.fromkeys(names, numbers),
        "mean": {"image_auroc": 0.9631},
        "notes": {names[0]: ["no masks | none"]},
        "time_utc": "2026-11-24T10:00:00Z",
        "data_sha256": "e" * 64,
        "weights_sha256": WEIGHTS,
    }


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def card(folder: Path) -> str:
    write_model_card(folder)
    return (folder / "MODEL_CARD.md").read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    """The cells of all tables, as Markdown splits them, without the escapes."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1] for line in lines]
    return [[re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", cell.strip()) for cell in row] for row in cells]


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n")[1].split("\n## ", maxsplit=1)[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "model.json", model("screw", "nut"))
    return tmp_path


def test_a_card_says_what_the_run_is(folder: Path) -> None:
    environment = {"torch": "2.14.1", "processor": "EPYC", "threads": 2, "gpu": None}
    write(folder, "environment.json", environment)
    write(folder, "data.json", {"learn": {}, "held": {}, "skipped": [{"path": "a", "error": "b"}]})
    text = card(folder)
    table = rows(text)
    assert ["screw", "36", "4", "2.5", "1", "assumed", "20 %"] in table
    assert ["its licence, as its publisher states it", "Apache-2.0"] in table
    assert ["SHA-256 of that file", "0aa007d2" * 8] in table
    assert ["images learned from", "72"] in table
    assert ["fingerprint of all training and held-out images", "d" * 64] in table
    assert [row for row in table if row[0] in ("steps", "seed")] == [
        ["steps", "1458"],
        ["seed", "7"],
    ]
    assert ["torch", "2.14.1"] in table
    assert ["GPU", "none"] in table
    assert "aims at flagging 1 % of good images" in text
    assert "- screw: 1 % is assumed, not guaranteed: 1 % needs at least 99 held-out good" in text
    assert "8 x 8 of those, 1/32 of the height by 1/40 of the width" in text
    assert "fewer than ten held-out images, to be checked" in text
    assert "could not be used: 1, see data.json" in text
    assert "mambaadv2 predict RUN" in text


def test_a_guarantee_is_told_from_an_assumption(folder: Path) -> None:
    content = model("screw", "nut")
    content["calibration_kinds"]["screw"] = "conformal"
    content["calibration_kinds"]["nut"] = "earlier"
    content["calibration_images"]["screw"] = 199
    content["leave_one_out"] = False
    write(folder, "model.json", content)
    text = card(folder)
    assert next(row[-2:] for row in rows(text) if row[0] == "screw") == ["conformal", "1 %"]
    assert next(row[-2:] for row in rows(text) if row[0] == "nut") == ["earlier", "no promise"]
    assert "- screw: Guaranteed from 199 held-out good images: on average at most 1 % of" in text
    assert "- nut: By the rule of an older version, a wish of 1" in text


def test_a_threshold_chosen_with_defects_is_told(folder: Path) -> None:
    content = model("screw", "nut")
    content["calibration_kinds"]["nut"] = "labelled"
    content["calibration_labelled"] = {
        "nut": {
            **{"aim": "best F1", "split": ODD, "defects": 5, "good": 9},
            **{"recall": 0.8, "false_alarms": 0.0, "guarantee": ""},
        }
    }
    write(folder, "model.json", content)
    text = card(folder)
    assert next(row[-2:] for row in rows(text) if row[0] == "nut") == ["labelled", "no promise"]
    sentence = next(line for line in text.splitlines() if line.startswith("- nut: "))
    assert sentence.startswith("- nut: Chosen for best F1 on the split a\\|b\\`c\\<script\\>")
    assert "there it finds 4 of 5 defects and flags 0 of 9 good images" in sentence
    assert '"labelled" is one chosen with known defects' in text


def test_suspects_are_pointed_to_where_there_is_a_picture(folder: Path) -> None:
    assert "suspects.png" not in card(folder)
    (folder / "suspects.png").touch()
    shown = section(card(folder), "Classes and thresholds")
    assert (
        "Good images that look mislabelled are shown, with score and p-value, in suspects.png"
        in (shown)
    )


def test_a_measurement_at_earlier_thresholds_is_called_that(folder: Path) -> None:
    write(folder, "evaluation.json", {**evaluation("screw"), "thresholds_replaced": True})
    measured = section(card(folder), "Measured")
    assert "96.3" in measured
    assert "Evaluated at earlier thresholds: they were replaced since." in measured


def test_without_a_measurement_the_card_says_how_to_make_one(folder: Path) -> None:
    measured = section(card(folder), "Measured")
    assert "Not measured yet" in measured
    assert "`mambaadv2 evaluate RUN DATA`" in measured


def test_a_measurement_comes_with_its_protocol(folder: Path) -> None:
    write(folder, "evaluation.json", evaluation("screw", "nut"))
    measured = section(card(folder), "Measured")
    table = rows(measured)
    assert table[0][:2] == ["class", "I-AUROC"]
    assert ["screw", "96.3 (91.0–99.0)", *["–"] * 8, "12", "6"] in table
    assert ["**mean**", "96.3", *["–"] * 8, "24", "12"] in table
    assert "protocol exact of mambaadv2 (image as it is; mask as \\| drawn)" in measured
    assert "e" * 64 in measured
    assert "Measured: 2026-11-24 10:00 UTC" in measured
    assert "- screw: no masks \\| none" in measured
    assert "Not measured" not in measured


def test_the_measurement_of_another_model_is_not_shown(folder: Path) -> None:
    write(folder, "evaluation.json", {**evaluation("screw"), "weights_sha256": "0" * 64})
    measured = section(card(folder), "Measured")
    assert "Not measured yet" in measured
    assert "another model's" in measured
    assert "96.3" not in measured


def test_the_hashes_can_be_checked_as_they_stand(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weights")
    content = model("screw")
    content["weights_sha256"] = "9f0ea5e2dd2f0a0d8ab2a83c2bd4ab2f"  # not a SHA-256
    write(folder, "model.json", content)
    assert "model.safetensors\n" not in section(card(folder), "Is this the model?").split("```")[1]
    content["weights_sha256"] = hashlib.sha256(b"weights").hexdigest()
    write(folder, "model.json", content)
    write(folder, "data.json", {})
    script = section(card(folder), "Is this the model?").split("```")[1]
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        f"{name}: OK" for name in ("model.safetensors", "model.json", "data.json")
    ]


def test_an_old_run_has_a_card_with_gaps(folder: Path) -> None:
    content = model("screw")
    del content["calibration_scores"], content["training"]["skipped"]
    del content["calibration_kinds"], content["calibration_trimmed"], content["leave_one_out"]
    content["schema_version"] = 1
    write(folder, "model.json", content)
    assert ["screw", "36", "4", "2.5", UNKNOWN, UNKNOWN, UNKNOWN] in rows(card(folder))
    for name in ("training", "encoder", "model", "thresholds"):
        del content[name]
        write(folder, "model.json", content)
        assert UNKNOWN in card(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 5000])
def test_without_a_model_there_is_no_card(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"model\.json"):
        write_model_card(tmp_path)
    assert not (tmp_path / "MODEL_CARD.md").exists()


def test_a_card_names_no_place_and_no_person(folder: Path) -> None:
    write(folder, "data.json", {"skipped": [{"path": str(folder / "x.png"), "error": str(folder)}]})
    text = card(folder)
    assert str(folder) not in text
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|usr)\b", text)
    assert socket.gethostname() not in re.findall(r"[\w.-]+", text)
    assert getpass.getuser() not in re.findall(r"[\w.-]+", text)


def test_odd_names_break_nothing(folder: Path) -> None:
    write(folder, "model.json", model(ODD, "nut"))
    write(folder, "evaluation.json", evaluation(ODD, "nut"))
    odd = card(folder)
    assert "<script>" not in odd
    write(folder, "model.json", model("screw", "nut"))
    write(folder, "evaluation.json", evaluation("screw", "nut"))
    plain = card(folder)
    assert [len(row) for row in rows(odd)] == [len(row) for row in rows(plain)]
    assert len(odd.splitlines()) == len(plain.splitlines())


@given(name=st.text() | st.text(alphabet="\\`*_|<>#&; \n\tw.a1-~"))
def test_every_name_is_one_inert_cell(name: str) -> None:
    text = escape(name)
    assert text.isprintable()
    text.encode()
    # Nothing that Markdown or HTML would act on stands without a backslash before it.
    bare = re.sub(r"\\[!-/:-@\[-`{-~]", "", text)
    assert not re.search(r"[!-*,/:-@\[-^`{-~]", bare)
    assert not re.search(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", bare)
    # And the name can be told from what is shown.
    shown = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)
    quoted = shown.replace('"', '\\"')
    assert ast.literal_eval(f'"{quoted}"') == name


@given(
    content=st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=8,
    ),
    field=st.sampled_from(
        [
            "model",
            "encoder",
            "training",
            "thresholds",
            "calibration_scores",
            "calibration_images",
            "calibration_kinds",
            "calibration_trimmed",
            "false_alarm_rate",
            "classes",
            "weights_sha256",
        ]
    ),
    file=st.sampled_from(["data.json", "environment.json", "evaluation.json"]),
    deep=st.booleans(),
    key=st.sampled_from(["classes", "mean", "notes", "skipped", "gpu"]),
)
def test_no_content_of_the_files_raises(
    tmp_path_factory: pytest.TempPathFactory,
    content: object,
    field: str,
    deep: bool,
    file: str,
    key: str,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "drawn_cards"
    folder.mkdir(exist_ok=True)
    for name in ("data.json", "environment.json", "evaluation.json"):
        (folder / name).unlink(missing_ok=True)
    write(folder, "model.json", {**model("screw"), field: {"screw": content} if deep else content})
    write(folder, file, {**evaluation("screw"), key: content})
    text = card(folder)
    assert text.count("## ") >= 6
