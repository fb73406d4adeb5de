"""Runs the Triton kernels on many cases and prints errors against float64 as one JSON object.

    TRITON_INTERPRET=1 python -m tests.scan.triton_cases cpu     in Triton's interpreter
    python -m tests.scan.triton_cases cuda                       on a GPU, at full sizes

A program of its own because the interpreter is chosen when the kernels are imported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks._scan_case import (
    DECODER,
    STRESS_TOLERANCE,
    TOLERANCE,
    Case,
    Shape,
    errors,
    gradients,
    in_float64,
    make_case,
)
from mambaadv2.scan import selective_scan
from mambaadv2.scan.chunked import chunked_scan
from mambaadv2.scan.reference import ScanState, reference_scan
from mambaadv2.scan.triton import triton_scan
from mambaadv2.scan.triton_plan import Plan


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison; `plan` None is the one that users get."""

    shape: Shape
    plan: Plan | None = None
    dtype: torch.dtype = torch.float32
    stress: str = ""
    cold: bool = False
    tolerance: float | None = None

    @property
    def allowed(self) -> float:
        return self.tolerance or (STRESS_TOLERANCE if self.stress else TOLERANCE[self.dtype])


# Sequential: span covers the sequence. Chunk-parallel: span 1 or 2. Lengths from 1 to 100.
SMALL = {
    "one token": Check(Shape(1, 1, H=1, K=1, P=8, N=8, S=0, b=2), Plan(16, 1, 1, "ieee")),
    "L5 three groups": Check(Shape(1, 5, H=3, G=3, K=2, P=8, N=16, S=4), Plan(16, 1, 1, "ieee")),
    "L16 all rotate": Check(Shape(4, 4, H=1, K=1, P=16, N=16, S=8, b=2), Plan(16, 1, 1, "ieee")),
    "L17 sequential": Check(Shape(1, 17, H=3, K=2, P=16, N=8, S=2), Plan(16, 2, 3, "ieee")),
    "L17 parallel": Check(Shape(1, 17, H=5, K=1, P=16, N=8, S=4), Plan(16, 1, 1, "ieee")),
    "L33 segments": Check(
        Shape(3, 11, H=4, G=2, K=1, P=24, N=32, order="zigzag"), Plan(16, 2, 2, "ieee")
    ),
    "L64 K8 sequential": Check(Shape(8, 8, H=1, K=8, P=8, N=8, S=2), Plan(32, 2, 1, "ieee")),
    "L64 K4 parallel": Check(
        Shape(8, 8, H=1, K=4, P=8, N=24, S=6, order="raster"), Plan(32, 1, 1, "tf32x3")
    ),
    "L100 N64": Check(
        Shape(10, 10, H=1, K=2, P=40, N=64, S=16, order="boustrophedon"), Plan(32, 2, 1, "ieee")
    ),
    "chunk of 128": Check(Shape(10, 10, H=1, K=1, P=8, N=8, S=0), Plan(128, 1, 1, "ieee")),
    "no state, no weights": Check(Shape(5, 7, H=2, K=2, P=8, N=16, S=4), cold=True),
    "bfloat16": Check(Shape(5, 7, H=2, K=4, b=1), dtype=torch.bfloat16),
    "bfloat16 parallel": Check(Shape(5, 7, H=2, K=2), Plan(16, 1, 2, "tf32"), dtype=torch.bfloat16),
    "bfloat16 products": Check(
        Shape(5, 7, H=1, K=2), Plan(16, 2, 1, "bfloat16"), dtype=torch.bfloat16, tolerance=3e-2
    ),
    "float16": Check(Shape(3, 6, H=1, K=2, P=16, N=16, S=4), dtype=torch.float16),
    "phases": Check(
        Shape(8, 24, H=1, K=1, P=8, N=16, S=8), Plan(64, 3, 1, "ieee"), stress="phases"
    ),
    "decay": Check(Shape(8, 8, H=1, K=2, P=8, N=8, S=4), Plan(32, 1, 1, "ieee"), stress="decay"),
    "decay sequential": Check(
        Shape(8, 8, H=2, K=1, P=8, N=8, S=2), Plan(16, 4, 2, "ieee"), stress="decay"
    ),
}
LARGE = {
    **{name: Check(shape) for name, shape in DECODER.items()},
    **{f"{name} bfloat16": Check(shape, dtype=torch.bfloat16) for name, shape in DECODER.items()},
    "batch 3, odd": Check(Shape(63, 61, H=5, K=4, G=5, P=24, N=40, S=10, b=3)),
    "P128 N128": Check(Shape(32, 32, H=3, K=2, G=3, P=128, N=128, S=64)),
    "sequential": Check(Shape(32, 32, H=4, K=2), Plan(32, 32, 4, "ieee")),
    "parallel": Check(Shape(32, 32, H=4, K=2), Plan(64, 1, 1, "tf32x3")),
    "phases L4096": Check(Shape(64, 64, H=2, K=2), stress="phases"),
    "decay L4096": Check(Shape(64, 64, H=2, K=2), stress="decay"),
    "cold": Check(Shape(64, 64, H=4, K=8), cold=True),
}


