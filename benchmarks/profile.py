"""Where a training step's and a prediction's time goes: `scripts/bench profile [--preset lite]`.

Random features and images of the preset's shapes and random weights, so no data set is needed.
First the preset with the native library, with torch's scan in place of the native one, and with
torch alone, one after the other in every round, so that a machine that slows down slows all: images
per second of the training step (features given, as cached) and of the whole prediction, from pixels
to map. Then the training step of the preset without some of its parts. Medians, and from torch's
profiler the share of every kind of operation, forward and backward together. The torch scan is no
kind of its own: its time is among the others'.

On a CPU; nothing else should run beside it. --threads 1 --batch-size 8 --steps 12, for example.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks._context import RESULTS, describe
from mambaadv2.checkpoint import ModelCard
from mambaadv2.fit import TrainConfig, make_optimizer
from mambaadv2.model.config import ModelConfig
from mambaadv2.model.encoder import build_encoder
from mambaadv2.model.network import Network, reconstruction_loss
from mambaadv2.model.presets import PRESETS, preset_config
from mambaadv2.model.scoring import Scorer
from mambaadv2.predictor import Predictor
from mambaadv2.scan import ENVIRONMENT_VARIABLE, library

# What is compared, by what the environment asks for.
FORMS: dict[str, dict[str, str]] = {
    "native library": {ENVIRONMENT_VARIABLE: "native"},
    "torch's scan": {ENVIRONMENT_VARIABLE: "chunked"},
    "torch alone": {library.DISABLED_VARIABLE: "0"},
}
# First match wins; names as torch's profiler gives them.
KINDS = (
    ("scan", ("mambaadv2::scan", "_Scan")),
    ("convolution", ("convolution", "conv2d", "mambaadv2::depthwise")),
    ("matrix product", ("mm", "bmm", "addmm", "baddbmm")),
    ("normalisation", ("norm",)),
    ("optimiser", ("Optimizer", "_foreach", "_fused_adamw", "lerp", "addcdiv", "clip_grad")),
    ("layout", ("copy_", "cat", "index", "contiguous", "clone", "stack", "fill_", "zero_", "tril")),
)
Work = Callable[[], object]


def kind_of(name: str) -> str:
    """Kind of an operation, "elementwise" for all that is none of the others."""
    for kind, words in KINDS:
        if any(word in name for word in words):
            return kind
    return "elementwise"


def shares_of(work: Work) -> dict[str, float]:
    """Share of the time of `work` by kind of operation, largest first."""
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        work()
    shares: dict[str, float] = {}
    for event in trace.key_averages():
        kind = kind_of(event.key)
        shares[kind] = shares.get(kind, 0.0) + float(event.self_cpu_time_total)
    total = sum(shares.values())
    return {k: v / total for k, v in sorted(shares.items(), key=lambda item: -item[1])}


def training_step(network: Network, batch_size: int, precision: str = "float32") -> Work:
    """One step as `fit` makes it, with features that are there already."""
    features = network.features(torch.rand(batch_size, 3, *network.config.image_size))
    parameters = network.trainable()
    optimizer = make_optimizer(parameters, 1e-3, 1e-4, (0.9, 0.999))
    clip = TrainConfig(epochs=1).clip

    def step() -> None:
        network.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            scaled = network.scaled(features)
            terms = reconstruction_loss(scaled, network.reconstruct(scaled))
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), clip)
        optimizer.step()

    return step


def prediction(network: Network, batch_size: int) -> tuple[Work, Work]:
    """The whole prediction of a batch, without decoding files; and its encoder alone."""
    config = network.config
    scorer = Scorer(config.score, network.channels, 1, config.sigma, config.image_size).eval()
    card = ModelCard(
        model=config,
        encoder=network.encoder.provenance,
        classes=("any",),
        thresholds={"any": 1.0},
        calibration_images={"any": 1},
        calibration_scores={"any": (1.0,)},
        calibration_kinds={"any": "conformal"},
        calibration_trimmed={"any": ()},
        false_alarm_rate=0.5,
        false_alarm_confidence=None,
        leave_one_out=False,
        colour_scale=(0.0, 1.0),
    )
    predictor = Predictor(network, scorer, card, torch.device("cpu"))
    pixels = torch.randint(0, 256, (batch_size, 3, *config.image_size), dtype=torch.uint8)
    unit = pixels.float() / 255.0

    def predict() -> object:
        network.eval()
        return predictor.predict_tensor(pixels)

    @torch.inference_mode()
    def encode() -> object:
        return network.features(unit)

    return predict, encode


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Have these set, and nothing else of ours that chooses what computes."""
    ours = (ENVIRONMENT_VARIABLE, library.DISABLED_VARIABLE)
    before = {name: os.environ.pop(name) for name in ours if name in os.environ}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        os.environ.update(before)


