"""Times of the selective scan: every backend that is here, forward and forward with backward.

    scripts/bench scan [--full] [--threads 1,2] [--no-growth]

For every shape all candidates run in turn, one after another in one process, and the table gives
medians and their ratios to the chunked torch form, so that a busy machine disturbs them alike. The
decoder's shapes come first. Beside the backends: Mamba-2's `ssd_minimal` and, where they are
installed, mambapy's parallel scan, once per direction, and the chunked form as a graph in ONNX
Runtime and OpenVINO, forward only. Peak memory of a training step is taken in a process of its own.
Then the growth from 256 to 65,536 tokens beside attention of the same width, drawn into the plot of
docs/scan.md. Random values, so no data set is needed; on a CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._context import (
    RESULTS,
    ROOT,
    describe,
    hardware_slug,
    integers,
    markdown,
)
from benchmarks._scan_baselines import parallel_scan, ssd_minimal
from benchmarks._scan_graphs import graphs
from mambaadv2.report import line_chart
from mambaadv2.scan import available_backends, selective_scan
from mambaadv2.scan.orders import directions

BASE = "chunked"
SECONDS = 1.0  # that a candidate gets at a shape, at least three runs
LARGEST_MATRIX = 1 << 27  # elements of the quadratic form's scores


@dataclass(frozen=True, slots=True)
class Shape:
    """One scan: b images of side x side tokens, H heads of P values, N state dims, K directions."""

    name: str
    b: int
    side: int
    H: int
    K: int
    P: int = 32
    N: int = 32

    @property
    def length(self) -> int:
        return self.side * self.side


DECODER = (
    Shape("r34 64^2", 1, 64, 4, 8),
    Shape("r34 32^2", 1, 32, 8, 4),
    Shape("r34 16^2", 1, 16, 16, 2),
    Shape("lite 32^2", 8, 32, 3, 2, 64, 16),
    Shape("lite 16^2", 8, 16, 6, 1, 64, 16),
    Shape("lite 8^2", 8, 8, 12, 1, 64, 16),
)
FULL = tuple(
    Shape(f"b{b} {side}^2 C{channels} K{k}", b, side, channels // 32, k)
    for side in (8, 16, 32, 64)
    for channels in (64, 128, 256, 512)
    for k in (1, 2, 4, 8)
    for b in (1, 8, 16)
)
GROWTH = (16, 32, 64, 128, 256)  # sides: 256 to 65,536 tokens

Candidate = Callable[..., Tensor]


def inputs(shape: Shape) -> list[Tensor]:
    """The ten tensors of `selective_scan`, as a trained model has them."""
    random = torch.Generator().manual_seed(0)
    b, L, H, P, N, K = shape.b, shape.length, shape.H, shape.P, shape.N, shape.K

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=random)

    return [
        normal(b, L, H, P),
        normal(b, L, 1, N),
        normal(b, L, 1, N),
        torch.exp(1.5 * normal(b, K, L, H) - 3),
        -torch.exp(normal(b, L, H)),
        2 * normal(b, L, H),
        normal(b, L, N // 4),
        1 + 0.3 * normal(K, H, N),
        1 + 0.3 * normal(K, H, N),
        1 + 0.3 * normal(K, H),
    ]


def candidates(shape: Shape) -> Iterator[tuple[str, Candidate]]:
    """Name and function of the ten tensors, the base first."""
    order = directions("hilbert", shape.side, shape.side, shape.K)
    names = [name for name in available_backends() if name not in (BASE, "reference")]
    matrix = shape.b * shape.K * shape.H * shape.length**2
    for name in [BASE, *names]:
        if name == "quadratic" and matrix > LARGEST_MATRIX:
            continue

        def scan(*tensors: Tensor, backend: str = name) -> Tensor:
            return selective_scan(*tensors, order=order, backend=backend)

        yield name, scan

    def ssd(x: Tensor, B: Tensor, C: Tensor, dt: Tensor, A: Tensor, *rest: Tensor) -> Tensor:
        heads = (-1, -1, shape.H, -1)
        parts = [
            ssd_minimal(x * step.unsqueeze(-1), step * A, B.expand(heads), C.expand(heads))
            for step in dt.unbind(1)
        ]
        return torch.stack(parts).sum(dim=0)

    yield "ssd_minimal", ssd
    pscan = parallel_scan()
    if pscan is not None and shape.b * shape.length * shape.H * shape.P * shape.N < LARGEST_MATRIX:

        def scan_all(
            x: Tensor, B: Tensor, C: Tensor, dt: Tensor, A: Tensor, *rest: Tensor
        ) -> Tensor:
            total = torch.zeros_like(x)
            for step in dt.unbind(1):
                decay = torch.exp(step * A)[..., None, None]
                write = (x * step.unsqueeze(-1)).unsqueeze(-1) * B.unsqueeze(3)
                decay = decay.expand_as(write).flatten(2, 3)
                states = pscan(decay, write.flatten(2, 3)).view_as(write)
                total = total + (states * C.unsqueeze(3)).sum(-1)
            return total

        yield "mambapy pscan", scan_all


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def training(function: Candidate, leaves: list[Tensor], dy: Tensor) -> Callable[[], object]:
    """A forward and backward pass as one call."""
    return lambda: torch.autograd.grad(function(*leaves), leaves, dy, allow_unused=True)


def compare(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median milliseconds of each, taken in turns."""
    first = {name: max(seconds(run), seconds(run)) for name, run in runs.items()}
    rounds = max(3, min(30, int(SECONDS * len(first) / sum(first.values()))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    return {name: 1e3 * statistics.median(taken) for name, taken in times.items()}


def measure(shape: Shape) -> dict[str, dict[str, float]]:
    """Milliseconds of every candidate by pass: {"forward": {name: ms}, "training": {...}}."""
    tensors = inputs(shape)
    leaves = [part.clone().requires_grad_() for part in tensors]
    dy = torch.randn_like(tensors[0])
    functions = dict(candidates(shape))
    order = directions("hilbert", shape.side, shape.side, shape.K)
    with torch.no_grad():
        expected = functions[BASE](*tensors)
        once = functions | dict(graphs(tensors, order))
        for name in set(once) - {"ssd_minimal", "mambapy pscan"}:  # these compute less
            wrong = (once[name](*tensors) - expected).abs().max() / expected.abs().max()
            assert wrong < 1e-3, f"{name}: {float(wrong):.1e} away from {BASE} at {shape}"
        forward = compare({n: lambda f=f: f(*tensors) for n, f in once.items()})  # type: ignore[misc]
    both = compare({n: training(f, leaves, dy) for n, f in functions.items()})
    return {"forward": forward, "training": both}


def peak_mb(shape: Shape, backend: str) -> dict[str, float]:
    """Memory of one training step above that of its inputs, and of inputs, outputs and gradients.

    In MB. In a process of its own, because a peak never falls.
    """
    code = (
        "import sys, torch\n"
        "from benchmarks import scan\n"
        f"print(scan.own_peak(scan.Shape{tuple(asdict(shape).values())}, {backend!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    tensors = inputs(shape)
    held = 2 * sum(part.nbytes for part in tensors) + 2 * tensors[0].nbytes
    return {"step": float(done.stdout), "inputs and outputs": held / 1e6}


def own_peak(shape: Shape, backend: str) -> float:
    """Peak memory of a training step with its inputs, above what the process held before, in MB."""
    resident = 0.0
    for current in (Shape("warm-up", 1, 8, 1, 1), shape):
        resident = _status_mb("VmRSS")
        leaves = [part.requires_grad_() for part in inputs(current)]
        # Linux: sets the peak back to what is held now. Importing torch reached a higher one.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        order = directions("hilbert", current.side, current.side, current.K)
        y = selective_scan(*leaves, order=order, backend=backend)
        torch.autograd.grad(y, leaves, torch.ones_like(y))
    return _status_mb("VmHWM") - resident


def _status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024 / 1e6


def growth(channels: int = 128) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds of one forward pass against the length, beside attention of the same width."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for side in GROWTH:
        shape = Shape("", 1, side, channels // 32, 1)
        tensors = inputs(shape)
        runs: dict[str, Callable[[], object]] = {
            f"scan, {name}": lambda f=function, t=tensors: f(*t)  # type: ignore[misc]
            for name, function in candidates(shape)
            if name in (BASE, "native")
        }
        q = torch.randn(1, shape.H, shape.length, 32)
        runs["attention"] = lambda q=q: F.scaled_dot_product_attention(q, q, q)  # type: ignore[misc]
        with torch.no_grad():
            found = compare(runs)
        for name, milliseconds in found.items():
            lines.setdefault(name, []).append((shape.length, milliseconds))
        print(f"L {shape.length}: " + ", ".join(f"{n} {t:.2f} ms" for n, t in found.items()))
    return lines


def table(shape: Shape, found: dict[str, dict[str, float]]) -> list[list[str]]:
    """Rows of one shape: candidate, times, and how many times faster than the base."""
    rows = []
    for name in found["forward"]:
        row = [f"{shape.name} {name}"]
        for part in ("forward", "training"):
            ms = found[part].get(name)
            row += ["-", "-"] if ms is None else [f"{ms:.2f}", f"{found[part][BASE] / ms:.1f}"]
        rows.append(row)
    return rows


def main(arguments: Sequence[str]) -> int:
    """Measure, print the tables and write JSON and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--full", action="store_true", help="all shapes; takes an hour or more")
    parser.add_argument("--threads", type=integers, default=(1, 2))
    parser.add_argument("--no-growth", action="store_true")
    args = parser.parse_args(arguments)
    head = ["shape, candidate", "forward ms", "times", "forward+backward ms", "times"]
    results: list[dict[str, object]] = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        rows = [head]
        for shape in (*DECODER, *FULL) if args.full else DECODER:
            found = measure(shape)
            rows += table(shape, found)
            results.append({"threads": threads, "shape": asdict(shape), "milliseconds": found})
        print(f"\nthreads: {threads}; times: how often it fits into the {BASE} form's time")
        print(markdown(rows), flush=True)
    memory = {
        shape.name: {name: peak_mb(shape, name) for name in (BASE, "native")}
        for shape in DECODER
        if "native" in available_backends()
    }
    for name, peaks in memory.items():
        parts = (f"{n} {p['step']:.0f}" for n, p in peaks.items())
        held = peaks[BASE]["inputs and outputs"]
        print(f"{name}: MB of a training step: {', '.join(parts)}; inputs and outputs {held:.0f}")
    lines: dict[str, list[tuple[float, float]]] = {}
    if not args.no_growth:
        torch.set_num_threads(args.threads[0])
        lines = growth()
        # In powers of two: a line that rises one step for one step doubles when the length does.
        powers = {n: [(math.log2(x), math.log2(y)) for x, y in part] for n, part in lines.items()}
        chart = line_chart(
            powers,
            title=f"One forward pass, 128 channels, {args.threads[0]} thread",
            x_label="tokens, as a power of two",
            y_label="milliseconds, as a power of two",
            legend="left",
        )
        (ROOT / "docs" / "scan-growth.svg").write_text(chart + "\n", encoding="utf-8")
    RESULTS.mkdir(exist_ok=True)
    out = RESULTS / f"scan-{hardware_slug(torch.device('cpu')).rsplit('-', 2)[0]}.json"
    content = {**describe("scan", arguments), "shapes": results, "memory": memory, "growth": lines}
    out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
