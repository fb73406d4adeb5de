// The forward pass of one (batch, head, direction): chunk after chunk, the state carried along.
#pragma once

#include "chunk.h"

namespace {

// Of a row of `width` floats, known or 0, as many vectors as leave the registers room for four
// rows. Few rows at once, because products with triangles skip what is zero in steps of rows.
constexpr int vectors_at_once(int width) {
    const int vectors = width / W;
    return W >= 16 && vectors % 4 == 0 && vectors > 0 ? 4 : vectors % 2 == 0 && vectors > 0 ? 2 : 1;
}

// state = keep * state + sum over tokens of left[n][t] * right[t][p]
template <int WIDTH>
INLINE void carry(float *state, float keep, const float *left, const float *right, int64_t count,
                  int64_t N, int64_t width) {
    constexpr int VECTORS = vectors_at_once(WIDTH), ROWS = VECTORS == 1 ? 8 : 4;
    for (int64_t n = 0; n < N; n += ROWS) {
        for (int64_t c = 0; c < width; c += VECTORS * W) {
            V acc[ROWS][VECTORS];
            UNROLL for (int i = 0; i < ROWS; i++)
                UNROLL for (int j = 0; j < VECTORS; j++)
                    acc[i][j] = load(state + (n + i) * width + c + j * W) * keep;
            multiply(acc, left + n * T, T, 1, right + c, width, count);
            UNROLL for (int i = 0; i < ROWS; i++)
                UNROLL for (int j = 0; j < VECTORS; j++)
                    store(state + (n + i) * width + c + j * W, acc[i][j]);
        }
    }
}

// The state that enters the first token, the trapezoid's share of the token before included.
INLINE void first_state(float *state, const Problem &p, const Line &line, int64_t at) {
    for (int64_t i = 0; i < line.N * line.width; i++) state[i] = 0;
    if (!p.first_h) return;
    const int64_t row = line.order[0];
    const V lam = sigmoid(all(line.trap[row * line.trap_step]));
    const float pending = (1 - lam[0]) * line.dt[row * line.dt_step];
    const float *h = p.first_h + at * line.P * line.N;
    const float *k = p.first_k + at * line.N, *x = p.first_x + at * line.P;
    for (int64_t i = 0; i < line.P; i++)
        for (int64_t n = 0; n < line.N; n++)
            state[n * line.width + i] = h[i * line.N + n] + pending * x[i] * k[n];
}

INLINE void phase_turns(float *turns, const double *phase, int64_t S) {
    for (int64_t i = 0; i < S; i++) {
        V sine, cosine;
        sincos_of(all((float)phase[i]), sine, cosine);
        turns[2 * i] = cosine[0];
        turns[2 * i + 1] = sine[0];
    }
}

// The state after the last token, turned back by the phase reached, as (P, N).
INLINE void last_state(const Outputs &out, const Carried &carried, const Chunk &chunk,
                       const Line &line, int64_t at) {
    const float *state = carried.state;
    float turns[scan::kMaxDim];
    phase_turns(turns, carried.phase, line.S);
    float *h = out.last_h + at * line.P * line.N;
    float *k = out.last_k + at * line.N, *x = out.last_x + at * line.P;
    const int64_t t = chunk.count - 1;
    for (int64_t i = 0; i < line.P; i++) {
        x[i] = chunk.x[t * line.width + i];
        for (int64_t n = 0; n < 2 * line.S; n += 2) {
            const float a = state[n * line.width + i], b = state[(n + 1) * line.width + i];
            h[i * line.N + n] = a * turns[n] + b * turns[n + 1];
            h[i * line.N + n + 1] = b * turns[n] - a * turns[n + 1];
        }
        for (int64_t n = 2 * line.S; n < line.N; n++)
            h[i * line.N + n] = state[n * line.width + i];
    }
    // A key turned by its own phase and back is the key without rotation.
    for (int64_t n = 0; n < line.N; n++) k[n] = chunk.plain_k[n * T + t];
}

template <int WIDTH>
INLINE void write_outputs(float *y, int64_t y_step, const float *state, int64_t state_dims,
                          const Chunk &chunk, const Line &line, bool add) {
    const int64_t width = WIDTH ? WIDTH : line.width;
    constexpr int VECTORS = vectors_at_once(WIDTH), ROWS = VECTORS == 1 ? 8 : 4;
    for (int64_t t = 0; t < chunk.count; t += ROWS) {
        for (int64_t c = 0; c < width; c += VECTORS * W) {
            V acc[ROWS][VECTORS];
            clear(acc);
            multiply(acc, chunk.q + t, 1, T, state + c, width, state_dims);
            UNROLL for (int i = 0; i < ROWS; i++) {
                const V in = all(chunk.in[t + i] * line.weight);
                const V same = all(chunk.same[t + i] * line.weight);
                UNROLL for (int j = 0; j < VECTORS; j++)
                    acc[i][j] = acc[i][j] * in + same * load(chunk.x + (t + i) * width + c + j * W);
            }
            multiply(acc, chunk.scores + t * T, T, 1, chunk.x + c, width, t + ROWS);
            UNROLL for (int i = 0; i < ROWS; i++) {
                if (t + i >= chunk.count) break;
                float *row = y + chunk.rows[t + i] * y_step;
                UNROLL for (int j = 0; j < VECTORS; j++)
                    put_values(row, acc[i][j], c + j * W, line.P, add);
            }
        }
    }
}

template <int WIDTH>
void forward_line(const Problem &p, const Outputs &out, const Line &line, int64_t at, float *y,
                  bool add, Scratch scratch) {
    const int64_t width = WIDTH ? WIDTH : line.width;
    Chunk chunk;
    Carried carried;
    place(chunk, line, scratch);
    place_queries(chunk, line, scratch);
    place(carried, line, scratch);
    first_state(carried.state, p, line, at);
    // A state of zeros has nothing to give to the first chunk.
    int64_t state_dims = p.first_h ? line.N : 0;
    for (int64_t first = 0; first < line.L; first += T) {
        prefetch(line, first + T, y, p.H * p.P);
        prepare_keys(chunk, carried, line, first);
        // The weight goes in before the sums, so that adding to y stays a plain addition and gives
        // the same bits as adding up directions that were computed apart.
        prepare_queries(chunk, line, line.weight);
        write_outputs<WIDTH>(y, p.H * p.P, carried.state, state_dims, chunk, line, add);
        if (first + T >= line.L && !out.last_h) break;
        carry<WIDTH>(carried.state, chunk.keep, carried.left, chunk.x, chunk.count, line.N, width);
        state_dims = line.N;
    }
    if (out.last_h) last_state(out, carried, chunk, line, at);
}

INLINE int64_t width_of(const Problem &p) { return up(p.P, W); }

int64_t forward_scratch(const Problem &p) {
    const int64_t width = width_of(p), stride = up(p.S, 8);
    return keys_floats(p.N, p.S, width) + queries_floats(p.N) +
           carried_floats(p.N, stride, width) + 11 * 16;
}

void forward(const Problem &p, const Outputs &out, const Shared &shared, int64_t b, int64_t h,
             int64_t direction, float *scratch) {
    const int64_t width = width_of(p);
    const Scratch room{scratch, scratch + forward_scratch(p)};
    const int64_t begin = direction < 0 ? 0 : direction, end = direction < 0 ? p.K : begin + 1;
    for (int64_t k = begin; k < end; k++) {
        const Line line = line_of(p, shared, b, k, h, width);
        const int64_t at = (b * p.K + k) * p.H + h;
        float *base = direction < 1 ? out.y
                                    : shared.per_direction + (k - 1) * p.b * p.L * p.H * p.P;
        float *y = base + b * p.L * p.H * p.P + h * p.P;
        const bool add = k > begin;
        if (width == 16) forward_line<16>(p, out, line, at, y, add, room);
        else if (width == 32) forward_line<32>(p, out, line, at, y, add, room);
        else if (width == 64) forward_line<64>(p, out, line, at, y, add, room);
        else if (width == 128) forward_line<128>(p, out, line, at, y, add, room);
        else forward_line<0>(p, out, line, at, y, add, room);
    }
}

void angles(const Problem &p, const Shared &shared, int64_t b, int64_t first, int64_t last) {
    const int64_t stride = shared.theta_stride;
    for (int64_t t = first; t < last; t++) {
        const float *from = p.angle + b * p.angle_batch + t * p.angle_token;
        double *to = shared.theta + (b * p.L + t) * stride;
        for (int64_t i = 0; i < stride; i += W / 2) {
            VD raw = VD{};
            for (int64_t j = 0; j < smaller(W / 2, p.S - i); j++) raw[j] = (double)from[i + j];
            store_double(to + i, tanh_of(raw) * kPi);
        }
    }
}

}  // namespace
