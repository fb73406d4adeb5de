// The C interface of the native scan. No torch, no Python: plain pointers and strides.
//
// Shape legend: b batch, K directions, L tokens, H heads, G groups of B and C, P head dim,
// N state dim, S rotary angles. All numbers are float32 and all strides are counted in elements.
#pragma once

#include <cstdint>

namespace scan {

// Raised whenever a structure or the meaning of a field changes; the Python side asks for it.
constexpr int32_t kAbi = 2;

constexpr int64_t kMaxDim = 128;  // of P and N; both are multiples of 8

struct Problem {
    int64_t b, K, L, H, G, P, N, S;

    // Innermost dimension of x, B, C and angle is dense.
    const float *x;
    int64_t x_batch, x_token, x_head;
    const float *B;
    int64_t B_batch, B_token, B_group;
    const float *C;
    int64_t C_batch, C_token, C_group;
    const float *dt;
    int64_t dt_batch, dt_direction, dt_token, dt_head;
    const float *A;
    int64_t A_batch, A_token, A_head;
    const float *trap;
    int64_t trap_batch, trap_token, trap_head;
    const float *angle;
    int64_t angle_batch, angle_token;

    // Dense from here on.
    const float *B_bias, *C_bias;  // (K, H, N)
    const float *D;                // (K, H)
    const int64_t *order;          // (K, L)
    const float *weights;          // (b, K), or null: all 1
    // State to continue from, all three or none.
    const float *first_h;  // (b, K, H, P, N)
    const float *first_k;  // (b, K, H, N)
    const float *first_x;  // (b, K, H, P)
};

struct Outputs {
    float *y;  // (b, L, H, P)
    // All three or none; shapes as `first_*`.
    float *last_h, *last_k, *last_x;
};

struct Gradients {
    // Of the outputs, dense; any may be null, which is zero.
    const float *y, *last_h, *last_k, *last_x;
    // Of the inputs, dense, all written.
    float *x, *B, *C, *dt, *A, *trap, *angle, *B_bias, *C_bias, *D;
    float *weights;                      // null without weights
    float *first_h, *first_k, *first_x;  // null without a state
};

// Instance normalisation and SiLU of maps (images, positions, channels), dense.
struct NormSilu {
    int64_t images, positions, channels;
    const float *x;
    float *mean, *scale;  // (images, channels); scale is 1 / deviation
    float *y;             // the output, or its gradient
    float *dx;            // the gradient of x, or null
};

// A depth-wise convolution of maps (images, height, width, channels), dense, stride 1.
struct Depthwise {
    int64_t images, height, width, channels, kernel;  // kernel 5 or 7
    const float *x, *given;  // input, and gradient of the output
    float *shares;           // (images, channels, kernel, kernel), taken from the workspace
};

enum Status : int32_t { kDone = 0, kUnsupported = 1, kNotAPermutation = 2, kNoThreads = 3 };

}  // namespace scan
