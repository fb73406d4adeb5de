"""Small parts of the Triton kernels: scalars of a chunk, phases, rotation, tiles of a state.

Everything is float32 except two things that must not drift with the length of a sequence:

- Phases are whole numbers: 2**32 is one turn. Their sums wrap around, which is exact, and a sine
  needs no range reduction.
- Sums of log decays are kept as whole numbers plus fractions, so that the difference of two of
  them is as precise after a total decay of e**-5000 as at the start of a chunk.

N is always even, so q and k are two half tiles, even and odd columns: a rotation then needs no
exchange between threads, and q.k = even.even + odd.odd. What does not rotate has phase 0.

Legend: T tokens of a chunk, M half of N rounded up to what a tile needs, HALF = N / 2, BP the same
for P, S angles. Capitals are constants of the compiled kernel. A name ending in _p is a pointer.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# Annotations mean something else inside a kernel.

import triton
import triton.language as tl

SIZES = ("L", "H", "K", "G", "Z", "span", "segments", "heads", "blocks")
"""Arguments that are never constants of a compiled kernel: one compilation serves every map and
batch. Row strides stay multiples of P or N, which are constants, so loads stay wide."""

MODES = ("ieee", "tf32x3", "tf32", "bfloat16")
"""How products are made, all with float32 sums: of float32 numbers on the ordinary units; of
float32 numbers split in three on the tensor cores; of numbers rounded to 11 bits; of numbers
rounded to 8 bits."""


@triton.jit
def rounded(a, MODE: tl.constexpr):
    """What the tensor cores see of a float32 number, rounded to nearest.

    Written out for tf32, because hardware cuts bits off, which biases sums.
    """
    # Triton compiles no `in`.
    if MODE == "bfloat16" or MODE == "bfloat16 interpreted":  # noqa: PLR1714
        a = a.to(tl.bfloat16).to(tl.float32)
    elif MODE == "tf32":
        bits = a.to(tl.int32, bitcast=True)
        a = ((bits + 4096) & -8192).to(tl.float32, bitcast=True)
    return a


@triton.jit
def product(a, b, MODE: tl.constexpr):
    """a @ b of float32 tiles with float32 sums.

    Triton's interpreter would multiply the bits of bfloat16 numbers, so there they are rounded and
    multiplied in float32, which is the same.
    """
    if MODE == "bfloat16":
        c = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    elif MODE == "bfloat16 interpreted":
        c = tl.dot(rounded(a, MODE), rounded(b, MODE), input_precision="ieee")
    else:
        c = tl.dot(rounded(a, MODE), rounded(b, MODE), input_precision=MODE)
    return c


@triton.jit
def sigmoid_pair(logit):
    """sigmoid(logit) and 1 - sigmoid(logit), both to full relative precision."""
    e = tl.exp(-tl.abs(logit))
    large = 1.0 / (1.0 + e)
    small = e * large
    return tl.where(logit >= 0, large, small), tl.where(logit >= 0, small, large)


@triton.jit
def tanh(x):
    """Through exp, and near 0 its series: 1 - exp(-2 |x|) would lose its digits there."""
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    far = tl.where(x < 0, -far, far)
    z = x * x
    near = x * (1.0 + z * (-0.3333333433 + z * (0.1333333403 + z * -0.0539682545)))
    return tl.where(z < 0.0225, near, far)


@triton.jit
def cos_sin(turns):
    """Cosine and sine of phases in units of 2**-32 turns; float32's precision, no branch.

    The top two bits, rounded, are the quadrant. Minimax polynomials on [-pi/4, pi/4]: Cephes.
    """
    quadrant = (turns + 536870912) >> 30
    f = (turns - (quadrant << 30)).to(tl.float32) * 1.4629180792671596e-9
    z = f * f
    s = f + f * z * (-1.6666654611e-1 + z * (8.3321608736e-3 + z * -1.9515295891e-4))
    c = 4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5)
    c = 1.0 - 0.5 * z + z * z * c
    crossed = (quadrant & 1) != 0
    cos = tl.where(crossed, s, c)
    sin = tl.where(crossed, c, s)
    cos = tl.where(((quadrant + 1) & 2) != 0, -cos, cos)
    sin = tl.where((quadrant & 2) != 0, -sin, sin)
    return cos, sin


@triton.jit
def read_steps(order_p, dt_p, A_p, trap_p, start, L, H, T: tl.constexpr):
    """Scalars (T,) of the tokens from `start` on: rows, dt, A, lam, 1 - lam, s.

    s_t = lam_t dt_t + (1 - lam_{t+1}) dt_{t+1} is all that token t ever adds to later states; the
    second part is read ahead, across the border of the chunk. Beyond L everything has dt = 0.
    """
    step = start + tl.arange(0, T)
    inside = step < L
    ahead = step + 1 < L
    row = tl.load(order_p + step, mask=inside, other=0)
    following = tl.load(order_p + step + 1, mask=ahead, other=0)
    dt = tl.load(dt_p + row * H, mask=inside, other=0.0).to(tl.float32)
    A = tl.load(A_p + row * H, mask=inside, other=0.0).to(tl.float32)
    lam, rest = sigmoid_pair(tl.load(trap_p + row * H, mask=inside, other=0.0).to(tl.float32))
    next_dt = tl.load(dt_p + following * H, mask=ahead, other=0.0).to(tl.float32)
    next_trap = tl.load(trap_p + following * H, mask=ahead, other=0.0).to(tl.float32)
    _, next_rest = sigmoid_pair(next_trap)
    return row, inside, dt, A, lam, rest, lam * dt + next_rest * next_dt


@triton.jit
def decay_sums(dt, A):
    """Running sums of dt A as whole numbers and fractions, and both totals.

    exp(-1000) is 0 in float32; the bound keeps whole numbers exact whatever A is. A comparison and
    not a maximum, which would hide a NaN.
    """
    a = dt * A
    a = tl.where(a < -1000.0, -1000.0, a)
    whole = tl.floor(a + 0.5)
    part = a - whole
    return tl.cumsum(whole, 0), tl.cumsum(part, 0), tl.sum(whole, 0), tl.sum(part, 0)


@triton.jit
def read_turns(angle_p, row, inside, dt, S: tl.constexpr, M: tl.constexpr):
    """Speeds tanh(angle) (T, M), phases since the start of the chunk (cos, sin), and their total.

    A phase grows by dt pi tanh(angle) radians, which is dt tanh(angle) / 2 turns.
    """
    m = tl.arange(0, M)
    mask = inside[:, None] & (m < S)[None, :]
    at = row[:, None] * S + m[None, :]
    speed = tanh(tl.load(angle_p + at, mask=mask, other=0.0).to(tl.float32))
    turn = 0.5 * dt[:, None] * speed
    turn = turn - tl.floor(turn + 0.5)
    turn = tl.where(turn < -0.5, -0.5, turn)
    steps = (turn * 4294967296.0).to(tl.int32)
    cos, sin = cos_sin(tl.cumsum(steps, 0))
    # A whole number cannot be NaN, but an output must be one where an angle is.
    return speed, cos + 0.0 * turn, sin, tl.sum(steps, 0)


@triton.jit
def read_rows(ptr, row, inside, stride, P: tl.constexpr, BP: tl.constexpr):
    """Rows (T, BP) of values, float32, zeros beyond P and L."""
    p = tl.arange(0, BP)
    mask = inside[:, None] & (p < P)[None, :]
    return tl.load(ptr + row[:, None] * stride + p[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def read_pairs(ptr, bias_p, row, inside, stride, HALF: tl.constexpr, M: tl.constexpr):
    """Even and odd columns (T, M) of B or C with their bias, not rotated; zeros beyond N and L."""
    m = tl.arange(0, M)
    mask = inside[:, None] & (m < HALF)[None, :]
    at = ptr + row[:, None] * stride + 2 * m[None, :]
    even_bias = tl.load(bias_p + 2 * m, mask=m < HALF, other=0.0).to(tl.float32)
    odd_bias = tl.load(bias_p + 2 * m + 1, mask=m < HALF, other=0.0).to(tl.float32)
    even = tl.load(at, mask=mask, other=0.0).to(tl.float32) + even_bias[None, :]
    odd = tl.load(at + 1, mask=mask, other=0.0).to(tl.float32) + odd_bias[None, :]
    return tl.where(mask, even, 0.0), tl.where(mask, odd, 0.0)


@triton.jit
def rotate(even, odd, cos, sin):
    """Turn pairs forward; with -sin, back."""
    return even * cos - odd * sin, even * sin + odd * cos


@triton.jit
def read_state(ptr, first, P: tl.constexpr, HALF: tl.constexpr, BP: tl.constexpr, M: tl.constexpr):
    """Even and odd rows (M, BP) of a state stored as (2, HALF, P), columns from `first` on."""
    m = tl.arange(0, M)
    p = first + tl.arange(0, BP)
    mask = (m < HALF)[:, None] & (p < P)[None, :]
    at = ptr + m[:, None] * P + p[None, :]
    return tl.load(at, mask=mask, other=0.0), tl.load(at + HALF * P, mask=mask, other=0.0)


@triton.jit
def write_state(
    ptr, even, odd, first, valid,
    P: tl.constexpr, HALF: tl.constexpr, BP: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """The inverse of `read_state`; nothing where `valid` is false."""
    m = tl.arange(0, M)
    p = first + tl.arange(0, BP)
    mask = (m < HALF)[:, None] & (p < P)[None, :] & valid
    at = ptr + m[:, None] * P + p[None, :]
    tl.store(at, even, mask=mask)
    tl.store(at + HALF * P, odd, mask=mask)


@triton.jit
def write_pairs(ptr, even, odd, row, inside, HALF: tl.constexpr, M: tl.constexpr):
    """Tiles (T, M) into rows of (2, HALF): halves side by side, so that stores are contiguous."""
    m = tl.arange(0, M)
    mask = inside[:, None] & (m < HALF)[None, :]
    at = ptr + row[:, None] * (2 * HALF) + m[None, :]
    tl.store(at, even, mask=mask)
    tl.store(at + HALF, odd, mask=mask)
