"""Images that look mislabelled are shown, with name, score and p-value, after training too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.tiny_model import TINY

from mambaadv2.calibrate import calibrate_classes
from mambaadv2.checkpoint import read_card
from mambaadv2.data.index import list_records
from mambaadv2.fit import TrainConfig
from mambaadv2.image import read_image, write_png
from mambaadv2.prepare import split_records
from mambaadv2.suspect_sheet import COLUMNS, GAP, MOST, TILE, Suspect, find_suspects, write_suspects
from mambaadv2.train import train_model


def suspect(path: Path, score: float = 3.0) -> Suspect:
    return Suspect(path=path, class_name="screw", score=score, p_value=1 / 31)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (40, 80)) -> NDArray[np.uint8]:
    return np.full((*size, 3), colour, np.uint8)


def test_what_a_calibration_left_out_is_found() -> None:
    scores = {"a": [1.0, 1.1, 0.9, 1.05] * 10 + [4.0, 5.0], "b": [1.0, 1.1]}
    files = {name: [Path(f"{name}{i}.png") for i in range(len(v))] for name, v in scores.items()}
    found = find_suspects(calibrate_classes(scores), scores, files)
    assert [(s.path.name, s.class_name, s.score, s.p_value) for s in found] == [
        ("a41.png", "a", 5.0, 1 / 41),
        ("a40.png", "a", 4.0, 1 / 41),
    ]
    assert find_suspects(calibrate_classes(scores, trim=False), scores, files) == []


def test_a_sheet_shows_every_image(tmp_path: Path) -> None:
    colours = [(250, 10 * i, 0) for i in range(COLUMNS + 2)]
    for i, colour in enumerate(colours):
        write_png(tmp_path / f"{i}.png", plain(colour))
    write_suspects(tmp_path, [suspect(tmp_path / f"{i}.png") for i in range(len(colours))])
    sheet = read_image(tmp_path / "suspects.png")
    assert sheet.shape[1] == COLUMNS * (TILE + GAP) + GAP
    for colour in colours:
        # Twice as wide as high, so half of a square.
        assert np.all(sheet == colour, axis=2).sum() == TILE * TILE // 2


def test_nothing_is_written_where_nothing_is_suspected(tmp_path: Path) -> None:
    write_suspects(tmp_path, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["gone.png", "é\n" * 90 + "\udcff.png"])
def test_an_image_that_is_gone_and_any_name_leave_a_square(tmp_path: Path, name: str) -> None:
    write_suspects(tmp_path, [suspect(tmp_path / name, score=1e-30)])
    assert np.all(read_image(tmp_path / "suspects.png") == 232, axis=2).sum() >= TILE * TILE


def test_a_sheet_has_an_end(tmp_path: Path) -> None:
    write_suspects(tmp_path, [suspect(tmp_path / "gone.png")] * (MOST + 1))
    grey = np.all(read_image(tmp_path / "suspects.png") == 232, axis=2).sum()
    assert grey // TILE**2 == MOST  # a few more are of letters


def test_training_shows_a_defect_among_its_held_out_images(tmp_path: Path) -> None:
    good, run = tmp_path / "data" / "disc" / "train" / "good", tmp_path / "run"
    good.mkdir(parents=True)
    y, x = np.mgrid[0:64, 0:64] / 64
    disc = 60 + 120.0 * (np.hypot(x - 0.5, y - 0.5) < 0.3)
    for i in range(48):
        noise = np.random.default_rng(i).normal(0, 5, (64, 64, 3))
        write_png(good / f"{i:02d}.png", np.clip(disc[:, :, None] + noise, 0, 255).astype(np.uint8))
    config = TrainConfig(epochs=2, batch_size=8, device="cpu", holdout=0.5)
    records = list_records(tmp_path / "data", split="train").records
    odd = split_records(records, config)["disc"].held[5]
    spoilt = read_image(odd)
    spoilt[16:40, 20:44] = (255, 0, 0)
    write_png(odd, spoilt)
    train_model(tmp_path / "data", run, TINY, config, progress=False)
    card, _ = read_card(run)
    assert card.calibration_trimmed["disc"] == (5,)
    sheet = read_image(run / "suspects.png").astype(int)
    red = (sheet[:, :, 0] > 200) & (sheet[:, :, 1:].max(axis=2) < 90)
    assert red.sum() > 0.1 * TILE * TILE
    assert "in suspects.png" in (run / "MODEL_CARD.md").read_text(encoding="utf-8")
    # A run without such images does not keep the picture of an earlier one.
    write_png(odd, read_image(good / "00.png"))
    train_model(tmp_path / "data", run, TINY, config, progress=False)
    assert not (run / "suspects.png").exists()
    assert "suspects" not in (run / "MODEL_CARD.md").read_text(encoding="utf-8")
