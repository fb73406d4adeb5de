"""Training: good images in, a run folder out. The loop is flat and in order of time.

Nothing here looks at test images: the split is train/good, of which a part is held out for the
scorer's statistics and the thresholds.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mambaadv2 import __version__
from mambaadv2.checkpoint import ModelCard, make_scorer, remove_run, save_run
from mambaadv2.data.features import (
    ImageSource,
    Source,
    SourceSlice,
    fill_store,
    fingerprint,
    plan_cache,
    slices,
)
from mambaadv2.data.index import mvtec_records
from mambaadv2.device import choose_device
from mambaadv2.errors import ConfigError
from mambaadv2.files import writing_to
from mambaadv2.fit import Plan, StepPlan, TimePlan, TrainConfig, fit, steps_per_epoch
from mambaadv2.heldout import HeldOut, fit_on_heldout
from mambaadv2.model.config import ModelConfig
from mambaadv2.model.encoder import build_encoder
from mambaadv2.model.network import Network, pca_start, set_feature_scale
from mambaadv2.model.presets import preset_config
from mambaadv2.runlog import RunLog

LEAST_SHARE = 0.1  # of `minutes`, for training, where features and calibration leave less
START_IMAGES = 64  # behind the feature scale and the PCA start

# Length and batch of a run where the caller names none.
PRESET_TRAINING: Mapping[str, TrainConfig] = {
    "lite": TrainConfig(minutes=30.0, batch_size=8, reference_batch=8),
    "r34": TrainConfig(epochs=100, batch_size=16, shape="step"),
}


def train(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    preset: str = "lite",
    encoder: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    limit_classes: Sequence[str] | None = None,
    progress: bool = True,
) -> Path:
    """Train one model on all classes of a data set and write a run folder; returns its path.

    data: root in MVTec AD's layout. out: folder to write. preset: "lite" or "r34". encoder,
    weights: another timm encoder, its weights from a file. epochs or minutes: length of the run; by
    default the preset's. image_size: side of the square input in pixels, a multiple of 32.
    limit_classes: learn only these. batch_size: images per step; the learning rate follows it.
    seed: of start values, order and held-out images. device: "auto" is a GPU where there is one.
    precision: of the decoder's arithmetic while it trains. progress: bars and messages on stderr.
    On a CPU the same seed and number of threads give the same bits, unless `minutes` sets the
    length.

    Before any work: `DataError` for a wrong root, `WeightsError` for weights that cannot be had,
    `ConfigError` for a value out of range. Then `ImageError` for a file that cannot be decoded,
    `TrainingError` when the loss stops being finite. A model that was in `out` is removed when the
    work begins: what lies there after an error is never an older run's.

    >>> from mambaadv2 import train, evaluate  # doctest: +SKIP
    >>> run = train("parts", "runs/parts", minutes=10)  # doctest: +SKIP
    >>> print(evaluate(run, "parts").table())  # doctest: +SKIP
    """
    if epochs is not None and minutes is not None:
        raise ConfigError("epochs, minutes: expected at most one of them")
    if image_size is not None and (image_size < 32 or image_size % 32):
        raise ConfigError(f"image_size: expected a multiple of 32, at least 32, got {image_size}")
    size = None if image_size is None else (image_size, image_size)
    model = preset_config(preset, encoder=encoder, image_size=size)
    base = PRESET_TRAINING[preset]
    config = dataclasses.replace(
        base,
        epochs=base.epochs if epochs is None and minutes is None else epochs,
        minutes=base.minutes if epochs is None and minutes is None else minutes,
        batch_size=base.batch_size if batch_size is None else batch_size,
        seed=seed,
        device=device,
        precision=precision,
    )
    return train_model(
        data, out, model, config, weights=weights, classes=limit_classes, progress=progress
    )


def train_model(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    model: ModelConfig,
    config: TrainConfig,
    *,
    weights: str | os.PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    progress: bool = True,
) -> Path:
    """As `train`, with every field of the model and of the run in the caller's hands."""
    start = time.monotonic()
    paths = _paths_by_class(data, classes)
    folder, device = Path(out), choose_device(config.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        backbone = build_encoder(
            model.encoder, weights=Path(weights) if weights else None, image_size=model.image_size
        )
        network = Network(model, backbone).to(device)
        parts = {name: split_class(files, config) for name, files in paths.items()}
        _require_batch(parts, model, config)
        with writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            remove_run(folder)
        settings = {"model": model, "training": config, "encoder": backbone.provenance}
        with RunLog(folder, progress=progress, settings=settings) as log:
            learn, held, print_ = _sources(network, parts, config, folder, log)
            set_start(network, learn, config)
            plan = _plan(network, learn, held, config, start, log)
            steps = fit(network, learn, config, plan, log)
            log.say("calibrating on held-out normal images")
            scorer = make_scorer(model, network, len(parts)).to(device)
            held_parts = slices(held, [len(p.held) for p in parts.values()])
            learn_parts = slices(learn, [len(p.learn) for p in parts.values()])
            held_out = fit_on_heldout(
                network,
                scorer,
                dict(zip(parts, held_parts, strict=True)),
                dict(zip(parts, learn_parts, strict=True)),
            )
            seconds = time.monotonic() - start
            facts = {
                "version": __version__,
                "steps": steps,
                "seconds": round(seconds, 1),
                "seed": config.seed,
                "images": {name: len(p.learn) for name, p in parts.items()},
                "data_sha256": print_,
            }
            save_run(folder, network, scorer, _card(network, held_out, parts, facts))
            log.say(f"done in {seconds:.0f} s after {steps} steps: {folder}")
    return folder


@dataclass(frozen=True, slots=True)
class Part:
    """Files of one class: to learn from, and held out."""

    learn: tuple[Path, ...]
    held: tuple[Path, ...]


def _paths_by_class(
    data: str | os.PathLike[str], classes: Sequence[str] | None
) -> dict[str, list[Path]]:
    paths: dict[str, list[Path]] = {}
    for record in mvtec_records(data, split="train", classes=classes):
        paths.setdefault(record.class_name, []).append(record.path)
    return paths


def split_class(paths: Sequence[Path], config: TrainConfig) -> Part:
    """Hold out a share of a class's images, the same ones for the same seed and number of files.

    A class of one image is used for both; its threshold then says little, and the card shows it.
    """
    count = len(paths)
    if count == 1:
        return Part(learn=tuple(paths), held=tuple(paths))
    least = min(config.holdout_least, count // 3)
    held = max(1, least, round(config.holdout * count))
    generator = torch.Generator().manual_seed(config.seed)
    chosen = set(torch.randperm(count, generator=generator)[: min(held, count - 1)].tolist())
    return Part(
        learn=tuple(p for i, p in enumerate(paths) if i not in chosen),
        held=tuple(p for i, p in enumerate(paths) if i in chosen),
    )


def _require_batch(parts: Mapping[str, Part], model: ModelConfig, config: TrainConfig) -> None:
    """BatchNorm needs two values per channel; the neck's last maps are H/32 x W/32."""
    images = min(config.batch_size, sum(len(part.learn) for part in parts.values()))
    if images * (model.image_size[0] // 32) * (model.image_size[1] // 32) < 2:
        raise ConfigError(
            "batch_size, image_size: one image of 32 x 32 pixels per step leaves BatchNorm a "
            "single value; give more images, a larger batch or a larger size"
        )


def _plan(
    network: Network, learn: Source, held: Source, config: TrainConfig, start: float, log: RunLog
) -> Plan:
    """Length of the run; with `minutes`, what features have taken and calibration will is gone."""
    if config.minutes is None:
        total = (config.epochs or 1) * steps_per_epoch(len(learn), config.batch_size)
        return StepPlan(total=total)
    reserve = _calibration_seconds(network, learn, held)
    now, budget = time.monotonic(), 60 * config.minutes
    end, least = start + budget - reserve, now + LEAST_SHARE * budget
    if end < least:
        log.say(
            f"minutes: {config.minutes:g} is too short here: features took {now - start:.0f} s and "
            f"calibration needs about {reserve:.0f} s; training {least - now:.0f} s all the same"
        )
    return TimePlan(start=now, end=max(end, least))


def _sources(
    network: Network, parts: Mapping[str, Part], config: TrainConfig, folder: Path, log: RunLog
) -> tuple[Source, Source, str]:
    """Features of the images to learn from and of the held-out ones, and the data's fingerprint."""
    device, size = network.feature_scale.device, network.config.image_size
    learn = [path for part in parts.values() for path in part.learn]
    held = [path for part in parts.values() for path in part.held]

    def encode(images: Tensor) -> tuple[Tensor, ...]:
        return network.features(images.to(device))

    shapes = [(f.shape[1], f.shape[2], f.shape[3]) for f in encode(torch.zeros(1, 3, *size))]
    values = sum(c * h * w for c, h, w in shapes)
    plan = plan_cache(config.cache, len(learn) + len(held), values, folder)
    log.say(plan.reason)
    print_ = fingerprint(learn + held)
    if plan.mode == "off":
        return ImageSource(learn, size, encode), ImageSource(held, size, encode), print_
    provenance = network.encoder.provenance
    mean, std = (b.flatten().tolist() for b in (network.encoder.mean, network.encoder.std))
    encoder = f"{provenance.name} {provenance.sha256} {mean} {std} timm {version('timm')}"
    key = f"{print_} {encoder} {size}"
    stores: list[Source] = []
    with log.bar(len(learn) + len(held), "features") as tick:
        for name, files in (("learn", learn), ("held", held)):
            target = folder / "features" / name if plan.mode == "disk" else None
            stores.append(
                fill_store(files, size, encode, shapes, folder=target, key=key, tick=tick)
            )
    return stores[0], stores[1], print_


def set_start(network: Network, learn: Source, config: TrainConfig) -> None:
    """Feature scale and PCA start from images drawn evenly over the whole list."""
    count = min(START_IMAGES, len(learn))
    positions = [i * len(learn) // count for i in range(count)]
    device = network.feature_scale.device
    features = tuple(f.to(device) for f in learn.batch(positions))
    set_feature_scale(network, features)
    if config.pca_start:
        pca_start(network, features)


def _calibration_seconds(network: Network, learn: Source, held: Source) -> float:
    """Seconds that calibration will take: a rehearsal on one image, scaled up."""
    scorer = make_scorer(network.config, network, 1).to(network.feature_scale.device)
    seconds: list[float] = []
    for _ in range(3):  # the first time anything runs it is slow
        start = time.monotonic()
        learn.batch([0])
        encoded = time.monotonic()
        fit_on_heldout(
            network, scorer, {"": SourceSlice(held, 0, 1)}, {"": SourceSlice(learn, 0, 1)}
        )
        seconds.append((encoded - start) * len(learn) + (time.monotonic() - encoded) * len(held))
    return min(seconds)


def _card(
    network: Network, held_out: HeldOut, parts: Mapping[str, Part], facts: Mapping[str, object]
) -> ModelCard:
    return ModelCard(
        model=network.config,
        encoder=network.encoder.provenance,
        classes=tuple(parts),
        thresholds={name: c.threshold for name, c in held_out.classes.items()},
        calibration_images={name: c.images for name, c in held_out.classes.items()},
        colour_scale=(held_out.colours.low, held_out.colours.high),
        training=dict(facts),
    )
