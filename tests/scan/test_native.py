"""The compiled CPU backend against the float64 reference, and everything around its library."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mambaadv2.errors import BackendError, ConfigError
from mambaadv2.scan import (
    ScanState,
    absent_backends,
    available_backends,
    choose_backend,
    library,
    native,
    selective_scan,
)
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


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Uninitialised memory reads NaN, so an element that nobody wrote cannot look right."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# The numbers

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


@needs_library
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"L{size.L}P{size.P}N{size.N}")
def test_every_gradient(size: Size) -> None:
    case = make_case(size)
    case.inputs.dt[:, :, 3::5] = 0  # tokens without time must pass gradients on
    assert_equals_reference(case)


lengths = st.sampled_from((1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100))
multiples = st.integers(1, 16).map(lambda count: 8 * count)


@needs_library
@settings(max_examples=25)
@given(st.data())
def test_any_shape(data: st.DataObject) -> None:
    heads = data.draw(st.sampled_from((1, 3, 4, 5)), label="H")
    groups = data.draw(st.sampled_from([g for g in (1, 2, heads) if heads % g == 0]), label="G")
    n = data.draw(multiples, label="N")
    size = Size(
        L=data.draw(lengths, label="L"),
        H=heads,
        G=groups,
        P=data.draw(multiples, label="P"),
        N=n,
        S=data.draw(st.sampled_from((0, 1, n // 4, n // 2)), label="S"),
        K=data.draw(st.sampled_from((1, 2, 4)), label="K"),
        b=data.draw(st.integers(1, 2), label="b"),
    )
    order = data.draw(st.sampled_from(("random", "raster", "hilbert", "zigzag")), label="order")
    case = make_case(size, orders=order, weighted=data.draw(st.booleans(), label="weighted"))
    ends = data.draw(st.booleans(), label="ends")
    assert_equals_reference(case, special=WORST_TOLERANCE, ends=ends)


@needs_library
def test_bfloat16_and_half_are_converted_at_the_door() -> None:
    case = make_case(Size(L=65, H=4, G=2, P=32, N=32, S=8, K=2, b=2))
    for dtype in (torch.bfloat16, torch.float16):
        x, B, C = (part.to(dtype) for part in case.inputs[:3])
        rounded = case._replace(inputs=case.inputs._replace(x=x, B=B, C=C))
        wanted = results(rounded, "reference", torch.float64)
        found = results(rounded)
        assert found["y"].dtype == found["d B"].dtype == dtype
        assert found["end h"].dtype == torch.float32
        for name, actual in found.items():
            assert_close(actual, wanted[name], TOLERANCE[torch.bfloat16], name)


@needs_library
@pytest.mark.parametrize("regime", ["phases of 2000 rad", "hardly any decay", "mixed"])
def test_stress(regime: str) -> None:
    case = make_case(Size(L=4096, H=1, P=8, N=8, S=4), weighted=False)
    inputs = case.inputs
    dt = 5 * torch.rand(inputs.dt.shape, generator=torch.Generator().manual_seed(0))
    A = torch.full_like(inputs.A, -1e-4)
    if regime == "phases of 2000 rad":
        inputs = inputs._replace(angle=1.7 + 0.3 * inputs.angle, dt=0.07 * dt, A=A)
    elif regime == "hardly any decay":
        inputs = inputs._replace(dt=dt, A=A)
    else:
        inputs = inputs._replace(dt=dt, A=torch.where(inputs.A < -1, -20, A))
    assert_equals_reference(case._replace(inputs=inputs))


@needs_library
@pytest.mark.parametrize(
    "name, value", [("A", -1e6), ("A", 0.0), ("dt", 0.0), ("trap", -1e3), ("trap", 1e3)]
)
def test_limits(name: str, value: float) -> None:
    case = make_case(Size(L=40, K=2))
    fixed = torch.full_like(getattr(case.inputs, name), value)
    case = case._replace(inputs=case.inputs._replace(**{name: fixed}))
    assert_close(run(case)[0], run(case, "reference")[0], 1e-5, "y")


@needs_library
def test_what_is_not_finite_stays_visible() -> None:
    case = make_case(Size(L=40))
    case.inputs.x[0, case.order[0, 20], 0, 0] = float("nan")
    y = run(case)[0]
    assert y[0, case.order[0, 20:], 0, 0].isnan().all()
    assert y[0, :, 1].isfinite().all()
    case.inputs.dt[:] = float("inf")
    assert not run(case)[0].isfinite().all()


@needs_library
def test_causality_is_bit_exact() -> None:
    case = make_case(Size(L=65, b=2))
    early, late = case.order[0, :40], case.order[0, 40:]
    y, _ = run(case)
    inputs = case.inputs
    for part in (inputs.x, inputs.B, inputs.C, inputs.trap, inputs.angle):
        part[:, late] += 1
    inputs.A[:, late] *= 2
    inputs.dt[:, :, late] *= 2
    changed, _ = run(case)
    assert torch.equal(changed[:, early], y[:, early])
    assert not torch.equal(changed[:, late], y[:, late])


@needs_library
@pytest.mark.parametrize("cut", [1, 32, 50])
def test_a_split_sequence_equals_the_whole(cut: int) -> None:
    case = make_case(Size(L=65, H=4, G=2, K=2, b=2))
    case = case._replace(order=torch.stack([torch.arange(65)] * 2))
    y, end = run(case)
    parts, state = [], case.state
    for piece in (slice(0, cut), slice(cut, 65)):
        rows = [part[:, piece] for part in case.inputs[:7]]
        rows[3] = case.inputs.dt[:, :, piece]
        inputs = Inputs._make((*rows, *case.inputs[7:]))
        order = torch.stack([torch.arange(rows[0].shape[1])] * 2)
        part, state = run(Case(inputs, order, case.weights, state))
        parts.append(part)
    assert_close(torch.cat(parts, dim=1), y, 1e-6, "y")
    assert state is not None
    for name, ours, whole in zip(ScanState._fields, state, end, strict=True):
        assert_close(ours, whole, 1e-6, name)


# The same bits

SHARED_HEADS = Size(L=70, H=6, G=2, P=24, N=16, S=4, K=3, b=1)
ONE_HEAD = Size(L=70, H=1, G=1, P=32, N=32, S=8, K=4, b=1)
MANY = Size(L=300, H=4, G=1, P=32, N=32, S=8, K=2, b=5)


@needs_library
@pytest.mark.parametrize("size", [SHARED_HEADS, ONE_HEAD, MANY], ids=["groups", "one", "many"])
def test_the_same_bits_every_run_and_for_every_number_of_threads(size: Size, threads: None) -> None:
    case = make_case(size)
    torch.set_num_threads(1)
    first = results(case)
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        for name, actual in results(case).items():
            assert torch.equal(actual, first[name]), f"{count} threads, {name}"


@needs_library
def test_two_threads_at_once(threads: None) -> None:
    torch.set_num_threads(2)
    cases = [make_case(Size(L=200, H=3 + i, K=2)) for i in range(2)]
    wanted = [results(case) for case in cases]
    wrong: list[str] = []

    def work(index: int) -> None:
        for _ in range(10):
            for name, actual in results(cases[index]).items():
                if not torch.equal(actual, wanted[index][name]):
                    wrong.append(name)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@needs_library
def test_a_forked_process_computes_too() -> None:
    code = (
        "import os, torch\n"
        "from tests_case import case, run\n"
        "torch.set_num_threads(2)\n"
        "y = run(case)[0]\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os._exit(0 if torch.equal(run(case)[0], y) else 3)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0\n"
    )
    run_here(code)


@needs_library
def test_strided_inputs_and_small_integers_give_the_same() -> None:
    case = make_case(Size(L=30, H=4, G=2, P=16, N=8, S=2, K=4, b=2))
    wanted = results(case)

    def strided(part: Tensor) -> Tensor:
        """The same numbers, every other element of a tensor with its axes reversed."""
        axes = tuple(reversed(range(part.dim())))
        room = part.new_full([2 * size for size in reversed(part.shape)], float("nan"))
        view = room[tuple(slice(None, None, 2) for _ in axes)].permute(axes)
        return view.copy_(part)

    odd = case.of(tuple(strided(part) for part in case.tensors()))
    assert not odd.inputs.x.is_contiguous()
    y, _ = run(odd._replace(order=case.order.int()))
    assert torch.equal(y, wanted["y"])
    before = [part.clone() for part in odd.tensors()]
    for name, actual in results(odd).items():
        assert torch.equal(actual, wanted[name]), name
    assert all(torch.equal(a, b) for a, b in zip(odd.tensors(), before, strict=True))


# The door


def knock(**changes: Any) -> Any:
    case = make_case(Size(L=6, K=2), weighted=False)
    arguments: dict[str, Any] = {**case.inputs._asdict(), "order": case.order} | changes
    return selective_scan(**arguments, backend="native")


WRONG: tuple[tuple[str, Any], ...] = (
    ("x", torch.zeros(1, 6, 2, 12)),
    ("x", torch.zeros(1, 6, 2, 136)),
    ("x", torch.zeros(1, 6, 2, 16, dtype=torch.float64)),
    ("x", torch.zeros(1, 6, 2, 16, dtype=torch.int32)),
    ("B", torch.zeros(1, 6, 1, 16, device="meta")),
    ("C", torch.zeros(1, 6, 1, 8)),
    ("dt", torch.zeros(1, 1, 6, 2)),
    ("A", torch.zeros(1, 6, 3)),
    ("angle", torch.zeros(1, 6, 9)),
    ("order", torch.zeros(2, 6, dtype=torch.int64)),
    ("order", torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]])),
    ("order", torch.tensor([[0, 1, 2, 3, 4, 5], [-1, 0, 1, 2, 3, 4]])),
    ("order", torch.rand(2, 6)),
    ("weights", torch.zeros(2, 2)),
    ("initial_state", ScanState(*(torch.zeros(1) for _ in range(3)))),
    ("chunk_size", 8),
)


@needs_library
@pytest.mark.parametrize("name, value", WRONG, ids=[name for name, _ in WRONG])
def test_wrong_arguments_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}\b"):
        knock(**{name: value})


@needs_library
def test_widths_are_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match=r"^x: expected P one of 8, 16, .*, 128 .*got 12"):
        knock(x=torch.zeros(1, 6, 2, 12))
    narrow = torch.zeros(1, 6, 1, 4)
    bias = torch.zeros(2, 2, 4)
    with pytest.raises(ConfigError, match=r"^B: expected N one of 8, 16, .*got 4"):
        knock(B=narrow, C=narrow, B_bias=bias, C_bias=bias, angle=torch.zeros(1, 6, 2))


@needs_library
def test_auto_takes_it_where_it_fits_and_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    name, why = choose_backend(64, 32, 32)
    assert name == "native"
    assert library.instruction_set() in why
    name, why = choose_backend(32, 12, 32)
    assert name == "quadratic"
    assert "not native: x: expected P one of 8, " in why
    name, why = choose_backend(4096, 32, 32, dtype=torch.float64)
    assert name == "chunked"
    assert "float64" in why
    assert choose_backend(64, 32, 32, device=torch.device("cuda"))[0] == "quadratic"
    monkeypatch.setenv("MAMBAADV2_SCAN_BACKEND", "native")
    with pytest.raises(ConfigError, match=r"^x: expected a dtype .*float64"):
        knock(x=torch.zeros(1, 6, 2, 16, dtype=torch.float64))


def test_without_the_library_all_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MAMBAADV2_NATIVE", "0")
    assert "native" not in available_backends()
    assert "MAMBAADV2_NATIVE=0" in absent_backends()["native"]
    case = make_case(Size(L=20))
    y = selective_scan(*case.inputs, order=case.order)
    with pytest.raises(BackendError, match=r"'native' is not available: MAMBAADV2_NATIVE=0"):
        run(case)
    monkeypatch.delenv("MAMBAADV2_NATIVE")
    missing, broken = tmp_path / "missing.so", tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    library._load.cache_clear()
    try:
        for path, said in ((missing, "was not built"), (broken, "cannot be loaded")):
            monkeypatch.setattr(library, "PATH", path)
            library._load.cache_clear()
            assert said in absent_backends()["native"]
            assert "pip install" in absent_backends()["native"]
            assert torch.equal(selective_scan(*case.inputs, order=case.order), y)
    finally:
        library._load.cache_clear()


@needs_library
def test_a_library_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "ABI", library.ABI + 1)
    library._load.cache_clear()
    try:
        assert "another version" in absent_backends()["native"]
    finally:
        library._load.cache_clear()


# As an operator of torch


@needs_library
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck() -> None:
    size = Size(L=18, H=2, K=2, b=2)
    for case in (make_case(size), make_case(size, weighted=False)):
        leaves = tuple(part.clone().requires_grad_() for part in case.inputs)
        extra = (case.weights, *(case.state or (None, None, None)))
        for return_state in (False, True):
            torch.library.opcheck(
                torch.ops.mambaadv2.scan.default, (*leaves, case.order, *extra, return_state)
            )
        dy = torch.randn_like(case.inputs.x)
        torch.library.opcheck(
            torch.ops.mambaadv2.scan_backward.default,
            (dy, None, None, None, *case.inputs, case.order, *extra),
            test_utils=("test_schema", "test_faketensor"),
        )


@needs_library
def test_second_derivatives_are_refused() -> None:
    case = make_case(Size(L=8), weighted=False)
    x = case.inputs.x.requires_grad_()
    (first,) = torch.autograd.grad(run(case)[0].sum(), x, create_graph=True)
    with pytest.raises(BackendError, match="second derivatives"):
        torch.autograd.grad(first.sum(), x)


class Block(nn.Module):
    """The least that trains through a scan."""

    order: Tensor

    def __init__(self, backend: str = "native") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backend = backend
        self.into = nn.Linear(16, 2 * 8 + 8 + 8 + 2 + 2 + 2 + 2)
        self.bias = nn.Parameter(torch.ones(2, 2, 8))
        self.skip = nn.Parameter(torch.ones(2, 2))
        self.out = nn.Linear(16, 16)
        self.register_buffer("order", directions("hilbert", 4, 5, 2))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (b, 20, 16) to the same."""
        x, B, C, dt, a, trap, angle = self.into(tokens).split((16, 8, 8, 2, 2, 2, 2), dim=-1)
        y = selective_scan(
            x.unflatten(-1, (2, 8)),
            B.unsqueeze(2),
            C.unsqueeze(2),
            torch.nn.functional.softplus(dt).unsqueeze(1).expand(-1, 2, -1, -1),
            -a.exp(),
            trap,
            angle,
            self.bias,
            self.bias,
            self.skip,
            order=self.order,
            backend=self.backend,
        )
        out: Tensor = self.out(y.flatten(2))
        return out