def run_check(check: Check, device: str) -> dict[str, float]:
    """Errors of every output and gradient against the plain loop in float64."""

    def scan(*arguments: Any, return_state: bool) -> tuple[Tensor, ScanState | None]:
        return triton_scan(*arguments, return_state=return_state, plan=check.plan)

    def loop(*arguments: Any, return_state: bool) -> tuple[Tensor, ScanState | None]:
        # 4096 steps of the plain loop take minutes; in float64 the chunks equal it to 1e-12.
        if check.shape.L > 256:
            return chunked_scan(*arguments, chunk_size=32, return_state=return_state)
        return reference_scan(*arguments)

    case = make_case(check.shape, check.dtype, device, stress=check.stress, cold=check.cold)
    return errors(gradients(case, scan), gradients(in_float64(case), loop))


def forward(case: Case, plan: Plan | None = None) -> tuple[Tensor, ScanState]:
    y, end = triton_scan(*case.arguments, return_state=True, plan=plan)
    assert end is not None
    return y, end


def continuation(device: str) -> dict[str, float]:
    """A sequence cut at 16 and at 9, its state handed on, against the whole."""
    case = make_case(Shape(1, 33, H=2, K=1, P=8, N=16, S=4, order="raster"), device=device)
    y, end = forward(case)
    found: dict[str, float] = {}
    for cut in (16, 9):
        state, parts = case.state, []
        for piece in (slice(0, cut), slice(cut, 33)):
            rows = [tensor[:, piece] for tensor in case.tensors[:7]]
            rows[3] = case.tensors[3][:, :, piece]
            order = torch.arange(rows[0].shape[1], device=device)[None]
            tensors = (*rows, *case.tensors[7:])
            part, state = forward(Case(tensors, order, case.weights, state))
            parts.append(part)
        assert state is not None
        whole = {"y": y, "h": end.h, "k": end.k, "x": end.x}
        cuts = {"y": torch.cat(parts, 1), "h": state.h, "k": state.k, "x": state.x}
        found |= {f"{name} cut at {cut}": e for name, e in errors(cuts, whole).items()}
    return found


def strides_and_order_types(device: str) -> dict[str, float]:
    """Every second element of wider tensors, int32 tables; the same bits come out again."""
    case = make_case(Shape(4, 5, H=2, K=2, P=8, N=8, S=2), device=device)

    def wide(tensor: Tensor) -> Tensor:
        out = torch.full((*tensor.shape, 2), torch.nan, device=device)
        out[..., 0] = tensor
        return out[..., 0]

    assert case.weights is not None
    assert case.state is not None
    other = Case(
        tuple(wide(tensor) for tensor in case.tensors),
        case.order.int(),
        wide(case.weights),
        ScanState(*(wide(part) for part in case.state)),
    )
    wanted = gradients(case, triton_scan)
    strided, again = gradients(other, triton_scan), gradients(case, triton_scan)
    found = {f"strided {name}": part for name, part in strided.items()}
    found |= {f"again {name}": part for name, part in again.items()}
    kinds = ("strided", "again")
    return errors(found, {f"{kind} {n}": p for kind in kinds for n, p in wanted.items()})


