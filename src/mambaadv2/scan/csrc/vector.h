// Vectors of MAMBAADV2_WIDTH floats by the compiler's vector extensions, and the functions of them.
//
// Everything here is in an unnamed namespace, and nothing of the C++ library with external linkage
// is used: this file is compiled once for each instruction set, and the linker must not mix them.
#pragma once

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

namespace {

constexpr int W = MAMBAADV2_WIDTH;
typedef float V __attribute__((vector_size(W * 4)));
typedef int32_t VI __attribute__((vector_size(W * 4)));
typedef double VD __attribute__((vector_size(W * 4)));
typedef int64_t VL __attribute__((vector_size(W * 4)));
typedef float VH __attribute__((vector_size(W * 2)));  // as many floats as VD has doubles
typedef float LooseV __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef float LooseVH __attribute__((vector_size(W * 2), aligned(4), may_alias));
typedef double LooseVD __attribute__((vector_size(W * 4), aligned(8), may_alias));

INLINE V load(const float *p) { return *(const LooseV *)p; }
INLINE void store(float *p, V v) { *(LooseV *)p = v; }
INLINE VH load_half(const float *p) { return *(const LooseVH *)p; }
INLINE void store_half(float *p, VH v) { *(LooseVH *)p = v; }
INLINE VD load_double(const double *p) { return *(const LooseVD *)p; }
INLINE void store_double(double *p, VD v) { *(LooseVD *)p = v; }
INLINE V all(float x) { return x - V{}; }
INLINE VD all_double(double x) { return x - VD{}; }

// Lane i of the result is lane i ^ DISTANCE.
template <int DISTANCE, typename Vector, typename Index,
          int LANES = sizeof(Vector) / sizeof(Vector{}[0])>
INLINE Vector exchange_lanes(Vector v, Index) {
#if defined(__clang__)
    Vector exchanged;
    UNROLL for (int i = 0; i < LANES; i++) exchanged[i] = v[i ^ DISTANCE];
    return exchanged;
#else
    Index from;
    UNROLL for (int i = 0; i < LANES; i++) from[i] = i ^ DISTANCE;
    return __builtin_shuffle(v, from);
#endif
}

// Halves are added to halves: short chains, and smaller errors than one lane after another.
INLINE double sum(VD v) {
    if constexpr (W >= 16) v += exchange_lanes<4>(v, VL{});
    if constexpr (W >= 8) v += exchange_lanes<2>(v, VL{});
    v += exchange_lanes<1>(v, VL{});
    return v[0];
}

INLINE float sum(V v) {
    if constexpr (W >= 16) v += exchange_lanes<8>(v, VI{});
    if constexpr (W >= 8) v += exchange_lanes<4>(v, VI{});
    v += exchange_lanes<2>(v, VI{});
    v += exchange_lanes<1>(v, VI{});
    return v[0];
}

// exp to about 1e-7 relative. NaN stays NaN; below -87.3 it is 0 and above 88.7 infinity.
INLINE V exp_of(V x) {
    const V lowest = all(-87.33654f), highest = all(88.72283f);
    V bounded = x < lowest ? lowest : x;
    bounded = bounded > highest ? highest : bounded;
    // Adding 1.5 * 2^23 rounds to a whole number and leaves it in the low bits.
    const V magic = all(12582912.0f);
    V shifted = bounded * 1.44269504088896341f + magic;
    V whole = shifted - magic;
    V f = bounded - whole * 0.693359375f;
    f = f + whole * 2.12194440e-4f;
    V p = f * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * (f * f) + (f + 1.0f);
    // In two halves, because 2^128 is not a float but 2^127 times 2 can be.
    VI n = (VI)shifted - 0x4B400000;
    VI half = n >> 1;
    p = p * (V)((half + 127) << 23) * (V)((n - half + 127) << 23);
    p = x < lowest ? V{} : p;
    return x > highest ? all(__builtin_inff()) : p;
}

INLINE V sigmoid(V x) { return 1.0f / (1.0f + exp_of(-x)); }

// Sine and cosine to about 1e-7 for |x| of a few turns; larger ones are reduced in double before.
INLINE void sincos_of(V x, V &sine, V &cosine) {
    const V magic = all(12582912.0f);
    V shifted = x * 0.636619772f + magic;
    V quarter = shifted - magic;
    V f = x - quarter * 1.5707963705062866f;
    f = f - quarter * -4.371139000186241e-8f;
    V z = f * f;
    V s = z * -1.9515295891e-4f + 8.3321608736e-3f;
    s = s * z - 1.6666654611e-1f;
    s = s * z * f + f;
    V c = z * 2.443315711809948e-5f - 1.388731625493765e-3f;
    c = c * z + 4.166664568298827e-2f;
    c = c * z * z + (1.0f - 0.5f * z);
    VI turn = (VI)shifted;
    VI swap = -(turn & 1);
    VI differ = ((VI)s ^ (VI)c) & swap;
    VI odd = (VI)s ^ differ, even = (VI)c ^ differ;
    sine = (V)(odd ^ ((turn & 2) << 30));
    cosine = (V)(even ^ (((turn + 1) & 2) << 30));
}

// tanh in double to about 1e-12: phases are sums of thousands of angles, so errors add up.
INLINE VD tanh_of(VD x) {
    const VD most = all_double(40.0);
    VD y = x + x;
    y = y > most ? most : y;
    y = y < -most ? -most : y;
    const VD magic = all_double(6755399441055744.0);  // 1.5 * 2^52
    VD shifted = y * 1.4426950408889634 + magic;
    VD whole = shifted - magic;
    VD f = y - whole * 0.693147180369123816490;
    f = f - whole * 1.90821492927058770002e-10;
    VD p = f * (1.0 / 479001600) + 1.0 / 39916800;
    p = p * f + 1.0 / 3628800;
    p = p * f + 1.0 / 362880;
    p = p * f + 1.0 / 40320;
    p = p * f + 1.0 / 5040;
    p = p * f + 1.0 / 720;
    p = p * f + 1.0 / 120;
    p = p * f + 1.0 / 24;
    p = p * f + 1.0 / 6;
    p = p * f + 0.5;
    p = p * f + 1.0;
    p = p * f + 1.0;
    VL n = (VL)shifted - 0x4338000000000000;
    VD e = p * (VD)((n + 1023) << 52);
    return 1.0 - 2.0 / (e + 1.0);
}

// Bring a phase into [-pi, pi].
INLINE VD reduce_phase(VD x) {
    const VD magic = all_double(6755399441055744.0);
    VD turns = (x * 0.15915494309189535 + magic) - magic;
    return x - turns * 6.283185307179586;
}

template <int H>
INLINE void exchange(V &a, V &b) {
    // Swap the off-diagonal blocks of side H between two rows that are H apart.
    VI low, high;
    UNROLL for (int c = 0; c < W; c++) {
        low[c] = c & H ? W + c - H : c;
        high[c] = c & H ? W + c : c + H;
    }
#if defined(__clang__)
    V first, second;
    UNROLL for (int c = 0; c < W; c++) {
        first[c] = c & H ? b[c - H] : a[c];
        second[c] = c & H ? b[c] : a[c + H];
    }
#else
    V first = __builtin_shuffle(a, b, low);
    V second = __builtin_shuffle(a, b, high);
#endif
    a = first;
    b = second;
}

template <int H>
INLINE void exchange_all(V (&rows)[W]) {
    UNROLL for (int i = 0; i < W; i++)
        if (!(i & H)) exchange<H>(rows[i], rows[i + H]);
}

INLINE void transpose(V (&rows)[W]) {
    if constexpr (W >= 16) exchange_all<8>(rows);
    if constexpr (W >= 8) exchange_all<4>(rows);
    exchange_all<2>(rows);
    exchange_all<1>(rows);
}

// acc[i][j] += sum over r < count of a[i * row + r * column] * b[r * stride + j * W ...]
// The scalars are broadcast, so `a` may lie in either layout.
template <int ROWS, int VECTORS>
INLINE void multiply(V (&acc)[ROWS][VECTORS], const float *a, int64_t row, int64_t column,
                     const float *b, int64_t stride, int64_t count) {
    for (int64_t r = 0; r < count; r++) {
        V right[VECTORS];
        UNROLL for (int j = 0; j < VECTORS; j++) right[j] = load(b + r * stride + j * W);
        UNROLL for (int i = 0; i < ROWS; i++) {
            const V left = all(a[i * row + r * column]);
            UNROLL for (int j = 0; j < VECTORS; j++) acc[i][j] += left * right[j];
        }
    }
}

template <int ROWS, int VECTORS>
INLINE void clear(V (&acc)[ROWS][VECTORS]) {
    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int j = 0; j < VECTORS; j++) acc[i][j] = V{};
}

}  // namespace
