"""What each part of the decoder is worth: variants of the lite preset, trained alike.

    scripts/bench ablate                                  100 epochs each, seeds 0, 1, 2
    scripts/bench ablate --steps 600 --only default,paths-none

Every variant has the same number of steps and, for the same seed, the same held-out images and the
same batches in the same order. Encoder features are computed once. Each trained network is scored
twice, by the cosine and by the whitened residual, so the score is compared on equal networks.

A finished (variant, seed) is a line of benchmarks/results/ablate-<hardware>.jsonl and is not run
again, unless the steps, the data or the preset differ. Variants run in order of importance, so
that a run cut short has answered the larger questions.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks._ablation_tables import ENOUGH_EPOCHS, Line, percent, report
from benchmarks._cached import CachedData, Picked, cache, evaluate_cached
from benchmarks._context import (
    DATA_HELP,
    RESULTS,
    Device,
    describe,
    find_data,
    hardware_slug,
    integers,
)
from mambaadv2.checkpoint import make_scorer
from mambaadv2.device import DEVICES, choose_device
from mambaadv2.errors import ConfigError, MambaADv2Error
from mambaadv2.fit import StepPlan, TrainConfig, fit, steps_per_epoch
from mambaadv2.heldout import fit_on_heldout
from mambaadv2.model.config import ModelConfig
from mambaadv2.model.encoder import FrozenEncoder, build_encoder
from mambaadv2.model.network import Network
from mambaadv2.model.presets import preset_config
from mambaadv2.prepare import set_start, split_class
from mambaadv2.train import PRESET_TRAINING

PRESET = "lite"
LOSS_SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
LOSS_STEPS = 10  # behind each number
WARM_UP = 3  # steps left out of the speed: whatever runs first is slow


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """The preset with something changed."""

    name: str
    model: Mapping[str, object] = field(default_factory=dict)
    """Changed fields of `ModelConfig`."""
    training: Mapping[str, object] = field(default_factory=dict)
    """Changed fields of `TrainConfig`."""


VARIANTS = (
    Variant(name="default"),
    Variant(name="paths-none", model={"paths": "none"}),
    Variant(name="ancestor-fusion", model={"fusion": "concat"}, training={"state_share": 1.0}),
    Variant(name="state-rate-full", training={"state_share": 1.0}),
    Variant(name="fusion-concat", model={"fusion": "concat"}),
    Variant(name="paths-recurrence", model={"paths": "recurrence"}),
    Variant(name="paths-matrix", model={"paths": "matrix"}),
    Variant(name="frequency-none", model={"frequency": "none"}),
    Variant(name="frequency-fft", model={"frequency": "fft"}),
    Variant(name="band-kernel-full", model={"band_kernel": None}),
    Variant(name="directions-8", model={"directions": (8, 8, 8)}),
    Variant(name="directions-2", model={"directions": (2, 2, 2)}),
    Variant(name="directions-1", model={"directions": (1, 1, 1)}),
    Variant(name="direction-weights-off", model={"direction_weights": False}),
    Variant(name="rotary-off", model={"rotary": False}),
    Variant(name="trapezoid-off", model={"trapezoid": False}),
    Variant(name="mamba2", model={"rotary": False, "trapezoid": False}),
    Variant(name="pca-start-off", training={"pca_start": False}),
)
"""By importance; "default" has the preset's directions, both paths and everything on."""


