"""Training end to end on small drawn images: what is written, read and repeatable."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mambaadv2 import __version__, train
from mambaadv2.checkpoint import read_card
from mambaadv2.data.features import CacheMode, Source
from mambaadv2.errors import (
    BadFilesError,
    CheckpointError,
    ConfigError,
    DataError,
    TrainingError,
    WeightsError,
)
from mambaadv2.fit import TrainConfig
from mambaadv2.heldout import HeldOut, fit_on_heldout
from mambaadv2.image import write_png
from mambaadv2.model.config import ModelConfig
from mambaadv2.model.encoder import build_encoder
from mambaadv2.model.network import Features, Network, reconstruction_loss
from mambaadv2.model.scoring import Scorer
from mambaadv2.predict import load
from mambaadv2.scan import available_backends
from mambaadv2.train import train_model

CLASSES = ("disc", "stripes")
IMAGES = 6  # per class: 4 to learn from, 2 held out
MODEL = ModelConfig(
    encoder="tf_efficientnet_lite0",
    image_size=(64, 64),
    dims=(32, 16, 16),
    modules=((1,), (1,), (1,)),
    directions=(1, 1, 2),
    head_dim=16,
    state_dim=8,
    drop_path=0.1,
    score="whitened",
)
CONFIG = TrainConfig(epochs=2, batch_size=4, device="cpu")
LINE = {"epoch", "step", "loss", "loss_terms", "lr", "grad_norm", "images_per_second", "seconds"}


def write_class(root: Path, kind: str, count: int = IMAGES) -> None:
    good = root / kind / "train" / "good"
    good.mkdir(parents=True)
    for i in range(count):
        rng = np.random.default_rng((CLASSES.index(kind), i))
        y, x = np.mgrid[0:64, 0:64] / 64
        shape = np.hypot(x - 0.5, y - 0.5) < 0.3 if kind == "disc" else np.sin(20 * x) > 0
        pixels = 60 + 120 * shape[:, :, None] + rng.normal(0, 5, (64, 64, 3))
        write_png(good / f"{i:03d}.png", np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, train folders only."""
    root = tmp_path_factory.mktemp("data")
    for kind in CLASSES:
        write_class(root, kind)
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run that tests only read."""
    return quiet(data, tmp_path_factory.mktemp("run") / "deep" / "run")


def quiet(
    data: Path, out: Path, model: ModelConfig = MODEL, config: TrainConfig = CONFIG, **more: Any
) -> Path:
    return train_model(data, out, model, config, progress=False, **more)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in metrics(run)]


@pytest.mark.skipif("native" not in available_backends(), reason="no native scan here")
def test_the_scan_that_computes_changes_rounding_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole trainings with the compiled scan and with torch's: losses, thresholds and maps.

    Few steps: Adam divides by small numbers at first, so after a dozen steps any two forms, the
    float64 reference among them, are half a percent apart.
    """
    config = dataclasses.replace(CONFIG, epochs=3)
    found = {}
    for backend in ("native", "chunked"):
        monkeypatch.setenv("MAMBAADV2_SCAN_BACKEND", backend)
        run = train_model(data, tmp_path / backend, MODEL, config, progress=True)
        assert f"scan: {backend}" in capsys.readouterr().err
        image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        found[backend] = losses(run), load(run, device="cpu").predict([image])[0]
    (ours, mine), (theirs, other) = found["native"], found["chunked"]
    assert ours[-1] < ours[0]
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert mine.threshold == pytest.approx(other.threshold, rel=1e-2)
    assert np.abs(mine.map - other.map).max() < 1e-2 * np.abs(other.map).max()


