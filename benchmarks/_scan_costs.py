"""What the Triton kernels must compute and move, and how fast this GPU can at best.

Counts are lower bounds. Bytes: every tensor that a kernel needs crosses the memory bus once, though
heads and directions read some of them again (from the cache, at best). FLOPs: the matrix products
alone, two per multiply-add, whole c x c tiles, which is what a GPU computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks._scan_case import Shape
from mambaadv2.scan.triton_plan import Plan


@dataclass(frozen=True, slots=True)
class Cost:
    """Work of all launches of one kernel in one forward and one backward."""

    flops: int
    bytes: int

    def seconds(self, peaks: Peaks, mode: str) -> tuple[float, str]:
        """Shortest possible time, and whether "arithmetic" or "memory" sets it."""
        arithmetic = self.flops / peaks.flops[mode]
        memory = self.bytes / peaks.bandwidth
        return max(arithmetic, memory), "arithmetic" if arithmetic > memory else "memory"


@dataclass(frozen=True, slots=True)
class Peaks:
    """Measured, not read from a data sheet."""

    bandwidth: float
    """Bytes per second of a large copy, read and written bytes both counted."""
    flops: dict[str, float]
    """Per second in a large matrix product, by the mode of a `Plan`."""


def kernel_costs(shape: Shape, plan: Plan, size: int) -> dict[str, Cost]:
    """Costs by kernel; `size` is bytes per value of x (4 or 2)."""
    b, K, L, H, G, P, N, S = (
        shape.b, shape.K, shape.L, shape.H, shape.G, shape.P, shape.N, shape.S
    )  # fmt: skip
    chunks = -(-L // plan.chunk)
    segments = -(-chunks // plan.span)
    tokens = b * K * H * chunks * plan.chunk
    state = b * K * H * N * P * 4  # bytes of one state per sequence
    values, pairs = b * L * H * P * size, b * L * G * N * 4
    scalars = 4 * (b * K * L * H + 2 * b * L * H + b * L * S + K * L)
    # Walks: sums of segments, then states of every chunk where a segment has several.
    cut, every = segments > 1, segments != chunks or segments == 1
    sums = Cost(2 * tokens * N * P, values + pairs + scalars + segments * state)
    each = Cost(2 * tokens * N * P, values + pairs + scalars + chunks * state)
    # The forward needs sums once; the backward sums and states in both directions.
    count = (3 if cut else 0, 2 if every else 0)
    carry = Cost(
        count[0] * sums.flops + count[1] * each.flops,
        count[0] * sums.bytes + count[1] * each.bytes,
    )
    output = Cost(
        2 * tokens * (plan.chunk * (N + P) + 2 * N * P),
        (1 + K) * values + 2 * pairs + scalars + (segments * state if cut else 0),
    )
    blocks = H // plan.heads
    partial = 2 if size == 2 else 4
    gradient = Cost(
        2 * tokens * (plan.chunk * (3 * N + 2 * P) + 3 * N * P),
        (2 + K) * values + 2 * pairs + scalars + 2 * chunks * state
        + 2 * b * K * blocks * L * N * partial + 3 * 4 * b * K * L * H + 4 * b * K * blocks * L * S,
    )  # fmt: skip
    passing = Cost(0, 3 * 2 * segments * state if cut else 0)
    return {
        "carry_kernel": carry,
        "pass_kernel": passing,
        "output_kernel": output,
        "gradient_kernel": gradient,
    }


def measure_peaks(seconds: Callable[[Callable[[], object]], float]) -> Peaks:
    """Peaks of the current CUDA device; `seconds` times a call."""
    one = torch.empty(2**28, device="cuda", dtype=torch.float32)
    two = torch.empty_like(one)
    bandwidth = 2 * one.nbytes / seconds(lambda: two.copy_(one))
    n = 8192
    flops = {}
    before = torch.get_float32_matmul_precision()
    for mode, dtype, precision in (
        ("ieee", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
        ("bfloat16", torch.bfloat16, "highest"),
    ):
        torch.set_float32_matmul_precision(precision)
        a = torch.randn(n, n, device="cuda").to(dtype)
        flops[mode] = 2 * n**3 / seconds(lambda a=a: a @ a)  # type: ignore[misc]
    torch.set_float32_matmul_precision(before)
    flops["tf32x3"] = flops["tf32"] / 3  # three products for one; not measured by itself
    return Peaks(bandwidth=bandwidth, flops=flops)