class LossLog:
    """What `fit` reports, without files or progress bar: losses, images and the clock by step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.images: list[int] = []
        self.ends: list[float] = []
        self.start = 0.0

    def begin(self) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def step(
        self,
        epoch: int,
        step: int,
        terms: Mapping[str, float],
        norm: float,
        rate: float,
        images: int,
        done: float,
    ) -> None:
        """Record a step."""
        self.losses.append(sum(terms.values()))
        self.images.append(images)
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """From the first step's start to the last one's end."""
        return self.ends[-1] - self.start

    @property
    def images_per_second(self) -> float:
        """Without the first steps, as far as there are others."""
        skipped = min(WARM_UP, len(self.ends) - 1)
        start = self.ends[skipped - 1] if skipped else self.start
        return sum(self.images[skipped:]) / (self.ends[-1] - start)

    def at(self, share: float) -> float:
        """Mean loss of the last few steps before a share of the run."""
        end = max(1, round(share * len(self.losses)))
        return statistics.fmean(self.losses[max(0, end - LOSS_STEPS) : end])


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training: everything that decides its result but the machine."""

    variant: Variant
    seed: int
    steps: int
    model: ModelConfig
    data_sha256: str
    encoder_sha256: str | None

    @property
    def training(self) -> TrainConfig:
        """Settings of the preset; the length is in `steps`."""
        changes = dict(self.variant.training)
        return dataclasses.replace(
            PRESET_TRAINING[PRESET],
            epochs=1,
            minutes=None,
            seed=self.seed,
            **changes,  # type: ignore[arg-type]
        )

    @property
    def key(self) -> str:
        """Short hash; a result with the same one need not be computed again."""
        facts = {
            "variant": self.variant.name,
            "steps": self.steps,
            "model": dataclasses.asdict(self.model),
            "training": dataclasses.asdict(self.training),
            "data": self.data_sha256,
            "encoder": self.encoder_sha256,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def run_job(job: Job, data: CachedData, encoder: FrozenEncoder) -> Line:
    """Train, calibrate and evaluate one network, as `mambaadv2.train` would."""
    config, device = job.training, encoder.mean.device
    position = {
        path: i for i, path in enumerate(p for paths in data.train_paths.values() for p in paths)
    }
    parts = {name: split_class(paths, config) for name, paths in data.train_paths.items()}
    learn = {n: Picked(data.train, [position[p] for p in x.learn]) for n, x in parts.items()}
    held = {n: Picked(data.train, [position[p] for p in x.held]) for n, x in parts.items()}
    everything = Picked(data.train, [i for part in learn.values() for i in part.positions])
    log = LossLog()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(job.seed)
        network = Network(job.model, encoder).to(device)
        set_start(network, everything, config)
        fit(network, everything, config, StepPlan(total=job.steps), log)
    scorers = {
        kind: make_scorer(
            dataclasses.replace(job.model, score=kind), network, len(data.classes)
        ).to(device)
        for kind in ("whitened", "cosine")
    }
    # The cosine has no statistics, and the first scorer finds the class for both.
    fit_on_heldout(network, scorers["whitened"], held, learn)
    scores = evaluate_cached(network, scorers, data)
    return {
        "key": job.key,
        "variant": job.variant.name,
        "seed": job.seed,
        "steps": job.steps,
        "epochs": round(sum(log.images) / len(everything), 2),
        "parameters": sum(p.numel() for p in network.trainable().values()),
        "loss": {f"{share:g}": log.at(share) for share in LOSS_SHARES},
        "seconds": round(log.seconds, 2),
        "images_per_second": round(log.images_per_second, 2),
        "evaluation_seconds": round(scores["whitened"].seconds, 2),
        "scores": {kind: found.content() for kind, found in scores.items()},
    }


def read_lines(path: Path) -> list[Line]:
    """Finished results; a line that a crash cut off is left out."""
    if not path.is_file():
        return []
    lines: list[Line] = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def append_line(path: Path, line: Line) -> None:
    """Add a result; a cut-off last line stays a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        size = file.tell()
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(line, allow_nan=False).encode() + b"\n")


def benchmark(
    data: Path,
    out: Path | None,
    *,
    variants: Sequence[Variant] = VARIANTS,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int | None = None,
    device: Device = "auto",
    base: ModelConfig | None = None,
    head: Mapping[str, object] | None = None,
) -> list[Line]:
    """Run what is not in `out` yet; return the results of all, by importance and seed.

    steps: by default 100 epochs. base: by default the preset's. head: facts to store with each
    result. out: by default benchmarks/results/ablate-<hardware>.jsonl.
    """
    if steps is not None and steps < 1:
        raise ConfigError(f"steps: expected at least 1, got {steps}")
    chosen, model = choose_device(device), base or preset_config(PRESET)
    target = out or RESULTS / f"ablate-{hardware_slug(chosen)}.jsonl"
    encoder = build_encoder(model.encoder, image_size=model.image_size).to(chosen)
    # Of this network only the encoder is used.
    cached = cache(data, Network(model, encoder).to(chosen))
    count = steps or _steps(cached, ENOUGH_EPOCHS)
    jobs = [
        Job(
            variant=variant,
            seed=seed,
            steps=count,
            model=ModelConfig.from_dict(dataclasses.asdict(model) | dict(variant.model)),
            data_sha256=cached.data_sha256,
            encoder_sha256=encoder.provenance.sha256,
        )
        for variant in variants
        for seed in seeds
    ]
    finished = {line["key"]: line for line in read_lines(target)}
    missing = [job for job in jobs if job.key not in finished]
    print(f"{len(jobs)} trainings of {count} steps, {len(missing)} to do; results in {target}")
    start = time.perf_counter()
    for done, job in enumerate(missing, start=1):
        line = run_job(job, cached, encoder) | {"device": str(chosen)} | dict(head or {})
        append_line(target, line)
        finished[job.key] = line
        left = (time.perf_counter() - start) / done * (len(missing) - done)
        print(f"{_progress(line)}; about {left / 60:.0f} min left", flush=True)
    return [finished[job.key] for job in jobs]


def _steps(data: CachedData, epochs: int) -> int:
    config = PRESET_TRAINING[PRESET]
    images = sum(len(split_class(paths, config).learn) for paths in data.train_paths.values())
    return epochs * steps_per_epoch(images, config.batch_size)


def _progress(line: Line) -> str:
    mean = line["scores"]["whitened"]["mean"]
    return (
        f"{line['variant']} seed {line['seed']}: {line['seconds']:.0f} s, "
        f"{line['images_per_second']:.1f} images/s, loss {line['loss']['1']:.3f}, "
        f"whitened image AUROC {percent([mean['image_auroc']])}, "
        f"pixel {percent([mean['pixel_auroc']])}"
    )


def _variants(names: str) -> tuple[Variant, ...]:
    """Variants by name, in order of importance."""
    wanted = set(names.split(","))
    unknown = wanted - {variant.name for variant in VARIANTS}
    if unknown:
        known = ", ".join(variant.name for variant in VARIANTS)
        raise ConfigError(f"--only: expected names out of {known}; got {', '.join(unknown)}")
    return tuple(variant for variant in VARIANTS if variant.name in wanted)


def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench ablate", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--steps", type=int, help="of each training (100 epochs)")
    parser.add_argument("--seeds", type=integers, default=(0, 1, 2), metavar="SEEDS")
    parser.add_argument("--only", metavar="NAMES", help="variants to run, separated by commas")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--data", type=Path, help=DATA_HELP)
    parser.add_argument("--out", type=Path, help="results file, also read")
    options = parser.parse_args(arguments)
    try:
        lines = benchmark(
            find_data(options.data),
            options.out,
            variants=_variants(options.only) if options.only else VARIANTS,
            seeds=options.seeds,
            steps=options.steps,
            device=options.device,
            head=describe("ablate", arguments),
        )
    except MambaADv2Error as error:
        print(f"scripts/bench ablate: {error}", file=sys.stderr)
        return 2
    print(f"\n{report(lines, preset_config(PRESET).score)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