@needs_library
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler about itself
def test_compile_and_export_see_one_node() -> None:
    for backend in ("native", "auto"):
        block, tokens = Block(backend), torch.randn(3, 20, 16)
        block(tokens).square().sum().backward()
        wanted = [parameter.grad for parameter in block.parameters()]
        block.zero_grad()
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        y = compiled(tokens)
        assert_close(y, block(tokens), 1e-6, "y")
        y.square().sum().backward()
        for parameter, gradient in zip(block.parameters(), wanted, strict=True):
            assert parameter.grad is not None
            assert gradient is not None
            assert_close(parameter.grad, gradient, 1e-5, "gradient")
        program = torch.export.export(block, (tokens,))
        targets = [str(node.target) for node in program.graph.nodes]
        assert sum("mambaadv2.scan" in target for target in targets) == 1
        assert_close(program.module()(tokens), block(tokens), 1e-6, "exported y")


@needs_library
def test_a_training_has_the_same_losses_with_every_backend() -> None:
    def losses(backend: str) -> list[float]:
        block = Block(backend)
        tokens = torch.randn(4, 20, 16, generator=torch.Generator().manual_seed(3))
        optimizer = torch.optim.AdamW(block.parameters(), lr=1e-2)
        found = []
        for _ in range(30):
            optimizer.zero_grad()
            loss = (block(tokens) - tokens.flip(1)).square().mean()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    ours, others = losses("native"), losses("chunked")
    assert ours[-1] < 0.8 * ours[0]
    assert ours == pytest.approx(others, rel=1e-4)


