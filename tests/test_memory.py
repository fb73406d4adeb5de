"""What is stated about memory, and that it holds."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mambaadv2 import memory, rehearsal
from mambaadv2.data.features import CachePlan
from mambaadv2.errors import ConfigError
from mambaadv2.fit import TrainConfig
from mambaadv2.image import write_png
from mambaadv2.memory import free_memory, give_back, peak, peak_of, resident
from mambaadv2.model.config import ModelConfig
from mambaadv2.model.encoder import build_encoder
from mambaadv2.model.network import Network
from mambaadv2.rehearsal import prediction_plan, training_need
from mambaadv2.train import train_model

MB = 1_000_000
CONFIG = ModelConfig(
    encoder="tf_efficientnet_lite0",
    image_size=(32, 32),
    dims=(32, 16, 16),
    modules=((1,), (1,), (1,)),
    directions=(1, 1, 2),
    head_dim=16,
    state_dim=8,
    drop_path=0.1,
    score="whitened",
)


def group(folder: Path, limit: str, used: int, spare: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {spare}\nactive_file 7\n")
    return folder


def test_a_container_leaves_what_its_limit_says(tmp_path: Path) -> None:
    assert memory._left_in(group(tmp_path, "1000", 300, 100)) == 800
    assert memory._left_in(group(tmp_path, "1000", 2000, 0)) == 0
    assert memory._left_in(group(tmp_path, "max", 300, 100)) == float("inf")
    (tmp_path / "memory.max").unlink()
    assert memory._left_in(tmp_path) == float("inf")
    assert 0 < free_memory() < 1e15


def test_a_peak_is_seen_and_memory_is_given_back() -> None:
    give_back()
    before = resident()
    held = peak_of(lambda: np.ones(100 * MB, np.uint8).sum())
    assert held >= before + 95 * MB
    gc.collect()
    assert resident() < before + 50 * MB
    assert peak() >= held


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    for name, (height, width) in {"a": (10, 20), "b": (1000, 2000), "c": (100, 100)}.items():
        write_png(tmp_path / f"{name}.png", np.zeros((height, width, 3), np.uint8))
    (tmp_path / "d.png").write_bytes(b"no image")
    return [str(path) for path in sorted(tmp_path.iterdir())] * 5


def plan(
    pictures: list[str], monkeypatch: pytest.MonkeyPatch, free: float, batch_size: int = 100
) -> tuple[rehearsal.PredictionPlan, list[int]]:
    """The plan with a network that takes 10 MB for each image, and the batches that were tried."""
    tried: list[int] = []

    def network(_: object, batch: int, __: int) -> float:
        tried.append(batch)
        return batch * 10.0 * MB

    monkeypatch.setattr(rehearsal, "_network", network)
    monkeypatch.setattr(rehearsal, "free_memory", lambda: free)
    predictor: Any = SimpleNamespace(image_size=(32, 32))
    return prediction_plan(predictor, pictures, batch_size), tried


def test_the_plan_follows_the_largest_image_and_the_batch(
    pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, tried = plan(pictures, monkeypatch, 64e9)
    assert found.batch_size == 100  # as asked for; there are only 20 images
    assert tried == [1, 8, 20]
    assert "the model, batches of 20 images of up to 2000 x 1000 pixels; free: 64.0 GB" in (
        found.sentence
    )
    small, _ = plan(pictures, monkeypatch, 64e9, batch_size=4)
    # 16 images less: two of them in memory with their map, and the network's part of each.
    assert found.bytes - small.bytes == pytest.approx(16 * (20 * MB + 15 * MB), rel=0.01)
    assert found.readers == 0


def test_a_batch_that_does_not_fit_is_made_smaller_and_never_tried(
    pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, tried = plan(pictures, monkeypatch, 600e6)
    assert 8 <= found.batch_size < 20
    assert tried == [1, 8]
    assert f"batches of {found.batch_size} (not 100: memory is short) images" in found.sentence
    found, tried = plan(pictures, monkeypatch, 300e6)
    assert 1 <= found.batch_size < 8
    assert tried == [1]


def test_an_image_that_does_not_fit_is_refused_by_name(
    pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"even one .* 2000 x 1000 pixels \(.*b\.png\) needs abo"):
        plan(pictures, monkeypatch, 100e6)


def test_a_gpu_that_is_too_small_gets_a_smaller_batch(
    pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def network(_: object, batch: int, __: int) -> float:
        if batch > 8:
            raise torch.OutOfMemoryError
        return 1e6

    predictor: Any = SimpleNamespace(image_size=(32, 32))
    monkeypatch.setattr(rehearsal, "free_memory", lambda: 64e9)
    monkeypatch.setattr(rehearsal, "_network", network)
    assert prediction_plan(predictor, pictures, 100).batch_size == 8


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    encoder = build_encoder(CONFIG.encoder, pretrained=False, image_size=CONFIG.image_size)
    return Network(CONFIG, encoder)


def test_asking_for_a_training_s_need_changes_nothing(network: Network) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    random = torch.get_rng_state()
    rehearsal._kept_for_backward(network)  # what the first time leaves behind
    start = resident()
    for _ in range(20):
        kept, values = rehearsal._kept_for_backward(network)
    assert resident() < start + max(8 * MB, 5 * kept)
    assert values == sum(f[0].numel() for f in network.features(torch.zeros(2, 3, 32, 32)))
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in network.modules()] == modes
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in network.parameters())


def test_what_a_step_keeps_grows_with_the_pixels(network: Network) -> None:
    small, _ = rehearsal._kept_for_backward(network)
    larger = dataclasses.replace(CONFIG, image_size=(128, 128))
    large, _ = rehearsal._kept_for_backward(Network(larger, network.encoder))
    # Sixteen times the pixels; what is kept of the weights does not grow.
    assert 8 * small < large < 20 * small


def test_a_training_s_need_counts_batch_and_cache(
    network: Network, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "resident", lambda: 0)
    monkeypatch.setattr(rehearsal, "_kept_for_backward", lambda _: (100e6, 1000))
    memory_plan, disk = CachePlan("memory", 500 * MB, ""), CachePlan("disk", 500 * MB, "")
    monkeypatch.setattr(rehearsal, "free_memory", lambda: 8e9)
    few = training_need(network, disk, 4, pictures, held=2)
    many = training_need(network, disk, 12, pictures, held=2)
    cached = training_need(network, memory_plan, 4, pictures, held=2)
    assert many.least - few.least == pytest.approx(8 * rehearsal.STEP_LEAST * 100e6)
    most = rehearsal.SLACK * rehearsal.STEP_MOST
    assert many.bytes - few.bytes == pytest.approx(8 * most * 100e6)
    assert cached.bytes - few.bytes == pytest.approx(rehearsal.SLACK * 500 * MB)
    assert "steps of 4 images of 32 x 32 pixels and 500 MB of features; free: 8.0 GB" in (
        cached.sentence
    )
    # No batch is larger than the number of images.
    assert training_need(network, disk, 99, pictures, held=2) == training_need(
        network, disk, len(pictures), pictures, held=2
    )
    monkeypatch.setattr(rehearsal, "free_memory", lambda: 0.9e9)
    assert training_need(network, disk, 4, pictures, held=2).sentence.endswith("not be enough")
    with pytest.raises(ConfigError, match=r"batch_size: a step of 12 images .* a batch of 6 may"):
        training_need(network, disk, 12, pictures, held=2)


MEASURE = """
import json, os, sys
from pathlib import Path
from mambaadv2 import readers
from mambaadv2.memory import peak
from mambaadv2.predict import predict_to_folder
of_readers = []
close = readers._close

