"""Other ways to mix a sequence, to time the scan against: each computes what its paper says.

They leave out what the scan has beside the recurrence (rotation, biases, several directions), so a
time of theirs is a lower bound of what the same network would cost with them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64  # the paper's


def segment_sums(a: Tensor) -> Tensor:
    """out[..., i, j] = a[j + 1] + ... + a[i], minus infinity above the diagonal; (..., c, c)."""
    c = a.shape[-1]
    spread = a.unsqueeze(-1).expand(*a.shape, c)
    below = torch.ones(c, c, dtype=torch.bool).tril(-1)
    sums = spread.masked_fill(~below, 0).cumsum(dim=-2)
    return sums.masked_fill(~torch.ones(c, c, dtype=torch.bool).tril(), -torch.inf)


def ssd_minimal(x: Tensor, a: Tensor, B: Tensor, C: Tensor, chunk: int = CHUNK) -> Tensor:
    """Mamba-2's scan as its paper writes it out in a page (arXiv 2405.21060, section 6).

    x (b, L, H, P) times its step, a (b, L, H) log decays, B and C (b, L, H, N), L a multiple of the
    chunk. Returns (b, L, H, P). One direction.
    """
    b, length, heads, _ = x.shape
    chunk = min(chunk, length)
    x, B, C = (part.reshape(b, -1, chunk, heads, part.shape[-1]) for part in (x, B, C))
    a = a.reshape(b, -1, chunk, heads).permute(0, 3, 1, 2)  # (b, H, Z, c)
    sums = a.cumsum(dim=-1)
    within = segment_sums(a).exp()
    scores = torch.einsum("bzlhn,bzshn->bhzls", C, B) * within
    y = torch.einsum("bhzls,bzshp->bzlhp", scores, x)
    to_end = (sums[..., -1:] - sums).exp()
    states = torch.einsum("bzlhn,bhzl,bzlhp->bzhpn", B, to_end, x)
    states = torch.cat((torch.zeros_like(states[:, :1]), states), dim=1)
    between = segment_sums(F.pad(sums[..., -1], (1, 0))).exp()
    entering = torch.einsum("bhzc,bchpn->bzhpn", between, states)[:, :-1]
    y = y + torch.einsum("bzlhn,bzhpn,bhzl->bzlhp", C, entering, sums.exp())
    return y.reshape(b, length, heads, -1)


def parallel_scan() -> Callable[[Tensor, Tensor], Tensor] | None:
    """Mambapy's parallel scan of (b, L, D, N) decays and inputs, where it is installed."""
    if importlib.util.find_spec("mambapy") is None:
        return None
    from mambapy.pscan import pscan  # type: ignore[import-not-found, unused-ignore]

    scan: Callable[[Tensor, Tensor], Tensor] = pscan
    return scan
