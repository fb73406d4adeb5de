"""The chunk-wise ("dual") form of the scan in plain torch operations, with autograd.

A chunk of c tokens is a small masked matrix product; chunks are joined by the P x N state. One
chunk that covers the whole sequence *is* the quadratic (masked matrix) form, so this file serves
both. The algebra is that of Mamba-2's state-space duality with Mamba-3's trapezoid folded into one
scalar per token (arXiv 2405.21060, arXiv 2603.15569); `reference.py` holds the recurrence it must
equal.

Shape legend: b batch, K directions, H heads, L tokens, Z chunks, c tokens of a chunk, G groups of B
and C, P head dim, N state dim, S rotary angles. Everything dense is laid out (b, K, H, Z, c, .).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mambaadv2.scan.orders import inverse
from mambaadv2.scan.reference import ScanState


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the interleaved pairs (2i, 2i+1), i < S, of the last dimension; leave the rest alone.

    Shapes: x (..., N); cos and sin (..., S) with 2S <= N, broadcast against x.
    """
    rotated = 2 * cos.shape[-1]
    if rotated == 0:
        return x
    # split and unbind, not slices: the gradient of a slice is a whole tensor of zeros.
    turning, still = x.split((rotated, x.shape[-1] - rotated), dim=-1)
    even, odd = turning.unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
    return torch.cat((pairs, still), dim=-1)


