"""The loop, on a toy encoder and made-up features: plans, settings, optimiser, bad numbers."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mambaadv2.data.features import FeatureStore
from mambaadv2.errors import ConfigError, TrainingError
from mambaadv2.fit import (
    Shape,
    StepPlan,
    TimePlan,
    TrainConfig,
    fit,
    make_optimizer,
    rate_at,
    steps_per_epoch,
)
from mambaadv2.model.config import ModelConfig
from mambaadv2.model.encoder import EncoderProvenance, FrozenEncoder
from mambaadv2.model.network import Features, Network
from mambaadv2.runlog import RunLog

CONFIG = ModelConfig(
    image_size=(64, 64),
    dims=(16, 8, 8),
    modules=((1,), (1,), (1,)),
    directions=(1, 1, 2),
    head_dim=8,
    state_dim=4,
    drop_path=0.0,
)


def toy_network(seed: int = 0) -> Network:
    """A network of 8x8 and 4x4 features with 6 and 10 channels; its encoder is never asked."""
    encoder = FrozenEncoder(
        nn.Conv2d(3, 2, 1),
        channels=(4, 6, 10),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        provenance=EncoderProvenance(name="toy", source="none", file=None, sha256=None, licence=""),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(CONFIG, encoder)


def toy_features(images: int) -> list[np.ndarray[Any, np.dtype[np.float16]]]:
    rng = np.random.default_rng(0)
    shapes = ((6, 8, 8), (10, 4, 4))
    return [rng.normal(0.5, 1, (images, *shape)).astype(np.float16) for shape in shapes]


class Recording:
    """A source that remembers what was asked."""

    def __init__(self, images: int) -> None:
        self.store = FeatureStore(toy_features(images))
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.store)

    def batch(self, positions: Sequence[int]) -> tuple[Tensor, ...]:
        self.asked.append(list(positions))
        return self.store.batch(positions)


class Ticking:
    """A clock that gains a second every time it is read."""

    def __init__(self, start: float = 0.0) -> None:
        self.now = start

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def new_log(folder: Path) -> RunLog:
    return RunLog(folder, progress=False, settings={})


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_cosine_anneals_to_a_hundredth() -> None:
    rates = [rate_at(p / 10, "cosine") for p in range(11)]
    assert rates[0] == 1.0
    assert rates[-1] == pytest.approx(0.01)
    assert all(a > b for a, b in itertools.pairwise(rates))
    assert rate_at(1.7, "cosine") == pytest.approx(0.01)


def test_step_schedule_drops_at_four_fifths() -> None:
    assert [rate_at(p, "step") for p in (0.0, 0.79, 0.8, 1.0)] == [1.0, 1.0, 0.1, 0.1]


def test_step_plan_counts() -> None:
    plan = StepPlan(total=4)
    assert [plan.progress(step) for step in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_time_plan_follows_the_clock() -> None:
    plan = TimePlan(start=0.0, end=4.0, clock=Ticking())
    assert plan.progress(0) == 0.0
    assert [plan.progress(9) for _ in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("end", [5.0, -3.0])
def test_a_budget_that_is_gone_still_gives_one_step(tmp_path: Path, end: float) -> None:
    plan = TimePlan(start=5.0, end=end, clock=Ticking(5.0))
    with new_log(tmp_path) as log:
        assert fit(toy_network(), Recording(4), TrainConfig(minutes=1), plan, log) == 1
    assert len(metrics(tmp_path)) == 1


@pytest.mark.parametrize(
    "field, value",
    [
        *[("batch_size", 0), ("batch_size", -1), ("learning_rate", 0.0), ("clip", -1.0)],
        *[
            ("state_share", 0.0),
            ("learning_rate", math.nan),
            ("holdout_least", 0),
            ("holdout", 0.0),
            ("holdout", 1.0),
        ],
        *[("device", "tpu"), ("precision", "float16"), ("cache", "ram"), ("shape", "linear")],
        *[("epochs", 0), ("epochs", -2), ("epochs", 2.5), ("batch_size", 4.5)],
        *[("learning_rate", math.inf), ("weight_decay", -1.0), ("betas", (0.9,))],
        *[("betas", (0.9, 1.0)), ("seed", -1), ("seed", 2**63), ("seed", "x"), ("clip", "5")],
    ],
)
def test_bad_settings_are_refused_by_name(field: str, value: object) -> None:
    settings: dict[str, Any] = {"epochs": 1} | {field: value}
    with pytest.raises(ConfigError, match=f"^{field}: expected .*{value}"):
        TrainConfig(**settings)


@pytest.mark.parametrize("length", [{}, {"epochs": 1, "minutes": 1.0}])
def test_a_run_has_one_length(length: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="epochs, minutes: expected exactly one"):
        TrainConfig(**length)


@pytest.mark.parametrize("minutes", [0.0, -1.0, math.nan])
def test_minutes_are_above_zero(minutes: float) -> None:
    with pytest.raises(ConfigError, match="minutes: expected"):
        TrainConfig(minutes=minutes)


def test_every_parameter_is_optimised_once_and_vectors_do_not_decay() -> None:
    parameters = toy_network().trainable()
    optimizer = make_optimizer(parameters, 1e-3, 0.1, (0.9, 0.99), state_share=0.2)
    groups = optimizer.param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in parameters.values())
    assert not any(name.startswith("encoder") for name in parameters)
    for group in groups:
        assert group["betas"] == (0.9, 0.99)
        for name, parameter in parameters.items():
            if any(parameter is member for member in group["params"]):
                assert (".blocks." in name) == (group["share"] == 0.2)
                matrix = name.endswith(".weight") and parameter.ndim > 1
                assert matrix == (group["weight_decay"] > 0)


def test_training_lowers_the_loss_and_leaves_the_encoder(tmp_path: Path) -> None:
    network, learn = toy_network(), Recording(6)
    before = {k: v.clone() for k, v in network.encoder.state_dict().items()}
    config = TrainConfig(epochs=12, batch_size=3, learning_rate=2e-2)
    with new_log(tmp_path) as log:
        assert fit(network, learn, config, StepPlan(total=24), log) == 24
    losses = [line["loss"] for line in metrics(tmp_path)]
    assert len(losses) == 12
    assert losses[-1] < 0.8 * losses[0]
    assert not network.training
    for key, value in network.encoder.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("shape, share", [("cosine", 0.05), ("step", 0.1)])
def test_the_rate_anneals_and_scales_with_the_batch(
    tmp_path: Path, shape: Shape, share: float
) -> None:
    config = TrainConfig(epochs=10, batch_size=4, learning_rate=4e-3, shape=shape)
    with new_log(tmp_path) as log:
        fit(toy_network(), Recording(4), config, StepPlan(total=10), log)
    rates = [line["lr"] for line in metrics(tmp_path)]
    assert rates[0] == pytest.approx(1e-3)  # 4e-3 x 4 / 16
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] <= share * rates[0] * (1 + 1e-9)


def test_the_rate_anneals_by_the_clock_too(tmp_path: Path) -> None:
    config = TrainConfig(minutes=1, batch_size=4, reference_batch=4, learning_rate=1e-3)
    plan = TimePlan(start=0.0, end=12.0, clock=Ticking())
    with new_log(tmp_path) as log:
        steps = fit(toy_network(), Recording(4), config, plan, log)
    rates = [line["lr"] for line in metrics(tmp_path)]
    assert steps == len(rates) == 12
    assert rates[0] == pytest.approx(1e-3)
    assert rates[-1] < 0.05 * rates[0]


def order(seed: int, folder: Path) -> list[list[int]]:
    learn = Recording(8)
    config = TrainConfig(epochs=3, batch_size=3, seed=seed)
    with new_log(folder) as log:
        fit(toy_network(), learn, config, StepPlan(total=9), log)
    return learn.asked


def test_every_epoch_visits_every_image_once_in_a_new_order(tmp_path: Path) -> None:
    asked = order(0, tmp_path)
    assert [len(batch) for batch in asked] == [3, 3, 2] * 3
    epochs = [list(itertools.chain(*asked[i : i + 3])) for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order(0, tmp_path) == asked
    assert order(1, tmp_path) != asked


@pytest.mark.parametrize(
    "images, batch, steps", [(8, 3, 3), (7, 3, 2), (6, 3, 2), (1, 3, 1), (1, 1, 1), (3, 1, 3)]
)
def test_a_last_batch_of_one_image_is_left_out(
    tmp_path: Path, images: int, batch: int, steps: int
) -> None:
    learn = Recording(images)
    assert steps_per_epoch(images, batch) == steps
    with new_log(tmp_path) as log:
        config = TrainConfig(epochs=2, batch_size=batch)
        fit(toy_network(), learn, config, StepPlan(total=2 * steps), log)
    for epoch in (learn.asked[:steps], learn.asked[steps:]):
        seen = list(itertools.chain(*epoch))
        assert len(seen) == len(set(seen)) >= images - 1
    assert metrics(tmp_path)[-1]["epoch"] == 2


def test_a_poisoned_feature_stops_the_run_with_step_and_term(tmp_path: Path) -> None:
    network, learn = toy_network(), Recording(8)
    config = TrainConfig(epochs=1, batch_size=2)
    learn.store.arrays[0][order_of(learn, config)[5], 3, 2, 1] = np.nan
    with (
        pytest.raises(TrainingError, match=r"^step 3: mse_8x8 is nan.*learning rate"),
        new_log(tmp_path) as log,
    ):
        fit(network, learn, config, StepPlan(total=4), log)
    (line,) = metrics(tmp_path)
    assert line["step"] == 2
    assert math.isfinite(line["loss"])
    assert (tmp_path / "loss.svg").exists()
    assert all(bool(torch.isfinite(p).all()) for p in network.trainable().values())


def order_of(learn: Recording, config: TrainConfig) -> list[int]:
    """Positions in the order of the first epoch."""
    generator = torch.Generator().manual_seed(config.seed)
    positions: list[int] = torch.randperm(len(learn), generator=generator).tolist()
    return positions


def test_a_gradient_that_is_not_finite_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steep(features: Features, rebuilt: Features) -> dict[str, Tensor]:
        return {"steep": (rebuilt[0] - rebuilt[0].detach()).abs().sqrt().sum()}

    monkeypatch.setattr("mambaadv2.fit.reconstruction_loss", steep)
    network = toy_network()
    before = {name: p.detach().clone() for name, p in network.trainable().items()}
    with (
        pytest.raises(TrainingError, match=r"^step 1: gradient norm is nan"),
        new_log(tmp_path) as log,
    ):
        fit(network, Recording(4), TrainConfig(epochs=1), StepPlan(total=1), log)
    assert all(torch.equal(p, before[name]) for name, p in network.trainable().items())
