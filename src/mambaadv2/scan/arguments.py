"""What the door of the scan checks before any backend sees an argument."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from mambaadv2.errors import ConfigError
from mambaadv2.scan.reference import ScanState


def check_arguments(
    tensors: tuple[Tensor, ...],
    order: Tensor,
    weights: Tensor | None,
    initial_state: ScanState | None,
    chunk_size: int | None,
) -> None:
    """Compare every argument with what `selective_scan` documents; name the first that differs.

    Raises:
        ConfigError: a shape, dtype, device or `chunk_size` is not what is documented.
    """
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


# Tables that were found to be permutations, by identity, with the version they had: sorting one
# costs as much as a short scan, and a network asks with the same few tables for ever.
_permutations: dict[int, tuple[weakref.ref[Tensor], int]] = {}


def check_permutations(order: Tensor) -> None:
    """Refuse a table with a row that does not visit every position once.

    Raises:
        ConfigError: some row of `order` (K, L) is not a permutation of 0..L-1.
    """
    if torch.compiler.is_compiling():
        return
    key = id(order)
    # Tensors made in inference mode do not count their versions.
    version = -1 if order.is_inference() else order._version
    known = _permutations.get(key)
    if version >= 0 and known is not None and known[0]() is order and known[1] == version:
        return
    length = order.shape[1]
    expected = torch.arange(length, device=order.device, dtype=order.dtype).expand_as(order)
    if not torch.equal(order.sort(dim=1).values, expected):
        raise ConfigError(f"order: every row must be a permutation of 0..{length - 1}")
    if version >= 0:
        forget = weakref.ref(order, lambda _: _permutations.pop(key, None))
        _permutations[key] = (forget, version)
