"""The benchmarks run, resume and measure what they say, on generated images of 64 pixels."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import _context, ablate, memory, real
from benchmarks._ablation_tables import Line, report
from benchmarks._cached import cache, evaluate_cached
from mambaadv2.data.synthetic import generate
from mambaadv2.errors import ConfigError, DataError
from mambaadv2.evaluate import METRICS, ClassResult, Evaluation, evaluate
from mambaadv2.image import write_png
from mambaadv2.model.config import ModelConfig
from mambaadv2.model.encoder import EncoderProvenance, FrozenEncoder
from mambaadv2.model.presets import preset_config
from mambaadv2.predict import load
from mambaadv2.train import train

SIZE = (64, 64)


class MeanColours(nn.Module):
    """An encoder whose features are mean colours, so that every distance can be told by hand."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, second, third = (F.avg_pool2d(images, stride) for stride in (4, 8, 16))
        return first, second, third


@pytest.fixture(scope="module")
def colours() -> FrozenEncoder:
    provenance = EncoderProvenance(
        name="colours", source="none", file=None, sha256=None, licence=None
    )
    return FrozenEncoder(
        MeanColours(), channels=(3, 3, 3), mean=(0, 0, 0), std=(1, 1, 1), provenance=provenance
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("benchmarks") / "data"
    generate(root, size=64, train=4, good=2, defect=1)
    return root


@pytest.fixture(scope="module")
def small() -> ModelConfig:
    return preset_config("lite", image_size=SIZE)


def test_nearest_distance_matches_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "QUERY_CHUNK", 5)
    monkeypatch.setattr(memory, "MEMORY_CHUNK", 7)
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(13, 4, generator=generator)
    rows = torch.randn(31, 4, generator=generator)
    expected = torch.cdist(queries, rows).amin(dim=1)
    torch.testing.assert_close(memory.nearest_distance(queries, rows), expected)
    torch.testing.assert_close(
        memory.nearest_distance(rows, rows), torch.zeros(31), atol=2e-3, rtol=0
    )


