"""The CPU backend in C++ (csrc/): one fused pass forward, closed-form gradients backward.

Two operators of `torch.library`, so that `torch.compile` and `torch.export` see one node. Nothing
but its inputs is kept for the backward pass, which computes again what it needs. All is float32
inside; other float dtypes are converted on the way in and out.

Shape legend as in `selective_scan`.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

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
_NAMES = ("x", "B", "C", "dt", "A", "trap", "angle", "B_bias", "C_bias", "D")


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


def _problem(inputs: tuple[Tensor | None, ...]) -> tuple[lib.Problem, list[Tensor | None]]:
    """The structure of the C interface, and the tensors it points into: keep them alive."""
    held: list[Tensor | None] = []
    for index, part in enumerate(inputs):
        # Rows must be dense; of the scalars dt, A and trap any strides will do.
        if part is None or index in (3, 4, 5) or (index in (0, 1, 2, 6) and part.stride(-1) == 1):
            held.append(part)
        else:
            held.append(part.contiguous())
    x, B, C, dt, A, trap, angle, B_bias, C_bias, D, order = (
        part for part in held[:11] if part is not None
    )
    weights, h, k, x_before = held[11:]
    b, length, heads, head_dim = x.shape
    problem = lib.Problem()
    sizes = {"b": b, "K": order.shape[0], "L": length, "H": heads, "G": B.shape[2]}
    sizes |= {"P": head_dim, "N": B.shape[3], "S": angle.shape[2]}
    lib.fill(problem, sizes)
    for name, part, axes in (
        ("x", x, ("batch", "token", "head")),
        ("B", B, ("batch", "token", "group")),
        ("C", C, ("batch", "token", "group")),
        ("dt", dt, ("batch", "direction", "token", "head")),
        ("A", A, ("batch", "token", "head")),
        ("trap", trap, ("batch", "token", "head")),
        ("angle", angle, ("batch", "token")),
    ):
        strides = zip(axes, part.stride(), strict=False)
        lib.fill(problem, {name: part, **{f"{name}_{axis}": step for axis, step in strides}})
    lib.fill(problem, {"B_bias": B_bias, "C_bias": C_bias, "D": D, "order": order})
    lib.fill(problem, {"weights": weights, "first_h": h, "first_k": k, "first_x": x_before})
    return problem, held


def _call(problem: lib.Problem, targets: lib.Outputs | lib.Gradients, backward: bool) -> None:
    import ctypes

    library, threads = lib.library(), torch.get_num_threads()
    size = library.mambaadv2_workspace(ctypes.byref(problem), backward, threads)
    if size < 0:
        raise ConfigError("native scan: its shape is not supported")
    # A whole cache line more, because the workspace begins on one.
    workspace = torch.empty(size + 64, dtype=torch.uint8)
    start = -(-workspace.data_ptr() // 64) * 64
    function = library.mambaadv2_backward if backward else library.mambaadv2_forward
    status = function(ctypes.byref(problem), ctypes.byref(targets), threads, start)
    if status == lib.NOT_A_PERMUTATION:
        raise ConfigError(f"order: every row must be a permutation of 0..{problem.L - 1}")
    if status != 0:
        raise ConfigError(f"native scan: status {status}")


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
    outputs = lib.Outputs()
    lib.fill(outputs, {"y": y, "last_h": h, "last_k": k, "last_x": last})
    _call(problem, outputs, backward=False)
    return y, h, k, last


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *inputs, return_state = arguments
    x, B, order = inputs[0], inputs[1], inputs[10]
    shapes = _state_shapes(x, B, order) if return_state else ((0,), (0,), (0,))
    y, h, k, last = (x.new_empty(shape) for shape in (x.shape, *shapes))
    return y, h, k, last


def _backward(*arguments: Any) -> list[Tensor]:
    given, inputs = arguments[:4], arguments[4:]
    held_given = [None if part is None else part.contiguous() for part in given]
    problem, _held = _problem(inputs)
    results = _backward_fake(*arguments)
    gradients = lib.Gradients()
    # The three of a state come together; an absent one among them is zero.
    if any(part is not None for part in held_given[1:]):
        shapes = _state_shapes(inputs[0], inputs[1], inputs[10])
        held_given[1:] = [
            torch.zeros(shape) if part is None else part
            for part, shape in zip(held_given[1:], shapes, strict=True)
        ]
    for names, tensors in (
        (("given_y", "given_h", "given_k", "given_x"), held_given),
        ((*_NAMES, "weights", "first_h", "first_k", "first_x"), results),
    ):
        lib.fill(gradients, dict(zip(names, tensors, strict=True)))
    _call(problem, gradients, backward=True)
    return results


def _backward_fake(*arguments: Any) -> list[Tensor]:
    inputs = arguments[4:]
    shaped = (*inputs[:10], *inputs[11:])
    # Empty where there is no input; a list of an operator cannot hold None.
    return [inputs[0].new_empty((0,) if part is None else tuple(part.shape)) for part in shaped]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.return_state = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors
    if not ctx.return_state:
        given = (given[0], None, None, None)
    if all(part is None for part in given):
        return (None,) * 16
    found = torch.ops.mambaadv2.scan_backward(*given, *inputs)
    extra = [
        None if part is None else gradient
        for part, gradient in zip(inputs[11:], found[10:], strict=True)
    ]
    return (*found[:10], None, *extra, None)


def _no_second_derivative(ctx: Any, *given: Any) -> NoReturn:
    raise BackendError(
        "the native scan has no second derivatives; use backend='chunked' for this pass"
    )


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
    torch.library.register_autograd("mambaadv2::scan", _gradients, setup_context=_setup)
    torch.library.register_autograd("mambaadv2::scan_backward", _no_second_derivative)


_register()
