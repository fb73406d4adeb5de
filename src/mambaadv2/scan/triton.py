"""The scan as Triton kernels for a GPU, forward and backward: the backend "triton".

Two regimes, which are the two ends of one scale (see `triton_plan.py`). A sequence is one (batch,
direction, head). Either one program walks all chunks of a sequence with the state in registers, or
its chunks are spread over many programs, whose states are made and joined first.

Directions are added up in one fixed way: every direction writes its own output and one reduction
sums them, so the same bits come out every time. Looping over the directions inside a program would
save that traffic, but leave b H programs instead of b H K: 4 for the decoder's finest map at batch
1, and 64 at batch 16, on a GPU with 132 multiprocessors. The traffic (b=16, L=4096, K=8, H=4, P=32:
0.27 GB in bfloat16, written and read) is an estimated 0.1 ms there. No measurement on a GPU was
made for this choice.

Importing this file imports no triton; `triton_scan` does.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from mambaadv2.errors import BackendError, ConfigError
from mambaadv2.scan.reference import ScanState
from mambaadv2.scan.triton_plan import Plan, interpreted

LARGEST = 128
"""Of P and N: larger tiles would not fit the shared memory."""


def why_not(device: torch.device) -> str | None:
    """One sentence why this backend cannot run on a device; None when it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (it comes with torch's CUDA builds for Linux)"
    if device.type == "cuda":
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
            name = torch.cuda.get_device_name(device)
            return f"{name} is older than compute capability 8.0, which the kernels need"
        return None
    if device.type != "cpu":
        return f"the kernels need a CUDA device, not {device.type}"
    if interpreted():
        return None
    reason = (
        "the tensors are on the CPU" if torch.cuda.is_available() else "there is no CUDA device"
    )
    return (
        f"{reason} (TRITON_INTERPRET=1 set beforehand runs the kernels slowly on a CPU, for tests)"
    )


def unsupported(head_dim: int, state_dim: int, dtype: torch.dtype) -> str | None:
    """One sentence why values of these sizes and dtype cannot be scanned; None when they can."""
    for name, size in (("P", head_dim), ("N", state_dim)):
        if size % 8 or not 8 <= size <= LARGEST:
            return f"{name}: expected a multiple of 8 from 8 to {LARGEST}, got {size}"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"x: expected float32, bfloat16 or float16, got {dtype}"
    return None


def triton_scan(
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
    plan: Plan | None = None,
) -> tuple[Tensor, ScanState | None]:
    """Evaluate the scan on a GPU; arguments as in `selective_scan`, already validated.

    Products are float32 for x in float32, and tf32 with float32 sums for x in bfloat16 or float16.
    States and all sums over tokens are float32; for x in half precision, what each direction adds
    to an output or gradient is rounded to that precision, then added in float32. Gradients of all
    floating-point arguments; not twice differentiable. plan: None chooses one.

    Raises BackendError where the kernels cannot run, ConfigError for sizes that they do not know.
    """
    # While compiling nothing can be asked of a device; kernels that cannot run then say so.
    reason = None if torch.compiler.is_compiling() else why_not(x.device)
    if reason is not None:
        raise BackendError(f"scan backend 'triton' cannot run: {reason}")
    reason = unsupported(x.shape[-1], B.shape[-1], x.dtype)
    if reason is not None:
        raise ConfigError(f"{reason}; take backend='chunked', which knows no such limit")
    from mambaadv2.scan import triton_ops

    entering = None if initial_state is None else _entering(initial_state, dt, trap, order)
    cut = (0, 0, 0, "") if plan is None else (plan.chunk, plan.span, plan.heads, plan.mode)
    tensors = (x, B, C, dt, A, trap, angle, B_bias, C_bias, D)
    y, leaving = triton_ops.scan(*tensors, order, weights, entering, return_state, *cut)
    if not return_state:
        return y, None
    # In the end frame the last key is not rotated.
    last = order[:, -1]
    k = B.index_select(1, last).repeat_interleave(x.shape[2] // B.shape[2], dim=2) + B_bias
    x_last = x.index_select(1, last)
    h = leaving.permute(0, 1, 2, 5, 4, 3).flatten(-2)  # (2, N/2, P) back to (P, N)
    return y, ScanState(h=h, k=k.float(), x=x_last.float())


def _entering(state: ScanState, dt: Tensor, trap: Tensor, order: Tensor) -> Tensor:
    """State (b, K, H, 2, N/2, P) before the first token, with its pending trapezoid term.

    That term belongs to the token before, whose key is in the frame in which the scan starts.
    """
    first = order[:, 0].long()
    directions = torch.arange(len(first), device=first.device)
    step = dt[:, directions, first].float()  # (b, K, H)
    pending = torch.sigmoid(-trap.index_select(1, first).float()) * step
    h = state.h.float() + pending[..., None, None] * (
        state.x.float().unsqueeze(-1) * state.k.float().unsqueeze(-2)
    )
    halves: Tensor = h.unflatten(-1, (h.shape[-1] // 2, 2))
    return halves.permute(0, 1, 2, 5, 4, 3).contiguous()
