// What the kernels of all instruction sets share with the code that starts them.
#pragma once

#include "scan.h"

namespace scan {

// Tokens of a chunk. 16 x 16 scores fit the registers of AVX-512 and the N x P state stays in L1.
constexpr int kChunk = 16;

// Everything a worker needs beyond its job. Pointers into one workspace, 64-byte aligned.
struct Shared {
    const int32_t *order;  // (K, L)
    double *theta;         // (b, L, theta_stride), pi tanh(angle)
    int64_t theta_stride;

    // Forward, only when directions run in parallel: (K - 1, b, L, H, P), all but the first, added
    // to it afterwards.
    float *per_direction;

    // Backward. Heads of a group are cut into `slots`; each adds up its own share of dB and dC,
    // the first in the gradient itself.
    int64_t slots;
    float *B, *C;              // (slots - 1, b, L, G, N)
    float *angle;              // (G * slots, b, L, S)
    float *B_bias, *C_bias;    // (b, K, H, N)
    float *D, *weights;        // (b, K, H)
    int64_t segment;           // chunks whose states and keys are kept at a time
};

// One instruction set's kernels.
struct Kernels {
    const char *name;
    int64_t (*forward_scratch)(const Problem &);                   // floats per worker
    int64_t (*backward_scratch)(const Problem &, const Shared &);  // floats per worker
    void (*angles)(const Problem &, const Shared &, int64_t batch, int64_t first, int64_t last);
    void (*forward)(const Problem &, const Outputs &, const Shared &, int64_t batch, int64_t head,
                    int64_t direction, float *scratch);  // direction -1: all, one after another
    void (*backward)(const Problem &, const Gradients &, const Shared &, int64_t batch,
                     int64_t group, int64_t slot, float *scratch);

    // local.h; each `_lanes` is how many channels one job takes.
    int64_t (*norm_lanes)();
    void (*norm_silu)(const NormSilu &, bool backward, int64_t image, int64_t channel);
    int64_t (*depthwise_lanes)();
    int64_t (*depthwise_scratch)(const Depthwise &);  // floats per worker
    void (*depthwise_weight)(const Depthwise &, int64_t image, int64_t channel, float *scratch);
};

// Null where the processor or the build lacks the instruction set.
const Kernels *baseline_kernels();
const Kernels *avx2_kernels();
const Kernels *avx512_kernels();

// Those in use; null when the environment asks for what is not here.
const Kernels *kernels();

}  // namespace scan
