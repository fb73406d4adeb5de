"""The selective scan as its definition reads: one step after another, in float64.

Every other backend is tested against this file, so it is written to be checked by eye and is slow.

Glossary (Mamba-3, arXiv 2603.15569; Mamba-2's paper calls C, B, x also q, k, v):

    symbol      here          meaning
    x_t         x             what a token writes, P values per head
    B_t, k_t    B, k          where it writes: key; k is B with bias, rotated
    C_t, q_t    C, q          where it reads: query; q is C with bias, rotated
    dt_t        dt            step size, >= 0
    A_t         A             decay rate, < 0
    lambda_t    lam           share of the step integrated at its end point, sigmoid(trap)
    theta_t     theta         angular speed, pi * tanh(angle), in radians per unit of dt
    phi_t       phase         angle so far: the sum of dt * theta over tokens visited, mod 2 pi
    alpha_t     alpha         exp(dt * A), what the state keeps
    beta_t      beta          (1 - lam) * dt * alpha, weight of the token before
    gamma_t     gamma         lam * dt, weight of this token
    h_t         h             state, P x N per head

    h_t = alpha_t h_{t-1} + beta_t x_{t-1} k_{t-1}^T + gamma_t x_t k_t^T
    y_t = h_t q_t + D x_t

Shape legend: b batch, K directions, L tokens, H heads, G groups of B and C (head h uses group
h // (H / G)), P head dim, N state dim, S rotary angles.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class ScanState(NamedTuple):
    """What a scan hands on, so that a sequence can be cut anywhere.

    All three live in the end frame: turned back by the phase reached so far, so that whatever
    continues starts again at phase 0.  `k` and `x` are needed because the trapezoid of the next
    token also weighs the token before it.
    """

    h: Tensor
    """(b, K, H, P, N) state after the last token."""
    k: Tensor
    """(b, K, H, N) rotated key of the last token."""
    x: Tensor
    """(b, K, H, P) value of the last token."""


def reference_scan(
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
    weights: Tensor | None = None,
    initial_state: ScanState | None = None,
) -> tuple[Tensor, ScanState]:
    """Scan all directions and add them up; arguments as in `selective_scan`, already validated.

    Computes in float64 whatever comes in, and is differentiable by autograd.

    Returns:
        y (b, L, H, P) in the dtype of x, and the state after the last step of each direction in
        that dtype or float32, whichever is wider.
    """
    out_dtype, state_dtype = x.dtype, torch.promote_types(x.dtype, torch.float32)
    heads, head_dim, state_dim = x.shape[2], x.shape[3], B.shape[3]
    x, B, C = x.double(), _per_head(B, heads).double(), _per_head(C, heads).double()
    dt, A, D = dt.double(), A.double(), D.double()
    lam = torch.sigmoid(trap.double())
    theta = math.pi * torch.tanh(angle.double())
    if initial_state is None:
        fold = (x.shape[0], order.shape[0], heads)
        initial_state = ScanState(
            h=x.new_zeros(*fold, head_dim, state_dim),
            k=x.new_zeros(*fold, state_dim),
            x=x.new_zeros(*fold, head_dim),
        )

    y = torch.zeros_like(x)
    ends: list[ScanState] = []
    for direction, rows in enumerate(order.long()):
        y_in_turn, end = _one_direction(
            x[:, rows],
            B[:, rows] + B_bias[direction].double(),
            C[:, rows] + C_bias[direction].double(),
            dt[:, direction, rows],
            A[:, rows],
            lam[:, rows],
            theta[:, rows],
            D[direction],
            ScanState(*(part[:, direction].double() for part in initial_state)),
        )
        if weights is not None:
            y_in_turn = weights[:, direction, None, None, None].double() * y_in_turn
        y = y.index_add(1, rows, y_in_turn)
        ends.append(end)
    h, k, last = (torch.stack(part, dim=1).to(state_dtype) for part in zip(*ends, strict=True))
    return y.to(out_dtype), ScanState(h, k, last)


def _one_direction(
    x: Tensor,
    B: Tensor,
    C: Tensor,
    dt: Tensor,
    A: Tensor,
    lam: Tensor,
    theta: Tensor,
    D: Tensor,
    before: ScanState,
) -> tuple[Tensor, ScanState]:
    """The recurrence itself, on tokens already in visiting order.

    x (b, L, H, P); B, C (b, L, H, N) with bias; dt, A, lam (b, L, H); theta (b, L, S); D (H,);
    `before` without its K dimension.  Returns y (b, L, H, P) and the end state, without K.
    """
    h, k_before, x_before = before
    phase = dt.new_zeros(dt.shape[0], dt.shape[2], theta.shape[2])
    y = []
    for t in range(x.shape[1]):
        # A phase that only grew would lose a digit with every factor of ten.
        phase = torch.remainder(phase + dt[:, t, :, None] * theta[:, t, None, :], 2 * math.pi)
        q, k = rotate(C[:, t], phase), rotate(B[:, t], phase)

        alpha = torch.exp(dt[:, t] * A[:, t])
        beta = (1 - lam[:, t]) * dt[:, t] * alpha
        gamma = lam[:, t] * dt[:, t]
        h = (
            alpha[..., None, None] * h
            + beta[..., None, None] * x_before[..., :, None] * k_before[..., None, :]
            + gamma[..., None, None] * x[:, t, :, :, None] * k[..., None, :]
        )
        y.append((h * q[..., None, :]).sum(-1) + D[:, None] * x[:, t])
        k_before, x_before = k, x[:, t]
    end = ScanState(h=rotate(h, -phase[:, :, None]), k=rotate(k_before, -phase), x=x_before)
    return torch.stack(y, dim=1), end


def reference_matrix(
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
) -> Tensor:
    """The same map written out as one lower-triangular matrix per direction and head, in float64.

    The state-space duality of Mamba-2 (arXiv 2405.21060).  The trapezoid becomes one scalar per
    token: s_t = gamma_t + (1 - lam_{t+1}) dt_{t+1} is all that token t ever adds to later states.

        M[t, s] = exp(sum of dt A over s+1..t) * s_s * (q_t . k_s)    for s < t
        M[t, t] = gamma_t * (q_t . k_t) + D

    Arguments as in `reference_scan`.  Returns M (b, K, H, L, L); in visiting order y = M x, for a
    sequence without an initial state.
    """
    heads = dt.shape[3]
    matrices = []
    for direction, rows in enumerate(order.long()):
        step = dt[:, direction, rows].double()
        lam = torch.sigmoid(trap[:, rows].double())
        theta = math.pi * torch.tanh(angle[:, rows].double())
        phase = torch.cumsum(step[..., None] * theta[:, :, None, :], dim=1)
        k = rotate((_per_head(B, heads)[:, rows] + B_bias[direction]).double(), phase)
        q = rotate((_per_head(C, heads)[:, rows] + C_bias[direction]).double(), phase)

        gamma, ahead = lam * step, torch.zeros_like(step)
        ahead[:, :-1] = ((1 - lam) * step)[:, 1:]
        total = torch.cumsum(step * A[:, rows].double(), dim=1).transpose(1, 2)  # (b, H, L)
        decay = torch.exp((total[..., :, None] - total[..., None, :]).tril())
        dots = torch.einsum("bthn,bshn->bhts", q, k)
        below = (decay * dots * (gamma + ahead).transpose(1, 2)[..., None, :]).tril(-1)
        same = gamma.transpose(1, 2) * dots.diagonal(dim1=-2, dim2=-1)
        matrices.append(below + torch.diag_embed(same + D[direction].double()[:, None]))
    return torch.stack(matrices, dim=1)


def rotate(vectors: Tensor, phase: Tensor) -> Tensor:
    """Turn the pairs (2i, 2i+1) of the last dimension by phase i; leave the rest as it is.

    Args:
        vectors: (..., N).
        phase: (..., S) radians, 2 S <= N, broadcast against the leading dimensions of `vectors`.

    Returns:
        (..., N).
    """
    turned = 2 * phase.shape[-1]
    first, second = vectors[..., 0:turned:2], vectors[..., 1:turned:2]
    cos, sin = torch.cos(phase), torch.sin(phase)
    pairs = torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1)
    return torch.cat((pairs.flatten(-2), vectors[..., turned:]), dim=-1)


def _per_head(grouped: Tensor, heads: int) -> Tensor:
    """B or C (b, L, G, N) repeated for the heads of each group: (b, L, H, N)."""
    return grouped.repeat_interleave(heads // grouped.shape[2], dim=2)
