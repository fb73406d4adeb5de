"""The Triton scan as one operator of torch: launches, and what autograd and torch.compile see.

Importing this file imports triton and registers the operators `mambaadv2::triton_scan` and
`mambaadv2::triton_scan_backward`, so only `triton.triton_scan` does it. They are opaque to the
compiler (not `triton_op`), which keeps them usable in Triton's interpreter; a CUDA graph records
the same launches either way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mambaadv2.errors import ConfigError
from mambaadv2.scan.arguments import check_permutations
from mambaadv2.scan.triton_gradient import gradient_kernel
from mambaadv2.scan.triton_kernels import carry_kernel, output_kernel, pass_kernel
from mambaadv2.scan.triton_pieces import MODES
from mambaadv2.scan.triton_plan import Plan, choose_plan, interpreted

_INPUTS = (
    "Tensor x, Tensor B, Tensor C, Tensor dt, Tensor A, Tensor trap, Tensor angle, "
    "Tensor B_bias, Tensor C_bias, Tensor D, Tensor order, Tensor? weights, Tensor? entering"
)
_PLAN = "int chunk, int span, int heads, str mode"


class _Inputs(NamedTuple):
    """The arguments of both operators; contiguous once they have passed `_Launch`."""

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
    order: Tensor
    weights: Tensor | None
    entering: Tensor | None


class _Launch:
    """Sizes, plan and constants shared by the launches of one call."""

    def __init__(self, given: _Inputs, cut: tuple[int, int, int, str]) -> None:
        contiguous: list[Any] = [t if t is None else t.contiguous() for t in given]
        given = _Inputs(*contiguous)
        self.given = given = given._replace(order=given.order.int())
        x, B = given.x, given.B
        self.b, self.L, self.H, self.P = x.shape
        self.K, self.G, self.N = given.order.shape[0], B.shape[2], B.shape[3]
        if self.L * self.H * max(self.P, self.N) >= 2**31:
            raise ConfigError("x: L * H * P and L * H * N must stay below 2**31 for one image")
        self.plan = self._plan(cut)
        self.chunks = -(-self.L // self.plan.chunk)
        self.segments = -(-self.chunks // self.plan.span)
        self.sequences = self.b * self.K * self.H
        self.state = (2, self.N // 2, self.P)
        self.sizes = {"L": self.L, "H": self.H, "K": self.K, "G": self.G}
        mode = self.plan.mode
        self.constants: dict[str, Any] = {
            "HAS_WEIGHTS": given.weights is not None,
            "P": self.P,
            "HALF": self.N // 2,
            "S": given.angle.shape[-1],
            "T": self.plan.chunk,
            "BP": _tile(self.P),
            "M": _tile(self.N // 2),
            "MODE": f"{mode} interpreted" if mode == "bfloat16" and interpreted() else mode,
            # More than one stage is behind known wrong results on Blackwell
            # (state-spaces/mamba #886, #997), and the loops carry a state anyway.
            "num_stages": 1,
            # Fewest registers spilled, as compiled for compute capability 9.0 (tests/scan).
            "num_warps": 8 if max(self.P, self.N) > 64 or mode in ("ieee", "tf32x3") else 4,
        }

    def _plan(self, cut: tuple[int, int, int, str]) -> Plan:
        sizes = (self.b, self.K, self.L, self.H, self.G, self.P, self.N)
        if cut[0]:
            plan = Plan(*cut)
        else:
            plan = choose_plan(*sizes, self.given.x.dtype, _processors(self.given.x.device))
        if plan.chunk not in (16, 32, 64, 128) or plan.mode not in MODES or plan.span < 1:
            raise ConfigError(f"plan: expected chunks of 16 to 128 and {MODES}, got {plan}")
        if plan.heads < 1 or (self.H // self.G) % plan.heads:
            raise ConfigError(f"plan: heads must divide {self.H // self.G}, got {plan.heads}")
        return plan

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.given.x.device)

    def walk(
        self, values: Tensor, start: Tensor | None, *, reverse: bool, each: bool, end: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """What enters each chunk (`each`) or segment, and what the whole walk ends with.

        Forwards the walk carries states of x and B, backwards gradients of states from dy and C.
        The first is (b, K, H, chunks or segments, 2, N/2, P), or None where only the start enters.
        """
        finish = self.new(self.b, self.K, self.H, *self.state) if end else None
        entering = start
        if self.segments > 1:
            sums = self.new(self.sequences, self.segments, *self.state)
            fade = self.new(self.sequences, self.segments)
            turn = self.new(self.sequences, self.segments, self.N // 2, dtype=torch.int32)
            self._carry(values, None, sums, None, fade, turn, reverse=reverse, each=False)
            entering = torch.empty_like(sums)
            width = min(16, self.constants["BP"])
            pass_kernel[(self.sequences, -(-self.P // width))](
                sums if start is None else start, sums, fade, turn, entering,
                sums if finish is None else finish, self.segments,
                REVERSE=reverse, HAS_START=start is not None, HAS_END=end,
                P=self.P, HALF=self.N // 2, BP=width, M=self.constants["M"], num_stages=1,
            )  # fmt: skip
            if self.segments == self.chunks or not each:
                return entering, finish
        if not each:
            return None, None
        slots = self.new(self.sequences, self.chunks, *self.state)
        again = finish if self.segments == 1 else None
        self._carry(values, entering, slots, again, None, None, reverse=reverse, each=True)
        return slots, finish

    def _carry(
        self, values: Tensor, start: Tensor | None, slots: Tensor, end: Tensor | None,
        fade: Tensor | None, turn: Tensor | None, *, reverse: bool, each: bool,
    ) -> None:  # fmt: skip
        given = self.given
        pairs, bias = (given.C, given.C_bias) if reverse else (given.B, given.B_bias)
        # Forwards the weights come after the state, so it does not know them.
        constants = self.constants | {
            "HAS_WEIGHTS": reverse and given.weights is not None,
            "HAS_START": start is not None,
            "HAS_END": end is not None,
            "REVERSE": reverse,
            "EACH": each,
            "num_warps": 8 if max(self.P, self.N) > 64 else 4,
        }
        # A kernel never reads what is absent; any tensor fills its place.
        carry_kernel[(self.sequences * self.segments,)](
            values, pairs, given.dt, given.A, given.trap, given.angle, bias, given.order,
            _or(given.weights, values), _or(start, slots), slots, _or(end, slots),
            _or(fade, slots), _or(turn, slots), **self.sizes,
            Z=self.chunks, span=self.plan.span, segments=self.segments, **constants,
        )  # fmt: skip


def _tile(size: int) -> int:
    """The power of two that holds `size` columns, at least 16: the smallest that tl.dot takes."""
    return max(16, 1 << (size - 1).bit_length())


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    return other if tensor is None else tensor


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    given, return_state, cut = _Inputs(*arguments[:13]), arguments[13], arguments[14:]
    # Here and not at the door, which sees no values while compiling. Rows are addresses.
    check_permutations(given.order)
    launch = _Launch(given, cut)
    given = launch.given
    start = given.entering
    if launch.segments > 1:
        start, _ = launch.walk(given.x, start, reverse=False, each=False, end=False)
    x = given.x
    y = launch.new(launch.b, launch.K, *x.shape[1:], dtype=x.dtype)
    kept = (launch.b, launch.K, launch.H, *launch.state) if return_state else (0,)
    end = launch.new(*kept)
    output_kernel[(launch.sequences * launch.segments,)](
        *given[:11], _or(given.weights, x), _or(start, y), y, end, **launch.sizes,
        span=launch.plan.span, segments=launch.segments,
        HAS_START=start is not None, HAS_END=return_state, **launch.constants,
    )  # fmt: skip
    return (y.squeeze(1) if launch.K == 1 else y.sum(dim=1)), end


def _backward(dy: Tensor, dend: Tensor | None, *arguments: Any) -> list[Tensor]:
    """Gradients of the thirteen inputs in their order, without `order`; of absent ones, empty."""
    launch = _Launch(_Inputs(*arguments[:13]), arguments[13:])
    given, plan, new = launch.given, launch.plan, launch.new
    dy = dy.contiguous()
    dend = None if dend is None else dend.float().contiguous()
    entering, _ = launch.walk(given.x, given.entering, reverse=False, each=True, end=False)
    first = given.entering is not None
    leaving, dentering = launch.walk(dy, dend, reverse=True, each=True, end=first)
    b, K, L, H, half = launch.b, launch.K, launch.L, launch.H, launch.N // 2
    blocks = H // plan.heads
    # Gradients of values in bfloat16 are kept in it until they are added up.
    partial = torch.bfloat16 if given.x.dtype == torch.bfloat16 else torch.float32
    dx = new(b, K, L, H, launch.P, dtype=given.x.dtype)
    dpairs = new(2, b, K, launch.G, blocks // launch.G, L, 2, half, dtype=partial)
    ddt = new(b, K, L, H)
    drates = new(2, b, K, L, H)
    dangle = new(b, K, blocks, L, given.angle.shape[-1])
    dbias = new(2, b, launch.chunks, K, H, 2, half)
    dscalars = new(2, b, launch.chunks, K, H)
    assert entering is not None
    assert leaving is not None
    gradient_kernel[(b * K * launch.chunks * blocks,)](
        *given[:11], _or(given.weights, dy), dy, entering, leaving,
        dx, dpairs[0], dpairs[1], ddt, drates[0], drates[1], dangle, dbias[0], dbias[1],
        dscalars[0], dscalars[1], **launch.sizes, Z=launch.chunks, heads=plan.heads, blocks=blocks,
        **launch.constants,
    )  # fmt: skip
    # Sums over directions, heads of a group and chunks: torch's reductions are deterministic.
    dB, dC = _interleave(dpairs.sum(dim=(2, 4), dtype=torch.float32)).transpose(2, 3).unbind(0)
    dA, dtrap = drates.sum(dim=2).unbind(0)
    dB_bias, dC_bias = _interleave(dbias.sum(dim=(1, 2))).unbind(0)
    dD = dscalars[0].sum(dim=(0, 1))
    dweights = dscalars[1].sum(dim=(1, 3)) if given.weights is not None else new(0)
    found = [
        dx.sum(dim=1), dB, dC, ddt, dA, dtrap, dangle.sum(dim=(1, 2)),
        dB_bias, dC_bias, dD, dweights, _or(dentering, new(0)),
    ]  # fmt: skip
    inputs = [*given[:10], given.weights, given.entering]
    # An operator's outputs must not share memory, and halves of one sum do.
    return [
        gradient if like is None else _empty_like(like).copy_(gradient)
        for gradient, like in zip(found, inputs, strict=True)
    ]


def _empty_like(given: Tensor) -> Tensor:
    """What the compiler is told and what it gets must have the same strides."""
    return torch.empty_like(given, memory_format=torch.contiguous_format)


def _interleave(halves: Tensor) -> Tensor:
    """(..., 2, N/2), even and odd columns, to (..., N)."""
    return halves.transpose(-1, -2).flatten(-2)


def _on_its_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current device, which need not be that of the first argument."""

    @functools.wraps(function)
    def launch(first: Tensor, *arguments: Any) -> Any:
        with torch.cuda.device_of(first):
            return function(first, *arguments)

    return launch


