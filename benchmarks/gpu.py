"""The Triton scan on a CUDA GPU: `scripts/bench gpu [--minutes 8]`. Checks first, then speed.

Every gradient of the decoder's three shapes, in float32 and bfloat16, in both regimes and under
stress, is compared with float64. When one is too far off nothing is timed, the exit code is 1 and
the results file holds the errors alone. Then, at batch 1 and 16, forward and forward + backward of
this package's kernels (each mode of their products, and replayed as a CUDA graph), of its chunked
torch form, and of mamba_ssm's `mamba3_siso_combined` and flash-linear-attention's
`chunk_simple_gla` where installed, all on the same inputs, each with its error to float64. Then
how far each kernel is from the limits of this GPU, measured here, and images per second of the
whole network (preset r34, batch 16). What does not fit the time is listed as not measured.

Without a CUDA GPU it says so and exits with 2.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from benchmarks._context import RESULTS, ROOT, describe, hardware_slug, markdown
from benchmarks._gpu_network import graphed
from benchmarks._scan_case import (
    DECODER,
    STRESS_TOLERANCE,
    TOLERANCE,
    Case,
    Shape,
    errors,
    failures,
    gradients,
    in_float64,
    make_case,
    with_batch,
)
from benchmarks._scan_costs import Peaks, kernel_costs, measure_peaks
from benchmarks._scan_peers import Contender, peers
from mambaadv2.scan.chunked import chunked_scan
from mambaadv2.scan.reference import ScanState
from mambaadv2.scan.triton import triton_scan, why_not
from mambaadv2.scan.triton_plan import Plan, choose_plan

BATCHES = (1, 16)
DTYPES = (torch.float32, torch.bfloat16)
MODES = {torch.float32: ("ieee", "tf32x3"), torch.bfloat16: ("tf32", "bfloat16")}
NETWORKS = (("eager", "chunked"), ("eager", "triton"), ("graph", "triton"), ("compile", "triton"))
SECONDS_PER_TIMING = 0.2


class Clock:
    """What is left of the time that was allowed."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        return self.end - time.monotonic()


def torch_form(*arguments: Any, return_state: bool) -> tuple[Tensor, ScanState | None]:
    return chunked_scan(*arguments, chunk_size=32, return_state=return_state)


def plan_of(shape: Shape, dtype: torch.dtype, mode: str | None = None) -> Plan:
    """The plan that users get on this device, with another mode of products if one is named."""
    sms = 1
    if torch.cuda.is_available():
        sms = torch.cuda.get_device_properties("cuda").multi_processor_count
    plan = choose_plan(shape.b, shape.K, shape.L, shape.H, shape.G, shape.P, shape.N, dtype, sms)
    return plan if mode is None else Plan(plan.chunk, plan.span, plan.heads, mode)


