"""Inputs of the scan for checks and timings, and the comparison with float64 of every gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mambaadv2.scan.orders import directions
from mambaadv2.scan.reference import ScanState

NAMES = (
    "y", "end h", "end k", "end x", "dx", "dB", "dC", "ddt", "dA", "dtrap", "dangle", "dB_bias",
    "dC_bias", "dD", "dweights", "dh", "dk", "dx before",
)  # fmt: skip
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Largest error over the largest magnitude of the float64 tensor."""
STRESS_TOLERANCE = 1e-4
"""The same for float32 where one token's dt is many times that of others."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A scan over a height x width map; letters as in `mambaadv2.scan`."""

    height: int
    width: int
    H: int
    K: int
    G: int = 1
    P: int = 32
    N: int = 32
    S: int = 8
    b: int = 1
    order: str = "hilbert"

    @property
    def L(self) -> int:  # noqa: N802
        return self.height * self.width


# The decoder's finest three maps at 256 pixels (preset r34).
DECODER = {
    "64^2 H4 K8": Shape(64, 64, H=4, K=8),
    "32^2 H8 K4": Shape(32, 32, H=8, K=4),
    "16^2 H16 K2": Shape(16, 16, H=16, K=2),
}


class Case(NamedTuple):
    """Arguments of a backend; `tensors` are the ten of `selective_scan` in its order."""

    tensors: tuple[Tensor, ...]
    order: Tensor
    weights: Tensor | None
    state: ScanState | None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """All of them in the order in which a backend takes them."""
        return (*self.tensors, self.order, self.weights, self.state)


Scan = Callable[..., tuple[Tensor, ScanState | None]]
"""A backend: (*tensors, order, weights, state, return_state=...) -> (y, state)."""


def make_case(
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    *,
    stress: str = "",
    cold: bool = False,
) -> Case:
    """Values as a trained model has them; the same for every device.

    dt between 1e-3 and 1, one token in five with dt = 0. stress "phases": hundreds of radians;
    "decay": A of -20 and -1e-4 side by side with dt up to 5. cold: no weights and no state.
    """
    random = torch.Generator().manual_seed(0)
    b, K, L, H, G, P, N, S = (
        shape.b, shape.K, shape.L, shape.H, shape.G, shape.P, shape.N, shape.S
    )  # fmt: skip

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=random)

    dt = torch.exp(1.2 * normal(b, K, L, H) - 3).clamp(1e-3, 1.0)
    A, angle = -torch.exp(normal(b, L, H)), normal(b, L, S)
    if stress == "phases":
        dt, A, angle = 0.7 * torch.rand(dt.shape, generator=random), 0.01 * A, 1.7 + 0.3 * angle
    elif stress == "decay":
        dt = 5 * torch.rand(dt.shape, generator=random)
        A = torch.where(A < -1, -20.0, -1e-4)
    dt[:, :, 3::5] = 0
    tensors = [
        normal(b, L, H, P), normal(b, L, G, N), normal(b, L, G, N), dt, A, 2 * normal(b, L, H),
        angle, 1 + 0.3 * normal(K, H, N), 1 + 0.3 * normal(K, H, N), 1 + 0.3 * normal(K, H),
    ]  # fmt: skip
    tensors[0] = tensors[0].to(dtype)
    state = ScanState(h=normal(b, K, H, P, N), k=normal(b, K, H, N), x=normal(b, K, H, P))
    weights = normal(b, K).softmax(dim=1)
    return Case(
        tensors=tuple(tensor.to(device) for tensor in tensors),
        order=directions(shape.order, shape.height, shape.width, K).to(device),
        weights=None if cold else weights.to(device),
        state=None if cold else ScanState(*(part.to(device) for part in state)),
    )


def in_float64(case: Case) -> Case:
    """The same values in float64, exactly."""
    state = case.state
    return Case(
        tensors=tuple(tensor.double() for tensor in case.tensors),
        order=case.order,
        weights=None if case.weights is None else case.weights.double(),
        state=None if state is None else ScanState(*(part.double() for part in state)),
    )


def gradients(case: Case, scan: Scan) -> dict[str, Tensor]:
    """Outputs, end state and the gradient of every tensor, under fixed random cotangents."""
    optional = () if case.weights is None else (case.weights, *(case.state or ()))
    leaves = [tensor.detach().requires_grad_() for tensor in (*case.tensors, *optional)]
    weights, state = (None, None) if not optional else (leaves[10], ScanState(*leaves[11:]))
    y, end = scan(*leaves[:10], case.order, weights, state, return_state=True)
    assert end is not None
    random = torch.Generator().manual_seed(1)
    seeds = [torch.randn(part.shape, generator=random).to(part) for part in (y, *end)]
    # With S = 0 nothing depends on `angle`: its gradient is zero and has no elements.
    found = torch.autograd.grad((y, *end), leaves, seeds, materialize_grads=True)
    return dict(zip(NAMES, (y, *end, *found), strict=False))


def errors(actual: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> dict[str, float]:
    """Largest error of each tensor over the largest magnitude of the exact one; NaN stays NaN."""
    found = {}
    for name, wanted in exact.items():
        ours = actual[name]
        if ours.shape != wanted.shape:
            raise ValueError(f"{name}: expected {tuple(wanted.shape)}, got {tuple(ours.shape)}")
        if wanted.numel():
            scale = wanted.abs().amax().clamp(min=1e-300)
            found[name] = ((ours.double() - wanted.double()).abs().amax() / scale).item()
    return found


def failures(found: Mapping[str, float], tolerance: float) -> list[str]:
    """What is too far off, largest first; a NaN always is."""
    wrong = {name: error for name, error in found.items() if not error <= tolerance}
    return [
        f"{name} {error:.1e} > {tolerance:.0e}"
        for name, error in sorted(wrong.items(), key=lambda item: -item[1])
    ]


def with_batch(shape: Shape, b: int) -> Shape:
    return replace(shape, b=b)