def test_memory_holds_random_patches_of_the_images(colours: FrozenEncoder, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(memory.BATCH + 2)]
    rng = np.random.default_rng(0)
    for path in paths:
        write_png(path, rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    encoder = memory.PatchEncoder(colours, (8, 16), (32, 32))
    everything = memory.remember(encoder, paths, 10**6, seed=0)
    assert everything.shape == (len(paths) * 4 * 4, 6)
    some = memory.remember(encoder, paths, 20, seed=0)
    assert some.shape == (20, 6)
    assert memory.nearest_distance(some, everything).max() < 1e-3
    assert torch.equal(some, memory.remember(encoder, paths, 20, seed=0))
    assert not torch.equal(some, memory.remember(encoder, paths, 20, seed=1))


def test_memory_finds_the_changed_place_in_the_size_of_the_image(colours: FrozenEncoder) -> None:
    good = np.full((64, 96, 3), 90, dtype=np.uint8)
    bad = good.copy()
    bad[40:56, 64:80] = 250
    encoder = memory.PatchEncoder(colours, (8, 16), SIZE)
    rows = encoder(torch.full((1, 3, *SIZE), 90, dtype=torch.uint8)).flatten(0, 2)
    same, changed = memory.MemoryPredictor(encoder, rows, ["plate"]).predict([good, bad])
    assert same.map.shape == changed.map.shape == (64, 96)
    assert same.score < 1e-3 < changed.score
    assert not changed.defect
    y, x = np.unravel_index(changed.map.argmax(), changed.map.shape)
    assert 36 <= y < 60
    assert 60 <= x < 84


def test_memory_refuses_strides_that_the_encoder_lacks(colours: FrozenEncoder) -> None:
    with pytest.raises(ConfigError, match="strides"):
        memory.PatchEncoder(colours, (8, 32), SIZE)


def test_targets_say_by_how_much() -> None:
    model, lower, equal = _evaluation(0.97), _evaluation(0.96), _evaluation(0.97)
    rows = {t.name: t.row() for t in real.targets(model, {"lower": lower, "equal": equal})}
    assert rows["screw pixel AUROC"] == (
        "screw pixel AUROC",
        ">= 0.9700",
        "0.9700",
        "met by 0.0000",
    )
    assert rows["alien image AUROC"][2:] == ("-", "not measured")
    assert rows["mean image AUROC above lower"][3] == "met by 0.0100"
    assert rows["mean pixel AUROC above equal"][3] == "missed by 0.0000"


def _evaluation(value: float) -> Evaluation:
    metrics: dict[str, float | None] = dict.fromkeys(METRICS, value)
    result = ClassResult(metrics=metrics, n_good=1, n_defect=1)
    return Evaluation(classes={"screw": result}, seconds=1.0)


def test_training_speed_leaves_out_the_time_before_the_loop(tmp_path: Path) -> None:
    lines = [
        {"epoch": 1, "step": 2, "images_per_second": 1.0, "seconds": 90.0},
        {"epoch": 2, "step": 4, "images_per_second": 8.0, "seconds": 92.0},
        {"epoch": 3, "step": 6, "images_per_second": 4.0, "seconds": 96.0},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert real.training_speed(path) == (6, 3, 5.33)
    path.write_text(json.dumps(lines[0]) + "\n", encoding="utf-8")
    assert real.training_speed(path) == (2, 1, 1.0)


def test_real_measures_model_and_memories_alike(
    data: Path,
    small: ModelConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def quick(data: Path, out: Path, *, minutes: float, **settings: Any) -> Path:
        return train(data, out, epochs=1, image_size=SIZE[0], **settings)

    monkeypatch.setattr(real, "train", quick)
    monkeypatch.setattr(real, "preset_config", lambda name: small)
    out = tmp_path / "results" / "real.json"
    arguments = ["--data", str(data), "--runs", str(tmp_path), "--out", str(out)]
    assert real.main(arguments) == 0
    printed = capsys.readouterr().out
    found = json.loads(out.read_text(encoding="utf-8"))
    rows = ["lite, 30 min", "memory, all classes", "memory, per class"]
    assert list(found["table"]) == rows
    assert all(f"| {row}" in printed for row in rows)
    assert "screw pixel AUROC" in printed
    assert all(len(row["classes"]) == 4 for row in found["table"].values())
    assert found["costs"]["lite, 30 min"]["steps"] > 0
    # 4 images of 8 x 8 patches, fewer than asked for.
    assert set(found["memory"]["patches"].values()) == {256}


def test_without_images_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_context, "BESIDE", tmp_path / "none")
    for named in ("", str(tmp_path / "nowhere")):
        monkeypatch.setenv("MAMBAADV2_DATA", named)
        with pytest.raises(DataError, match=rf"MAMBAADV2_DATA.*{named}.*--data"):
            _context.find_data(None)
    for main in (memory.main, real.main, ablate.main):
        assert main([]) == 2
        assert "--data" in capsys.readouterr().err


def test_images_asked_for_come_first_then_those_named_then_those_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, named, beside = tmp_path / "asked", tmp_path / "named", tmp_path / "beside"
    named.mkdir()
    beside.mkdir()
    monkeypatch.setattr(_context, "BESIDE", beside)
    monkeypatch.setenv("MAMBAADV2_DATA", str(named))
    assert _context.find_data(asked) == asked
    assert _context.find_data(None) == named
    monkeypatch.delenv("MAMBAADV2_DATA")
    assert _context.find_data(None) == beside


def test_cached_evaluation_equals_evaluate(data: Path, tmp_path: Path) -> None:
    predictor = load(train(data, tmp_path, epochs=1, image_size=SIZE[0], progress=False))
    cached = cache(data, predictor.network)
    ours = evaluate_cached(predictor.network, {"whitened": predictor.scorer}, cached)["whitened"]
    expected = evaluate(predictor, data, resampling=None, progress=False)
    assert ours.classes.keys() == expected.classes.keys()
    for name, result in expected.classes.items():
        assert ours.classes[name].n_defect == result.n_defect
        assert ours.classes[name].notes == result.notes
        # float16 features move a rank here and there.
        assert ours.classes[name].metrics == pytest.approx(result.metrics, abs=0.02)


def test_variants_are_valid_and_none_is_the_default() -> None:
    base = preset_config(ablate.PRESET)
    names = [variant.name for variant in ablate.VARIANTS]
    assert len(set(names)) == len(names)
    for variant in ablate.VARIANTS:
        changed = dataclasses.replace(base, **variant.model)  # type: ignore[arg-type]
        same = changed == base and not variant.training
        assert same == (variant.name == "default"), variant.name


def test_ablation_resumes_and_repeats(
    data: Path, small: ModelConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ablate.jsonl"
    variants = ablate._variants("paths-none,default")

    def run(seeds: tuple[int, ...]) -> list[Line]:
        return ablate.benchmark(data, out, variants=variants, seeds=seeds, steps=3, base=small)

    first = run((0,))
    assert [line["variant"] for line in first] == ["default", "paths-none"]
    assert "2 to do" in capsys.readouterr().out
    # A crash while the second result was written.
    text = out.read_text(encoding="utf-8")
    out.write_text(text[: len(text) - 40], encoding="utf-8")
    second = run((0,))
    assert "1 to do" in capsys.readouterr().out
    assert second[0] == first[0]
    assert second[1]["loss"] == first[1]["loss"]
    assert second[1]["scores"] == first[1]["scores"]
    assert run((0,)) == second
    assert "0 to do" in capsys.readouterr().out
    printed = report(second, "whitened")
    assert "under-trained: " in printed
    assert "nan" not in printed
    for line in second:
        assert set(line["scores"]) == {"cosine", "whitened"}
        assert all(math.isfinite(loss) for loss in line["loss"].values())


def test_tables_show_mean_and_spread_over_seeds() -> None:
    lines = [
        _line("default", 0, 0.90), _line("default", 1, 0.92),
        _line("other", 0, 0.91), _line("other", 1, 0.95),
    ]  # fmt: skip
    printed = report(lines, "whitened")
    assert "91.00 ± 1.41" in printed
    assert "+2.00 ± 1.41" in printed  # of 1 and 3, paired by seed
    assert "under-trained" not in printed


def _line(variant: str, seed: int, value: float) -> Line:
    metrics = dict.fromkeys(METRICS, value)
    scores = {
        kind: {"classes": {"nut": metrics}, "mean": metrics} for kind in ("cosine", "whitened")
    }
    return {
        "variant": variant,
        "seed": seed,
        "steps": 10,
        "epochs": 100.0,
        "loss": {"0.05": 2.0, "1": 1.0},
        "seconds": 1.0,
        "images_per_second": 8.0,
        "parameters": 1000,
        "scores": scores,
    }


def test_only_refuses_unknown_variants() -> None:
    with pytest.raises(ConfigError, match=r"paths-none.*got pathsnone"):
        ablate._variants("default,pathsnone")
