"""The compiled CPU backend against the float64 reference: outputs, states, gradients, bits."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scan.native_cases import (
    SIZES,
    TOLERANCE,
    WORST_TOLERANCE,
    Case,
    Inputs,
    Size,
    assert_close,
    assert_equals_reference,
    make_case,
    needs_library,
    results,
    run,
    run_here,
)
from torch import Tensor

from mambaadv2.scan import ScanState, library, native


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
    assert_equals_reference(case)


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


@needs_library
def test_one_gradient_of_the_end_alone_whatever_the_default_dtype() -> None:
    """What no gradient came for is filled with zeros: of the library's kind of number."""
    case = make_case(Size(L=20))
    leaves = [part.requires_grad_() for part in case.inputs]

    def gradients() -> tuple[Tensor, ...]:
        end = run(case)[1]
        return torch.autograd.grad(end.x.sum(), leaves, materialize_grads=True)

    wanted = gradients()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = gradients()
    finally:
        torch.set_default_dtype(before)
    assert wanted[0].any()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@needs_library
@pytest.mark.parametrize("side, heads, directions", [(64, 4, 8), (32, 8, 4), (16, 16, 2)])
def test_a_training_step_needs_little_memory(side: int, heads: int, directions: int) -> None:
    """At most half of inputs, outputs and their gradients beside them, at the decoder's shapes.

    A second thread has scratch of its own: two hundredths more at one of them.
    """
    size = Size(L=side**2, H=heads, P=32, N=32, S=8, K=directions)
    case = make_case(size, weighted=False)
    held = 2 * sum(part.nbytes for part in case.inputs) + 2 * case.inputs.x.nbytes
    arguments = (*case.inputs, case.order, None, None, None, None)
    problem, _held = native._problem(arguments)
    for threads, share in ((1, 0.5), (2, 0.52)):
        workspace = library.library().mambaadv2_workspace(problem, True, threads)
        assert 0 < workspace <= share * held, f"{threads} threads: {workspace / held:.3f}"
