"""Two costs of the local branches, fused in the native library where it can be used.

Between their matrix products the branches normalise, and their depth-wise convolutions need the
gradient of their weights. torch's CPU kernels for both leave the vector units idle in the
channels-last layout (LOG.md has the times). Here are the same functions in one or two passes each;
`norm_silu` and `depthwise` fall back to torch on every other device, dtype and build.

The native parts are operators of `torch.library`, as the scan. The result has the same bits for
every number of threads and in every run.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from mambaadv2.errors import BackendError, ConfigError
from mambaadv2.scan import library as lib
from mambaadv2.scan import native

KERNELS = (5, 7)  # torch is fast at 3


def instance_norm(x: Tensor) -> Tensor:
    """Normalise every channel of every image over its positions, without learned scale.

    Written as a group norm with one channel per group: the same numbers, but torch keeps the
    channels-last layout, where its instance norm falls back to copies. Maps of one position become
    zero, as they would in the limit.
    """
    return torch.group_norm(x, x.shape[1])


def norm_silu(x: Tensor) -> Tensor:
    """SiLU of the instance norm of a map (B, C, h, w)."""
    if not _fits(x):
        return F.silu(instance_norm(x))
    y: Tensor = torch.ops.mambaadv2.norm_silu(x.float())[0]
    return y.to(x.dtype)


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """Depth-wise convolution of a map (B, C, h, w), weight (C, 1, k, k), stride 1, same size."""
    if torch.is_grad_enabled() and weight.requires_grad and weight.shape[-1] in KERNELS:
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if _fits(x):
            y: Tensor = _Depthwise.apply(x.to(kind), weight.to(kind))
            return y
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=len(weight))


def _fits(x: Tensor) -> bool:
    kinds = (torch.float32, torch.bfloat16)
    return x.device.type == "cpu" and x.dtype in kinds and native.why_not() is None


class _Depthwise(torch.autograd.Function):
    """torch's convolution and input gradient, and the weight gradient of the native library."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        given = _dense(given)
        dx = None
        if ctx.needs_input_grad[0]:
            pad = [weight.shape[-1] // 2] * 2
            dx = torch.ops.aten.convolution_backward(
                *(given, x, weight, None, [1, 1], pad, [1, 1], False, [0, 0], len(weight)),
                [True, False, False],
            )[0]
        kernel = weight.shape[-1]
        dw = torch.ops.mambaadv2.depthwise_weight(given.float(), x.float(), kernel)
        return dx, dw.to(weight.dtype)


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _norm(x: Tensor, mean: Tensor, scale: Tensor, y: Tensor, dx: Tensor | None) -> None:
    """Forward without `dx`: writes mean, scale and y. With it backward: y is its gradient."""
    if x.numel():
        b, c, h, w = x.shape
        call = lib.pack(b, h * w, c, x, mean, scale, y, dx)
        threads = torch.get_num_threads()
        lib.require_done(lib.library().mambaadv2_norm_silu(call, dx is not None, threads))


def _norm_forward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = _dense(x)
    y, mean, scale = _norm_shapes(x)
    _norm(x, mean, scale, y, None)
    return y, mean, scale


def _norm_shapes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=torch.channels_last)
    return y, x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])


def _norm_backward(given: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    x, given = _dense(x), _dense(given)
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    _norm(x, mean, scale, given, dx)
    return dx


def _depthwise_weight(given: Tensor, x: Tensor, kernel: int) -> Tensor:
    if kernel not in KERNELS:
        raise ConfigError(f"kernel: expected one of {KERNELS}, got {kernel}")
    x, given = _dense(x), _dense(given)
    b, c, h, w = x.shape
    if not x.numel():
        return x.new_zeros(c, 1, kernel, kernel)
    call = lib.pack(b, h, w, c, kernel, x, given, None)
    library, threads = lib.library(), torch.get_num_threads()
    size = library.mambaadv2_depthwise_workspace(call, threads)
    memory = torch.empty(size, dtype=torch.float32)
    dw = x.new_empty(c, 1, kernel, kernel)
    lib.require_done(
        library.mambaadv2_depthwise_weight(call, dw.data_ptr(), threads, memory.data_ptr())
    )
    return dw


def _norm_setup(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[1], output[2])
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)  # else zeros for mean and scale


def _norm_gradient(ctx: Any, given: Tensor | None, *_others: Tensor | None) -> Tensor | None:
    if given is None:
        return None
    dx: Tensor = torch.ops.mambaadv2.norm_silu_backward(given, *ctx.saved_tensors)
    return dx


def _no_second_derivative(ctx: Any, *given: Any) -> NoReturn:
    raise BackendError(
        "the native local branch has no second derivatives; MAMBAADV2_NATIVE=0 switches it off"
    )


def _register() -> None:
    torch.library.define("mambaadv2::norm_silu", "(Tensor x) -> (Tensor, Tensor, Tensor)")
    torch.library.define(
        "mambaadv2::norm_silu_backward",
        "(Tensor dy, Tensor x, Tensor mean, Tensor scale) -> Tensor",
    )
    torch.library.define(
        "mambaadv2::depthwise_weight", "(Tensor dy, Tensor x, int kernel) -> Tensor"
    )
    torch.library.impl("mambaadv2::norm_silu", "cpu", _norm_forward)
    torch.library.impl("mambaadv2::norm_silu_backward", "cpu", _norm_backward)
    torch.library.impl("mambaadv2::depthwise_weight", "cpu", _depthwise_weight)
    torch.library.register_fake("mambaadv2::norm_silu", _norm_shapes)
    torch.library.register_fake(
        "mambaadv2::norm_silu_backward", lambda dy, x, mean, scale: _norm_shapes(x)[0]
    )
    torch.library.register_fake(
        "mambaadv2::depthwise_weight", lambda dy, x, k: x.new_empty(x.shape[1], 1, k, k)
    )
    torch.library.register_autograd(
        "mambaadv2::norm_silu", _norm_gradient, setup_context=_norm_setup
    )
    for name in ("norm_silu_backward", "depthwise_weight"):
        torch.library.register_autograd(f"mambaadv2::{name}", _no_second_derivative)


_register()