# Other processes

SHARED_CASE = """
import sys, torch
sys.path.insert(0, {folder!r})
import test_native
case = test_native.make_case(test_native.Size(L=50, H=3, G=3, P=40, N=24, S=6, K=2, b=2))
run = test_native.run
"""


def run_here(code: str, **variables: str) -> str:
    """Run Python code that may use `case` and `run`; return what it prints."""
    code = code.replace("from tests_case import case, run\n", "")
    code = SHARED_CASE.format(folder=str(Path(__file__).parent)) + code
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_library
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa: str) -> None:
    code = (
        "from mambaadv2.scan import library\n"
        "if library.why_not(): print(library.why_not()); sys.exit()\n"
        "print(library.instruction_set())\n"
        "for size in test_native.SIZES[:6]:\n"
        "    test_native.assert_equals_reference(test_native.make_case(size))\n"
    )
    said = run_here(code, MAMBAADV2_NATIVE_ISA=isa)
    if "not an instruction set" in said:
        pytest.skip(said)
    assert said == isa


@needs_library
def test_an_unknown_instruction_set_is_refused() -> None:
    code = "from mambaadv2.scan import absent_backends; print(absent_backends()['native'])"
    said = run_here(code, MAMBAADV2_NATIVE_ISA="abacus")
    assert "MAMBAADV2_NATIVE_ISA=abacus" in said
    assert "avx512" in said