def test_a_run_folder_holds_eight_files(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == {
        *["model.safetensors", "model.json", "MODEL_CARD.md", "metrics.jsonl", "loss.svg"],
        *["config.json", "data.json", "environment.json"],
    }
    ElementTree.fromstring((run / "loss.svg").read_text(encoding="utf-8"))


def test_metrics_have_a_line_per_epoch(run: Path) -> None:
    first, second = metrics(run)
    for line in (first, second):
        assert set(line) == LINE
        assert set(line["loss_terms"]) == {"mse_8x8", "mse_4x4"}
        assert line["loss"] == pytest.approx(sum(line["loss_terms"].values()))
        assert all(math.isfinite(line[name]) and line[name] > 0 for name in LINE - {"loss_terms"})
    assert [(line["epoch"], line["step"]) for line in (first, second)] == [(1, 2), (2, 4)]
    assert second["seconds"] > first["seconds"]
    assert second["lr"] < first["lr"] < CONFIG.learning_rate * 4 / 16


def test_settings_are_recorded_in_full(run: Path) -> None:
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert config["training"] == json.loads(json.dumps(dataclasses.asdict(CONFIG)))
    assert ModelConfig.from_dict(config["model"]) == MODEL
    assert config["encoder"]["source"] == "packaged"
    assert len(config["encoder"]["sha256"]) == 64
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    assert environment["torch"] == torch.__version__


def test_the_card_tells_what_was_learned(run: Path, data: Path) -> None:
    card, _ = read_card(run)
    assert card.model == MODEL
    assert card.classes == CLASSES
    assert card.calibration_images == dict.fromkeys(CLASSES, 2)
    assert all(value > 0 for value in card.thresholds.values())
    assert card.colour_scale[0] < 1 < card.colour_scale[1]
    assert card.training["images"] == dict.fromkeys(CLASSES, 4)
    assert (card.training["steps"], card.training["seed"]) == (4, 0)
    assert card.training["version"] == __version__
    assert len(card.training["data_sha256"]) == 64
    assert [len(card.calibration_scores[name]) for name in CLASSES] == [2, 2]
    for name in ("model.json", "config.json", "environment.json", "data.json", "MODEL_CARD.md"):
        assert str(data) not in (run / name).read_text(encoding="utf-8")


def test_a_run_can_be_loaded(run: Path) -> None:
    predictor = load(run, device="cpu")
    (found,) = predictor.predict([np.zeros((30, 40, 3), np.uint8)])
    assert found.map.shape == (30, 40)


def test_the_encoder_is_the_packaged_one_to_the_bit(run: Path) -> None:
    packaged = build_encoder("tf_efficientnet_lite0").state_dict()
    prefix = "network.encoder."
    saved = {
        name.removeprefix(prefix): value
        for name, value in load_file(run / "model.safetensors").items()
        if name.startswith(prefix)
    }
    assert saved.keys() == packaged.keys()
    assert all(torch.equal(saved[name], packaged[name]) for name in packaged)


def test_the_same_seed_gives_the_same_bits_and_leaves_the_callers_state(
    data: Path, run: Path, tmp_path: Path
) -> None:
    torch.manual_seed(12345)  # must not matter
    before = torch.random.get_rng_state()
    again = quiet(data, tmp_path / "again")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert weights(again) == weights(run)
    assert losses(again) == losses(run)
    first, second = read_card(run)[0], read_card(again)[0]
    assert first.thresholds == second.thresholds
    assert first.training["data_sha256"] == second.training["data_sha256"]


def test_another_seed_gives_another_model(data: Path, run: Path, tmp_path: Path) -> None:
    other = quiet(data, tmp_path, config=dataclasses.replace(CONFIG, seed=1))
    assert weights(other) != weights(run)
    assert losses(other) != losses(run)


def test_memory_and_disk_give_the_same_bits(data: Path, run: Path, tmp_path: Path) -> None:
    for mode in ("memory", "disk"):  # "auto" chose memory
        out = quiet(data, tmp_path / mode, config=dataclasses.replace(CONFIG, cache=mode))
        assert weights(out) == weights(run)
        assert losses(out) == losses(run)


def test_a_run_without_a_cache_learns_the_same(data: Path, tmp_path: Path) -> None:
    cached = quiet(data, tmp_path / "cached")
    direct = quiet(data, tmp_path / "direct", config=dataclasses.replace(CONFIG, cache="off"))
    # Both round features to float16; batches of another size may differ in an encoder's last bit.
    assert losses(direct) == pytest.approx(losses(cached), rel=1e-3)
    assert not (direct / "features").exists()


class Counter:
    """Counts the images that go through any network's encoder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images = 0
        original = Network.features

        def features(network: Network, images: Tensor) -> Features:
            self.images += len(images)
            return original(network, images)

        monkeypatch.setattr(Network, "features", features)

    def take(self) -> int:
        """Images since the last call, less the two that tell the shapes and the memory."""
        seen, self.images = self.images, 0
        return seen - 2


def test_features_on_disk_are_used_again_while_they_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in CLASSES:
        write_class(tmp_path / "data", kind)
    counter, out = Counter(monkeypatch), tmp_path / "run"
    config = dataclasses.replace(CONFIG, epochs=1, cache="disk")
    quiet(tmp_path / "data", out, config=config)
    assert counter.take() == 2 * IMAGES
    first = weights(out)
    quiet(tmp_path / "data", out, config=config)
    assert counter.take() == 0
    assert weights(out) == first
    quiet(tmp_path / "data", out, config=dataclasses.replace(config, holdout=0.5))
    assert counter.take() == 2 * IMAGES
    changed = tmp_path / "data" / "disc" / "train" / "good" / "003.png"
    write_png(changed, np.zeros((64, 64, 3), np.uint8))
    quiet(tmp_path / "data", out, config=config)
    assert counter.take() == 2 * IMAGES
    larger = dataclasses.replace(MODEL, image_size=(96, 64))
    quiet(tmp_path / "data", out, larger, config=config)
    assert counter.take() == 2 * IMAGES


def test_a_cache_that_does_not_fit_is_refused_before_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mambaadv2.data.features.free_memory", lambda: 1000.0)
    with pytest.raises(ConfigError, match=r"cache: .* 40 % of free memory"):
        quiet(data, tmp_path / "run", config=dataclasses.replace(CONFIG, cache="memory"))
    assert not (tmp_path / "run").exists()


def test_people_are_told_where_features_go_and_when_it_is_done(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_model(data, tmp_path, MODEL, dataclasses.replace(CONFIG, epochs=1))
    told = capsys.readouterr().err.splitlines()
    assert any(line.startswith("feature cache in memory: ") for line in told)
    assert told[-1].startswith("done in ")
    assert str(tmp_path) in told[-1]


WATCHED: list[str] = []
_watching = False


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and event in ("open", "os.listdir", "os.scandir") and arguments:
        WATCHED.append(str(arguments[0]))


def test_test_images_are_never_looked_at(tmp_path: Path) -> None:
    global _watching  # noqa: PLW0603  an audit hook cannot be removed, only told to rest
    root = tmp_path / "data"
    for kind in CLASSES:
        write_class(root, kind)
        for folder in ("test/good", "test/crack", "ground_truth/crack"):
            (root / kind / folder).mkdir(parents=True)
            (root / kind / folder / "000.png").write_bytes(b"not for training")
    sys.addaudithook(_audit)
    _watching = True
    try:
        quiet(root, tmp_path / "run", config=dataclasses.replace(CONFIG, epochs=1))
    finally:
        _watching = False
    opened = [path.removeprefix(str(root)) for path in WATCHED if path.startswith(str(root))]
    assert "/disc/train/good/000.png" in opened
    assert not [path for path in opened if "/test" in path or "/ground_truth" in path]


def test_only_the_named_classes_are_learned(data: Path, tmp_path: Path) -> None:
    out = quiet(data, tmp_path, config=dataclasses.replace(CONFIG, epochs=1), classes=["stripes"])
    assert load(out, device="cpu").classes == ("stripes",)
    with pytest.raises(DataError, match=r"no class 'stripe' \(did you mean 'stripes'\?\)"):
        quiet(data, tmp_path / "other", classes=["stripe"])


def test_a_root_may_be_one_class(data: Path, tmp_path: Path) -> None:
    out = quiet(data / "disc", tmp_path, config=dataclasses.replace(CONFIG, epochs=1))
    assert load(out, device="cpu").classes == ("disc",)


def test_a_class_of_one_image_is_learned_and_its_card_says_so(tmp_path: Path) -> None:
    write_class(tmp_path / "data", "disc", 1)
    write_class(tmp_path / "data", "stripes", 2)
    out = quiet(tmp_path / "data", tmp_path / "run", config=dataclasses.replace(CONFIG, epochs=1))
    card, _ = read_card(out)
    assert card.calibration_images == {"disc": 1, "stripes": 1}
    assert card.training["images"] == {"disc": 1, "stripes": 1}


@pytest.mark.parametrize(
    "count, share, held", [(40, 0.1, 4), (40, 0.5, 20), (12, 0.1, 4), (6, 0.1, 2), (3, 0.9, 2)]
)
def test_the_held_out_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, share: float, held: int
) -> None:
    write_class(tmp_path / "data", "disc", count)
    config = dataclasses.replace(CONFIG, epochs=1, batch_size=64, holdout=share)
    card, _ = read_card(quiet(tmp_path / "data", tmp_path / "run", config=config))
    assert card.calibration_images == {"disc": held}
    assert card.training["images"] == {"disc": count - held}


def slow_calibration(
    network: Network,
    scorer: Scorer,
    held: Mapping[str, Source],
    learn: Mapping[str, Source],
    **more: Any,
) -> HeldOut:
    """A calibration that takes a third of a second for each image."""
    time.sleep(sum(len(source) for source in held.values()) / 3)
    return fit_on_heldout(network, scorer, held, learn, **more)


@pytest.mark.parametrize("cache", ["memory", "off"])
def test_a_budget_of_minutes_is_held(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: CacheMode
) -> None:
    # Calibration is a fifth of the time: a budget that forgot it would be missed.
    # By its full name: `mambaadv2.train` is the function.
    monkeypatch.setattr(sys.modules["mambaadv2.train"], "fit_on_heldout", slow_calibration)
    monkeypatch.setattr("mambaadv2.prepare.fit_on_heldout", slow_calibration)
    minutes = 0.1
    config = TrainConfig(minutes=minutes, batch_size=4, device="cpu", cache=cache)
    start = time.monotonic()
    out = quiet(data, tmp_path, config=config)
    seconds = time.monotonic() - start
    # 10 %, and half a second for a machine that does other things at the same time.
    assert 0.9 * 60 * minutes - 0.5 < seconds < 1.1 * 60 * minutes + 0.5
    lines = metrics(out)
    assert lines[-1]["step"] == read_card(out)[0].training["steps"] > 10
    rates = [line["lr"] for line in lines]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.05 * rates[0]


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_records(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def poisoned(features: Features, rebuilt: Features) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        terms = reconstruction_loss(features, rebuilt)
        return {n: t * (math.inf if calls == 4 and "4x4" in n else 1) for n, t in terms.items()}

    monkeypatch.setattr("mambaadv2.fit.reconstruction_loss", poisoned)
    with pytest.raises(TrainingError, match=r"step 4: mse_4x4 is inf; .*precision float32"):
        quiet(data, tmp_path)
    assert [(line["epoch"], line["step"]) for line in metrics(tmp_path)] == [(1, 2), (2, 3)]
    assert all(math.isfinite(loss) for loss in losses(tmp_path))
    assert (tmp_path / "loss.svg").exists()
    assert not (tmp_path / "model.json").exists()
    assert not (tmp_path / "model.safetensors").exists()


def test_bfloat16_learns_nearly_the_same(data: Path, run: Path, tmp_path: Path) -> None:
    out = quiet(data, tmp_path, config=dataclasses.replace(CONFIG, precision="bfloat16"))
    assert losses(out) == pytest.approx(losses(run), rel=0.03)
    assert losses(out) != losses(run)
    tensors = load_file(out / "model.safetensors")
    assert all(t.dtype == torch.float32 for t in tensors.values() if t.is_floating_point())
    assert all(bool(torch.isfinite(t).all()) for t in tensors.values())


def test_the_cosine_score_trains_too(data: Path, tmp_path: Path) -> None:
    model = dataclasses.replace(MODEL, score="cosine")
    out = quiet(data, tmp_path, model, dataclasses.replace(CONFIG, epochs=1, pca_start=False))
    assert load(out, device="cpu").scorer.kind == "cosine"


def test_the_public_function_fills_in_a_preset(data: Path, tmp_path: Path) -> None:
    out = train(
        data, tmp_path / "run", epochs=1, batch_size=8, image_size=64, seed=5, device="cpu",
        limit_classes=["disc"], progress=False,
    )  # fmt: skip
    assert out == tmp_path / "run"
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["model"]["encoder"] == "tf_efficientnet_lite0"
    assert config["model"]["image_size"] == [64, 64]
    chosen = {
        name: config["training"][name] for name in ("epochs", "minutes", "batch_size", "seed")
    }
    assert chosen == {"epochs": 1, "minutes": None, "batch_size": 8, "seed": 5}
    assert load(out, device="cpu").classes == ("disc",)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"epochs": 1, "minutes": 1.0}, "epochs, minutes: expected at most one"),
        ({"epochs": 0}, "epochs: expected"),
        ({"minutes": 0.0}, "minutes: expected"),
        ({"batch_size": 0}, "batch_size: expected a whole number above 0, got 0"),
        ({"preset": "huge"}, "preset: expected one of lite, r34"),
        ({"image_size": 100}, "image_size: expected a multiple of 32"),
        ({"precision": "float16"}, "precision: expected one of"),
        ({"device": "tpu"}, "device: expected one of"),
        ({"encoder": "resnet999"}, "no model 'resnet999'"),
    ],
)
def test_bad_arguments_are_refused_by_name(
    data: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(data, tmp_path / "run", progress=False, **arguments)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_weights_that_do_not_exist_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nothing\.pth"):
        quiet(data, tmp_path / "run", weights=tmp_path / "nothing.pth")


def test_a_root_without_images_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected the folder of a data set"):
        quiet(tmp_path / "nothing", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def spoil(root: Path) -> None:
    """A class with two files that are no images, and one with nothing else."""
    for kind in CLASSES:
        write_class(root, kind)
    for name in ("disc/train/good/002.png", "disc/train/good/004.png"):
        (root / name).write_bytes(b"no image")
    for i in range(IMAGES):
        (root / f"stripes/train/good/{i:03d}.png").write_bytes(b"")


def test_every_file_that_cannot_be_used_is_named_before_any_work(tmp_path: Path) -> None:
    spoil(tmp_path / "data")
    with pytest.raises(BadFilesError) as caught:
        quiet(tmp_path / "data", tmp_path / "run")
    assert len(caught.value.problems) == 2 + IMAGES
    for name in (
        "disc/train/good/002.png",
        "disc/train/good/004.png",
        "stripes/train/good/005.png",
    ):
        assert name in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_files_that_cannot_be_used_are_skipped_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(tmp_path / "data")
    config = dataclasses.replace(CONFIG, epochs=1)
    train_model(tmp_path / "data", tmp_path / "run", MODEL, config, on_error="skip")
    card, _ = read_card(tmp_path / "run")
    assert card.classes == ("disc",)
    told = capsys.readouterr().err
    recorded = json.loads((tmp_path / "run" / "data.json").read_text())["skipped"]
    assert card.training["skipped"] == len(recorded) == 2 + IMAGES + 1
    assert f"{len(recorded)} files are left out" in told
    assert [r["path"] for r in recorded][:2] == [
        *["disc/train/good/002.png", "disc/train/good/004.png"]
    ]
    assert "expected a PNG" in recorded[0]["error"]
    assert str(tmp_path) not in (tmp_path / "run" / "data.json").read_text()


def test_a_diverged_run_leaves_nothing_to_resume(data: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=50, learning_rate=1e4, clip=1e30, save_seconds=1e-3)
    with pytest.raises(TrainingError):
        quiet(data, tmp_path, config=config)
    assert not (tmp_path / "resume").exists()


def test_minutes_that_are_too_few_are_said_and_training_goes_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig(minutes=1e-5, batch_size=4, device="cpu")
    train_model(data, tmp_path, MODEL, config)
    assert "minutes: 1e-05 is too short here: features took" in capsys.readouterr().err
    assert load(tmp_path, device="cpu").card.training["steps"] >= 1


def test_a_folder_that_cannot_be_written_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"^out: cannot write to .*file/run"):
        quiet(data, tmp_path / "file" / "run")


def test_a_failed_run_leaves_no_older_model_behind(data: Path, tmp_path: Path) -> None:
    quiet(data, tmp_path, config=dataclasses.replace(CONFIG, epochs=1))
    config = dataclasses.replace(CONFIG, epochs=1, learning_rate=1e30, clip=1e30)
    with pytest.raises(TrainingError):
        quiet(data, tmp_path, config=dataclasses.replace(config, epochs=20))
    with pytest.raises(CheckpointError, match=r"found no model\.json"):
        load(tmp_path, device="cpu")


def test_wrong_weights_leave_an_older_model_alone(data: Path, tmp_path: Path) -> None:
    quiet(data, tmp_path, config=dataclasses.replace(CONFIG, epochs=1))
    before = weights(tmp_path)
    with pytest.raises(WeightsError):
        quiet(data, tmp_path, weights=tmp_path / "absent.safetensors")
    assert weights(tmp_path) == before


def test_a_batch_of_one_position_is_refused(data: Path, tmp_path: Path) -> None:
    model = dataclasses.replace(MODEL, image_size=(32, 32))
    config = dataclasses.replace(CONFIG, batch_size=1)
    with pytest.raises(ConfigError, match=r"^batch_size, image_size: .*BatchNorm"):
        quiet(data, tmp_path, model, config)
