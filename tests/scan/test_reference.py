"""The reference against what the papers say, each time computed in another way."""

from __future__ import annotations

import cmath
import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from mambaadv2.scan.orders import directions
from mambaadv2.scan.reference import ScanState, reference_matrix, reference_scan, rotate


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


def make_inputs(
    b: int = 2, L: int = 13, H: int = 4, G: int = 2, P: int = 3, N: int = 6, S: int = 2, K: int = 1
) -> Inputs:
    random = torch.Generator().manual_seed(L * 100 + H * 10 + K)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    return Inputs(
        x=normal(b, L, H, P),
        B=normal(b, L, G, N),
        C=normal(b, L, G, N),
        dt=0.5 * normal(b, K, L, H).exp(),
        A=-normal(b, L, H).exp(),
        trap=2 * normal(b, L, H),
        angle=normal(b, L, S),
        B_bias=1 + 0.3 * normal(K, H, N),
        C_bias=1 + 0.3 * normal(K, H, N),
        D=normal(K, H),
    )


def in_rows(inputs: Inputs) -> Tensor:
    """The order None of `selective_scan`: one direction, row after row."""
    return torch.arange(inputs.x.shape[1])[None]


def scan(
    inputs: Inputs, order: Tensor | None = None, initial_state: ScanState | None = None
) -> tuple[Tensor, ScanState]:
    order = in_rows(inputs) if order is None else order
    return reference_scan(*inputs, order, None, initial_state)


def visited(inputs: Inputs, rows: Tensor, direction: int = 0) -> Inputs:
    """The plain sequence that one direction sees when it visits these rows."""
    one = slice(direction, direction + 1)
    return Inputs(
        x=inputs.x[:, rows],
        B=inputs.B[:, rows],
        C=inputs.C[:, rows],
        dt=inputs.dt[:, one, rows],
        A=inputs.A[:, rows],
        trap=inputs.trap[:, rows],
        angle=inputs.angle[:, rows],
        B_bias=inputs.B_bias[one],
        C_bias=inputs.C_bias[one],
        D=inputs.D[one],
    )


