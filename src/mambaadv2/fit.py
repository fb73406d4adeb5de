"""The training loop: its settings, its plan by steps or by minutes, its optimiser, its steps."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn

from mambaadv2.data.features import CacheMode, Source
from mambaadv2.errors import ConfigError, TrainingError, TrainingInterruptedError
from mambaadv2.model.network import Network, reconstruction_loss
from mambaadv2.signals import StopRequest
from mambaadv2.snapshot import Snapshot, Snapshots, restore_training, training_tensors

Shape = Literal["cosine", "step"]
FINAL_SHARE = 0.01  # of the learning rate, at the end of a cosine


def rate_at(progress: float, shape: Shape) -> float:
    """Share of the base learning rate at `progress` in [0, 1] of the run.

    "cosine": from 1 to 0.01 (our choice). "step": 1, then 0.1 from 80 % on (MambaAD).
    """
    if shape == "step":
        return 1.0 if progress < 0.8 else 0.1
    wave = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return FINAL_SHARE + (1 - FINAL_SHARE) * wave


@dataclass(frozen=True, slots=True)
class StepPlan:
    """A run of a known number of steps: repeatable to the bit."""

    total: int

    def progress(self, step: int) -> float:
        """Share of the run that is done before `step` (counted from 0)."""
        return step / self.total

    def facts(self) -> dict[str, float]:
        """What a snapshot needs of the plan: nothing, it follows from the configuration."""
        return {}


@dataclass(frozen=True, slots=True)
class TimePlan:
    """A run that ends at a moment: the schedule follows the clock, so it always anneals in time.

    start, end: seconds of `clock`. How many steps fit depends on the machine; a run that must be
    repeatable uses steps.
    """

    start: float
    end: float
    clock: Callable[[], float] = time.monotonic

    def progress(self, step: int) -> float:
        """Share of the time that is gone; the first step always runs."""
        if step == 0:
            return 0.0
        return min(1.0, (self.clock() - self.start) / max(1e-9, self.end - self.start))

    def facts(self) -> dict[str, float]:
        """Seconds used and planned: a resumed run has what is left of its time."""
        return {"used": self.clock() - self.start, "length": self.end - self.start}


Plan = StepPlan | TimePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything about a run that is not the network; checked on construction."""

    epochs: int | None = None
    """Passes over the training images; None when `minutes` is given."""
    minutes: float | None = None
    """Wall-clock budget, features and calibration included."""
    batch_size: int = 8
    learning_rate: float = 5e-3
    """At `reference_batch`; scaled linearly with the batch size. [lineage]"""
    reference_batch: int = 16
    state_share: float = 0.2
    """Learning rate of the HSS blocks as a share of the rest's: their projections have no
    normalisation behind them that would absorb large steps. [ours, measured in LOG.md]"""
    shape: Shape = "cosine"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    clip: float = 5.0
    """Largest gradient norm. [lineage]"""
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the decoder's arithmetic; sums of the scan stay in float32."""
    holdout: float = 0.1
    """Share of train/good, by class, kept for statistics and thresholds."""
    holdout_least: int = 4
    """Images to hold out per class at least, where the class has three times as many."""
    cache: CacheMode = "auto"
    pca_start: bool = True
    save_seconds: float = 60.0
    """Between two snapshots, at least: what a killed run may have to do again."""

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.minutes is None):
            raise ConfigError("epochs, minutes: expected exactly one of them")
        for name in ("epochs", "batch_size", "reference_batch", "holdout_least"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name}: expected a whole number above 0, got {value!r}")
        for name in ("minutes", "learning_rate", "state_share", "clip", "save_seconds"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and value > 0):
                raise ConfigError(f"{name}: expected a number above 0, got {value!r}")
        if not (_is_number(self.weight_decay) and self.weight_decay >= 0):
            raise ConfigError(f"weight_decay: expected a number >= 0, got {self.weight_decay!r}")
        if len(self.betas) != 2 or not all(_is_number(b) and 0 <= b < 1 for b in self.betas):
            raise ConfigError(f"betas: expected two numbers, 0 <= beta < 1, got {self.betas!r}")
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed: expected a whole number, 0 to 2^63 - 1, got {self.seed!r}")
        if not (_is_number(self.holdout) and 0 < self.holdout < 1):
            raise ConfigError(f"holdout: expected a share between 0 and 1, got {self.holdout!r}")
        for name, allowed in (
            ("device", ("auto", "cpu", "cuda")),
            ("precision", ("float32", "bfloat16")),
            ("cache", ("auto", "memory", "disk", "off")),
            ("shape", ("cosine", "step")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name}: expected one of {', '.join(allowed)}; got {getattr(self, name)!r}"
                )


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


