"""Where the time of a training step goes: `scripts/bench profile [--preset lite] [--batch-size 8]`.

Random features of the preset's shapes, so no data set is needed. Prints images per second of the
whole step (median), and the share of every kind of operation, forward and backward together, from
torch's profiler. On a CPU; nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks._context import describe
from mambaadv2.fit import make_optimizer
from mambaadv2.model.encoder import build_encoder
from mambaadv2.model.network import Network, reconstruction_loss
from mambaadv2.model.presets import PRESETS, preset_config

RESULTS = Path(__file__).parent / "results"
# First match wins; names as torch's profiler gives them.
KINDS = (
    ("convolution", ("convolution", "conv2d")),
    ("matrix product", ("mm", "bmm", "addmm", "baddbmm")),
    ("normalisation", ("norm",)),
    ("optimiser", ("Optimizer", "_foreach", "lerp", "addcdiv", "clip_grad")),
    ("layout", ("copy_", "cat", "index", "contiguous", "clone", "stack", "fill_", "zero_", "tril")),
)


def kind_of(name: str) -> str:
    """Kind of an operation, "elementwise" for all that is none of the others."""
    for kind, words in KINDS:
        if any(word in name for word in words):
            return kind
    return "elementwise"


def measure(network: Network, batch_size: int, steps: int) -> tuple[float, dict[str, float]]:
    """Median images per second over `steps` steps, and the share of time by kind of operation."""
    images = torch.rand(batch_size, 3, *network.config.image_size)
    features = network.features(images)
    optimizer = make_optimizer(network.trainable(), 1e-3, 1e-4, (0.9, 0.999))
    network.train()

    def step() -> None:
        scaled = network.scaled(features)
        loss = torch.stack(
            list(reconstruction_loss(scaled, network.reconstruct(scaled)).values())
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds: list[float] = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        step()
    shares: dict[str, float] = {}
    for event in trace.key_averages():
        kind = kind_of(event.key)
        shares[kind] = shares.get(kind, 0.0) + float(event.self_cpu_time_total)
    total = sum(shares.values())
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return batch_size / statistics.median(seconds[2:]), {k: v / total for k, v in ordered}


def main(arguments: Sequence[str]) -> int:
    """Profile the preset as it is and without its state-space paths, in one run."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--preset", choices=PRESETS, default="lite")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args(arguments)
    rows: dict[str, object] = {}
    base = preset_config(args.preset)
    for name, changes in (
        ("both paths", {}),
        ("convolutions only", {"paths": "none"}),
        ("no frequency enhancement", {"frequency": "none"}),
    ):
        torch.manual_seed(0)
        config = dataclasses.replace(base, **changes)  # type: ignore[arg-type]
        encoder = build_encoder(config.encoder, pretrained=False)
        speed, shares = measure(Network(config, encoder), args.batch_size, args.steps)
        rows[name] = {"images_per_second": speed, "shares": shares}
        parts = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
        print(f"{name}: {speed:.1f} images/s; {parts}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    out = RESULTS / f"profile-{args.preset}.json"
    head = describe("profile", arguments)
    out.write_text(json.dumps({**head, "variants": rows}, indent=2) + "\n", encoding="utf-8")
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
