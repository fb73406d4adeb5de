"""The CPU backend in C++ (csrc/): one fused pass forward, closed-form gradients backward.

Two operators of `torch.library`, so that `torch.compile` and `torch.export` see one node. Nothing
but its inputs is kept for the backward pass, which computes again what it needs. All is float32
inside; other float dtypes are converted on the way in and out.

Shape legend as in `selective_scan`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mambaadv2.errors import BackendError, ConfigError
from mambaadv2.scan import library as lib
from mambaadv2.scan.reference import ScanState

WIDTHS = tuple(range(8, 129, 8))
"""Head and state dims P and N that the kernel takes."""

_INPUTS = (
    "Tensor x, Tensor B, Tensor C, Tensor dt, Tensor A, Tensor trap, Tensor angle, "
    "Tensor B_bias, Tensor C_bias, Tensor D, Tensor order, Tensor? weights, "
    "Tensor? h, Tensor? k, Tensor? x_before"
)


def purpose() -> str:
    """What this backend is for, with the instruction set that it uses here."""
    return (
        f"fused C++ for the CPU ({lib.instruction_set()}), forward and backward: the fastest here"
    )


def why_not() -> str | None:
    """Why this backend is absent here; None where it is there."""
    return lib.why_not()


def misfit(device: torch.device, dtype: torch.dtype, head_dim: int, state_dim: int) -> str | None:
    """Why this backend cannot take such inputs, naming the argument; None if it can."""
    if device.type != "cpu":
        return f"x: expected device cpu for the native scan, got {device}"
    if dtype == torch.float64:
        return "x: expected a dtype of at most 32 bits for the native scan, got torch.float64"
    for name, size in (("x: expected P", head_dim), ("B: expected N", state_dim)):
        if size not in WIDTHS:
            return f"{name} one of {', '.join(map(str, WIDTHS))} for the native scan, got {size}"
    return None


# torch.compile takes their answers at the time of tracing: it cannot look into a library. This is
# what torch.compiler.assume_constant_result does, without its second of imports.
for _constant in (purpose, why_not):
    _constant._dynamo_marked_constant = True  # type: ignore[attr-defined]


def native_scan(
    x: Tensor,
    B: Tensor,
    C: Tensor,
    dt: Tensor,
    A: Tensor,
    trap: Tensor,
    angle: Tensor,
    B_bias: Tensor,
    C_bias: Tensor,
    D: Tensor,
    order: Tensor,
    weights: Tensor | None,
    initial_state: ScanState | None,
    *,
    return_state: bool,
) -> tuple[Tensor, ScanState | None]:
    """Scan all directions and add them up; arguments as in `selective_scan`, already validated."""
    tensors = (x, B, C, dt, A, trap, angle, B_bias, C_bias, D)
    before = initial_state or (None, None, None)
    extra = [None if part is None else part.float() for part in (weights, *before)]
    y, *end = torch.ops.mambaadv2.scan(
        *(part.float() for part in tensors), order.long(), *extra, return_state
    )
    return y.to(x.dtype), ScanState(*end) if return_state else None


def _problem(inputs: tuple[Tensor | None, ...]) -> tuple[bytes, list[Tensor | None]]:
    """The structure of the C interface, and the tensors it points into: keep them alive."""
    # Rows must be dense; of the scalars dt, A and trap any strides will do.
    x, B, C, angle = (
        part if part.stride(-1) == 1 else part.contiguous()
        for part in (inputs[0], inputs[1], inputs[2], inputs[6])
        if part is not None
    )
    dt, A, trap = (part for part in inputs[3:6] if part is not None)
    rest = [None if part is None else part.contiguous() for part in inputs[7:]]
    order = rest[3]
    assert order is not None
    b, length, heads, head_dim = x.shape
    sizes = (b, order.shape[0], length, heads, B.shape[2], head_dim, B.shape[3], angle.shape[2])
    fields: list[Tensor | int | None] = [*sizes, x, *x.stride()[:3]]
    fields += [B, *B.stride()[:3], C, *C.stride()[:3], dt, *dt.stride(), A, *A.stride()]
    fields += [trap, *trap.stride(), angle, *angle.stride()[:2], *rest]
    problem = lib.pack(*fields)
    return problem, [x, B, C, dt, A, trap, angle, *rest]


def _call(problem: bytes, targets: bytes, backward: bool) -> None:
    library, threads = lib.library(), torch.get_num_threads()
    size = library.mambaadv2_workspace(problem, backward, threads)
    if size < 0:
        raise ConfigError("native scan: its shape is not supported")
    # A whole cache line more, because the workspace begins on one.
    workspace = torch.empty(size + 64, dtype=torch.uint8)
    start = -(-workspace.data_ptr() // 64) * 64
    function = library.mambaadv2_backward if backward else library.mambaadv2_forward
    lib.require_done(function(problem, targets, threads, start))


def _state_shapes(x: Tensor, B: Tensor, order: Tensor) -> tuple[tuple[int, ...], ...]:
    b, _, heads, head_dim = x.shape
    lead = (b, order.shape[0], heads)
    return (*lead, head_dim, B.shape[3]), (*lead, B.shape[3]), (*lead, head_dim)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *inputs, return_state = arguments
    problem, _held = _problem(tuple(inputs))
    x, B, order = inputs[0], inputs[1], inputs[10]
    y = torch.empty(x.shape, dtype=torch.float32)
    shapes = _state_shapes(x, B, order) if return_state else ((0,), (0,), (0,))
    h, k, last = (torch.empty(shape, dtype=torch.float32) for shape in shapes)
    _call(problem, lib.pack(y, h, k, last), backward=False)
    return y, h, k, last


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *inputs, return_state = arguments
    x, B, order = inputs[0], inputs[1], inputs[10]
    shapes = _state_shapes(x, B, order) if return_state else ((0,), (0,), (0,))
    y, h, k, last = (x.new_empty(shape) for shape in (x.shape, *shapes))
    return y, h, k, last


def _backward(*arguments: Any) -> list[Tensor]:
    given, inputs = arguments[:4], arguments[4:]
    given = tuple(None if part is None else part.contiguous() for part in given)
    problem, _held = _problem(inputs)
    results = _backward_fake(*arguments)
    # The three of a state come together; an absent one among them is zero.
    if any(part is not None for part in given[1:]):
        shapes = _state_shapes(inputs[0], inputs[1], inputs[10])
        given = given[:1] + tuple(
            torch.zeros(shape, dtype=torch.float32) if part is None else part
            for part, shape in zip(given[1:], shapes, strict=True)
        )
    found = iter(results[10:])
    extra = (None if part is None else next(found) for part in inputs[11:])
    _call(problem, lib.pack(*given, *results[:10], *extra), backward=True)
    return results


def _backward_fake(*arguments: Any) -> list[Tensor]:
    # Nothing where there is no input; a list of an operator cannot hold None.
    inputs = (*arguments[4:14], *arguments[15:])
    contiguous = torch.contiguous_format
    return [torch.empty_like(p, memory_format=contiguous) for p in inputs if p is not None]


class _Scan(torch.autograd.Function):
    """The operator with its gradients, without the 100 us that `register_autograd` adds."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        *tensors, ctx.return_state = arguments
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        with torch._C._AutoDispatchBelowAutograd():
            found: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.mambaadv2.scan(*arguments)
        return found

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        if not ctx.return_state:
            given = (given[0], None, None, None)
        if all(part is None for part in given):
            return (None,) * 16
        found = torch.ops.mambaadv2.scan_backward(*given, *inputs)
        rest = iter(found[10:])
        extra = [None if part is None else next(rest) for part in inputs[11:]]
        return (*found[:10], None, *extra, None)


