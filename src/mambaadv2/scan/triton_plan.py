"""How the work of the Triton kernels is cut into programs; imports no triton."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

PROGRAMS_PER_SM = 4
"""Programs that keep one multiprocessor busy: what fits side by side at 128 threads and 128
registers each (our choice, not measured)."""
SHORT = 4
"""Chunks up to which a sequence is always walked by one program: three launches cost more."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How the work is cut; any plan gives the same result up to rounding."""

    chunk: int
    """Tokens per chunk: 16, 32, 64 or 128."""
    span: int
    """Chunks that one program walks; all of them is the sequential regime."""
    heads: int
    """Heads that one program of the gradient sums over; divides the heads of a group."""
    mode: str
    """How products are made: one of `triton_pieces.MODES`."""


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which the environment decides."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def choose_plan(
    b: int, K: int, L: int, H: int, G: int, P: int, N: int, dtype: torch.dtype, sms: int
) -> Plan:
    """The plan for these sizes on a GPU with `sms` multiprocessors (our choice, not measured).

    Chunks: 32 tokens, 16 where P or N is above 64 (arithmetic grows with c (N + P), the cost of
    states falls with c; compiled for compute capability 9.0, 64 tokens fill all registers and
    leave room for half as many programs).
    Programs: `PROGRAMS_PER_SM` per multiprocessor are wanted. A sequence stays whole when it is
    short or when there are enough others, and is cut into as many segments as are missing if not.
    """
    # Values in half precision ask for speed. Products of bfloat16 numbers are twice as fast as tf32
    # on paper, but leave errors of 1 to 2 % where 1 % is allowed.
    mode = "ieee" if dtype == torch.float32 else "tf32"
    chunk = min(16 if max(P, N) > 64 else 32, _power_of_two(L))
    chunks, wanted = -(-L // chunk), PROGRAMS_PER_SM * sms
    segments = 1 if chunks <= SHORT else max(1, min(chunks, wanted // (b * K * H)))
    heads = H // G
    while heads > 1 and b * K * chunks * (H // heads) < wanted:
        heads = max(part for part in range(1, heads) if heads % part == 0)
    return Plan(chunk=chunk, span=-(-chunks // segments), heads=heads, mode=mode)


def _power_of_two(length: int) -> int:
    """The smallest power of two that holds `length`, at least 16, which a tile needs."""
    return max(16, 1 << (length - 1).bit_length())