def chunked_scan(
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
    chunk_size: int,
    return_state: bool,
) -> tuple[Tensor, ScanState | None]:
    """Evaluate the scan chunk by chunk; arguments as in `selective_scan`, already validated.

    Phases restart at every chunk and the state is counter-rotated at each boundary ("local frame"):
    exact, and in float32 fifty times more precise than one running sum of angles.
    """
    b, length, heads, head_dim = x.shape
    directions = order.shape[0]
    state: ScanState | None = None
    dtype = torch.promote_types(x.dtype, torch.float32)  # sums and states never run in half
    c = min(chunk_size, length)
    chunks = -(-length // c)
    fold = (b, directions, heads, chunks, c)

    v = _visit(x.transpose(1, 2), order, chunks * c).to(dtype)  # (b, H, K, L', P)
    v = v.transpose(1, 2).reshape(*fold, head_dim)
    dt = _visit_scalars(dt.transpose(2, 3), order, chunks * c).to(dtype)  # (b, K, H, L')
    A = _visit_scalars(A.transpose(1, 2)[:, None], order, chunks * c).to(dtype)
    lam = torch.sigmoid(_visit_scalars(trap.transpose(1, 2)[:, None], order, chunks * c).to(dtype))
    theta = math.pi * torch.tanh(_visit(angle[:, None], order, chunks * c).to(dtype))

    gamma = lam * dt
    ahead = F.pad(((1 - lam) * dt)[..., 1:], (0, 1))  # what token t still adds at t+1
    scale, gamma = (gamma + ahead).view(fold), gamma.view(fold)
    decay = (dt * A).view(fold).cumsum(-1)
    # dt = 0 on padding, so padded tokens neither decay, rotate nor write.
    phase = (dt.view(*fold, 1) * theta.view(b, directions, 1, chunks, c, -1)).cumsum(-2)
    cos, sin = phase.cos(), phase.sin()

    q0 = _with_bias(C, C_bias, order, fold, dtype)
    k0 = _with_bias(B, B_bias, order, fold, dtype)
    diagonal = gamma * (q0 * k0).sum(-1) + D.to(dtype).view(directions, heads, 1, 1)
    q, k = rotate_pairs(q0, cos, sin), rotate_pairs(k0, cos, sin)

    # tril before exp: what lies above the diagonal would overflow. A clamp would do the same but
    # has no gradient where two sums are equal, which every token with dt = 0 is.
    mask = torch.exp((decay.unsqueeze(-1) - decay.unsqueeze(-2)).tril(-1))
    scores = (q @ (k * scale.unsqueeze(-1)).transpose(-1, -2)) * mask
    y = scores.tril(-1) @ v + diagonal.unsqueeze(-1) * v

    if chunks > 1 or initial_state is not None or return_state:
        carry = _initial_carry(initial_state, dt, lam, q)
        ends = (cos[..., -1, :], sin[..., -1, :])
        entering, carried = _pass_states(k, v, scale, decay, ends, carry)
        if chunks > 1 or carry is not None:
            y = y + (q * decay.exp().unsqueeze(-1)) @ entering
        if return_state:
            state = _final_state(carried, k, v, cos, sin, length)
    y = y.view(b, directions, heads, chunks * c, head_dim)[:, :, :, :length]
    return _put_back(y, order, weights).to(x.dtype), state


def _visit(rows: Tensor, order: Tensor, padded: int) -> Tensor:
    """Read rows (b, M, L, F) in scan order: (b, M, K, padded, F), zero rows at the end."""
    directions, length = order.shape
    out = rows.index_select(2, order.reshape(-1)).unflatten(2, (directions, length))
    return out if padded == length else F.pad(out, (0, 0, 0, padded - length))


def _visit_scalars(rows: Tensor, order: Tensor, padded: int) -> Tensor:
    """Read scalars (b, K or 1, H, L) in scan order: (b, K, H, padded), zeros at the end."""
    length = order.shape[1]
    index = order.view(1, order.shape[0], 1, length)
    out = torch.take_along_dim(rows, index, dim=3)
    return out if padded == length else F.pad(out, (0, padded - length))


def _with_bias(
    rows: Tensor, bias: Tensor, order: Tensor, fold: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """B or C (b, L, G, N) in scan order plus its bias (K, H, N): (b, K, H, Z, c, N)."""
    b, directions, heads, chunks, c = fold
    groups, n = rows.shape[2:]
    out = _visit(rows.transpose(1, 2), order, chunks * c).to(dtype)  # (b, G, K, L', N)
    out = out.transpose(1, 2).unsqueeze(3)  # (b, K, G, 1, L', N): heads of a group share it
    bias = bias.to(dtype).view(1, directions, groups, heads // groups, 1, n)
    return (out + bias).reshape(b, directions, heads, chunks, c, n)


def _initial_carry(state: ScanState | None, dt: Tensor, lam: Tensor, like: Tensor) -> Tensor | None:
    """State (b, K, H, N, P) entering the first token, the pending trapezoid term included."""
    if state is None:
        return None
    h = state.h.to(like.dtype).transpose(-1, -2)
    pending = ((1 - lam[..., 0]) * dt[..., 0])[..., None, None]
    return h + pending * state.k.to(like.dtype).unsqueeze(-1) * state.x.to(like.dtype).unsqueeze(-2)


def _pass_states(
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    decay: Tensor,
    ends: tuple[Tensor, Tensor],
    carried: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """States entering each chunk (b, K, H, Z, N, P) and the state after the last one.

    ends: cosine and sine (b, K, H, Z, S) of each chunk's total phase.
    """
    last = decay[..., -1:]
    weight = scale * torch.exp(last - decay)
    written = (k * weight.unsqueeze(-1)).transpose(-1, -2) @ v
    keep = last.exp().unsqueeze(-1)
    cos, sin = (end.unsqueeze(-1).unbind(3) for end in ends)
    entering: list[Tensor] = []
    for new, kept, c, s in zip(written.unbind(3), keep.unbind(3), cos, sin, strict=True):
        entering.append(torch.zeros_like(new) if carried is None else carried)
        carried = _rotate_state(new if carried is None else torch.addcmul(new, kept, carried), c, s)
    assert carried is not None
    return torch.stack(entering, dim=3), carried


def _rotate_state(state: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the N axis of a state (b, K, H, N, P) back by phases; cos and sin (b, K, H, S, 1)."""
    rotated = 2 * cos.shape[-2]
    if rotated == 0:
        return state
    turning, still = state.split((rotated, state.shape[-2] - rotated), dim=-2)
    even, odd = turning.unflatten(-2, (-1, 2)).unbind(-2)
    pairs = torch.stack((even * cos + odd * sin, odd * cos - even * sin), dim=-2).flatten(-3, -2)
    return torch.cat((pairs, still), dim=-2)


def _final_state(
    carried: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, length: int
) -> ScanState:
    """State, last key and last value in the end frame, phase 0 for whatever continues.

    Padded tokens repeat the last real phase, so every end phase is that of the last real token.
    """
    c = k.shape[4]
    z, t = divmod(length - 1, c)
    k_last = rotate_pairs(k[:, :, :, z, t], cos[:, :, :, -1, -1], -sin[:, :, :, -1, -1])
    return ScanState(h=carried.transpose(-1, -2), k=k_last, x=v[:, :, :, z, t])


def _put_back(y: Tensor, order: Tensor, weights: Tensor | None) -> Tensor:
    """Outputs (b, K, H, L, P) in scan order back to rows (b, L, H, P), summed over directions."""
    steps = inverse(order)
    total: Tensor | None = None
    for d in range(len(order)):
        part = y[:, d].index_select(2, steps[d])
        if weights is not None:
            part = part * weights[:, d].to(y.dtype).view(-1, 1, 1, 1)
        total = part if total is None else total + part
    assert total is not None
    return total.transpose(1, 2)