scan = torch.library.custom_op(
    "mambaadv2::triton_scan",
    _on_its_device(_forward),
    mutates_args=(),
    schema=f"({_INPUTS}, bool return_state, {_PLAN}) -> (Tensor, Tensor)",
)
scan_backward = torch.library.custom_op(
    "mambaadv2::triton_scan_backward",
    _on_its_device(_backward),
    mutates_args=(),
    schema=f"(Tensor dy, Tensor? dend, {_INPUTS}, {_PLAN}) -> Tensor[]",
)


@scan.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    x, B, order, return_state = (arguments[i] for i in (0, 1, 10, 13))
    b, _, H, P = x.shape
    state = (b, order.shape[0], H, 2, B.shape[3] // 2, P) if return_state else (0,)
    return x.new_empty(x.shape), x.new_empty(state, dtype=torch.float32)


@scan_backward.register_fake
def _(dy: Tensor, dend: Tensor | None, *arguments: Any) -> list[Tensor]:
    inputs = [*arguments[:10], arguments[11], arguments[12]]
    empty = (dy.new_empty(0, dtype=torch.float32) for _ in inputs)
    return [e if t is None else _empty_like(t) for t, e in zip(inputs, empty, strict=True)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:13])
    ctx.has_state, ctx.cut = inputs[13], inputs[14:]


def _gradients(ctx: Any, dy: Tensor, dend: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors
    found = scan_backward(dy, dend if ctx.has_state else None, *inputs, *ctx.cut)
    wanted = [*found[:10], None, *found[10:]]
    kept = [gradient if t is not None else None for gradient, t in zip(wanted, inputs, strict=True)]
    return (*kept, None, *(None for _ in ctx.cut))


scan.register_autograd(_gradients, setup_context=_setup)
