"""Each protocol against an implementation of its own, written from the description of its rules.

The oracles are slow and share no code with the package: torch for what happens to pixels, loops
over thresholds and scikit-learn for what is counted.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score
from torch.nn import functional

from mambaadv2.errors import ConfigError
from mambaadv2.evaluate import evaluate
from mambaadv2.frames import Comparison, blurred, frame_mask, image_score, interpolated
from mambaadv2.image import write_png
from mambaadv2.metrics import Resampling, Spacing, StreamingPool, image_key
from mambaadv2.metrics.spaced import spaced_rows
from mambaadv2.predict import Prediction, Predictor
from mambaadv2.protocols import ADER, DINOMALY, EXACT, PROTOCOLS, protocol_named

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Painted:
    """The red channel, at the size in which the image comes, is the map."""

    classes = ("nut",)

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        maps = [image[:, :, 0].astype(np.float32) / np.float32(100) for image in images]
        return [
            Prediction(
                map=values,
                score=float(values.max()),
                defect=bool(values.max() > 1),
                threshold=1.0,
                class_name="nut",
            )
            for values in maps
        ]


class PaintedRun(Predictor):
    """As a run folder: it has an input size and can leave out the smoothing, here a factor."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.image_size, self.classes, self.factor = size, ("nut",), 1.0

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        assert self.factor == 1.0 or all(i.shape[:2] == self.image_size for i in images)
        return Painted().predict(images)

    def unsmoothed(self) -> Predictor:
        other = copy.copy(self)
        other.factor = 2.0
        return other


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, list[Image.Image], list[Image.Image | None]]:
    """Ten images of three sizes, with hot squares and one hotter pixel; and their masks."""
    rng = np.random.default_rng(3)
    images: list[Image.Image] = []
    masks: list[Image.Image | None] = []
    for number in range(10):
        height, width = ((300, 280), (256, 256), (500, 401))[number % 3]
        small = Image.fromarray(rng.integers(0, 120, (height // 8, width // 8), dtype=np.uint8))
        red = np.array(small.resize((width, height), Image.Resampling.BICUBIC))
        defect, mask = number % 2 == 1, None
        if defect:
            truth = np.zeros((height, width), np.uint8)
            truth[40:140, 60:120] = 255
            truth[200 : 203 + number, 200:210] = 255
            red[truth > 0] = np.minimum(red[truth > 0].astype(int) + 70, 255).astype(np.uint8)
            mask = Image.fromarray(truth)
        if number == 4:
            red[10:40, 10:40] = 255
        kind = "dent" if defect else "good"
        image = np.stack((red, red, red), axis=2)
        (tmp_path / "nut/test" / kind).mkdir(parents=True, exist_ok=True)
        write_png(tmp_path / "nut/test" / kind / f"{number:03}.png", image)
        if mask is not None:
            (tmp_path / "nut/ground_truth/dent").mkdir(parents=True, exist_ok=True)
            mask.save(tmp_path / f"nut/ground_truth/dent/{number:03}_mask.png")
        images.append(Image.fromarray(image))
        masks.append(mask)
    return tmp_path, images, masks


def spaced_aupro(masks: Sequence[Mask], maps: Sequence[Map], steps: int, *, first: bool) -> float:
    """Per-region overlap over even thresholds; false positive rates below 0.3 stretched."""
    low, high = min(m.min() for m in maps), max(m.max() for m in maps)
    rates, overlaps = [], []
    for threshold in np.arange(low, high, (high - low) / steps)[:steps]:
        shares = []
        for mask, values in zip(masks, maps, strict=True):
            labels, count = ndimage.label(mask, np.ones((3, 3)))
            shares += [float((values > threshold)[labels == k + 1].mean()) for k in range(count)]
        good = np.concatenate([values[~mask] for mask, values in zip(masks, maps, strict=True)])
        rates.append(float((good > threshold).mean()))
        overlaps.append(float(np.mean(shares)))
    x, y = np.array(rates), np.array(overlaps)
    x, y = x[x < 0.3], y[x < 0.3]
    if x.size < 2 or x.max() == (x.min() if first else 0):
        return float("nan")
    x = (x - x.min()) / (x.max() - x.min()) if first else x / x.max()
    return float(auc(x, y))


def best_f1(labels: NDArray[np.bool_], scores: NDArray[np.floating]) -> float:
    precision, recall, _ = precision_recall_curve(labels, scores)
    return float((2 * precision * recall / np.maximum(precision + recall, 1e-12)).max())


def flat(parts: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
    return np.concatenate([part.ravel() for part in parts])


def test_ader_follows_its_description(
    data: tuple[Path, list[Image.Image], list[Image.Image | None]],
) -> None:
    root, images, drawn = data
    maps, masks = [], []
    for image, mask in zip(images, drawn, strict=True):
        small = image.resize((256, 256), Image.Resampling.BILINEAR)
        maps.append(np.asarray(small)[:, :, 0].astype(np.float32) / np.float32(100))
        at = None if mask is None else mask.resize((256, 256), Image.Resampling.BILINEAR)
        masks.append(np.zeros((256, 256), bool) if at is None else np.asarray(at) / 255 > 0.5)
    labels = np.array([mask is not None for mask in drawn])
    scores = np.array([values.max() for values in maps])
    truth, every = flat(masks).astype(bool), flat(maps).astype(np.float64)
    scaled = (every - every.min()) / (every.max() - every.min())
    f1, iou = 0.0, 0.0
    for threshold in np.arange(0, 1.001, 0.05):
        called = scaled > threshold
        both, either = (called & truth).sum(), (called | truth).sum()
        f1 = max(f1, 2 * both / (called.sum() + truth.sum()))
        iou = max(iou, both / either)
    result = evaluate(Painted(), root, protocol="ader", progress=False).classes["nut"]
    wanted = {
        "image_auroc": roc_auc_score(labels, scores),
        "image_ap": average_precision_score(labels, scores),
        "image_f1max": best_f1(labels, scores),
        "pixel_auroc": roc_auc_score(truth, every),
        "pixel_ap": average_precision_score(truth, every),
        "pixel_f1max": f1,
        "pixel_aupro": spaced_aupro(masks, maps, 100, first=True),
        "pixel_iou_max": iou,
    }
    for metric, value in wanted.items():
        assert result.metrics[metric] == pytest.approx(value, abs=1e-6), metric
    exact = evaluate(Painted(), root, progress=False).classes["nut"]
    assert abs(wanted["pixel_f1max"] - cast(float, exact.metrics["pixel_f1max"])) > 1e-3


def test_dinomaly_follows_its_description(
    data: tuple[Path, list[Image.Image], list[Image.Image | None]],
) -> None:
    root, images, drawn = data
    grid = torch.arange(5.0) - 2
    kernel = torch.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / (2 * 4.0**2))
    kernel = (kernel / kernel.sum())[None, None]
    maps, masks, scores = [], [], []
    for image, mask in zip(images, drawn, strict=True):
        part = image.resize((448, 448), Image.Resampling.BILINEAR).crop((28, 28, 420, 420))
        seen = np.asarray(part.resize((320, 320), Image.Resampling.BILINEAR))[:, :, 0]
        values = torch.tensor(seen.astype(np.float32) / np.float32(100))[None, None]
        values = functional.interpolate(values, size=(256, 256), mode="bilinear")
        values = functional.conv2d(values, kernel, padding=2)
        maps.append(values[0, 0].numpy())
        highest = values.flatten().sort(descending=True)[0][: int(256 * 256 * 0.01)]
        scores.append(float(highest.mean()))
        if mask is None:
            masks.append(np.zeros((256, 256), bool))
            continue
        cut = mask.resize((448, 448), Image.Resampling.BILINEAR).crop((28, 28, 420, 420))
        truth = torch.tensor(np.asarray(cut).astype(np.float32) / 255)[None, None]
        truth = functional.interpolate(truth, size=(256, 256), mode="nearest")
        masks.append(truth[0, 0].numpy() > 0)
    labels = np.array([mask is not None for mask in drawn])
    truth_all, every = flat(masks).astype(bool), flat(maps).astype(np.float64)
    result = evaluate(PaintedRun((320, 320)), root, protocol="dinomaly", progress=False)
    found = result.classes["nut"]
    wanted = {
        "image_auroc": roc_auc_score(labels, scores),
        "image_ap": average_precision_score(labels, scores),
        "image_f1max": best_f1(labels, np.array(scores)),
        "pixel_auroc": roc_auc_score(truth_all, every),
        "pixel_ap": average_precision_score(truth_all, every),
        "pixel_f1max": best_f1(truth_all, every),
        "pixel_aupro": spaced_aupro(masks, maps, 200, first=False),
    }
    for metric, value in wanted.items():
        assert found.metrics[metric] == pytest.approx(value, abs=2e-5), metric
    ranked = [image.ranked for image in found.images]
    assert sorted(ranked) == pytest.approx(sorted(scores), abs=1e-5)  # type: ignore[type-var]
    assert {image.score for image in found.images} == {
        float(np.float32(np.asarray(image)[:, :, 0].max()) / np.float32(100)) for image in images
    }, "decisions are those on the whole image"


@pytest.mark.parametrize("size", [(392, 392), (7, 5), (256, 256), (1, 9)])
def test_interpolation_is_that_of_torch(size: tuple[int, int]) -> None:
    values = np.random.default_rng(0).random(size, dtype=np.float32)
    for wanted in ((256, 256), (3, 11), size):
        there = functional.interpolate(torch.tensor(values)[None, None], wanted, mode="bilinear")
        # Where a point lies torch computes in float32, which is good to 2e-5 of a pixel here.
        np.testing.assert_allclose(interpolated(values, wanted), there[0, 0], atol=4e-5)


def test_the_blur_takes_zeros_from_beyond_the_border() -> None:
    flat_map = np.ones((9, 8), dtype=np.float32)
    found = blurred(flat_map, 5, 4.0)
    assert found[4, 4] == pytest.approx(1.0)
    assert found[0, 0] < 0.5
    assert found.dtype == np.float32


def test_the_score_is_the_mean_of_the_highest_percent() -> None:
    values = np.arange(256 * 256, dtype=np.float32).reshape(256, 256)
    assert image_score(values, DINOMALY) == pytest.approx(65535 - 327)
    assert image_score(values, ADER) == 65535


def test_a_mask_of_the_original_is_not_touched_and_thin_ones_differ_by_rule() -> None:
    mask = np.zeros((1024, 1024), dtype=np.bool_)
    mask[:, 512] = True
    assert frame_mask(mask, EXACT) is mask
    assert not frame_mask(mask, ADER).any(), "a line of a quarter of a pixel"
    assert frame_mask(mask, DINOMALY).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(2, 30))
def test_spaced_metrics_are_those_of_a_loop(seed: int, f1_steps: int, aupro_steps: int) -> None:
    rng = np.random.default_rng(seed)
    masks = [rng.random((6, 7)) < 0.2 for _ in range(3)]
    maps = [rng.integers(0, 12, (6, 7)).astype(np.float32) / np.float32(4) for _ in range(3)]
    if not any(mask.any() for mask in masks):
        return
    pool = StreamingPool(resampling=Resampling(replicates=5))
    for number, (mask, values) in enumerate(zip(masks, maps, strict=True)):
        pool.add(mask, values, str(number))
    spacing = Spacing(
        f1_steps=f1_steps, aupro_steps=aupro_steps, aupro_stretch="from the first", fpr_limit=0.3
    )
    found = pool.values(spacing=spacing)
    truth, every = flat(masks).astype(bool), flat(maps).astype(np.float64)
    called = [every > at for at in np.linspace(every.min(), every.max(), f1_steps)]
    f1 = max(2 * (c & truth).sum() / (c.sum() + truth.sum()) for c in called)
    assert found["f1_max"] == pytest.approx(f1)
    area = spaced_aupro(masks, maps, aupro_steps, first=True)
    assert found["aupro"] == pytest.approx(area, nan_ok=True)
    assert pool.sampled(spacing=spacing)["f1_max"].value == found["f1_max"]


def test_replicates_of_few_thresholds_are_those_of_the_images_drawn() -> None:
    rng = np.random.default_rng(1)
    masks, maps = [], []
    for number in range(24):
        mask = np.zeros((16, 16), dtype=np.bool_)
        mask[3:9, 4:8] = number % 2
        masks.append(mask)
        maps.append((rng.gamma(2.0, 1.0, (16, 16)) + 2 * mask).astype(np.float32))
    drawn = Resampling(replicates=12)
    spacing = Spacing(f1_steps=21, aupro_steps=100, aupro_stretch="from the first")
    pool = StreamingPool(resampling=drawn)
    for number in range(24):
        pool.add(masks[number], maps[number], str(number))
    sampled = pool.sampled(spacing=spacing)
    keys = np.array([image_key(str(number)) for number in range(24)])
    off: dict[str, list[float]] = {"f1_max": [], "iou_max": [], "aupro": []}
    for row, counts in enumerate(drawn.weights(keys)):
        again = StreamingPool()
        for number, count in enumerate(counts):
            for _ in range(int(count)):
                again.add(masks[number], maps[number])
        for name, value in again.spaced(spacing).items():
            off[name].append(abs(float(sampled[name].replicates[row]) - value))
    assert max(off["f1_max"] + off["iou_max"]) < 5e-3
    # Which threshold is the last below the limit is a jump, and the coarse grid may differ there.
    assert np.median(off["aupro"]) < 5e-3
    assert max(off["aupro"]) < 0.05


def test_rows_without_defects_or_spread_are_undefined() -> None:
    rows = np.array([[3.0, 1.0], [0.0, 2.0], [4.0, 0.0]])
    defect = np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    spacing = Spacing(f1_steps=3, aupro_steps=3, aupro_stretch="from 0", fpr_limit=0.3)
    found = spaced_rows(np.array([0.0, 1.0]), rows, defect, defect, spacing)
    assert np.isnan(found["f1_max"]).tolist() == [True, False, True]
    assert np.isnan(found["aupro"]).all(), "a single threshold lies below the limit"


def test_the_exact_protocol_has_no_few_thresholds() -> None:
    pool = StreamingPool()
    pool.add(np.array([[True, False]]), np.array([[2.0, 1.0]], dtype=np.float32))
    assert pool.values(spacing=Spacing()) == pool.values()


def test_a_protocol_that_does_not_fit_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ader: is defined for images of 256 x 256.*320 x 320"):
        Comparison(PaintedRun((320, 320)), ADER)
    with pytest.raises(ConfigError, match="needs maps before smoothing"):
        Comparison(Painted(), DINOMALY)
    with pytest.raises(ConfigError, match="did you mean 'dinomaly'"):
        protocol_named("dinomali")


def test_every_rule_is_in_words() -> None:
    for protocol in PROTOCOLS.values():
        rules = protocol.rules()
        assert list(rules) == list(EXACT.rules())
        assert all(text in protocol.line() for text in rules.values())
    assert "sigma 4" in DINOMALY.line()
    assert "21 thresholds" in ADER.line()
