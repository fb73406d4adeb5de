// The local branches' costs beside their matrix products, on maps in channels-last layout: an
// instance normalisation with SiLU, forward and backward, and the weight gradient of a depth-wise
// convolution. Compiled once for each instruction set; see vector.h.
#pragma once

#include "job.h"
#include "vector.h"

namespace scan {
namespace {

constexpr float kEpsilon = 1e-5f;  // of torch's normalisations
constexpr int kLanes = 4;        // vectors of channels that one job of the normalisation takes
constexpr int64_t kPartial = 64;  // positions whose sum is rounded before it joins the others

INLINE V load_some(const float *p, int64_t count) {
    V v{};
    memcpy(&v, p, count * sizeof(float));
    return v;
}

// VECTORS x W channels at a time, or fewer than W when `rest` is not 0: then VECTORS is 1.
template <int VECTORS, bool WHOLE>
struct Lanes {
    int64_t rest;

    INLINE_LAMBDA V get(const float *p, int j) const {
        return WHOLE ? load(p + j * W) : load_some(p, rest);
    }
    INLINE_LAMBDA void put(float *p, int j, V v) const {
        if (WHOLE)
            store(p + j * W, v);
        else
            memcpy(p, &v, rest * sizeof(float));
    }
};

// total[j] = the sum over positions of term(position, j).
template <int VECTORS, typename Term>
INLINE void sum_positions(V (&total)[VECTORS], int64_t positions, const Term &term) {
    for (int j = 0; j < VECTORS; j++) total[j] = V{};
    for (int64_t first = 0; first < positions; first += kPartial) {
        const int64_t last = first + kPartial < positions ? first + kPartial : positions;
        V part[VECTORS] = {};
        for (int64_t t = first; t < last; t++)
            UNROLL for (int j = 0; j < VECTORS; j++) part[j] += term(t, j);
        UNROLL for (int j = 0; j < VECTORS; j++) total[j] += part[j];
    }
}

INLINE V inverse_root(V v) {
    V root;
    UNROLL for (int i = 0; i < W; i++) root[i] = 1.0f / __builtin_sqrtf(v[i]);
    return root;
}

template <int VECTORS, bool WHOLE>
void norm_forward_lanes(const NormSilu &n, int64_t image, int64_t channel, int64_t rest) {
    const Lanes<VECTORS, WHOLE> lanes{rest};
    const float *x = n.x + image * n.positions * n.channels + channel;
    float *y = n.y + image * n.positions * n.channels + channel;
    const int64_t c = n.channels;
    const float share = 1.0f / static_cast<float>(n.positions);
    V mean[VECTORS], scale[VECTORS];
    sum_positions<VECTORS>(mean, n.positions,
                           [&](int64_t t, int j) INLINE_LAMBDA { return lanes.get(x + t * c, j); });
    UNROLL for (int j = 0; j < VECTORS; j++) mean[j] *= share;
    sum_positions<VECTORS>(scale, n.positions, [&](int64_t t, int j) INLINE_LAMBDA {
        const V d = lanes.get(x + t * c, j) - mean[j];
        return d * d;
    });
    UNROLL for (int j = 0; j < VECTORS; j++) {
        scale[j] = inverse_root(scale[j] * share + kEpsilon);
        lanes.put(n.mean + image * c + channel, j, mean[j]);
        lanes.put(n.scale + image * c + channel, j, scale[j]);
    }
    for (int64_t t = 0; t < n.positions; t++)
        UNROLL for (int j = 0; j < VECTORS; j++) {
            const V hat = (lanes.get(x + t * c, j) - mean[j]) * scale[j];
            lanes.put(y + t * c, j, hat * sigmoid(hat));
        }
}

// n.y holds the gradient of the output, n.dx takes that of x.
template <int VECTORS, bool WHOLE>
void norm_backward_lanes(const NormSilu &n, int64_t image, int64_t channel, int64_t rest) {
    const Lanes<VECTORS, WHOLE> lanes{rest};
    const int64_t c = n.channels, begin = image * n.positions * c + channel;
    const float *x = n.x + begin, *given = n.y + begin;
    float *dx = n.dx + begin;
    const float share = 1.0f / static_cast<float>(n.positions);
    V mean[VECTORS], scale[VECTORS], plain[VECTORS], along[VECTORS];
    UNROLL for (int j = 0; j < VECTORS; j++) {
        mean[j] = lanes.get(n.mean + image * c + channel, j);
        scale[j] = lanes.get(n.scale + image * c + channel, j);
        plain[j] = along[j] = V{};
    }
    for (int64_t first = 0; first < n.positions; first += kPartial) {
        const int64_t last = first + kPartial < n.positions ? first + kPartial : n.positions;
        V plain_part[VECTORS] = {}, along_part[VECTORS] = {};
        for (int64_t t = first; t < last; t++)
            UNROLL for (int j = 0; j < VECTORS; j++) {
                const V hat = (lanes.get(x + t * c, j) - mean[j]) * scale[j], s = sigmoid(hat);
                const V d = lanes.get(given + t * c, j) * (s * (1.0f + hat * (1.0f - s)));
                lanes.put(dx + t * c, j, d);
                plain_part[j] += d;
                along_part[j] += d * hat;
            }
        UNROLL for (int j = 0; j < VECTORS; j++) {
            plain[j] += plain_part[j];
            along[j] += along_part[j];
        }
    }
    UNROLL for (int j = 0; j < VECTORS; j++) {
        plain[j] *= share;
        along[j] *= share;
    }
    for (int64_t t = 0; t < n.positions; t++)
        UNROLL for (int j = 0; j < VECTORS; j++) {
            const V hat = (lanes.get(x + t * c, j) - mean[j]) * scale[j];
            const V d = lanes.get(dx + t * c, j) - plain[j] - hat * along[j];
            lanes.put(dx + t * c, j, d * scale[j]);
        }
}

int64_t norm_lanes() { return kLanes * W; }

// One job: up to kLanes * W channels of an image, from `channel` on.
void norm_silu(const NormSilu &n, bool backward, int64_t image, int64_t channel) {
    const int64_t left = n.channels - channel;
    if (left >= kLanes * W)
        (backward ? norm_backward_lanes<kLanes, true> : norm_forward_lanes<kLanes, true>)(
            n, image, channel, 0);
    else
        for (int64_t c = channel; c < n.channels; c += W) {
            const int64_t rest = n.channels - c;
            if (rest >= W)
                (backward ? norm_backward_lanes<1, true> : norm_forward_lanes<1, true>)(n, image,
                                                                                        c, 0);
            else
                (backward ? norm_backward_lanes<1, false> : norm_forward_lanes<1, false>)(
                    n, image, c, rest);
        }
}

int64_t depthwise_scratch(const Depthwise &d) {
    const int64_t k = d.kernel, width = (d.width + 2 * (k / 2) + 4) * W;
    return (k * width + (d.width + 4) * W + k * k * W);
}

// Weight gradient of one image and W channels, into d.shares. Rows of x wait in a ring of k, zero
// at both ends, so that k rows and one of the gradient stay in the first cache.
template <int K>
void depthwise_weight_of(const Depthwise &d, int64_t image, int64_t channel, float *scratch) {
    constexpr int pad = K / 2, step = 4;
    const int64_t c = d.channels, rest = c - channel, width = (d.width + 2 * pad + step) * W;
    float *given = scratch + K * width, *total = given + (d.width + step) * W;
    memset(scratch, 0, depthwise_scratch(d) * sizeof(float));
    const auto read = [&](float *to, const float *map, int64_t row) INLINE_LAMBDA {
        const float *from = map + (image * d.height + row) * d.width * c + channel;
        for (int64_t column = 0; column < d.width; column++)
            store(to + column * W, rest >= W ? load(from + column * c)
                                             : load_some(from + column * c, rest));
    };
    for (int64_t row = 0; row < pad && row < d.height; row++)
        read(scratch + row % K * width + pad * W, d.x, row);
    for (int64_t row = 0; row < d.height; row++) {
        if (row + pad < d.height)
            read(scratch + (row + pad) % K * width + pad * W, d.x, row + pad);
        read(given, d.given, row);
        for (int i = 0; i < K; i++) {
            const int64_t source = row + i - pad;
            if (source < 0 || source >= d.height) continue;
            const float *line = scratch + source % K * width;
            V acc[K];
            UNROLL for (int j = 0; j < K; j++) acc[j] = load(total + (i * K + j) * W);
            for (int64_t column = 0; column < d.width; column += step) {
                V right[step];
                UNROLL for (int s = 0; s < step; s++) right[s] = load(given + (column + s) * W);
                UNROLL for (int j = 0; j < K + step - 1; j++) {
                    const V left = load(line + (column + j) * W);
                    UNROLL for (int s = 0; s < step; s++)
                        if (j - s >= 0 && j - s < K) acc[j - s] += left * right[s];
                }
            }
            UNROLL for (int j = 0; j < K; j++) store(total + (i * K + j) * W, acc[j]);
        }
    }
    float *to = d.shares + image * c * K * K;
    for (int64_t lane = 0; lane < W && lane < rest; lane++)
        for (int tap = 0; tap < K * K; tap++)
            to[(channel + lane) * K * K + tap] = total[tap * W + lane];
}

int64_t depthwise_lanes() { return W; }

void depthwise_weight(const Depthwise &d, int64_t image, int64_t channel, float *scratch) {
    if (d.kernel == 5) depthwise_weight_of<5>(d, image, channel, scratch);
    if (d.kernel == 7) depthwise_weight_of<7>(d, image, channel, scratch);
}

}  // namespace
}  // namespace scan
