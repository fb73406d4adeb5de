// The backward pass of one (batch, head, direction). The states are computed once more, segment by
// segment from the end, and then the segment's chunks are walked backwards.
#pragma once

#include "gradients.h"

namespace {

// to[n][token] = from[n][token] * factor[token]
INLINE void weigh(float *to, const float *from, const float *factor, int64_t N) {
    UNROLL for (int v = 0; v < TV; v++) {
        const V f = load(factor + v * W);
        for (int64_t n = 0; n < N; n++) store(to + n * T + v * W, load(from + n * T + v * W) * f);
    }
}

// The gradient of the last state, brought into the frame of the sequence.
INLINE void from_last_state(Walk &walk, const Gradients &grads, const double *phase,
                            const Line &line, int64_t at) {
    if (!grads.last_h) return;
    walk.live = true;
    float turns[scan::kMaxDim];
    phase_turns(turns, phase, line.S);
    const float *given = grads.last_h + at * line.P * line.N;
    for (int64_t p = 0; p < line.P; p++) {
        const float *d = given + p * line.N;
        for (int64_t n = 0; n < 2 * line.S; n += 2) {
            const float c = turns[n], s = turns[n + 1];
            walk.state[n * line.width + p] = d[n] * c - d[n + 1] * s;
            walk.state[(n + 1) * line.width + p] = d[n] * s + d[n + 1] * c;
        }
        for (int64_t n = 2 * line.S; n < line.N; n++) walk.state[n * line.width + p] = d[n];
    }
}

template <int WIDTH>
INLINE void backward_chunk(Work &work, const Chunk &chunk, Walk &walk, const Line &line,
                           const Sinks &sinks, const float *state, bool entered,
                           const float *dy, const float *last_k, const float *last_x) {
    const int64_t width = WIDTH ? WIDTH : line.width;
    if (dy) {
        gather_values(work.g, dy, sinks.x_step, chunk.rows, chunk.count, line.P, width);
    } else {
        for (int64_t i = 0; i < T * width; i += W) store(work.g + i, V{});
    }
    turn(work.g_turned, work.g, width);
    turn(work.x_turned, chunk.x, width);
    UNROLL for (int v = 0; v < TV; v++) {
        V dot = V{};
        for (int64_t p = 0; p < line.P; p++)
            dot += load(work.g_turned + p * T + v * W) * load(work.x_turned + p * T + v * W);
        store(work.same_gradient + v * W, dot);
    }
    score_gradients(work, chunk, line);
    const float *weighted_q = chunk.q;
    if (line.weight != 1) {
        weighted_q = work.weighted_q;
        for (int64_t i = 0; i < line.N * T; i += W)
            store(work.weighted_q + i, load(chunk.q + i) * line.weight);
    }
    vector_gradients<WIDTH>(work.dq, work.from_state, work.e_from, work.e_pairs, line.weight,
                            false, chunk.q, state, entered ? line.P : 0, work.g_turned, chunk.in,
                            chunk.k, work.ds_turned, line);
    vector_gradients<WIDTH>(work.dk, work.to_state, work.e_to, work.e_pairs, 1.0f, true, chunk.k,
                            walk.state, walk.live ? line.P : 0, work.x_turned, chunk.out,
                            weighted_q, work.ds, line);
    double through = 0;
    if (entered && walk.live) {
        phases_through<WIDTH>(work.phases_through, state, walk.state, chunk.keep, line);
        through = chunk.keep * dot(walk.state, state, line.N * width);
    } else {
        for (int64_t i = 0; i < line.S; i++) work.phases_through[i] = 0;
    }
    value_gradients<WIDTH>(work, chunk, walk, line, sinks, last_x);
    if (entered) {
        weigh(work.left, weighted_q, chunk.in, line.N);
        carry<WIDTH>(walk.state, chunk.keep, work.left, work.g, chunk.count, line.N, width);
        walk.live = true;
    }

    double to_dt[T];
    finish_vectors(work, chunk, walk, line, last_k);
    finish_phases(work, chunk, line, sinks, to_dt);
    finish_scalars(work, chunk, walk, line, sinks, to_dt, through);
    scatter(sinks.C, sinks.B_step, chunk.rows, chunk.count, work.dq, line.N, sinks.add_shared);
    scatter(sinks.B, sinks.B_step, chunk.rows, chunk.count, work.dk, line.N, sinks.add_shared);
}

INLINE void to_first_state(const Problem &p, const Gradients &grads, const Walk &walk,
                           const Line &line, const Sinks &sinks, int64_t at) {
    if (!p.first_h) return;
    const float *k = p.first_k + at * line.N, *x = p.first_x + at * line.P;
    float *dh = grads.first_h + at * line.P * line.N;
    float *dk = grads.first_k + at * line.N, *dx = grads.first_x + at * line.P;
    const float pending = (1 - walk.lam) * walk.dt;
    double d_pending = 0;
    for (int64_t n = 0; n < line.N; n++) dk[n] = 0;
    for (int64_t i = 0; i < line.P; i++) {
        float value = 0;
        for (int64_t n = 0; n < line.N; n++) {
            const float d = walk.state[n * line.width + i];
            dh[i * line.N + n] = d;
            value += d * k[n];
            dk[n] += d * x[i] * pending;
        }
        dx[i] = value * pending;
        d_pending += (double)value * x[i];
    }
    const float before = (float)d_pending;
    sinks.dt[walk.row * sinks.step] += (1 - walk.lam) * before;
    sinks.trap[walk.row * sinks.step] -= walk.dt * before * walk.lam * (1 - walk.lam);
}

// States at the beginning of segments, and of every chunk of one segment what was prepared for it.
struct Kept {
    float *segment_states, *states;
    double *segment_phases;
    Keys *keys;
};

INLINE void place(Kept &kept, const Line &line, int64_t segments, int64_t segment,
                  Scratch &scratch) {
    const int64_t size = line.N * line.width;
    kept.segment_states = scratch.take(segments * size);
    kept.segment_phases = (double *)scratch.take(2 * segments * line.theta_stride);
    kept.states = scratch.take(segment * size);
    kept.keys = (Keys *)scratch.take(segment * (int64_t)(sizeof(Keys) / sizeof(float)));
    for (int64_t i = 0; i < segment; i++) place(kept.keys[i], line, scratch);
}

int64_t kept_floats(int64_t N, int64_t S, int64_t theta_stride, int64_t width, int64_t segments,
                    int64_t segment) {
    const int64_t chunk = N * width + sizeof(Keys) / sizeof(float) + keys_floats(N, S, width);
    return segments * (N * width + 2 * theta_stride) + segment * (chunk + 5 * 16) + 4 * 16;
}

// Carry the state over the first segments and keep what enters each.
template <int WIDTH>
void sweep_segments(Carried &carried, const Kept &kept, const Line &line, int64_t segments,
                    int64_t segment) {
    const int64_t width = WIDTH ? WIDTH : line.width, size = line.N * width;
    Keys &keys = kept.keys[0];
    for (int64_t z = 0; z < segments * segment; z++) {
        if (z % segment == 0) {
            const int64_t at = z / segment, angles = line.theta_stride;
            memcpy(kept.segment_states + at * size, carried.state, size * sizeof(float));
            memcpy(kept.segment_phases + at * angles, carried.phase, angles * sizeof(double));
        }
        prepare_keys(keys, carried, line, z * T);
        carry<WIDTH>(carried.state, keys.keep, carried.left, keys.x, keys.count, line.N, width);
    }
}

// Carry the state over the chunks of one segment and keep what is prepared and what enters each.
template <int WIDTH>
void sweep_chunks(Carried &carried, const Kept &kept, const Line &line, int64_t begin,
                  int64_t end) {
    const int64_t width = WIDTH ? WIDTH : line.width, size = line.N * width;
    for (int64_t z = begin; z < end; z++) {
        Keys &keys = kept.keys[z - begin];
        memcpy(kept.states + (z - begin) * size, carried.state, size * sizeof(float));
        prefetch(line, (z + 1) * T, nullptr, 0);
        prepare_keys(keys, carried, line, z * T);
        if (z + 1 < end)
            carry<WIDTH>(carried.state, keys.keep, carried.left, keys.x, keys.count, line.N, width);
    }
}

template <int WIDTH>
void backward_line(const Problem &p, const Gradients &grads, const Line &line, const Sinks &sinks,
                   int64_t at, const float *dy, int64_t segment, Scratch scratch) {
    const int64_t width = WIDTH ? WIDTH : line.width, size = line.N * width;
    const int64_t chunks = (line.L + T - 1) / T, segments = (chunks + segment - 1) / segment;
    Chunk chunk;
    Carried carried;
    Work work;
    Walk walk;
    Kept kept;
    place_queries(chunk, line, scratch);
    place(carried, line, scratch);
    place(work, line, scratch);
    place(walk, line, scratch);
    place(kept, line, segments, segment, scratch);

    first_state(carried.state, p, line, at);
    sweep_segments<WIDTH>(carried, kept, line, segments - 1, segment);
    for (int64_t s = segments - 1; s >= 0; s--) {
        const int64_t begin = s * segment, end = smaller(begin + segment, chunks);
        if (s < segments - 1) {
            memcpy(carried.state, kept.segment_states + s * size, size * sizeof(float));
            memcpy(carried.phase, kept.segment_phases + s * line.theta_stride,
                   line.theta_stride * sizeof(double));
        }
        sweep_chunks<WIDTH>(carried, kept, line, begin, end);
        if (end == chunks) from_last_state(walk, grads, carried.phase, line, at);
        for (int64_t z = end - 1; z >= begin; z--) {
            static_cast<Keys &>(chunk) = kept.keys[z - begin];
            prefetch(line, (z - 1) * T, sinks.x, sinks.x_step);
            prepare_queries(chunk, line, 1.0f);
            const bool last = z == chunks - 1, entered = z > 0 || p.first_h;
            backward_chunk<WIDTH>(
                work, chunk, walk, line, sinks, kept.states + (z - begin) * size, entered, dy,
                last && grads.last_k ? grads.last_k + at * line.N : nullptr,
                last && grads.last_x ? grads.last_x + at * line.P : nullptr);
        }
    }
    to_first_state(p, grads, walk, line, sinks, at);
    for (int64_t n = 0; n < line.N; n++) {
        sinks.B_bias[n] = sum(load(walk.B_bias + n * W));
        sinks.C_bias[n] = sum(load(walk.C_bias + n * W));
    }
    *sinks.D = (float)walk.D;
    *sinks.weights = (float)walk.weight;
}

int64_t backward_scratch(const Problem &p, const Shared &shared) {
    const int64_t width = width_of(p), stride = shared.theta_stride, size = p.N * width;
    const int64_t chunks = (p.L + T - 1) / T;
    const int64_t segments = (chunks + shared.segment - 1) / shared.segment;
    const int64_t work = 3 * T * width + 4 * T * p.N + 6 * T * up(stride, W) + 2 * stride;
    const int64_t walk = 2 * p.N * W + size;
    const int64_t kept = kept_floats(p.N, p.S, stride, width, segments, shared.segment);
    return queries_floats(p.N) + carried_floats(p.N, stride, width) + work + walk + kept + 24 * 16;
}

void backward(const Problem &p, const Gradients &grads, const Shared &shared, int64_t b,
              int64_t group, int64_t slot, float *scratch) {
    const int64_t width = width_of(p), heads = p.H / p.G;
    const Scratch room{scratch, scratch + backward_scratch(p, shared)};
    const int64_t begin = group * heads + slot * heads / shared.slots;
    const int64_t end = group * heads + (slot + 1) * heads / shared.slots;
    for (int64_t h = begin; h < end; h++) {
        for (int64_t k = 0; k < p.K; k++) {
            const Line line = line_of(p, shared, b, k, h, width);
            const int64_t at = (b * p.K + k) * p.H + h;
            const int64_t vectors = (b * p.L * p.G + group) * p.N;
            const int64_t share = (slot - 1) * p.b * p.L * p.G * p.N + vectors;
            Sinks sinks;
            sinks.x = grads.x + (b * p.L * p.H + h) * p.P;
            sinks.dt = grads.dt + (b * p.K + k) * p.L * p.H + h;
            sinks.A = grads.A + b * p.L * p.H + h;
            sinks.trap = grads.trap + b * p.L * p.H + h;
            sinks.B = slot == 0 ? grads.B + vectors : shared.B + share;
            sinks.C = slot == 0 ? grads.C + vectors : shared.C + share;
            sinks.angle = shared.angle + ((group * shared.slots + slot) * p.b + b) * p.L * p.S;
            sinks.B_bias = shared.B_bias + at * p.N;
            sinks.C_bias = shared.C_bias + at * p.N;
            sinks.D = shared.D + at;
            sinks.weights = shared.weights + at;
            sinks.x_step = p.H * p.P;
            sinks.step = p.H;
            sinks.B_step = p.G * p.N;
            sinks.add = k > 0;
            sinks.add_shared = k > 0 || h > begin;
            const float *dy = grads.y ? grads.y + (b * p.L * p.H + h) * p.P : nullptr;
            const int64_t segment = shared.segment;
            if (width == 16)
                backward_line<16>(p, grads, line, sinks, at, dy, segment, room);
            else if (width == 32)
                backward_line<32>(p, grads, line, sinks, at, dy, segment, room);
            else if (width == 64)
                backward_line<64>(p, grads, line, sinks, at, dy, segment, room);
            else if (width == 128)
                backward_line<128>(p, grads, line, sinks, at, dy, segment, room);
            else
                backward_line<0>(p, grads, line, sinks, at, dy, segment, room);
        }
    }
}

}  // namespace