def note(pool, processes):
    for process in processes:
        if process._popen is not None:
            status = Path(f"/proc/{process._popen.pid}/status").read_text()
            of_readers.append(int(status.partition("VmHWM:")[2].split()[0]) * 1024)
    close(pool, processes)

readers._close = note
run, images, out = sys.argv[1:]
loaded = peak()
predict_to_folder(run, [images], out, batch_size=32, device="cpu")
print(json.dumps({"here": max(loaded, peak()), "readers": of_readers}))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("memory")
    good = root / "data" / "part" / "train" / "good"
    good.mkdir(parents=True)
    for i in range(8):
        noise = np.random.default_rng(i).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        write_png(good / f"{i}.png", noise)
    config = TrainConfig(epochs=1, batch_size=4, device="cpu")
    return train_model(root / "data", root / "run", CONFIG, config, progress=False)


def measured(run: Path, folder: Path, count: int) -> tuple[int, int, float]:
    """Peak of this process and of its readers, and what was stated for all, in bytes."""
    (folder / "images").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    write_png(folder / "one.png", noise)
    for i in range(count):
        os.link(folder / "one.png", folder / "images" / f"{i:05d}.png")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(run), str(folder / "images"), str(folder / "out")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len((folder / "out" / "predictions.jsonl").read_text().splitlines()) == count
    stated = re.search(r"memory: about ([0-9.]+) GB at most", done.stderr)
    assert stated
    peaks = json.loads(done.stdout)
    assert peaks["readers"]
    return peaks["here"], sum(peaks["readers"]), float(stated[1]) * 1e9


@pytest.mark.slow
def test_predict_holds_what_it_states_at_any_number_of_images(run: Path, tmp_path: Path) -> None:
    few, of_readers, stated = measured(run, tmp_path / "few", 200)
    assert few + of_readers <= stated
    many, of_many_readers, stated = measured(run, tmp_path / "many", 2000)
    assert many + of_many_readers <= stated
    assert many - few < 12 * MB
    assert of_many_readers - of_readers < 12 * MB
