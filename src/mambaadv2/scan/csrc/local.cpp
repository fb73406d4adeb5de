// Entry points of local.h: cut the maps into jobs that depend on the shape alone, so that the
// number of threads changes no bit.
#include "job.h"
#include "pool.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// backward 0: y, mean and scale from x. 1: dx from x, mean, scale and the gradient of y in y.
EXPORT int32_t mambaadv2_norm_silu(const scan::NormSilu *n, int32_t backward, int32_t threads) {
    const scan::Kernels *isa = scan::kernels();
    if (!isa || n->images < 1 || n->channels < 1 || n->positions < 1) return scan::kUnsupported;
    if (threads < 1) return scan::kNoThreads;
    const int64_t lanes = isa->norm_lanes(), blocks = (n->channels + lanes - 1) / lanes;
    scan::run_jobs(n->images * blocks, threads, [&](int64_t job, int) {
        isa->norm_silu(*n, backward != 0, job / blocks, job % blocks * lanes);
    });
    return scan::kDone;
}

// Floats of workspace, or -1 for what is not supported.
EXPORT int64_t mambaadv2_depthwise_workspace(const scan::Depthwise *d, int32_t threads) {
    const scan::Kernels *isa = scan::kernels();
    if (!isa || d->images < 1 || d->channels < 1 || d->height < 1 || d->width < 1 || threads < 1 ||
        (d->kernel != 5 && d->kernel != 7))
        return -1;
    return d->images * d->channels * d->kernel * d->kernel +
           threads * isa->depthwise_scratch(*d);
}

// Gradient (channels, 1, k, k) of a depth-wise convolution's weight, stride 1, padding k / 2.
EXPORT int32_t mambaadv2_depthwise_weight(const scan::Depthwise *d, float *gradient,
                                          int32_t threads, float *memory) {
    if (mambaadv2_depthwise_workspace(d, threads) < 0) return scan::kUnsupported;
    const scan::Kernels *isa = scan::kernels();
    const int64_t lanes = isa->depthwise_lanes(), blocks = (d->channels + lanes - 1) / lanes;
    const int64_t taps = d->kernel * d->kernel, scratch = isa->depthwise_scratch(*d);
    scan::Depthwise mine = *d;
    mine.shares = memory;
    float *workers = memory + d->images * d->channels * taps;
    scan::run_jobs(d->images * blocks, threads, [&](int64_t job, int worker) {
        isa->depthwise_weight(mine, job / blocks, job % blocks * lanes, workers + worker * scratch);
    });
    for (int64_t i = 0; i < d->channels * taps; i++) {
        float total = 0;
        for (int64_t image = 0; image < d->images; image++)
            total += memory[image * d->channels * taps + i];
        gradient[i] = total;
    }
    return scan::kDone;
}