def interleaved(works: Mapping[str, Work], rounds: int) -> dict[str, float]:
    """Median seconds of each piece of work over `rounds`, each round doing every one of them."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for index in range(rounds + 2):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if index >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def under(form: str, work: Work) -> Work:
    """The work, computed as this one of `FORMS` says."""

    def run() -> object:
        with environment(FORMS[form]):
            return work()

    return run


def build(config: ModelConfig) -> Network:
    """The network with random weights, the same each time."""
    torch.manual_seed(0)
    return Network(config, build_encoder(config.encoder, pretrained=False))


def compare_forms(
    config: ModelConfig, batch_size: int, rounds: int
) -> dict[str, dict[str, dict[str, object]]]:
    """Training step and predictions in every form that can be had, in one interleaved run."""
    network = build(config)
    forms = [name for name in FORMS if name != "native library" or library.why_not() is None]
    cases: dict[str, tuple[int, Work, Work | None]] = {
        "training step": (batch_size, training_step(network, batch_size), None)
    }
    for size in sorted({1, batch_size}):
        cases[f"prediction, batch {size}"] = (size, *prediction(network, size))
    tables: dict[str, dict[str, dict[str, object]]] = {}
    for case, (size, work, encode) in cases.items():
        works = {name: under(name, work) for name in forms}
        extra = {"encoder": encode} if encode is not None else {}
        seconds = interleaved({**works, **extra}, rounds)
        tables[case] = {}
        for name in forms:
            shares = shares_of(works[name])
            row: dict[str, object] = {"images_per_second": size / seconds[name], "shares": shares}
            if extra:
                row["encoder_share"] = seconds["encoder"] / seconds[name]
            tables[case][name] = row
            say(f"{case}, {name}", row)
    return tables


def say(name: str, row: Mapping[str, object]) -> None:
    """One line for people."""
    shares = row["shares"]
    assert isinstance(shares, dict)
    parts = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
    encoder = f"; encoder {row['encoder_share']:.0%} of it" if "encoder_share" in row else ""
    print(f"{name}: {row['images_per_second']:.1f} images/s; {parts}{encoder}", flush=True)


def variants(config: ModelConfig, batch_size: int, rounds: int) -> dict[str, dict[str, object]]:
    """The training step as it is, in bfloat16, and without some of its parts; interleaved."""
    steps = {"both paths": training_step(build(config), batch_size)}
    steps["both paths, bfloat16"] = training_step(build(config), batch_size, "bfloat16")
    for name, changes in (
        ("convolutions only", {"paths": "none"}),
        ("no frequency enhancement", {"frequency": "none"}),
    ):
        changed = dataclasses.replace(config, **changes)  # type: ignore[arg-type]
        steps[name] = training_step(build(changed), batch_size)
    seconds = interleaved(steps, rounds)
    rows: dict[str, dict[str, object]] = {}
    for name, step in steps.items():
        rows[name] = {"images_per_second": batch_size / seconds[name], "shares": shares_of(step)}
        say(name, rows[name])
    return rows


def main(arguments: Sequence[str]) -> int:
    """Profile the preset in every form, and without some of its parts, in one run."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--preset", choices=PRESETS, default="lite")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    config = preset_config(args.preset)
    forms = compare_forms(config, args.batch_size, args.steps)
    rows = variants(config, args.batch_size, args.steps)
    out: Path = args.out or RESULTS / f"profile-{args.preset}.json"
    out.parent.mkdir(exist_ok=True)
    head = describe("profile", arguments)
    content = {**head, "forms": forms, "variants": rows}
    out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
