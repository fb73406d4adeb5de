"""Every backend against the float64 reference: outputs, end states and every gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mambaadv2.errors import BackendError, ConfigError
from mambaadv2.scan import ScanState, available_backends, choose_backend, selective_scan

# Largest error over the largest magnitude of the expected tensor.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}
# For 2048 tokens with sums of decays and phases in the thousands, at the default chunk size.
STRESS_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}


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


class Form(NamedTuple):
    backend: str
    chunk_size: int | None = None


class Size(NamedTuple):
    L: int
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
    weights: Tensor
    state: ScanState


EXACT = Form("reference")
FAST = (Form("quadratic"), Form("chunked"))  # test_native.py is about the compiled one
FORMS = (*FAST, Form("chunked", 16))
CHUNKS = tuple(Form("chunked", size) for size in (8, 16, 32, 64, 128))

# Every length, head count, grouping, width and share of rotated pairs at least once.
SIZES = (
    Size(L=1, H=1, G=1, P=16, N=128, S=32, K=1, b=2),
    Size(L=2, H=3, G=3, P=128, N=16, S=8, K=2),
    Size(L=15, H=4, G=2, P=32, N=32, S=0, K=4),
    Size(L=16, H=5, G=1, P=64, N=64, S=16, K=1, b=3),
    Size(L=17, H=5, G=5, P=16, N=32, S=16, K=8),
    Size(L=63, H=4, G=4, P=32, N=16, S=4, K=2, b=2),
    Size(L=64, H=3, G=1, P=64, N=32, S=0, K=4),
    Size(L=65, H=4, G=2, P=16, N=64, S=32, K=2),
    Size(L=100, H=1, G=1, P=64, N=64, S=16, K=8),
    Size(L=256, H=4, G=1, P=32, N=64, S=16, K=2),
    Size(L=256, H=2, G=2, P=128, N=128, S=64, K=1),
)

GRADIENT_SIZES = (
    Size(L=1, P=3, N=5, S=2),
    Size(L=2, H=3, G=3, P=4, N=4, S=1, K=2),
    Size(L=17, H=4, G=2, P=5, N=6, S=3, K=4, b=2),
    Size(L=63, H=5, G=1, P=8, N=16, S=0, K=2),
    Size(L=100, H=4, G=4, P=16, N=16, S=8, K=2, b=2),
)


def make_case(size: Size, dtype: torch.dtype = torch.float64) -> Case:
    """Values as a trained model has them: dt from 1e-3 to 1, some strong and some weak decays."""
    L, H, G, P, N, S, K, b = size
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)

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
    order = torch.stack([torch.randperm(L, generator=random) for _ in range(K)])
    state = ScanState(h=normal(b, K, H, P, N), k=normal(b, K, H, N), x=normal(b, K, H, P))
    return Case(inputs, order, normal(b, K), state)


def run(case: Case, form: Form, *, cold: bool = False) -> tuple[Tensor, ScanState]:
    return selective_scan(
        *case.inputs,
        order=case.order,
        weights=case.weights,
        initial_state=None if cold else case.state,
        return_state=True,
        backend=form.backend,
        chunk_size=form.chunk_size,
    )


NAMES = ("y", "end h", "end k", "end x", *Inputs._fields, "weights", "h", "k", "x before")


def gradients(
    case: Case, form: Form, dtype: torch.dtype | None = None, *, autocast: bool = False
) -> tuple[Tensor, ...]:
    """Outputs, end state and the gradient of every tensor under fixed random cotangents."""
    tensors = (*case.inputs, case.weights, *case.state)
    leaves = [part.detach().to(dtype or part.dtype).requires_grad_() for part in tensors]
    case = Case(Inputs(*leaves[:10]), case.order, leaves[10], ScanState(*leaves[11:]))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, end = run(case, form)
    random = torch.Generator().manual_seed(1)
    seeds = [torch.randn(part.shape, generator=random).to(part.dtype) for part in (y, *end)]
    # With S = 0 nothing depends on `angle`: its gradient is zero and has no elements.
    return (y, *end, *torch.autograd.grad((y, *end), leaves, seeds, materialize_grads=True))


def assert_close(actual: Tensor, wanted: Tensor, tolerance: float, name: str) -> None:
    assert actual.shape == wanted.shape, name
    if wanted.numel() == 0:
        return
    error = (actual.double() - wanted.double()).abs().max().item()
    scale = wanted.double().abs().max().item()
    assert error <= tolerance * scale, f"{name}: relative error {error / (scale or 1):.1e}"


def assert_all_close(
    actual: tuple[Tensor, ...], wanted: tuple[Tensor, ...], tolerance: float, form: Form
) -> None:
    for name, ours, exact in zip(NAMES, actual, wanted, strict=True):
        assert_close(ours, exact, tolerance, f"{form}, {name}")


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Uninitialised memory reads NaN, so an element that nobody wrote cannot look right."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("cold", [False, True], ids=["continued", "cold"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"L{size.L}N{size.N}")
def test_float64_forms_agree(size: Size, cold: bool) -> None:
    case = make_case(size)
    y, end = run(case, EXACT, cold=cold)
    for form in (*FAST, *CHUNKS):
        actual, state = run(case, form, cold=cold)
        assert actual.dtype == torch.float64
        assert_close(actual, y, TOLERANCE[torch.float64], f"{form}, y")
        for name, part, exact in zip(ScanState._fields, state, end, strict=True):
            assert_close(part, exact, TOLERANCE[torch.float64], f"{form}, end {name}")


small = [st.integers(1, top) for top in (40, 3, 3, 5, 7, 3, 2, 50)]


@settings(max_examples=40)
@given(st.tuples(*small), st.data())
def test_any_shape(shape: tuple[int, ...], data: st.DataObject) -> None:
    L, G, repeat, P, N, K, b, chunk = shape
    size = Size(L, G * repeat, G, P, N, data.draw(st.integers(0, N // 2)), K, b)
    case = make_case(size)
    wanted = run(case, EXACT)[0]
    for form in (*FAST, Form("chunked", chunk)):
        assert_close(run(case, form)[0], wanted, TOLERANCE[torch.float64], f"{form}, y")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", GRADIENT_SIZES, ids=lambda size: f"L{size.L}")
def test_every_gradient(size: Size, dtype: torch.dtype) -> None:
    case = make_case(size, torch.float32)
    case.inputs.dt[:, :, 3::5] = 0  # tokens without time must pass gradients on
    wanted = gradients(case, EXACT, torch.float64)
    for form in (*FAST, Form("chunked", 8), Form("chunked", 16)):
        assert_all_close(gradients(case, form, dtype), wanted, TOLERANCE[dtype], form)


@pytest.mark.parametrize("autocast", [False, True], ids=["inputs", "autocast"])
def test_bfloat16(autocast: bool) -> None:
    """Values, keys and queries in bfloat16; steps, decays and sums stay float32."""
    case = make_case(Size(L=65, H=4, G=2, P=32, N=32, S=8, K=2, b=2), torch.float32)
    x, B, C = (part.bfloat16() for part in case.inputs[:3])
    case = case._replace(inputs=case.inputs._replace(x=x, B=B, C=C))
    wanted = gradients(case, EXACT, torch.float64)
    for form in FAST:
        actual = gradients(case, form, autocast=autocast)
        assert actual[0].dtype == torch.bfloat16
        assert {part.dtype for part in actual[1:4]} == {torch.float32}
        assert_all_close(actual, wanted, TOLERANCE[torch.bfloat16], form)


@pytest.mark.parametrize("regime", ["phases of 2000 rad", "hardly any decay", "mixed"])
def test_stress(regime: str) -> None:
    case = make_case(Size(L=2048, H=2, P=8, N=8, S=4), torch.float32)
    inputs = case.inputs
    dt = 5 * torch.rand(inputs.dt.shape, generator=torch.Generator().manual_seed(0))
    A = torch.full_like(inputs.A, -1e-4)
    if regime == "phases of 2000 rad":
        inputs = inputs._replace(angle=1.7 + 0.3 * inputs.angle, dt=0.14 * dt, A=A)
    elif regime == "hardly any decay":
        inputs = inputs._replace(dt=dt, A=A)
    else:
        inputs = inputs._replace(dt=dt, A=torch.where(inputs.A < -1, -20, A))
    case = case._replace(inputs=inputs)
    wanted = gradients(case, EXACT, torch.float64)
    for form in (*FAST, Form("chunked", 16)):
        actual = gradients(case, form, torch.float64)
        assert_all_close(actual, wanted, STRESS_TOLERANCE[torch.float64], form)
        # One matrix over 2048 tokens loses three digits in float32; "auto" never takes it here.
        if form.backend != "quadratic":
            actual = gradients(case, form, torch.float32)
            assert_all_close(actual, wanted, STRESS_TOLERANCE[torch.float32], form)


@pytest.mark.parametrize(
    "name, value", [("A", -1e6), ("A", 0.0), ("dt", 0.0), ("trap", -1e3), ("trap", 1e3)]
)
def test_limits(name: str, value: float) -> None:
    case = make_case(Size(L=40, K=2), torch.float32)
    fixed = torch.full_like(getattr(case.inputs, name), value)
    case = case._replace(inputs=case.inputs._replace(**{name: fixed}))
    wanted, _ = run(case, EXACT)
    for form in FORMS:
        assert_close(run(case, form)[0], wanted, TOLERANCE[torch.float32], f"{form}, y")


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_causality_is_bit_exact(form: Form) -> None:
    case = make_case(Size(L=65, K=1, b=2))
    early, late = case.order[0, :40], case.order[0, 40:]
    y, _ = run(case, form)
    inputs = case.inputs
    for part in (inputs.x, inputs.B, inputs.C, inputs.trap, inputs.angle):
        part[:, late] += 1
    inputs.A[:, late] *= 2
    inputs.dt[:, :, late] *= 2
    changed, _ = run(case, form)
    assert torch.equal(changed[:, early], y[:, early])
    assert not torch.equal(changed[:, late], y[:, late])


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("cut", [1, 32, 64])
def test_a_split_sequence_equals_the_whole(form: Form, cut: int) -> None:
    case = make_case(Size(L=65, H=4, G=2, P=5, N=6, S=2, K=2, b=2))
    case = case._replace(order=torch.stack([torch.arange(65)] * 2))
    y, end = run(case, form)
    parts, state = [], case.state
    for piece in (slice(0, cut), slice(cut, 65)):
        rows = [part[:, piece] for part in case.inputs[:7]]
        rows[3] = case.inputs.dt[:, :, piece]
        inputs = Inputs._make((*rows, *case.inputs[7:]))
        order = torch.stack([torch.arange(rows[0].shape[1])] * 2)
        part, state = run(Case(inputs, order, case.weights, state), form)
        parts.append(part)
    assert_close(torch.cat(parts, dim=1), y, TOLERANCE[torch.float64], "y")
    for name, ours, whole in zip(ScanState._fields, state, end, strict=True):
        assert_close(ours, whole, TOLERANCE[torch.float64], name)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_door_changes_nothing_and_repeats_itself(form: Form) -> None:
    """Strided inputs, int32 tables and a second call give the same; inputs stay as they were."""
    case = make_case(Size(L=30, H=4, G=2, P=5, N=6, S=2, K=4, b=2))
    tensors = (*case.inputs, case.order, case.weights, *case.state)
    before = [part.clone() for part in tensors]
    y, _ = run(case, form)
    assert torch.equal(run(case, form)[0], y)
    assert all(torch.equal(part, old) for part, old in zip(tensors, before, strict=True))

    def strided(part: Tensor) -> Tensor:
        wide = torch.full((*part.shape, 2), torch.nan, dtype=part.dtype)
        wide[..., 0] = part
        return wide[..., 0]

    other = Case(
        Inputs(*(strided(part) for part in case.inputs)),
        case.order.int(),
        strided(case.weights),
        ScanState(*(strided(part) for part in case.state)),
    )
    assert not other.inputs.x.is_contiguous()
    assert_close(run(other, form)[0], y, TOLERANCE[torch.float64], "y")


def test_cost_grows_linearly() -> None:
    def flops(L: int) -> int:
        case = make_case(Size(L=L), torch.float32)
        with FlopCounterMode(display=False) as counter:
            run(case, Form("chunked"))
        return int(counter.get_total_flops())

    assert flops(4096) == pytest.approx(4 * flops(1024), rel=0.1)


def knock(**changes: object) -> Tensor:
    """Call the door with valid float32 arguments, some of them replaced."""
    case = make_case(Size(L=6, H=4, G=2, P=3, N=4, S=2, K=2, b=2), torch.float32)
    rest = {"order": case.order, "weights": case.weights, "initial_state": case.state}
    arguments: dict[str, Any] = {**case.inputs._asdict(), **rest, **changes}
    y: Tensor = selective_scan(**arguments)
    return y


WRONG: tuple[tuple[str, object], ...] = (
    ("x", torch.zeros(2, 0, 4, 3)),
    ("x", torch.zeros(2, 6, 4, 3, dtype=torch.int64)),
    ("B", torch.zeros(2, 6, 3, 4)),
    ("B", torch.zeros(2, 6, 2, 4, device="meta")),
    ("C", torch.zeros(2, 6, 2, 5)),
    ("C", torch.zeros(2, 6, 2, 4, dtype=torch.complex64)),
    ("dt", torch.zeros(2, 6, 4)),
    ("dt", torch.zeros(2, 1, 6, 4)),
    ("A", torch.zeros(2, 6, 4, dtype=torch.int32)),
    ("trap", torch.zeros(2, 6, 1)),
    ("angle", torch.zeros(2, 6, 3)),
    ("angle", torch.zeros(())),
    ("C_bias", torch.zeros(1, 4, 4)),
    ("D", torch.zeros(2, 4, device="meta")),
    ("order", torch.zeros(2, 6, dtype=torch.int64)),
    ("order", torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]])),
    ("order", torch.arange(6)),
    ("order", torch.rand(2, 6)),
    ("order", torch.zeros(2, 6, dtype=torch.int64, device="meta")),
    ("weights", torch.zeros(2, 2, dtype=torch.int64)),
    ("initial_state", ScanState(*(torch.zeros(2, 2, 4, 3) for _ in range(3)))),
    ("initial_state", ScanState(*(torch.zeros(1) for _ in range(3)))),
    ("chunk_size", 0),
)


@pytest.mark.parametrize("name, value", WRONG, ids=[name for name, _ in WRONG])
def test_wrong_arguments_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}\b.*: (expected|every)"):
        knock(**{name: value})


def test_absent_parts_mean_zero_state_equal_weights_and_row_order() -> None:
    zero = ScanState(torch.zeros(2, 2, 4, 3, 4), torch.zeros(2, 2, 4, 4), torch.zeros(2, 2, 4, 3))
    plain = knock(weights=None, initial_state=None)
    assert torch.equal(plain, knock(weights=torch.ones(2, 2), initial_state=zero))
    case = make_case(Size(L=6), torch.float32)
    in_rows = selective_scan(*case.inputs)
    assert torch.equal(in_rows, selective_scan(*case.inputs, order=torch.arange(6)[None]))


def test_auto_goes_by_length_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMBAADV2_NATIVE", "0")
    assert choose_backend(64, 64, 64)[0] == "quadratic"
    name, reason = choose_backend(4096, 64, 64)
    assert name == "chunked"
    assert "4096" in reason
    assert "not native: MAMBAADV2_NATIVE=0" in reason
    assert {"reference", "quadratic", "chunked"} <= set(available_backends())
    assert all(available_backends().values())


def test_environment_variable_forces_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    by_name = knock(backend="reference")
    assert not torch.equal(knock(), by_name)
    monkeypatch.setenv("MAMBAADV2_SCAN_BACKEND", "reference")
    assert choose_backend(64, 64, 64)[0] == "reference"
    assert "MAMBAADV2_SCAN_BACKEND" in choose_backend(64, 64, 64)[1]
    assert torch.equal(knock(), by_name)
    monkeypatch.setenv("MAMBAADV2_SCAN_BACKEND", "abacus")
    with pytest.raises(BackendError, match=r"MAMBAADV2_SCAN_BACKEND.*abacus"):
        knock()
    assert torch.equal(knock(backend="reference"), by_name)


def test_absent_backend_is_refused_by_name() -> None:
    with pytest.raises(BackendError, match=r"abacus.*reference"):
        knock(backend="abacus")


def test_chunks_belong_to_the_chunked_form() -> None:
    with pytest.raises(ConfigError, match=r"^chunk_size: the quadratic backend has no chunks"):
        knock(chunk_size=8, backend="quadratic")
    knock(chunk_size=8)