def nan_stays(device: str) -> dict[str, float]:
    """A NaN in any input reaches the output; 0 where it does, 1 where it is lost."""
    found = {}
    for i, name in enumerate(("x", "B", "C", "dt", "A", "trap", "angle", "B_bias", "C_bias", "D")):
        case = make_case(Shape(1, 20, H=1, K=1, P=8, N=8, S=2), device=device, cold=True)
        case.tensors[i].view(-1)[0] = torch.nan
        found[name] = 0.0 if forward(case)[0].isnan().any() else 1.0
    return found


def as_one_node(device: str) -> dict[str, float]:
    """torch.compile sees one operator without a graph break, and torch's own checks of it pass."""
    from mambaadv2.scan import triton_ops

    case = make_case(Shape(1, 18, H=2, K=2, P=8, N=8, S=2), device=device)
    case.tensors[0].requires_grad_()

    def function(case: Case) -> Tensor:
        return triton_scan(*case.arguments, return_state=False)[0]

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    y, plain = compiled(case), function(case)
    [dx] = torch.autograd.grad(y.sum(), case.tensors[0])
    [plain_dx] = torch.autograd.grad(plain.sum(), case.tensors[0])
    order = case.order.int()
    state = torch.randn(1, 2, 2, 2, 4, 8, device=device)
    tensors = [tensor.detach().requires_grad_() for tensor in case.tensors]
    checked = torch.library.opcheck(
        triton_ops.scan,
        (*tensors, order, case.weights, state, True, 16, 2, 1, "ieee"),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    assert set(checked.values()) == {"SUCCESS"}, checked
    # Strides of gradients are what the compiler was told, whatever those of the inputs.
    turned = [part.detach().transpose(0, -1).contiguous().transpose(0, -1) for part in tensors]
    dy = torch.randn(1, 18, 2, 8, device=device)
    checked = torch.library.opcheck(
        triton_ops.scan_backward,
        (dy, None, *turned, order, case.weights, state, 16, 2, 1, "ieee"),
        test_utils=("test_schema", "test_faketensor"),
    )
    assert set(checked.values()) == {"SUCCESS"}, checked
    return errors({"y": y, "dx": dx}, {"y": plain.detach(), "dx": plain_dx})


def no_permutation(device: str) -> dict[str, float]:
    """A table with a row outside or a row twice is refused, inside a compiled function too."""
    found = {}
    for name, row in (("outside", 20), ("twice", 3)):
        case = make_case(Shape(1, 20, H=1, K=1, P=8, N=8, S=2), device=device, cold=True)
        order = case.order.clone()
        order[0, 7] = row if int(order[0, 7]) != row else 4
        bad = case._replace(order=order)

        def function(bad: Case = bad) -> Tensor:
            return selective_scan(*bad.tensors, order=bad.order, backend="triton")

        for way in (function, torch.compile(function, backend="aot_eager")):
            found[f"{name}, {'plain' if way is function else 'compiled'}"] = 1.0
            try:
                way()
            except Exception as error:
                # The compiler wraps it.
                if "every row must be a permutation" in str(error):
                    found[f"{name}, {'plain' if way is function else 'compiled'}"] = 0.0
    return found


OTHERS: dict[str, Callable[[str], dict[str, float]]] = {
    "continuation": continuation,
    "strides and order types": strides_and_order_types,
    "NaN stays NaN": nan_stays,
    "one node": as_one_node,
    "no permutation": no_permutation,
}


def main(device: str) -> int:
    """Print {case: {"tolerance": ..., "errors": {tensor: error}}}."""
    # Uninitialised memory reads NaN, so an element that nobody wrote cannot look right.
    # Only warn: the float64 truth uses torch's cumsum, which is not deterministic on a GPU.
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    found: dict[str, dict[str, object]] = {}
    for name, check in (SMALL if device == "cpu" else SMALL | LARGE).items():
        found[name] = {"tolerance": check.allowed, "errors": run_check(check, device)}
    for name, function in OTHERS.items():
        exact = name != "continuation"
        found[name] = {"tolerance": 0.0 if exact else 1e-5, "errors": function(device)}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