def check_list(shapes: dict[str, Shape]) -> list[tuple[str, Shape, torch.dtype, str, Plan | None]]:
    """(name, shape, dtype, stress, plan) of every comparison; plan None is the users' one."""
    found: list[tuple[str, Shape, torch.dtype, str, Plan | None]] = [
        (name, shape, dtype, "", None) for name, shape in shapes.items() for dtype in DTYPES
    ]
    name, shape = list(shapes.items())[-1]
    heads = shape.H // shape.G
    whole = Plan(32, -(-shape.L // 32), heads, "ieee")
    found.append((f"{name} sequential", shape, torch.float32, "", whole))
    found.append((f"{name} parallel", shape, torch.float32, "", Plan(16, 1, 1, "tf32x3")))
    found += [(f"{name} {kind}", shape, torch.float32, kind, None) for kind in ("phases", "decay")]
    return found


def check(shapes: dict[str, Shape], device: str) -> tuple[list[dict[str, object]], list[str]]:
    """Errors of every output and gradient against float64, and what is too far off."""
    rows: list[dict[str, object]] = []
    wrong: list[str] = []
    for name, shape, dtype, stress, plan in check_list(shapes):

        def scan(
            *arguments: Any, return_state: bool, plan: Plan | None = plan
        ) -> tuple[Tensor, ScanState | None]:
            return triton_scan(*arguments, return_state=return_state, plan=plan)

        case = make_case(shape, dtype, device, stress=stress)
        found = errors(gradients(case, scan), gradients(in_float64(case), torch_form))
        allowed = STRESS_TOLERANCE if stress else TOLERANCE[dtype]
        bad = failures(found, allowed)
        title = f"{name}, {str(dtype).removeprefix('torch.')}"
        wrong += [f"{title}: {line}" for line in bad]
        rows.append({"case": title, "allowed": allowed, "errors": found, "good": not bad})
        print(f"check {title}: {'wrong: ' + bad[0] if bad else 'good'}", flush=True)
    return rows, wrong


def seconds(step: Callable[[], object]) -> float:
    """Median time on the GPU of a call, over about `SECONDS_PER_TIMING`."""
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    found: list[float] = []
    start = time.perf_counter()
    while len(found) < 5 or time.perf_counter() - start < SECONDS_PER_TIMING:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        step()
        after.record()
        after.synchronize()
        found.append(before.elapsed_time(after) / 1e3)
    return statistics.median(found)


def contenders(
    case: Case, shape: Shape, dtype: torch.dtype
) -> tuple[list[Contender], dict[str, str]]:
    """This package's forms first, then the peers; and why some are absent."""

    def own(mode: str) -> Contender:
        plan = plan_of(shape, dtype, mode)

        def run(*tensors: Tensor) -> Tensor:
            arguments: tuple[Any, ...] = (*tensors, case.order, case.weights, None)
            return triton_scan(*arguments, return_state=False, plan=plan)[0]

        return Contender(f"triton, {mode}", run)

    def torch_run(*tensors: Tensor) -> Tensor:
        return torch_form(*tensors, case.order, case.weights, None, return_state=False)[0]

    others, absent = peers(case)
    ours = [own(mode) for mode in MODES[dtype]]
    return [*ours, Contender("chunked torch", torch_run), *others], absent


def time_one(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], *, graph: bool
) -> dict[str, float]:
    """Milliseconds of forward and forward + backward, played back as a CUDA graph if wanted."""
    leaves = [part.detach().requires_grad_(part.is_floating_point()) for part in inputs]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    with torch.no_grad():
        seed = torch.randn_like(function(*inputs))

    def forward() -> Tensor:
        with torch.no_grad():
            return function(*leaves)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(*leaves), wanted, seed, allow_unused=True)

    found = {"forward": seconds(forward), "forward+backward": seconds(both)}
    if graph:
        found["forward, graph"] = seconds(graphed(forward))
        found["forward+backward, graph"] = seconds(graphed(both))
    return {kind: 1e3 * value for kind, value in found.items()}


def time_scans(clock: Clock) -> tuple[list[dict[str, object]], dict[str, str]]:
    """A row per shape, batch, dtype and contender; what failed or had no time says so."""
    rows: list[dict[str, object]] = []
    missing: dict[str, str] = {}
    for batch in BATCHES:
        for title, single in DECODER.items():
            shape = with_batch(single, batch)
            for dtype in DTYPES:
                case = make_case(shape, dtype, "cuda", cold=True)
                case = case._replace(weights=torch.rand(batch, shape.K, device="cuda"))
                exact = in_float64(case)
                with torch.no_grad():
                    wanted = torch_form(
                        *exact.tensors, exact.order, exact.weights, None, return_state=False
                    )[0]
                found, absent = contenders(case, shape, dtype)
                missing |= absent
                for one in found:
                    row: dict[str, object] = {
                        "shape": title, "batch": batch, "dtype": str(dtype), "name": one.name
                    }  # fmt: skip
                    rows.append(row | _time_row(one, case, wanted, clock))
                    print(json.dumps(rows[-1]), flush=True)
    return rows, missing


def _time_row(one: Contender, case: Case, wanted: Tensor, clock: Clock) -> dict[str, object]:
    if clock.left() < 0:
        return {"not_measured": "out of time"}
    try:
        with torch.no_grad():
            y = one.run(*case.tensors)
        row: dict[str, object] = {"error_to_float64": errors({"y": y}, {"y": wanted})["y"]}
        own = one.name.startswith("triton")
        row["ms"] = time_one(one.run, case.tensors, graph=own)
        if one.prepare is not None and one.kernel is not None:
            with torch.no_grad():
                prepared = one.prepare(*case.tensors)
            row["ms, kernel only"] = time_one(one.kernel, prepared, graph=False)
    except Exception as error:  # a peer may fail in any way, and that is a result too
        return {"not_measured": f"{type(error).__name__}: {error}".splitlines()[0]}
    return row


