"""Around the compiled CPU backend: its door, its library, the operator, other processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.scan.native_cases import (
    Size,
    assert_close,
    make_case,
    needs_library,
    run,
    run_here,
)
from torch import Tensor, nn
from torch.autograd import forward_ad

from mambaadv2.errors import BackendError, ConfigError
from mambaadv2.scan import (
    ScanState,
    absent_backends,
    available_backends,
    choose_backend,
    library,
    selective_scan,
)
from mambaadv2.scan.orders import directions

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


@needs_library
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, in make_dual
def test_forward_mode_derivatives_are_refused() -> None:
    case = make_case(Size(L=8), weighted=False)
    with forward_ad.dual_level():
        x = forward_ad.make_dual(case.inputs.x, torch.ones_like(case.inputs.x))
        with pytest.raises(BackendError, match="forward-mode"):
            run(case._replace(inputs=case.inputs._replace(x=x)))


@needs_library
def test_the_operator_itself_takes_no_other_kind_of_number() -> None:
    case = make_case(Size(L=8), weighted=False)
    rest = (None, None, None, None, False)
    for dtype in (torch.float64, torch.bfloat16):
        inputs = case.inputs._replace(C=case.inputs.C.to(dtype))
        with pytest.raises(ConfigError, match=f"expected float32 or int64 .*{dtype}"):
            torch.ops.mambaadv2.scan(*inputs, case.order, *rest)
    with pytest.raises(ConfigError, match=r"torch\.int32"):
        torch.ops.mambaadv2.scan(*case.inputs, case.order.int(), *rest)


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


@needs_library
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa: str) -> None:
    code = (
        "from mambaadv2.scan import library\n"
        "if library.why_not(): print(library.why_not()); sys.exit()\n"
        "print(library.instruction_set())\n"
        "torch.use_deterministic_algorithms(True)\n"  # new memory reads NaN
        "for size in native_cases.SIZES:\n"
        "    assert_equals_reference(make_case(size))\n"
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