class StepLog(Protocol):
    """What `fit` tells about its steps; `RunLog` writes it down."""

    def begin(self) -> object:
        """Called once before the first step."""
        ...

    def step(
        self,
        epoch: int,
        step: int,
        terms: Mapping[str, float],
        norm: float,
        rate: float,
        images: int,
        done: float,
    ) -> object:
        """Called after every step with its loss terms, gradient norm and learning rate.

        images: of the batch. done: share of the run that is over after this step.
        """
        ...


def make_optimizer(
    parameters: Mapping[str, nn.Parameter],
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    state_share: float = 1.0,
) -> torch.optim.AdamW:
    """AdamW (MambaAD's), every parameter in exactly one group.

    Weight decay on matrices and kernels only: not on biases, norms, steps and skips. Parameters of
    HSS blocks (`.blocks.` in the name) learn at `state_share` of the rate; a group's "share" is
    that factor.
    """
    groups: list[dict[str, object]] = []
    for share, in_blocks in ((1.0, False), (state_share, True)):
        members = {n: p for n, p in parameters.items() if (".blocks." in n) is in_blocks}
        decayed = [n for n, p in members.items() if n.endswith(".weight") and p.ndim > 1]
        rest = [n for n in members if n not in set(decayed)]
        for decay, names in ((weight_decay, decayed), (0.0, rest)):
            part = [members[n] for n in names]
            groups.append({"params": part, "weight_decay": decay, "share": share})
    # On a CPU one pass over each parameter instead of a dozen, by the same rule; on a GPU torch's
    # own choice, whose step counts lie where snapshots keep them.
    fused = True if all(p.device.type == "cpu" for p in parameters.values()) else None
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)


class Order:
    """Positions of the images by batch, for ever; no image comes twice in an epoch.

    epoch counts from 1. generator: in the state from before the epoch's order was drawn, so that
    this state, the epoch and its number of batches say where the order stands.
    """

    def __init__(self, count: int, config: TrainConfig) -> None:
        self.count, self.batch_size = count, config.batch_size
        self.generator = torch.Generator().manual_seed(config.seed)
        self.epoch, self.batches = 1, 0
        self._draw()

    def _draw(self) -> None:
        before = self.generator.get_state()
        order = torch.randperm(self.count, generator=self.generator)
        self._after = self.generator.get_state()
        self.generator.set_state(before)
        steps = steps_per_epoch(self.count, self.batch_size)
        self._epoch_batches = order.split(self.batch_size)[:steps]

    def next(self) -> tuple[int, list[int]]:
        """Epoch and positions of the next batch."""
        if self.batches == len(self._epoch_batches):
            self.generator.set_state(self._after)
            self.epoch, self.batches = self.epoch + 1, 0
            self._draw()
        self.batches += 1
        return self.epoch, self._epoch_batches[self.batches - 1].tolist()

    def go_to(self, epoch: int, batches: int) -> None:
        """Stand where `batches` of `epoch` are done, with the generator put back already."""
        self.epoch, self.batches = epoch, batches
        self._draw()


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeper:
    """How a run outlives its process.

    snapshots: where they go. stop: looked at after every step. facts: gives what the caller wants
    to find in a snapshot, as JSON values. say: a line for people. start: the snapshot to go on
    from.
    """

    snapshots: Snapshots
    stop: StopRequest
    facts: Callable[[], Mapping[str, Any]]
    say: Callable[[str], object]
    start: Snapshot | None = None


