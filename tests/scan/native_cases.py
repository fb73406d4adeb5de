"""Cases for the compiled CPU backend, and their truth: the float64 reference."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from mambaadv2.scan import ScanState, native, selective_scan
from mambaadv2.scan.orders import directions

needs_library = pytest.mark.skipif(
    native.why_not() is not None, reason=f"no native scan: {native.why_not()}"
)

# Largest error over the largest magnitude of the expected tensor.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
# For shapes that hypothesis picks to be the worst: the gradient of one weight, or of the angles at
# a token with a dt of 10 or more, can be a small difference of large sums. The chunked form in
# float32 reaches 5.6e-5 there.
WORST_TOLERANCE = {"d angle": 3e-5, "d weights": 3e-5}


class Inputs(NamedTuple):
    x: Tensor
    B: Tensor
    C: Tensor
    dt: Tensor
    A: Tensor
    trap: Tensor
    angle: Tensor
    B_bias: Tensor
    C_bias: Tensor
    D: Tensor


class Size(NamedTuple):
    L: int = 33
    H: int = 2
    G: int = 1
    P: int = 16
    N: int = 16
    S: int = 4
    K: int = 1
    b: int = 1


class Case(NamedTuple):
    inputs: Inputs
    order: Tensor
    weights: Tensor | None
    state: ScanState | None

    def tensors(self) -> tuple[Tensor, ...]:
        weights = () if self.weights is None else (self.weights,)
        return (*self.inputs, *weights, *(self.state or ()))

    def of(self, tensors: tuple[Tensor, ...]) -> Case:
        """The same case with other tensors, in the order of `tensors()`."""
        rest = list(tensors[10:])
        weights = None if self.weights is None else rest.pop(0)
        return Case(Inputs(*tensors[:10]), self.order, weights, ScanState(*rest) if rest else None)


def make_case(size: Size, *, orders: str = "random", weighted: bool = True) -> Case:
    """Values as a trained model has them: dt from 1e-3 to 1, some strong and some weak decays."""
    L, H, G, P, N, S, K, b = size
    random = torch.Generator().manual_seed(L * 31 + H)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    inputs = Inputs(
        x=normal(b, L, H, P),
        B=normal(b, L, G, N),
        C=normal(b, L, G, N),
        dt=torch.exp(1.5 * normal(b, K, L, H) - 3),
        A=-torch.exp(normal(b, L, H)),
        trap=2 * normal(b, L, H),
        angle=normal(b, L, S),
        B_bias=1 + 0.3 * normal(K, H, N),
        C_bias=1 + 0.3 * normal(K, H, N),
        D=1 + 0.3 * normal(K, H),
    )
    if orders == "random" or K not in (1, 2, 4, 8):
        order = torch.stack([torch.randperm(L, generator=random) for _ in range(K)])
    else:
        order = directions(orders, 1, L, K)
    state = ScanState(h=normal(b, K, H, P, N), k=normal(b, K, H, N), x=normal(b, K, H, P))
    return Case(inputs, order, normal(b, K) if weighted else None, state if weighted else None)


def run(case: Case, backend: str = "native") -> tuple[Tensor, ScanState]:
    return selective_scan(
        *case.inputs,
        order=case.order,
        weights=case.weights,
        initial_state=case.state,
        return_state=True,
        backend=backend,
    )


def results(
    case: Case, backend: str = "native", dtype: torch.dtype | None = None, *, ends: bool = True
) -> dict[str, Tensor]:
    """Outputs, end state and the gradient of every tensor under fixed random cotangents."""
    leaves = [part.detach().to(dtype or part.dtype).requires_grad_() for part in case.tensors()]
    y, end = run(case.of(tuple(leaves)), backend)
    given = (y, *end) if ends else (y,)
    random = torch.Generator().manual_seed(1)
    seeds = [torch.randn(part.shape, generator=random).to(part.dtype) for part in given]
    found = torch.autograd.grad(given, leaves, seeds, materialize_grads=True)
    names: list[str] = ["y", "end h", "end k", "end x", *(f"d {name}" for name in Inputs._fields)]
    names += [] if case.weights is None else ["d weights"]
    names += [] if case.state is None else ["d h", "d k", "d x before"]
    return dict(zip(names, (y, *end, *found), strict=True))


def assert_close(actual: Tensor, wanted: Tensor, tolerance: float, name: str) -> None:
    assert actual.shape == wanted.shape, name
    if wanted.numel() == 0:
        return
    error = (actual.double() - wanted.double()).abs().max().item()
    scale = wanted.double().abs().max().item()
    # Some gradients are small or zero as differences of sums of order one.
    assert error <= tolerance * max(scale, 3e-2), (
        f"{name}: relative error {error / (scale or 1):.1e}"
    )


def assert_equals_reference(
    case: Case, *, special: Mapping[str, float] | None = None, ends: bool = True
) -> None:
    """Compare all results; `special` has the tolerances of those that have one of their own."""
    # test_forms.py holds the chunked form in float64 to 1e-11 of the reference, which is slow here.
    truth = "reference" if case.inputs.x.shape[1] <= 33 else "chunked"
    wanted = results(case, truth, torch.float64, ends=ends)
    for name, actual in results(case, ends=ends).items():
        tolerance = (special or {}).get(name, TOLERANCE[torch.float32])
        assert_close(actual, wanted[name], tolerance, name)


SIZES = (
    Size(L=1, H=1, G=1, P=8, N=8, S=0, K=1, b=2),
    Size(L=15, H=4, G=2, P=32, N=32, S=8, K=8),
    Size(L=16, H=5, G=5, P=64, N=16, S=8, K=2),
    Size(L=17, H=3, G=1, P=40, N=24, S=6, K=4, b=2),
    Size(L=64, H=4, G=4, P=128, N=8, S=4, K=1),
    Size(L=100, H=1, G=1, P=8, N=128, S=32, K=1),
    Size(L=257, H=6, G=2, P=48, N=104, S=26, K=2),
    Size(L=600, H=1, G=1, P=128, N=128, S=64, K=1),
)

ROOT = Path(__file__).resolve().parents[2]
SHARED_CASE = """
import sys, torch
from tests.scan import native_cases
from tests.scan.native_cases import Size, assert_equals_reference, make_case, run
case = make_case(Size(L=50, H=3, G=3, P=40, N=24, S=6, K=2, b=2))
"""


def run_here(code: str, **variables: str) -> str:
    """Run Python code that may use `case` and `run`; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", SHARED_CASE + code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
