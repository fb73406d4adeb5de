"""The Triton kernel of the scan's gradients, closed form, chunk by chunk.

Given the state H that enters a chunk and the gradient dH' of the state that leaves it, everything
else is local to the chunk. With E[i, j] = exp(c_i - c_j) below the diagonal, kh = s k, G = dY,
dU = R(Ph) dH', w_j = exp(c_last - c_j):

    dS  = (G X^T) * E                     dq = dS kh + e^{c_i} H G_i
    dkh = dS^T q + w_j dU x_j             dx = (Q Kh^T * E)^T G + w_j dU^T kh_j + (ga q.k + D) G
    ds  = k . dkh  (never a division by s, which may be 0)

and with U = e^{c_last} H + sum_j w_j kh_j x_j^T, J(a, b) = (-b, a), for the log decay a = dt A and
the phase ph of token t:

    da_t  = <dU, U> + sum_{r >= t} (q_r . dq_r - kh_r . dkh_r)
    dph_t = -<dU, J U> + sum_{r >= t} (<J q_r, dq_r> + <J kh_r, dkh_r>)

sums over the tokens of the chunk only: what lies beyond it is in <dU, U>. (Mamba-3, arXiv
2603.15569, and Mamba-2, arXiv 2405.21060, give the forward; these gradients are derived in
closed form and tested against autograd through `reference.py`.)
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from mambaadv2.scan.triton_pieces import (
    SIZES,
    cos_sin,
    decay_sums,
    product,
    read_pairs,
    read_rows,
    read_state,
    read_steps,
    read_turns,
    rotate,
    rounded,
    write_pairs,
)


@triton.jit
def scale_before(
    x_p, B_p, B_bias_p, leaving_p, row, valid, x_stride, pair_stride,
    P: tl.constexpr, HALF: tl.constexpr, BP: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """ds of the last token before this chunk, from the gradient of the state that it leaves.

    In that state's frame the token's key is not rotated and its weight is 1.
    """
    m = tl.arange(0, M)
    p = tl.arange(0, BP)
    pairs = valid & (m < HALF)
    at = B_p + row * pair_stride + 2 * m
    k_even = tl.load(at, mask=pairs, other=0.0).to(tl.float32)
    k_odd = tl.load(at + 1, mask=pairs, other=0.0).to(tl.float32)
    k_even += tl.load(B_bias_p + 2 * m, mask=pairs, other=0.0).to(tl.float32)
    k_odd += tl.load(B_bias_p + 2 * m + 1, mask=pairs, other=0.0).to(tl.float32)
    values = valid & (p < P)
    x = tl.load(x_p + row * x_stride + p, mask=values, other=0.0).to(tl.float32)
    mask = pairs[:, None] & (p < P)[None, :]
    at = leaving_p + m[:, None] * P + p[None, :]
    even = tl.load(at, mask=mask, other=0.0) * k_even[:, None]
    odd = tl.load(at + HALF * P, mask=mask, other=0.0) * k_odd[:, None]
    return tl.sum(tl.sum(even + odd, 0) * x, 0)


@triton.jit(do_not_specialize=SIZES)
def gradient_kernel(
    x_p, B_p, C_p, dt_p, A_p, trap_p, angle_p, B_bias_p, C_bias_p, D_p, order_p, weights_p,
    dy_p, entering_p, leaving_p,
    dx_p, dB_p, dC_p, ddt_p, dA_p, dtrap_p, dangle_p, dB_bias_p, dC_bias_p, dD_p, dweight_p,
    L, H, K, G, Z, heads, blocks, HAS_WEIGHTS: tl.constexpr,
    P: tl.constexpr, HALF: tl.constexpr, S: tl.constexpr,
    T: tl.constexpr, BP: tl.constexpr, M: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk for `heads` heads of one group, summed over them where shared.

    Writes dx (b, K, L, H, P); dB, dC (b, K, blocks, L, 2, HALF); ddt, dA, dtrap (b, K, L, H);
    dangle (b, K, blocks, L, S); bias gradients (b, Z, K, H, 2, HALF); dD, dweight (b, Z, K, H).
    """
    program = tl.program_id(0)
    block = program % blocks
    z = (program // blocks) % Z
    direction = (program // blocks) // Z
    k = direction % K
    b = (direction // K).to(tl.int64)
    group = block * heads // (H // G)
    B_p += (b * L * G + group) * (2 * HALF)
    C_p += (b * L * G + group) * (2 * HALF)
    angle_p += b * L * S
    order_p += k * L
    slab = (b * K + k) * L * H
    shared = ((b * K + k) * blocks + block) * L
    local = ((b * Z + z) * K + k) * H
    start = z * T
    before = tl.load(order_p + start - 1, mask=start > 0, other=0)

    i = tl.arange(0, T)
    m = tl.arange(0, M)
    p = tl.arange(0, BP)
    weight = 1.0
    if HAS_WEIGHTS:
        weight = tl.load(weights_p + b * K + k).to(tl.float32)
    below = i[:, None] > i[None, :]
    dB_even = tl.zeros((T, M), tl.float32)
    dB_odd = tl.zeros((T, M), tl.float32)
    dC_even = tl.zeros((T, M), tl.float32)
    dC_odd = tl.zeros((T, M), tl.float32)
    dangle = tl.zeros((T, M), tl.float32)
    for j in range(0, heads):
        h = block * heads + j
        sequence = (b * K + k) * H + h
        row, inside, dt, A, lam, rest, scale = read_steps(
            order_p, dt_p + slab + h, A_p + b * L * H + h, trap_p + b * L * H + h, start, L, H, T
        )
        whole, part, whole_end, part_end = decay_sums(dt, A)
        speed, cos, sin, turn = read_turns(angle_p, row, inside, dt, S, M)
        B_bias = B_bias_p + (k * H + h) * (2 * HALF)
        C_bias = C_bias_p + (k * H + h) * (2 * HALF)
        k0_even, k0_odd = read_pairs(B_p, B_bias, row, inside, G * 2 * HALF, HALF, M)
        q0_even, q0_odd = read_pairs(C_p, C_bias, row, inside, G * 2 * HALF, HALF, M)
        k_even, k_odd = rotate(k0_even, k0_odd, cos, sin)
        q_even, q_odd = rotate(q0_even, q0_odd, cos, sin)
        # Rounded like the products' operands: sums over pairs in `dphase` then cancel exactly.
        q_even, q_odd = rounded(q_even, MODE), rounded(q_odd, MODE)
        kh_even = rounded(k_even * scale[:, None], MODE)
        kh_odd = rounded(k_odd * scale[:, None], MODE)
        x_head = x_p + (b * L * H + h) * P
        x = read_rows(x_head, row, inside, H * P, P, BP)
        dy = read_rows(dy_p + (b * L * H + h) * P, row, inside, H * P, P, BP)
        qk = tl.sum(q0_even * k0_even + q0_odd * k0_odd, 1)
        D = tl.load(D_p + k * H + h).to(tl.float32)
        same = lam * dt * qk + D
        between = (whole[:, None] - whole[None, :]) + (part[:, None] - part[None, :])
        decay = tl.exp(tl.where(below, between, float("-inf")))
        share = tl.exp((whole_end - whole) + (part_end - part))[:, None]
        kept = tl.exp(whole_end + part_end)

        # dq before the direction's weight: its product with q is the gradient of that weight.
        at = entering_p + (sequence * Z + z) * (2 * HALF * P)
        even, odd = read_state(at, 0, P, HALF, BP, M)
        scores = product(q_even, tl.trans(kh_even), MODE) + product(q_odd, tl.trans(kh_odd), MODE)
        dscores = product(dy, tl.trans(x), MODE) * decay
        reach = tl.exp(whole + part)[:, None]
        dq_even = reach * product(dy, tl.trans(even), MODE)
        dq_odd = reach * product(dy, tl.trans(odd), MODE)
        past = tl.sum(q_even * dq_even + q_odd * dq_odd, 1)
        dq_even += product(dscores, kh_even, MODE)
        dq_odd += product(dscores, kh_odd, MODE)
        ddiagonal = tl.sum(dy * x, 1)
        pairs = dscores * scores
        if HAS_WEIGHTS:
            gain = past + tl.sum(pairs, 1) + ddiagonal * same
            tl.store(dweight_p + local + h, tl.sum(gain, 0))
        dy *= weight
        dq_even *= weight
        dq_odd *= weight
        past *= weight
        pairs *= weight
        ddiagonal *= weight
        tl.store(dD_p + local + h, tl.sum(ddiagonal, 0))

        at = leaving_p + (sequence * Z + z) * (2 * HALF * P)
        du_even, du_odd = read_state(at, 0, P, HALF, BP, M)
        end_cos, end_sin = cos_sin(turn)
        du_even, du_odd = rotate(du_even, du_odd, end_cos[:, None], end_sin[:, None])
        dkh_even = share * product(x, tl.trans(du_even), MODE)
        dkh_odd = share * product(x, tl.trans(du_odd), MODE)
        # <dU, U> and <dU, J U>: the part of the state and the part written in this chunk.
        future = tl.sum(kh_even * dkh_even + kh_odd * dkh_odd, 1)
        carried = kept * tl.sum(tl.sum(du_even * even + du_odd * odd, 1), 0)
        spin = kept * tl.sum(du_odd * even - du_even * odd, 1)
        spin += tl.sum(kh_even * dkh_odd - kh_odd * dkh_even, 0)

        dkh_even += weight * product(tl.trans(dscores), q_even, MODE)
        dkh_odd += weight * product(tl.trans(dscores), q_odd, MODE)
        dx = product(tl.trans(scores * decay), dy, MODE) + same[:, None] * dy
        dx += share * (product(kh_even, du_even, MODE) + product(kh_odd, du_odd, MODE))
        mask = inside[:, None] & (p < P)[None, :]
        at = dx_p + (slab + h) * P + row[:, None] * (H * P) + p[None, :]
        tl.store(at, dx.to(dx_p.dtype.element_ty), mask=mask)

        ds = tl.sum(k_even * dkh_even + k_odd * dkh_odd, 1)
        # Pairs on both sides of a token, added without ever subtracting: a suffix sum of rows minus
        # columns would leave 1e-7 of all pairs at a token whose decay lets none of them through.
        across = tl.where(below, tl.cumsum(pairs, 0, reverse=True), 0.0)
        da = carried + tl.cumsum(past, 0, reverse=True) + tl.sum(across, 1)
        da += tl.cumsum(future, 0) - future
        dphase = (q_even * dq_odd - q_odd * dq_even) + (kh_even * dkh_odd - kh_odd * dkh_even)
        dphase = tl.cumsum(dphase, 0, reverse=True) - spin[None, :]

        # s of a token holds (1 - lam) dt of the next one, so its gradient moves on by one token.
        ds_before = tl.sum(tl.where(i[:, None] == i[None, :] + 1, ds[None, :], 0.0), 1)
        at = leaving_p + (sequence * Z + z - 1) * (2 * HALF * P)
        outside = scale_before(
            x_head, B_p, B_bias, at, before, start > 0, H * P, G * 2 * HALF, P, HALF, BP, M
        )
        ds_before = tl.where(i == 0, outside, ds_before)
        dgamma = ds + ddiagonal * qk
        ddt = lam * dgamma + rest * ds_before + A * da
        ddt += 3.141592653589793 * tl.sum(speed * dphase, 1)
        at = slab + row * H + h
        tl.store(ddt_p + at, ddt, mask=inside)
        tl.store(dA_p + at, dt * da, mask=inside)
        tl.store(dtrap_p + at, dt * (dgamma - ds_before) * lam * rest, mask=inside)
        dangle += dt[:, None] * dphase * (1.0 - speed * speed)

        # Back to the vectors before the rotation, where the heads of a group share theirs.
        same_pull = (ddiagonal * lam * dt)[:, None]
        dq_even, dq_odd = rotate(dq_even, dq_odd, cos, -sin)
        dk_even, dk_odd = rotate(dkh_even * scale[:, None], dkh_odd * scale[:, None], cos, -sin)
        dq_even += same_pull * k0_even
        dq_odd += same_pull * k0_odd
        dk_even += same_pull * q0_even
        dk_odd += same_pull * q0_odd
        at = (local + h) * (2 * HALF) + m
        tl.store(dC_bias_p + at, tl.sum(dq_even, 0), mask=m < HALF)
        tl.store(dC_bias_p + at + HALF, tl.sum(dq_odd, 0), mask=m < HALF)
        tl.store(dB_bias_p + at, tl.sum(dk_even, 0), mask=m < HALF)
        tl.store(dB_bias_p + at + HALF, tl.sum(dk_odd, 0), mask=m < HALF)
        dC_even += dq_even
        dC_odd += dq_odd
        dB_even += dk_even
        dB_odd += dk_odd

    step = start + i
    inside = step < L
    row = tl.load(order_p + step, mask=inside, other=0)
    element = dB_p.dtype.element_ty
    at = shared * (2 * HALF)
    write_pairs(dB_p + at, dB_even.to(element), dB_odd.to(element), row, inside, HALF, M)
    write_pairs(dC_p + at, dC_even.to(element), dC_odd.to(element), row, inside, HALF, M)
    mask = inside[:, None] & (m < S)[None, :]
    at = dangle_p + shared * S + row[:, None] * S + m[None, :]
    tl.store(at, 3.141592653589793 * dangle, mask=mask)
