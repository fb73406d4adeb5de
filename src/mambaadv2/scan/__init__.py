"""The selective scan of Mamba-3 over one or several scan orders: one door, several backends.

>>> import torch
>>> from mambaadv2.scan import selective_scan
>>> b, L, H, P, N = 1, 6, 2, 4, 4
>>> y = selective_scan(
...     x=torch.ones(b, L, H, P), B=torch.ones(b, L, 1, N), C=torch.ones(b, L, 1, N),
...     dt=torch.full((b, 1, L, H), 0.1), A=torch.full((b, L, H), -1.0),
...     trap=torch.zeros(b, L, H), angle=torch.zeros(b, L, 0),
...     B_bias=torch.zeros(1, H, N), C_bias=torch.zeros(1, H, N), D=torch.zeros(1, H))
>>> tuple(y.shape)
(1, 6, 2, 4)

The environment variable MAMBAADV2_SCAN_BACKEND forces a backend wherever "auto" is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, overload

import torch
from torch import Tensor

from mambaadv2.errors import BackendError, ConfigError
from mambaadv2.scan.chunked import chunked_scan
from mambaadv2.scan.reference import ScanState, reference_scan

__all__ = ["ScanState", "available_backends", "choose_backend", "selective_scan"]

ENVIRONMENT_VARIABLE = "MAMBAADV2_SCAN_BACKEND"
# 32..64 tokens are fastest in torch on a CPU: the c x c mask and the state cost about the same.
DEFAULT_CHUNK = 32


def available_backends() -> Mapping[str, str]:
    """Name of every backend that works here, with what it is for."""
    return {
        "reference": "the step-by-step recurrence in float64: the truth, and slow",
        "quadratic": "one masked matrix product, O(L^2): fastest for short sequences",
        "chunked": "chunks joined by a state, O(L): the torch form for long sequences",
    }


def choose_backend(length: int, head_dim: int, state_dim: int) -> tuple[str, str]:
    """Backend that "auto" takes for a sequence of this length, and why.

    Returns (name, reason). The crossover counts multiply-adds of both forms (our choice).
    """
    forced = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if forced:
        _require_backend(forced, f"environment variable {ENVIRONMENT_VARIABLE}")
        return forced, f"forced by {ENVIRONMENT_VARIABLE}"
    crossover = DEFAULT_CHUNK + 2 * head_dim * state_dim // (head_dim + state_dim)
    if length <= crossover:
        return (
            "quadratic",
            f"L={length} is at most {crossover}, where one matrix product is cheaper",
        )
    return "chunked", f"L={length} is above {crossover}, where linear cost wins"


@overload
def selective_scan(
    x: Tensor, B: Tensor, C: Tensor, dt: Tensor, A: Tensor, trap: Tensor, angle: Tensor,
    B_bias: Tensor, C_bias: Tensor, D: Tensor, *, order: Tensor | None = ...,
    weights: Tensor | None = ..., initial_state: ScanState | None = ...,
    return_state: Literal[False] = ..., backend: str = ..., chunk_size: int | None = ...,
) -> Tensor: ...  # fmt: skip
@overload
def selective_scan(
    x: Tensor, B: Tensor, C: Tensor, dt: Tensor, A: Tensor, trap: Tensor, angle: Tensor,
    B_bias: Tensor, C_bias: Tensor, D: Tensor, *, order: Tensor | None = ...,
    weights: Tensor | None = ..., initial_state: ScanState | None = ...,
    return_state: Literal[True], backend: str = ..., chunk_size: int | None = ...,
) -> tuple[Tensor, ScanState]: ...  # fmt: skip
def selective_scan(
    x: Tensor, B: Tensor, C: Tensor, dt: Tensor, A: Tensor, trap: Tensor, angle: Tensor,
    B_bias: Tensor, C_bias: Tensor, D: Tensor, *, order: Tensor | None = None,
    weights: Tensor | None = None, initial_state: ScanState | None = None,
    return_state: bool = False, backend: str = "auto", chunk_size: int | None = None,
) -> Tensor | tuple[Tensor, ScanState]:  # fmt: skip
    """Mamba-3 recurrence along K scan orders, outputs put back in place and summed.

    Per direction, head and step t (rows visited in that direction's order):
    h_t = al_t h_{t-1} + (1 - lam_t) dt_t al_t x_{t-1} k_{t-1}^T + lam_t dt_t x_t k_t^T, y_t = h_t
    q_t + D x_t, with al = exp(dt A), lam = sigmoid(trap), k = R(phase)(B + B_bias), q = R(phase)(C
    + C_bias) and phase the running sum of dt pi tanh(angle). Source: Mamba-3, arXiv 2603.15569;
    fusing several orders into one call is our choice.

    Args:
        x: values (b, L, H, P), floating point.
        B: keys (b, L, G, N), H a multiple of G, already normalised.
        C: queries (b, L, G, N), already normalised.
        dt: step sizes (b, K, L, H), >= 0, indexed by row (not by step), per direction.
        A: decay rates (b, L, H), < 0.
        trap: logits of the trapezoid weight (b, L, H); large = Mamba-2's rule.
        angle: raw rotation rates (b, L, S), 0 <= S <= N/2; pairs (2i, 2i+1) with i < S rotate.
        B_bias: added to B before the rotation (K, H, N).
        C_bias: added to C before the rotation (K, H, N).
        D: skip weights (K, H).
        order: int64 or int32 (K, L), each row a permutation of 0..L-1; None is one direction in row
            order.
        weights: weight of each direction (b, K); None weighs each by 1.
        initial_state: state to continue from; None is zero.
        return_state: also return the final state, in the frame in which a continuation starts.
        backend: "auto" or a name from `available_backends()`.
        chunk_size: tokens per chunk; None picks them. Only the chunked form has chunks, so a number
            makes "auto" take it.

    Returns:
        y (b, L, H, P) in the dtype of x, and the `ScanState` when it was asked for.

    Raises:
        ConfigError: an argument has the wrong shape, dtype, device or value.
        BackendError: the backend that was asked for does not exist here.
    """
    if order is None:
        order = torch.arange(x.shape[1] if x.dim() == 4 else 0, device=x.device).unsqueeze(0)
    tensors = (x, B, C, dt, A, trap, angle, B_bias, C_bias, D)
    _check(tensors, order, weights, initial_state, chunk_size)
    if backend == "auto":
        chosen, _ = choose_backend(x.shape[1], x.shape[-1], B.shape[-1])
        backend = chosen if chunk_size is None else "chunked"
    _require_backend(backend, "backend")
    if chunk_size is not None and backend != "chunked":
        raise ConfigError(f"chunk_size: the {backend} backend has no chunks; leave it out")
    order = order.long()
    # Backends choose their own precision; autocast would run the sums' products in bfloat16.
    with torch.autocast(x.device.type, enabled=False):
        if backend == "reference":
            y, state = reference_scan(*tensors, order, weights, initial_state)
            return (y, state) if return_state else y
        chunk = x.shape[1] if backend == "quadratic" else (chunk_size or DEFAULT_CHUNK)
        y, final = chunked_scan(
            *tensors, order, weights, initial_state, chunk_size=chunk, return_state=return_state
        )
    if not return_state:
        return y
    assert final is not None
    return y, final


def _require_backend(name: str, origin: str) -> None:
    available = available_backends()
    if name not in available:
        raise BackendError(
            f"{origin}: scan backend {name!r} is not available; choose from {', '.join(available)}"
        )


def _check(
    tensors: tuple[Tensor, ...],
    order: Tensor,
    weights: Tensor | None,
    initial_state: ScanState | None,
    chunk_size: int | None,
) -> None:
    """Compare every argument with what `selective_scan` documents; name the first that differs."""
    names = ("x", "B", "C", "dt", "A", "trap", "angle", "B_bias", "C_bias", "D")
    given = dict(zip(names, tensors, strict=True))
    x = given["x"]
    if x.dim() != 4 or min(x.shape) < 1:
        raise ConfigError(f"x: expected (b, L, H, P) without empty axes, got {tuple(x.shape)}")
    if order.dim() != 2 or order.shape[0] < 1 or order.shape[1] != x.shape[1]:
        raise ConfigError(f"order: expected (K, {x.shape[1]}), got {tuple(order.shape)}")
    _check_order(order, x)
    expected = _expected_shapes(x, given["B"], given["angle"], order.shape[0])
    if weights is not None:
        expected["weights"], given["weights"] = (x.shape[0], order.shape[0]), weights
    if initial_state is not None:
        if not isinstance(initial_state, ScanState):
            raise ConfigError(f"initial_state: expected a ScanState, got {type(initial_state)}")
        b, _, heads, head_dim = x.shape
        n = given["B"].shape[-1]
        for name, tail in (("h", (head_dim, n)), ("k", (n,)), ("x", (head_dim,))):
            expected[f"initial_state.{name}"] = (b, order.shape[0], heads, *tail)
            given[f"initial_state.{name}"] = getattr(initial_state, name)
    for name, tensor in given.items():
        if tuple(tensor.shape) != expected[name]:
            raise ConfigError(f"{name}: expected shape {expected[name]}, got {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise ConfigError(f"{name}: expected a floating-point dtype, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ConfigError(f"{name}: expected device {x.device} like x, got {tensor.device}")
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ConfigError(f"chunk_size: expected a whole number from 1, got {chunk_size!r}")


def _expected_shapes(
    x: Tensor, keys: Tensor, angle: Tensor, directions: int
) -> dict[str, tuple[int, ...]]:
    b, length, heads, _ = x.shape
    if keys.dim() != 4 or keys.shape[2] < 1 or heads % keys.shape[2]:
        raise ConfigError(
            f"B: expected (b, L, G, N), G dividing H={heads}, got {tuple(keys.shape)}"
        )
    groups, n = keys.shape[2:]
    angles = angle.shape[-1] if angle.dim() else 0
    if 2 * angles > n:
        raise ConfigError(f"angle: expected at most N/2 = {n // 2} angles, got {angles}")
    return {
        "x": tuple(x.shape),
        "B": (b, length, groups, n),
        "C": (b, length, groups, n),
        "dt": (b, directions, length, heads),
        "A": (b, length, heads),
        "trap": (b, length, heads),
        "angle": (b, length, angles),
        "B_bias": (directions, heads, n),
        "C_bias": (directions, heads, n),
        "D": (directions, heads),
    }


def _check_order(order: Tensor, x: Tensor) -> None:
    if order.dtype not in (torch.int64, torch.int32):
        raise ConfigError(f"order: expected int64 or int32, got {order.dtype}")
    if order.device != x.device:
        raise ConfigError(f"order: expected device {x.device} like x, got {order.device}")
    if torch.compiler.is_compiling():
        return
    length = x.shape[1]
    expected = torch.arange(length, device=order.device, dtype=order.dtype).expand_as(order)
    if not torch.equal(order.sort(dim=1).values, expected):
        raise ConfigError(f"order: every row must be a permutation of 0..{length - 1}")