class _OnlyOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(torch.ops.mambaadv2.scan_backward(*arguments))

    @staticmethod
    def backward(ctx: Any, *given: Any) -> NoReturn:
        raise BackendError(
            "the native scan has no second derivatives; use backend='chunked' for this pass"
        )


def _differentiable(function: type[torch.autograd.Function], operator: Any) -> Callable[..., Any]:
    """What the operator does where gradients are recorded: the function, if any are wanted."""

    def apply(*arguments: Any) -> Any:
        if forward_ad._current_level >= 0:
            raise BackendError(
                "the native scan has no forward-mode derivatives; use backend='chunked' for them"
            )
        if torch.is_grad_enabled() and any(
            isinstance(part, Tensor) and part.requires_grad for part in arguments
        ):
            found = function.apply(*arguments)
            return list(found) if function is _OnlyOnce else found
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    return apply


def _register() -> None:
    torch.library.define(
        "mambaadv2::scan",
        f"({_INPUTS}, bool return_state) -> (Tensor, Tensor, Tensor, Tensor)",
    )
    torch.library.define(
        "mambaadv2::scan_backward",
        f"(Tensor? dy, Tensor? dh, Tensor? dk, Tensor? dx, {_INPUTS}) -> Tensor[]",
    )
    torch.library.impl("mambaadv2::scan", "cpu", _forward)
    torch.library.impl("mambaadv2::scan_backward", "cpu", _backward)
    torch.library.register_fake("mambaadv2::scan", _forward_fake)
    torch.library.register_fake("mambaadv2::scan_backward", _backward_fake)
    scan, scan_backward = torch.ops.mambaadv2.scan, torch.ops.mambaadv2.scan_backward
    torch.library.impl("mambaadv2::scan", "Autograd", _differentiable(_Scan, scan))
    torch.library.impl(
        "mambaadv2::scan_backward", "Autograd", _differentiable(_OnlyOnce, scan_backward)
    )


_register()