def fit(
    network: Network,
    learn: Source,
    config: TrainConfig,
    plan: Plan,
    log: StepLog,
    keeper: Keeper | None = None,
) -> int:
    """Train neck and decoder until the plan is done; returns the number of steps.

    learn: features of the training images. Without a keeper nothing is saved on the way. Raises
    `TrainingError` with the step and the term when a loss or the gradient is not finite, and
    `TrainingInterruptedError` when the keeper was asked to stop and has saved.
    """
    device = network.feature_scale.device
    parameters = network.trainable()
    base_rate = config.learning_rate * config.batch_size / config.reference_batch
    optimizer = make_optimizer(
        parameters, base_rate, config.weight_decay, config.betas, config.state_share
    )
    order = Order(len(learn), config)
    step, done = 0, plan.progress(0)
    if keeper is not None and keeper.start is not None:
        step, done = _go_on(keeper.start, network, optimizer, order, plan)
    network.train()
    log.begin()
    while done < 1.0:
        epoch, positions = order.next()
        rate = base_rate * rate_at(done, config.shape)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        features = tuple(f.to(device) for f in learn.batch(positions))
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            scaled = network.scaled(features)
            terms = reconstruction_loss(scaled, network.reconstruct(scaled))
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters.values(), config.clip)
        values = {name: float(term.detach()) for name, term in terms.items()}
        step += 1
        _require_finite(step, values, float(norm))
        optimizer.step()
        done = plan.progress(step)
        log.step(epoch, step, values, float(norm), rate, len(positions), done)
        if keeper is not None and (keeper.snapshots.due() or keeper.stop.signal or done >= 1.0):
            loop = {"done": done, "epoch": order.epoch, "batches": order.batches}
            facts = {"loop": loop, "plan": plan.facts()}
            tensors = dict(training_tensors(network, optimizer, order.generator))
            _keep(keeper, Snapshot(step=step, tensors=tensors, facts=facts))
    network.eval()
    return step


def _go_on(
    start: Snapshot,
    network: Network,
    optimizer: torch.optim.Optimizer,
    order: Order,
    plan: Plan,
) -> tuple[int, float]:
    """Put everything back as it was; returns the steps done and the share of the run."""
    restore_training(start.tensors, network, optimizer, order.generator)
    loop = start.facts["loop"]
    order.go_to(loop["epoch"], loop["batches"])
    return start.step, max(loop["done"], plan.progress(start.step))


def _keep(keeper: Keeper, snapshot: Snapshot) -> None:
    """Save a snapshot; a full disk does not end the run, unless it was to end here."""
    step, stop = snapshot.step, keeper.stop
    try:
        facts = {**snapshot.facts, **keeper.facts()}
        keeper.snapshots.save(dataclasses.replace(snapshot, facts=facts))
    except OSError as error:
        failed = f"step {step} could not be saved ({error.strerror})"
        if stop.signal is None:
            keeper.say(f"{failed}; training goes on, free some space in {keeper.snapshots.folder}")
            return
        raise TrainingInterruptedError(
            f"stopped by {stop.name}: {failed}; --resume goes on from the snapshot before",
            stop.signal,
        ) from error
    if stop.signal is not None:
        raise TrainingInterruptedError(
            f"stopped by {stop.name} after step {step}, which is saved: the same command with "
            "--resume goes on from there",
            stop.signal,
        )


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Batches in a pass over the images.

    A last batch of one image is left out: BatchNorm may have nothing to average over in it.
    """
    full, rest = divmod(images, batch_size)
    return max(1, full + (rest > 1))


def _require_finite(step: int, terms: Mapping[str, float], norm: float) -> None:
    for name, value in (*terms.items(), ("gradient norm", norm)):
        if not math.isfinite(value):
            raise TrainingError(
                f"step {step}: {name} is {value}; no model was written. "
                "Try a lower learning rate or precision float32"
            )
