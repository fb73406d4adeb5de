"""Triton kernels of the scan's forward, and of the states that its backward needs.

The mathematics, in the words of `chunked.py`: inside a chunk Y = M X with M[i, j] = exp(c_i - c_j)
s_j (q_i . k_j) below the diagonal; between chunks a state H. Phases restart in every chunk and the
state is turned back by the chunk's total phase Ph:

    U = e^{c_last} H + sum_j e^{c_last - c_j} s_j k_j x_j^T,    H' = R(-Ph) U

and backwards, with G = dY,

    dU = R(Ph) dH',    dH = e^{c_last} dU + sum_i e^{c_i} q_i G_i^T

Both are the same walk with other inputs, which is why one kernel makes states and their gradients.
A program walks `span` chunks of one sequence (batch, direction, head). With one segment per
sequence the state never leaves its registers; with many, `carry_kernel` makes each segment's sum,
`pass_kernel` joins them, and the output kernel starts from what enters its segment.
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
    write_state,
)


@triton.jit(do_not_specialize=SIZES)
def carry_kernel(
    values_p, pairs_p, dt_p, A_p, trap_p, angle_p, bias_p, order_p, weights_p,
    start_p, slots_p, end_p, fade_p, turn_p, L, H, K, G, Z, span, segments,
    REVERSE: tl.constexpr, EACH: tl.constexpr, HAS_START: tl.constexpr, HAS_END: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr, P: tl.constexpr, HALF: tl.constexpr, S: tl.constexpr,
    T: tl.constexpr, BP: tl.constexpr, M: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Walk the chunks of a segment with the state, or backwards with its gradient (REVERSE).

    EACH: store what the walk carries before each chunk, (b, K, H, Z, 2, HALF, P), starting from
    `start_p`. Otherwise: start from zero and store only the end with the segment's decay and
    total phase, (b, K, H, segments, ...).
    Forwards values and pairs are x and B, backwards dy and C.
    """
    program = tl.program_id(0)
    h = program % H
    segment = (program // H) % segments
    direction = (program // H) // segments
    k = direction % K
    b = (direction // K).to(tl.int64)
    sequence = direction.to(tl.int64) * H + h
    slot = sequence * segments + segment
    values_p += (b * L * H + h) * P
    pairs_p += (b * L * G + h // (H // G)) * (2 * HALF)
    dt_p += (b * K + k) * L * H + h
    A_p += b * L * H + h
    trap_p += b * L * H + h
    angle_p += b * L * S
    bias_p += (k * H + h) * (2 * HALF)
    order_p += k * L
    weight = 1.0
    if HAS_WEIGHTS:
        weight = tl.load(weights_p + b * K + k).to(tl.float32)

    even = tl.zeros((M, BP), tl.float32)
    odd = tl.zeros((M, BP), tl.float32)
    if HAS_START:
        even, odd = read_state(start_p + slot * (2 * HALF * P), 0, P, HALF, BP, M)
    fade = 1.0
    turned = tl.zeros((M,), tl.int32)
    for j in range(0, span):
        z = segment * span + (span - 1 - j if REVERSE else j)
        # Chunks beyond the last change nothing, because their dt is 0.
        if EACH:
            here_p = slots_p + (sequence * Z + z) * (2 * HALF * P)
            write_state(here_p, even, odd, 0, z < Z, P, HALF, BP, M)
        row, inside, dt, A, _lam, _rest, scale = read_steps(
            order_p, dt_p, A_p, trap_p, z * T, L, H, T
        )
        whole, part, whole_end, part_end = decay_sums(dt, A)
        _speed, cos, sin, turn = read_turns(angle_p, row, inside, dt, S, M)
        first, second = read_pairs(pairs_p, bias_p, row, inside, G * 2 * HALF, HALF, M)
        first, second = rotate(first, second, cos, sin)
        values = read_rows(values_p, row, inside, H * P, P, BP)
        kept = tl.exp(whole_end + part_end)
        end_cos, end_sin = cos_sin(turn)
        if REVERSE:
            share = weight * tl.exp(whole + part)
            even, odd = rotate(even, odd, end_cos[:, None], end_sin[:, None])
        else:
            share = scale * tl.exp((whole_end - whole) + (part_end - part))
        first = tl.trans(first * share[:, None])
        second = tl.trans(second * share[:, None])
        even = kept * even + product(first, values, MODE)
        odd = kept * odd + product(second, values, MODE)
        if not REVERSE:
            even, odd = rotate(even, odd, end_cos[:, None], -end_sin[:, None])
        fade *= kept
        turned += turn

    if EACH:
        if HAS_END:
            last = 0 if REVERSE else segments - 1
            end_p += sequence * (2 * HALF * P)
            write_state(end_p, even, odd, 0, segment == last, P, HALF, BP, M)
    else:
        write_state(slots_p + slot * (2 * HALF * P), even, odd, 0, True, P, HALF, BP, M)
        tl.store(fade_p + slot, fade)
        m = tl.arange(0, M)
        tl.store(turn_p + slot * HALF + m, turned, mask=m < HALF)


@triton.jit(do_not_specialize=SIZES)
def pass_kernel(
    start_p, sums_p, fade_p, turn_p, slots_p, end_p, segments,
    REVERSE: tl.constexpr, HAS_START: tl.constexpr, HAS_END: tl.constexpr,
    P: tl.constexpr, HALF: tl.constexpr, BP: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Join segments: slots get what enters each, in the walk's direction; one column tile each."""
    sequence = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BP
    size = 2 * HALF * P
    m = tl.arange(0, M)
    even = tl.zeros((M, BP), tl.float32)
    odd = tl.zeros((M, BP), tl.float32)
    if HAS_START:
        even, odd = read_state(start_p + sequence * size, column, P, HALF, BP, M)
    for j in range(0, segments):
        slot = sequence * segments + (segments - 1 - j if REVERSE else j)
        write_state(slots_p + slot * size, even, odd, column, True, P, HALF, BP, M)
        fade = tl.load(fade_p + slot)
        cos, sin = cos_sin(tl.load(turn_p + slot * HALF + m, mask=m < HALF, other=0))
        if not REVERSE:
            sin = -sin
        even, odd = rotate(even, odd, cos[:, None], sin[:, None])
        more_even, more_odd = read_state(sums_p + slot * size, column, P, HALF, BP, M)
        even = fade * even + more_even
        odd = fade * odd + more_odd
    if HAS_END:
        write_state(end_p + sequence * size, even, odd, column, True, P, HALF, BP, M)


@triton.jit(do_not_specialize=SIZES)
def output_kernel(
    x_p, B_p, C_p, dt_p, A_p, trap_p, angle_p, B_bias_p, C_bias_p, D_p, order_p, weights_p,
    start_p, y_p, end_p, L, H, K, G, span, segments,
    HAS_START: tl.constexpr, HAS_END: tl.constexpr, HAS_WEIGHTS: tl.constexpr,
    P: tl.constexpr, HALF: tl.constexpr, S: tl.constexpr,
    T: tl.constexpr, BP: tl.constexpr, M: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Outputs (b, K, L, H, P) of every direction, weighed, each in its row; the last state."""
    program = tl.program_id(0)
    h = program % H
    segment = (program // H) % segments
    direction = (program // H) // segments
    k = direction % K
    b = (direction // K).to(tl.int64)
    sequence = direction.to(tl.int64) * H + h
    group = h // (H // G)
    x_p += (b * L * H + h) * P
    B_p += (b * L * G + group) * (2 * HALF)
    C_p += (b * L * G + group) * (2 * HALF)
    dt_p += (b * K + k) * L * H + h
    A_p += b * L * H + h
    trap_p += b * L * H + h
    angle_p += b * L * S
    B_bias_p += (k * H + h) * (2 * HALF)
    C_bias_p += (k * H + h) * (2 * HALF)
    order_p += k * L
    y_p += ((b * K + k) * L * H + h) * P
    D = tl.load(D_p + k * H + h).to(tl.float32)
    weight = 1.0
    if HAS_WEIGHTS:
        weight = tl.load(weights_p + b * K + k).to(tl.float32)

    i = tl.arange(0, T)
    p = tl.arange(0, BP)
    even = tl.zeros((M, BP), tl.float32)
    odd = tl.zeros((M, BP), tl.float32)
    if HAS_START:
        start_p += (sequence * segments + segment) * (2 * HALF * P)
        even, odd = read_state(start_p, 0, P, HALF, BP, M)
    for j in range(0, span):
        start = (segment * span + j) * T
        row, inside, dt, A, lam, _rest, scale = read_steps(
            order_p, dt_p, A_p, trap_p, start, L, H, T
        )
        whole, part, whole_end, part_end = decay_sums(dt, A)
        _speed, cos, sin, turn = read_turns(angle_p, row, inside, dt, S, M)
        k_even, k_odd = read_pairs(B_p, B_bias_p, row, inside, G * 2 * HALF, HALF, M)
        q_even, q_odd = read_pairs(C_p, C_bias_p, row, inside, G * 2 * HALF, HALF, M)
        same = lam * dt * tl.sum(q_even * k_even + q_odd * k_odd, 1) + D
        k_even, k_odd = rotate(k_even, k_odd, cos, sin)
        q_even, q_odd = rotate(q_even, q_odd, cos, sin)
        k_even *= scale[:, None]
        k_odd *= scale[:, None]
        x = read_rows(x_p, row, inside, H * P, P, BP)

        between = (whole[:, None] - whole[None, :]) + (part[:, None] - part[None, :])
        decay = tl.exp(tl.where(i[:, None] > i[None, :], between, float("-inf")))
        scores = product(q_even, tl.trans(k_even), MODE) + product(q_odd, tl.trans(k_odd), MODE)
        y = product(scores * decay, x, MODE) + same[:, None] * x
        past = product(q_even, even, MODE) + product(q_odd, odd, MODE)
        y += tl.exp(whole + part)[:, None] * past
        mask = inside[:, None] & (p < P)[None, :]
        at = y_p + row[:, None] * (H * P) + p[None, :]
        tl.store(at, (weight * y).to(y_p.dtype.element_ty), mask=mask)

        share = tl.exp((whole_end - whole) + (part_end - part))[:, None]
        kept = tl.exp(whole_end + part_end)
        even = kept * even + product(tl.trans(k_even * share), x, MODE)
        odd = kept * odd + product(tl.trans(k_odd * share), x, MODE)
        end_cos, end_sin = cos_sin(turn)
        even, odd = rotate(even, odd, end_cos[:, None], -end_sin[:, None])

    if HAS_END:
        end_p += sequence * (2 * HALF * P)
        write_state(end_p, even, odd, 0, segment == segments - 1, P, HALF, BP, M)
