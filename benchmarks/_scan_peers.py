"""Other implementations of the same scan on the same inputs, where they can be imported.

Peers know one direction and rows in order. So K directions become K times as many heads on rows
gathered beforehand, and outputs are put back and added up afterwards. Both are timed with all that
("prepared inside") and alone ("kernel only"), which is what a reader of their papers would quote.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._scan_case import Case
from mambaadv2.scan.chunked import rotate_pairs
from mambaadv2.scan.orders import inverse


class Contender(NamedTuple):
    """`run(*tensors)` gives y (b, L, H, P); `kernel` the same work without preparation, if any."""

    name: str
    run: Callable[..., Tensor]
    prepare: Callable[..., tuple[Tensor, ...]] | None = None
    kernel: Callable[..., Tensor] | None = None


def gathered(case: Case, tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """All inputs in visiting order with directions folded into heads: (b, L, K H, .)."""
    x, B, C, dt, A, trap, angle, B_bias, C_bias, D = tensors
    order = case.order
    K, L = order.shape
    heads, groups = x.shape[2], B.shape[2]

    def rows(part: Tensor) -> Tensor:
        """(b, L, ...) to (b, L, K, ...)."""
        out = part.index_select(1, order.T.reshape(-1))
        unfolded: Tensor = out.unflatten(1, (L, K))
        return unfolded

    index = order.view(1, K, L, 1).expand(x.shape[0], K, L, heads)
    steps = dt.gather(2, index).transpose(1, 2)  # (b, L, K, H)
    return {
        "x": rows(x).flatten(2, 3),
        "B": rows(B).flatten(2, 3),
        "C": rows(C).flatten(2, 3),
        "dt": steps.flatten(2, 3),
        "A": rows(A).flatten(2, 3),
        "trap": rows(trap).flatten(2, 3),
        "angle": rows(angle).unsqueeze(3).expand(-1, -1, K, heads, -1).flatten(2, 3),
        "B_bias": B_bias.flatten(0, 1),
        "C_bias": C_bias.flatten(0, 1),
        "D": D.flatten(),
        "repeat": torch.tensor(heads // groups),
    }


def put_back(case: Case, y: Tensor) -> Tensor:
    """(b, L, K H, P) in visiting order to the weighted sum (b, L, H, P)."""
    K = len(case.order)
    y = y.unflatten(2, (K, -1))
    steps = inverse(case.order.long())
    parts = [y[:, :, k].index_select(1, steps[k]) for k in range(K)]
    if case.weights is not None:
        parts = [
            part * case.weights[:, k, None, None, None].to(part) for k, part in enumerate(parts)
        ]
    return torch.stack(parts).sum(0)


def mamba3(case: Case, function: Callable[..., Any]) -> Contender:
    """state-spaces/mamba's `mamba3_siso_combined`, which scans along heads and batch."""

    def prepare(*tensors: Tensor) -> tuple[Tensor, ...]:
        p = gathered(case, tensors)
        low = torch.bfloat16 if p["x"].dtype == torch.bfloat16 else torch.float32
        decay = (p["dt"] * p["A"]).transpose(1, 2).contiguous()
        scalars = (
            decay,
            p["dt"].transpose(1, 2).contiguous(),
            p["trap"].transpose(1, 2).contiguous(),
        )
        return (
            p["C"].to(low), p["B"].to(low), p["x"], *scalars, p["C_bias"], p["B_bias"],
            p["angle"].contiguous(), p["D"],
        )  # fmt: skip

    def kernel(*prepared: Tensor) -> Tensor:
        y: Tensor = function(*prepared)
        return y

    def run(*tensors: Tensor) -> Tensor:
        return put_back(case, kernel(*prepare(*tensors)))

    return Contender("mamba_ssm mamba3_siso_combined", run, prepare, kernel)


def simple_gla(case: Case, function: Callable[..., Any]) -> Contender:
    """flash-linear-attention's `chunk_simple_gla` on rotated q and s k, the diagonal mended."""

    def prepare(*tensors: Tensor) -> tuple[Tensor, ...]:
        p = gathered(case, tensors)
        repeat = int(p["repeat"])
        lam = torch.sigmoid(p["trap"].float())
        gamma = lam * p["dt"]
        scale = gamma + F.pad(((1 - lam) * p["dt"])[:, 1:], (0, 0, 0, 1))
        phase = (p["dt"].unsqueeze(-1) * math.pi * torch.tanh(p["angle"].float())).cumsum(1)
        q0 = p["C"].repeat_interleave(repeat, 2) + p["C_bias"]
        k0 = p["B"].repeat_interleave(repeat, 2) + p["B_bias"]
        dots = (q0 * k0).sum(-1)
        q = rotate_pairs(q0, phase.cos(), phase.sin())
        k = rotate_pairs(k0, phase.cos(), phase.sin()) * scale.unsqueeze(-1)
        # Its diagonal holds s q.k where this scan has gamma q.k + D.
        mend = (gamma - scale) * dots + p["D"]
        x = p["x"]
        return q.to(x), k.to(x), x, (p["dt"] * p["A"]).float(), mend

    def kernel(q: Tensor, k: Tensor, x: Tensor, decay: Tensor, mend: Tensor) -> Tensor:
        y: Tensor = function(q=q, k=k, v=x, g=decay, scale=1.0)[0]
        return y + mend.unsqueeze(-1).to(x) * x

    def run(*tensors: Tensor) -> Tensor:
        return put_back(case, kernel(*prepare(*tensors)))

    return Contender("fla chunk_simple_gla", run, prepare, kernel)


def peers(case: Case) -> tuple[list[Contender], dict[str, str]]:
    """Those that can be imported, and why the others cannot."""
    found: list[Contender] = []
    absent: dict[str, str] = {}
    try:
        from mamba_ssm.ops.triton.mamba3.mamba3_siso_combined import mamba3_siso_combined

        found.append(mamba3(case, mamba3_siso_combined))
    except ImportError as error:
        absent["mamba_ssm mamba3_siso_combined"] = str(error)
    try:
        from fla.ops.simple_gla import chunk_simple_gla

        found.append(simple_gla(case, chunk_simple_gla))
    except ImportError as error:
        absent["fla chunk_simple_gla"] = str(error)
    return found, absent
