"""Statistics and thresholds from held-out features, on a toy encoder: whose images count where."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mambaadv2 import heldout
from mambaadv2.calibrate import ColourScale, calibrate_classes
from mambaadv2.checkpoint import make_scorer
from mambaadv2.data.features import FeatureStore, SourceSlice
from mambaadv2.heldout import HeldOut, fit_on_heldout, threshold_words
from mambaadv2.model.config import ModelConfig, Score
from mambaadv2.model.encoder import EncoderProvenance, FrozenEncoder
from mambaadv2.model.network import Network
from mambaadv2.model.scoring import ResidualMoments, Scorer, whitening

CHANNELS = (6, 10)


def toy_network(score: Score = "whitened") -> Network:
    config = ModelConfig(
        image_size=(64, 64),
        dims=(16, 8, 8),
        modules=((1,), (1,), (1,)),
        directions=(1, 1, 2),
        head_dim=8,
        state_dim=4,
        score=score,
    )
    encoder = FrozenEncoder(
        nn.Conv2d(3, 2, 1),
        channels=(4, *CHANNELS),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        provenance=EncoderProvenance(name="toy", source="none", file=None, sha256=None, licence=""),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network(config, encoder)


def store(seed: int, images: int, level: float = 0.0) -> FeatureStore:
    """Features around `level`; every image has a spread of its own, so that scores differ."""
    rng = np.random.default_rng(seed)
    gain = rng.uniform(0.8, 1.2, (images, 1, 1, 1))
    arrays: list[NDArray[np.float16]] = [
        (level + gain * rng.normal(0, 1, (images, c, side, side))).astype(np.float16)
        for c, side in zip(CHANNELS, (8, 4), strict=True)
    ]
    return FeatureStore(arrays)


def without(source: FeatureStore, index: int) -> FeatureStore:
    return FeatureStore([np.delete(array, index, axis=0) for array in source.arrays])


class Calibrated:
    """A fitted scorer, what was found, and the scores behind the thresholds."""

    def __init__(
        self,
        held: Mapping[str, FeatureStore],
        train: Mapping[str, FeatureStore] | None = None,
        score: Score = "whitened",
    ) -> None:
        self.network = toy_network(score)
        self.scorer = make_scorer(self.network.config, self.network, len(held))
        self.scores: dict[str, list[float]] = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(heldout, "calibrate_classes", self._record)
            train = train or {name: store(100 + i, 5, level=2.0 * i) for i, name in enumerate(held)}
            self.found: HeldOut = fit_on_heldout(self.network, self.scorer, held, train)

    def _record(self, scores: dict[str, list[float]], *, leave_one_out: bool) -> object:
        self.scores = scores
        return calibrate_classes(scores, leave_one_out=leave_one_out)


def scale_maps(
    scorer: Scorer, network: Network, source: FeatureStore, i: int, label: int
) -> Tensor:
    """Maps (scales, H, W) of one image before they are joined."""
    with torch.no_grad():
        scaled = network.scaled(source.batch([i]))
        return scorer.scale_maps(scaled, network.reconstruct(scaled), torch.tensor([label]))[0]


@pytest.fixture(scope="module")
def two() -> dict[str, FeatureStore]:
    return {"bolt": store(1, 4), "nut": store(2, 3, level=2.0)}


@pytest.fixture(scope="module")
def calibrated(two: dict[str, FeatureStore]) -> Calibrated:
    return Calibrated(two)


def test_thresholds_lie_above_the_normal_scores(calibrated: Calibrated) -> None:
    classes = calibrated.found.classes
    assert list(classes) == ["bolt", "nut"]
    assert {name: c.images for name, c in classes.items()} == {"bolt": 4, "nut": 3}
    for name, scores in calibrated.scores.items():
        assert len(scores) == classes[name].images
        assert classes[name].threshold > max(scores) > 0


def test_the_threshold_lies_within_the_colour_scale(calibrated: Calibrated) -> None:
    colours = calibrated.found.colours
    assert 0 < colours.low < 1 < colours.high


def test_thresholds_come_from_held_out_images_alone(
    two: dict[str, FeatureStore], calibrated: Calibrated
) -> None:
    other_training = {"bolt": store(50, 9), "nut": store(51, 2, level=2.0)}
    same = Calibrated(two, other_training)
    assert same.found == calibrated.found
    other_heldout = Calibrated(two | {"bolt": store(9, 4)})
    assert other_heldout.found.classes["bolt"] != calibrated.found.classes["bolt"]


@pytest.mark.parametrize("names", [("bolt", "nut"), ("bolt",)])
def test_every_image_is_scored_by_the_others(
    two: dict[str, FeatureStore], names: tuple[str, ...]
) -> None:
    held = {name: two[name] for name in names}
    full = Calibrated(held)
    for label, name in enumerate(names):
        images = range(len(held[name]))
        rests = [Calibrated(held | {name: without(held[name], i)}) for i in images]
        maps = [scale_maps(rests[i].scorer, full.network, held[name], i, label) for i in images]
        for i, score in enumerate(full.scores[name]):
            others = [m for j, m in enumerate(maps) if j != i]
            floor = torch.stack([m.mean(dim=(1, 2)) for m in others]).mean(dim=0)
            peak = torch.stack([m.amax(dim=(1, 2)) for m in others]).mean(dim=0)
            z = (maps[i] - floor[:, None, None]) / (peak - floor)[:, None, None]
            expected = z.clamp(min=0).square().mean(dim=0).sqrt().max()
            assert score == pytest.approx(float(expected), rel=1e-3)
        # With their own share in the statistics images look better than the next ones will.
        flattered = [scale_maps(full.scorer, full.network, held[name], i, label) for i in images]
        assert torch.stack(flattered).mean() < torch.stack(maps).mean()


def test_the_fitted_scorer_uses_all_images(
    two: dict[str, FeatureStore], calibrated: Calibrated
) -> None:
    network, scorer = calibrated.network, calibrated.scorer
    moments: list[list[list[ResidualMoments]]] = []  # class, scale, image
    for source in two.values():
        with torch.no_grad():
            scaled = network.scaled(source.batch(range(len(source))))
            rebuilt = network.reconstruct(scaled)
        moments.append(
            [
                [ResidualMoments.of(image) for image in f - r]
                for f, r in zip(scaled, rebuilt, strict=True)
            ]
        )
    for scale in range(2):
        covariances = [ResidualMoments.sum(images[scale]).covariance for images in moments]
        pooled = torch.stack(covariances).mean(dim=0)
        for label, images in enumerate(moments):
            mean, matrix = whitening(ResidualMoments.sum(images[scale]), len(images[scale]), pooled)
            torch.testing.assert_close(scorer.get_buffer(f"mean_{scale}")[label], mean)
            # An eigenvector's sign is free; the product is not.
            found = scorer.get_buffer(f"whiten_{scale}")[label]
            torch.testing.assert_close(found.T @ found, matrix.T @ matrix, rtol=1e-3, atol=1e-4)


def test_classes_are_found_by_the_centres_of_the_training_images(calibrated: Calibrated) -> None:
    for label in range(2):
        features = store(30 + label, 6, level=2.0 * label).batch(range(6))
        assert calibrated.scorer.find_class(features).tolist() == [label] * 6


@pytest.mark.parametrize("names", [("lone",), ("lone", "bolt")])
def test_a_class_of_one_image_is_calibrated_with_itself(
    two: dict[str, FeatureStore], names: tuple[str, ...]
) -> None:
    held = {"lone": store(5, 1)} | {name: two[name] for name in names if name != "lone"}
    done = Calibrated(held, train=held)
    lone = done.found.classes["lone"]
    assert lone.images == 1
    assert np.isfinite(lone.threshold)
    assert lone.threshold > done.scores["lone"][0]


def test_an_image_below_the_scale_does_not_stop_calibration() -> None:
    source = store(1, 6)
    for array in source.arrays:
        array[2] = 0  # a black image: nothing in its map reaches the mean of the others
    done = Calibrated({"bolt": source})
    assert done.scores["bolt"][2] == 0
    assert done.found.classes["bolt"].threshold > max(done.scores["bolt"])


def test_the_cosine_score_has_no_statistics_but_a_threshold(two: dict[str, FeatureStore]) -> None:
    done = Calibrated(two, score="cosine")
    assert set(done.scorer.state_dict()) == {"centres", "descriptor_scale"}
    for name, scores in done.scores.items():
        assert done.found.classes[name].threshold > max(scores) > 0


def test_sources_may_be_slices_and_batches_do_not_matter(
    two: dict[str, FeatureStore], calibrated: Calibrated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heldout, "BATCH", 2)
    network = toy_network()
    scorer = make_scorer(network.config, network, 2)
    both = FeatureStore(
        [np.concatenate(pair) for pair in zip(two["bolt"].arrays, two["nut"].arrays, strict=True)]
    )
    held = {"bolt": SourceSlice(both, 0, 4), "nut": SourceSlice(both, 4, 3)}
    train = {"bolt": store(100, 5), "nut": store(101, 5, level=2.0)}
    found = fit_on_heldout(network, scorer, held, train)
    for name, expected in calibrated.found.classes.items():
        assert found.classes[name].threshold == pytest.approx(expected.threshold, rel=1e-4)


def test_the_network_is_not_changed(two: dict[str, FeatureStore]) -> None:
    network = toy_network().train()
    before = copy.deepcopy(network.state_dict())
    scorer = make_scorer(network.config, network, 2)
    fit_on_heldout(network, scorer, two, two)
    assert not network.training
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_people_hear_what_thresholds_promise() -> None:
    files = {"nut": [Path(f"{i}.png") for i in range(25)], "bolt": [Path("a.png")] * 9}
    scores = {
        "nut": [*np.linspace(0.9, 1.1, 24).tolist(), 4.0],
        "bolt": np.linspace(0.9, 1.1, 9).tolist(),
    }
    found = HeldOut(calibrate_classes(scores), ColourScale(low=0.5, high=2.0), scores)
    suspect, assumed, few = threshold_words(found, files)
    assert suspect.startswith("24.png: looks mislabelled, its score is 4.0 times the median")
    assert "guaranteed where fewer than 99 good images are held out: nut (24), bolt (9)" in assumed
    assert few.startswith("thresholds that rest on fewer than 10")
    many = {"nut": np.linspace(0.9, 1.1, 120).tolist()}
    enough = HeldOut(calibrate_classes(many), ColourScale(low=0.5, high=2.0), many)
    assert list(threshold_words(enough, files)) == []


@pytest.mark.parametrize("score, near", [("whitened", True), ("cosine", False)])
def test_the_promise_depends_on_the_score(
    two: dict[str, FeatureStore], score: Score, near: bool
) -> None:
    assert {c.leave_one_out for c in Calibrated(two, score=score).found.classes.values()} == {near}
