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
docs/scan.md explains the operator and its forms.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from mambaadv2.errors import BackendError, ConfigError
from mambaadv2.scan import library, native, triton
from mambaadv2.scan.arguments import check_arguments, check_permutations
from mambaadv2.scan.chunked import chunked_scan
from mambaadv2.scan.reference import ScanState, reference_scan

__all__ = [
    "ScanState",
    "absent_backends",
    "available_backends",
    "backends_in_use",
    "choose_backend",
    "selective_scan",
    "torch_form",
]

ENVIRONMENT_VARIABLE = "MAMBAADV2_SCAN_BACKEND"
# 32..64 tokens are fastest in torch on a CPU: the c x c mask and the state cost about the same.
DEFAULT_CHUNK = 32


class _Kernel(NamedTuple):
    """A backend of compiled code: it may be absent, and takes only some inputs."""

    purpose: Callable[[], str]
    variant: Callable[[], str]
    """What of it runs here and decides its last bits."""
    why_not: Callable[[], str | None]
    """Why it is absent here, with what to do; None where it is there."""
    misfit: Callable[[torch.device, torch.dtype, int, int], str | None]
    """Why it cannot take inputs of (device, dtype of x, P, N), naming the argument; else None."""
    scan: Callable[..., tuple[Tensor, ScanState | None]]
    """As `native_scan`. Refuses a table that is no permutation before it computes anything."""
    automatic: bool
    """Whether "auto" may take it."""


def _triton_why_not() -> str | None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reason = triton.why_not(device)
    return None if reason is None else f"{reason}; use another backend here"


def _triton_misfit(
    device: torch.device, dtype: torch.dtype, head_dim: int, state_dim: int
) -> str | None:
    return triton.why_not(device) or triton.unsupported(head_dim, state_dim, dtype)


# As in native.py: torch.compile takes the answers at the time of tracing.
for _constant in (_triton_why_not, _triton_misfit):
    _constant._dynamo_marked_constant = True  # type: ignore[union-attr]


# "auto" takes the first that may be taken, is there and fits. The GPU kernels only by name: they
# were compiled, and compared in Triton's interpreter, but never yet run on a GPU.
_KERNELS: dict[str, _Kernel] = {
    "native": _Kernel(
        native.purpose,
        library.instruction_set,
        native.why_not,
        native.misfit,
        native.native_scan,
        automatic=True,
    ),
    "triton": _Kernel(
        lambda: "GPU kernels, never yet run on a GPU: only by name",
        lambda: "GPU",
        _triton_why_not,
        _triton_misfit,
        triton.triton_scan,
        automatic=False,
    ),
}
_FORMS = {
    "reference": "the step-by-step recurrence in float64: the truth, and slow",
    "quadratic": "one masked matrix product, O(L^2): fastest in torch for short sequences",
    "chunked": "chunks joined by a state, O(L): the torch form for long sequences",
}


def available_backends() -> Mapping[str, str]:
    """Name of every backend that works here, with what it is for."""
    here = {name: kernel.purpose() for name, kernel in _KERNELS.items() if not kernel.why_not()}
    return _FORMS | here


def absent_backends() -> Mapping[str, str]:
    """Name of every backend that does not work here, with why and what to do about it."""
    reasons = {name: kernel.why_not() for name, kernel in _KERNELS.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def choose_backend(
    length: int,
    head_dim: int,
    state_dim: int,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[str, str]:
    """Backend that "auto" takes for a sequence of this length, and why.

    Args:
        length: tokens L.
        head_dim: P.
        state_dim: N.
        device: of the inputs; None is the CPU.
        dtype: of x.

    Returns (name, reason). Compiled backends come first.

    Raises:
        BackendError: the environment forces one that is not here.
    """
    forced = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if forced:
        _require_backend(forced, f"environment variable {ENVIRONMENT_VARIABLE}")
        return forced, f"forced by {ENVIRONMENT_VARIABLE}"
    passed = ""
    for name, kernel in _KERNELS.items():
        if not kernel.automatic:
            continue
        wanting = kernel.why_not() or kernel.misfit(
            device or torch.device("cpu"), dtype, head_dim, state_dim
        )
        if wanting is None:
            return name, kernel.purpose()
        passed += f"; not {name}: {wanting}"
    name, reason = torch_form(length, head_dim, state_dim)
    return name, reason + passed


def torch_form(length: int, head_dim: int, state_dim: int) -> tuple[str, str]:
    """The form in plain torch with fewer multiply-adds for these sizes, and why (our choice)."""
    crossover = DEFAULT_CHUNK + 2 * head_dim * state_dim // (head_dim + state_dim)
    if length <= crossover:
        return (
            "quadratic",
            f"L={length} is at most {crossover}, where one matrix product is cheaper",
        )
    return "chunked", f"L={length} is above {crossover}, where linear cost wins"


def backends_in_use(
    lengths: Iterable[int], head_dim: int, state_dim: int, device: torch.device
) -> str:
    """What "auto" takes for sequences of these lengths, in words: "native (avx512)".

    Two runs with the same words compute the same bits, as far as the scan goes.
    """
    names = [choose_backend(n, head_dim, state_dim, device=device)[0] for n in lengths]
    return ", ".join(
        f"{name} ({_KERNELS[name].variant()})" if name in _KERNELS else name
        for name in dict.fromkeys(names)
    )


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
    check_arguments(tensors, order, weights, initial_state, chunk_size)
    if backend != "auto":
        _require_backend(backend, "backend")
    elif chunk_size is not None:
        backend = "chunked"
    else:
        sizes = (x.shape[1], x.shape[-1], B.shape[-1])
        backend, _ = choose_backend(*sizes, device=x.device, dtype=x.dtype)
    if chunk_size is not None and backend != "chunked":
        raise ConfigError(f"chunk_size: the {backend} backend has no chunks; leave it out")
    rest = (order, weights, initial_state)
    y, final = _scan(backend, tensors, rest, chunk_size, return_state)
    if not return_state:
        return y
    assert final is not None
    return y, final


def _scan(
    backend: str,
    tensors: tuple[Any, ...],
    rest: tuple[Any, ...],
    chunk_size: int | None,
    return_state: bool,
) -> tuple[Tensor, ScanState | None]:
    """Run a backend that is there; rest: order, weights, initial state."""
    x, order = tensors[0], rest[0]
    if backend in _KERNELS:
        kernel = _KERNELS[backend]
        wanting = kernel.misfit(x.device, x.dtype, x.shape[-1], tensors[1].shape[-1])
        if wanting is not None:
            raise ConfigError(wanting)
        return kernel.scan(*tensors, *rest, return_state=return_state)
    check_permutations(order)
    rows: tuple[Any, ...] = (order.long(), *rest[1:])
    # The forms choose their own precision; autocast would run their sums in bfloat16.
    with torch.autocast(x.device.type, enabled=False):
        if backend == "reference":
            return reference_scan(*tensors, *rows)
        chunk = x.shape[1] if backend == "quadratic" else (chunk_size or DEFAULT_CHUNK)
        return chunked_scan(*tensors, *rows, chunk_size=chunk, return_state=return_state)


def _require_backend(name: str, origin: str) -> None:
    if name in _FORMS:
        return
    if name not in _KERNELS:
        known = ", ".join(available_backends())
        raise BackendError(f"{origin}: scan backend {name!r} is not available; choose from {known}")
    reason = _KERNELS[name].why_not()
    if reason is not None:
        raise BackendError(f"{origin}: scan backend {name!r} is not available: {reason}")