def per_head(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """B and C with bias, one per head, before the rotation."""
    repeat = inputs.x.shape[2] // inputs.B.shape[2]
    B = inputs.B.repeat_interleave(repeat, dim=2) + inputs.B_bias[0]
    C = inputs.C.repeat_interleave(repeat, dim=2) + inputs.C_bias[0]
    return B, C


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    error = (actual - expected).abs().max() / expected.abs().max().clamp(min=1e-300)
    assert error <= tolerance, f"relative error {error:.1e}"


def test_two_steps_by_hand() -> None:
    """One head, one value, one rotated pair: every number is written out."""

    def column(*values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    inputs = Inputs(
        x=column(2, 3).view(1, 2, 1, 1),
        B=column(1, 0, 0, 1).view(1, 2, 1, 2),
        C=column(1, 1, 2, 0).view(1, 2, 1, 2),
        dt=column(0.5, 0.25).view(1, 1, 2, 1),
        A=column(-1, -2).view(1, 2, 1),
        trap=column(0, math.log(3)).view(1, 2, 1),  # lam = 1/2, 3/4
        angle=column(math.atanh(0.5), math.atanh(-0.5)).view(1, 2, 1),  # theta = pi/2, -pi/2
        B_bias=column(0, 1).view(1, 1, 2),
        C_bias=column(1, 0).view(1, 1, 2),
        D=column(10).view(1, 1),
    )
    k0, k1 = 1 + 1j, 0 + 2j  # pairs as complex numbers
    q0, q1 = 2 + 1j, 3 + 0j
    turn0, turn1 = cmath.exp(0.25j * math.pi), cmath.exp(0.125j * math.pi)
    h0 = 0.5 * 0.5 * 2 * k0 * turn0
    alpha, beta, gamma = math.exp(-0.5), 0.25 * 0.25 * math.exp(-0.5), 0.75 * 0.25
    h1 = alpha * h0 + beta * 2 * k0 * turn0 + gamma * 3 * k1 * turn1
    expected = [
        (h0 * (q0 * turn0).conjugate()).real + 20,
        (h1 * (q1 * turn1).conjugate()).real + 30,
    ]
    y, state = scan(inputs)
    assert y.flatten().tolist() == pytest.approx(expected, rel=1e-14)
    back = h1 / turn1
    assert state.h.flatten().tolist() == pytest.approx([back.real, back.imag], rel=1e-14)
    assert state.k.flatten().tolist() == pytest.approx([k1.real, k1.imag], rel=1e-14, abs=1e-15)
    assert state.x.item() == 3


@pytest.mark.parametrize("L, H, G, S, K", [(1, 1, 1, 1, 1), (2, 3, 3, 3, 2), (64, 4, 1, 2, 4)])
def test_matrix_form_is_the_same_map(L: int, H: int, G: int, S: int, K: int) -> None:
    inputs = make_inputs(L=L, H=H, G=G, S=S, K=K)
    order = torch.stack([torch.randperm(L) for _ in range(K)])
    matrix = reference_matrix(*inputs[1:], order)
    assert not matrix.triu(1).any()
    expected = torch.zeros_like(inputs.x)
    for direction, rows in enumerate(order):
        out = torch.einsum("bhts,bshp->bthp", matrix[:, direction], inputs.x[:, rows])
        expected = expected.index_add(1, rows, out)
    assert_equal(scan(inputs, order)[0], expected)


def test_full_end_point_rule_is_mamba2() -> None:
    """lam = 1 and no angle: h = exp(dt A) h + dt x B^T, y = h C + D x (arXiv 2405.21060)."""
    inputs = make_inputs(S=0)
    inputs = inputs._replace(trap=torch.full_like(inputs.trap, 100.0))
    B, C = per_head(inputs)
    dt = inputs.dt[:, 0]
    h = torch.zeros(2, 4, 3, 6, dtype=torch.float64)
    outputs = []
    for t in range(13):
        h = torch.einsum("bh,bhpn->bhpn", torch.exp(dt[:, t] * inputs.A[:, t]), h)
        h = h + torch.einsum("bh,bhp,bhn->bhpn", dt[:, t], inputs.x[:, t], B[:, t])
        outputs.append(
            torch.einsum("bhpn,bhn->bhp", h, C[:, t]) + inputs.D[0, :, None] * inputs.x[:, t]
        )
    y, state = scan(inputs)
    assert_equal(y, torch.stack(outputs, dim=1))
    assert_equal(state.h[:, 0], h)


def test_rotation_is_a_complex_state() -> None:
    """Rotated q and k equal a complex decay, and the end frame is where that state lives."""
    inputs = make_inputs(S=3)
    B, C = (torch.view_as_complex(part.unflatten(-1, (3, 2))) for part in per_head(inputs))
    dt, lam = inputs.dt[:, 0], torch.sigmoid(inputs.trap)
    theta = math.pi * torch.tanh(inputs.angle)
    x = inputs.x.to(torch.complex128)
    h = torch.zeros(2, 4, 3, 3, dtype=torch.complex128)
    before = torch.zeros_like(h)
    outputs = []
    for t in range(13):
        turn = torch.exp(-1j * dt[:, t, :, None] * theta[:, t, None, :])
        keep = torch.exp(dt[:, t] * inputs.A[:, t])[..., None] * turn
        write = x[:, t, :, :, None] * B[:, t, :, None, :]
        step = dt[:, t, :, None, None]
        early = (1 - lam[:, t])[..., None, None] * step * before
        h = keep[:, :, None] * (h + early) + lam[:, t, :, None, None] * step * write
        before = write
        outputs.append((h * C[:, t, :, None, :].conj()).sum(-1).real)
    y, state = scan(inputs)
    assert_equal(y, torch.stack(outputs, dim=1) + inputs.D[0, :, None] * inputs.x)
    assert_equal(state.h[:, 0], torch.view_as_real(h).flatten(-2))


@pytest.mark.parametrize("trap, order_of_accuracy", [(100.0, 1), (0.0, 2)])
def test_half_is_the_second_order_trapezoid(trap: float, order_of_accuracy: int) -> None:
    """h' = -h + cos(t): halving the step must divide the error by 2 or by 4."""

    def error(steps: int) -> float:
        times = torch.linspace(0, 2, steps + 1, dtype=torch.float64)
        ones = torch.ones(1, steps + 1, 1, 1, dtype=torch.float64)
        dt = torch.full_like(ones, 2 / steps).view(1, 1, steps + 1, 1)
        dt[:, :, 0] = 0  # the first token is only the starting point
        inputs = Inputs(
            x=times.cos().view_as(ones),
            B=ones,
            C=ones,
            dt=dt,
            A=-ones[..., 0],
            trap=trap * ones[..., 0],
            angle=torch.zeros(1, steps + 1, 0, dtype=torch.float64),
            B_bias=torch.zeros(1, 1, 1, dtype=torch.float64),
            C_bias=torch.zeros(1, 1, 1, dtype=torch.float64),
            D=torch.zeros(1, 1, dtype=torch.float64),
        )
        exact = 0.5 * (math.cos(2) + math.sin(2) - math.exp(-2))
        return abs(scan(inputs)[0][0, -1].item() - exact)

    ratio = error(64) / error(128)
    assert math.log2(ratio) == pytest.approx(order_of_accuracy, abs=0.05)


def test_angle_zero_is_real() -> None:
    inputs = make_inputs(S=3)
    turned = inputs._replace(angle=torch.zeros_like(inputs.angle))
    plain = inputs._replace(angle=inputs.angle[..., :0])
    assert torch.equal(scan(turned)[0], scan(plain)[0])


def test_infinite_decay_leaves_the_token_itself() -> None:
    inputs = make_inputs()
    inputs = inputs._replace(A=torch.full_like(inputs.A, -1e6))
    B, C = per_head(inputs)
    gamma = torch.sigmoid(inputs.trap) * inputs.dt[:, 0]
    expected = (gamma * (B * C).sum(-1) + inputs.D[0])[..., None] * inputs.x
    assert_equal(scan(inputs)[0], expected)


def test_trailing_tokens_without_time_change_nothing() -> None:
    """Padding with dt = 0 keeps earlier outputs and the state, bit for bit."""
    inputs = make_inputs()
    inputs.dt[:, :, 9:] = 0
    short = visited(inputs, torch.arange(9))
    y, state = scan(inputs)
    y_short, state_short = scan(short)
    assert torch.equal(y[:, :9], y_short)
    assert torch.equal(state.h, state_short.h)


def test_inner_tokens_without_time_are_invisible_under_the_end_point_rule() -> None:
    """With lam < 1 the next token would still weigh the value before it, so lam = 1 here."""
    inputs = make_inputs()
    inputs = inputs._replace(trap=torch.full_like(inputs.trap, 100.0))
    inputs.dt[:, :, 5] = 0
    rows = torch.tensor([t for t in range(13) if t != 5])
    kept = visited(inputs, rows)
    assert_equal(scan(inputs)[0][:, rows], scan(kept)[0])


def test_directions_are_weighted_scans_of_permuted_sequences() -> None:
    inputs = make_inputs(L=12, K=4)
    weights = torch.randn(2, 4, dtype=torch.float64)
    order = directions("hilbert", 3, 4, 4)
    expected = torch.zeros_like(inputs.x)
    for direction, rows in enumerate(order):
        single, _ = scan(visited(inputs, rows, direction))
        expected[:, rows] += weights[:, direction, None, None, None] * single
    assert_equal(reference_scan(*inputs, order, weights)[0], expected)


def test_dtypes() -> None:
    inputs = make_inputs()
    exact, _ = scan(inputs)
    for dtype, state_dtype in [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ]:
        y, state = scan(inputs._replace(x=inputs.x.to(dtype)))
        assert y.dtype == dtype
        assert {part.dtype for part in state} == {state_dtype}
        assert_equal(y.double(), exact, tolerance=0.02)


@pytest.mark.parametrize("S, K", [(0, 1), (1, 2), (2, 1)])
def test_gradients_are_those_of_finite_differences(S: int, K: int) -> None:
    inputs = make_inputs(b=1, L=3, H=2, G=1, P=2, N=4, S=S, K=K)
    order = torch.tensor([[2, 0, 1], [0, 1, 2]])[:K]
    weights = torch.rand(1, K, dtype=torch.float64)
    state = [torch.randn(1, K, 2, *rest, dtype=torch.float64) for rest in [(2, 4), (4,), (2,)]]

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        y, end = reference_scan(
            *Inputs(*tensors[:10]), order, tensors[10], ScanState(*tensors[11:])
        )
        return (y, *end)

    leaves = [part.clone().requires_grad_() for part in (*inputs, weights, *state)]
    assert torch.autograd.gradcheck(function, leaves)


def test_rotate_turns_pairs_and_leaves_the_rest() -> None:
    vector = torch.tensor([1.0, 0.0, 0.0, 2.0, 5.0])
    quarter = torch.tensor([math.pi / 2, math.pi])
    assert rotate(vector, quarter).tolist() == pytest.approx([0, 1, 0, -2, 5], abs=1e-6)
    assert torch.equal(rotate(vector, quarter[:0]), vector)