def kernel_limits(peaks: Peaks) -> list[dict[str, object]]:
    """Time of each kernel in one forward and backward against what this GPU allows."""
    from torch.profiler import ProfilerActivity, profile

    rows: list[dict[str, object]] = []
    repeats = 10
    for batch in BATCHES:
        for title, shape in DECODER.items():
            for dtype in DTYPES:
                case = make_case(with_batch(shape, batch), dtype, "cuda", cold=True)
                leaves = [tensor.requires_grad_() for tensor in case.tensors]

                def both(case: Case = case, leaves: list[Tensor] = leaves) -> None:
                    arguments: tuple[Any, ...] = (*leaves, case.order, None, None)
                    y, _ = triton_scan(*arguments, return_state=False)
                    torch.autograd.grad(y.sum(), leaves)

                both()
                with profile(activities=[ProfilerActivity.CUDA]) as trace:
                    for _ in range(repeats):
                        both()
                    torch.cuda.synchronize()
                plan = plan_of(with_batch(shape, batch), dtype)
                size = torch.finfo(dtype).bits // 8
                costs = kernel_costs(with_batch(shape, batch), plan, size)
                for event in trace.key_averages():
                    if event.key not in costs:
                        continue
                    cost = costs[event.key]
                    least, limit = cost.seconds(peaks, plan.mode)
                    taken = event.self_device_time_total / 1e6 / repeats
                    rows.append({
                        "shape": title, "batch": batch, "dtype": str(dtype), "kernel": event.key,
                        "ms": 1e3 * taken, "limit": limit, "share_of_limit": least / taken,
                        **asdict(cost),
                    })  # fmt: skip
    return rows


def networks(clock: Clock) -> list[dict[str, object]]:
    """Images per second of preset r34 at batch 16, each in a process of its own."""
    rows: list[dict[str, object]] = []
    for mode, backend in NETWORKS:
        row: dict[str, object] = {"mode": mode, "backend": backend}
        command = [sys.executable, "-m", "benchmarks._gpu_network", mode, backend, "r34", "16"]
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=max(1, clock.left()),
                check=True,
            )  # fmt: skip
            row |= json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired:
            row["error"] = "out of time"
        except subprocess.CalledProcessError as error:
            row["error"] = error.stderr.strip().splitlines()[-1]
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def table(rows: Sequence[dict[str, object]]) -> str:
    """Milliseconds, and how many times those of this package's first row of the same inputs."""
    head = ["shape, batch, type", "name", "forward", "x", "both", "x", "error"]
    lines, base, place = [head], {"forward": math.nan, "forward+backward": math.nan}, ""
    for row in rows:
        here = f"{row['shape']}, {row['batch']}, {str(row['dtype']).removeprefix('torch.')}"
        ms = row.get("ms")
        if not isinstance(ms, dict):
            lines.append(
                [here, str(row["name"]), "-", "-", "-", "-", str(row["not_measured"])[:40]]
            )
            continue
        if here != place:
            place, base = here, dict.fromkeys(base, math.nan)
            # Without this package's own first row there is nothing to compare with.
            if str(row["name"]).startswith("triton"):
                base = ms
        cells = [here, str(row["name"])]
        for kind in ("forward", "forward+backward"):
            cells += [f"{ms[kind]:.3f}", f"{ms[kind] / base[kind]:.2f}"]
        lines.append([*cells, f"{row['error_to_float64']:.0e}"])
    return markdown(lines)


def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/bench gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything (8)")
    args = parser.parse_args(arguments)
    reason = "there is no CUDA device" if not torch.cuda.is_available() else None
    reason = reason or why_not(torch.device("cuda"))
    if reason is not None:
        print(f"scripts/bench gpu: nothing was measured: {reason}", file=sys.stderr)
        return 2
    clock = Clock(args.minutes)
    results: dict[str, object] = {
        **describe("gpu", arguments), "device": torch.cuda.get_device_name()
    }  # fmt: skip
    out = RESULTS / f"gpu-{hardware_slug(torch.device('cuda'))}.json"
    checks, wrong = check(DECODER, "cuda")
    results["checks"] = checks
    if not wrong:
        peaks = measure_peaks(seconds)
        results["peaks"] = asdict(peaks)
        # Networks take what is left, so the scans may not take everything.
        results["scans"], results["absent"] = time_scans(
            Clock(min(args.minutes / 2, clock.left() / 60))
        )
        results["kernels"] = kernel_limits(peaks)
        results["networks"] = networks(clock)
        print(table(results["scans"]))  # type: ignore[arg-type]
    RESULTS.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"written: {out}")
    if wrong:
        print("no speed is reported, because these are wrong:", *wrong, sep="\n  ", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
