// The scan's chunks, read and prepared, for one instruction set.
//
// Included once by each kernel_*.cpp. The mathematics in short, in the names of reference.py (the
// truth): with scale s_t = gamma_t + (1 - lam_{t+1}) dt_{t+1}, all that token t ever adds to later
// states, a chunk of 16 tokens is
//     M[t, s] = alpha_{s+1} ... alpha_t * s_s * (q_t . k_s)   for s < t
//     y = M x + diag(gamma q.k + D) x + diag(alpha_0 ... alpha_t) q H
//     H = alpha_0 ... alpha_15 * H + sum over t of alpha_{t+1} ... alpha_15 * s_t k_t x_t^T
// The decays are products of alphas, not exponentials of differences of sums: nothing cancels.
// Phases add up in double, modulo one turn, in one frame for the whole sequence.
//
// Layouts: what belongs to N or S lies as [n][token], so that tokens fill a vector and rotations
// need no shuffles; what belongs to P lies as [token][p] with rows of `width` >= P floats, a
// multiple of the vector. The state is [n][p].
#pragma once

#include "job.h"
#include "vector.h"

namespace {

using scan::Gradients;
using scan::Outputs;
using scan::Problem;
using scan::Shared;

constexpr int T = scan::kChunk;
constexpr int TV = T / W;
constexpr double kPi = 3.14159265358979323846;

INLINE int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Hands out pieces of a worker's scratch, each on its own cache line. The `*_floats` functions say
// beforehand what is taken; should they ever say too little, the process ends here and not later.
struct Scratch {
    float *next, *end;
    float *take(int64_t floats) {
        float *piece = next;
        next += up(floats, 16);
        if (next > end) __builtin_trap();
        return piece;
    }
};

// What one direction of one head of one image reads, as pointers to its first token.
struct Line {
    const float *x, *B, *C, *dt, *A, *trap, *B_bias, *C_bias;
    int64_t x_step, B_step, C_step, dt_step, A_step, trap_step;
    const double *theta;
    const int32_t *order;
    float D, weight;
    int64_t L, P, N, S, theta_stride, width;
};

INLINE Line line_of(const Problem &p, const Shared &shared, int64_t b, int64_t k, int64_t h,
                    int64_t width) {
    const int64_t g = h / (p.H / p.G);
    Line line;
    line.x = p.x + b * p.x_batch + h * p.x_head;
    line.B = p.B + b * p.B_batch + g * p.B_group;
    line.C = p.C + b * p.C_batch + g * p.C_group;
    line.dt = p.dt + b * p.dt_batch + k * p.dt_direction + h * p.dt_head;
    line.A = p.A + b * p.A_batch + h * p.A_head;
    line.trap = p.trap + b * p.trap_batch + h * p.trap_head;
    line.B_bias = p.B_bias + (k * p.H + h) * p.N;
    line.C_bias = p.C_bias + (k * p.H + h) * p.N;
    line.x_step = p.x_token;
    line.B_step = p.B_token;
    line.C_step = p.C_token;
    line.dt_step = p.dt_token;
    line.A_step = p.A_token;
    line.trap_step = p.trap_token;
    line.theta = shared.theta + b * p.L * shared.theta_stride;
    line.order = shared.order + k * p.L;
    line.D = p.D[k * p.H + h];
    line.weight = p.weights ? p.weights[b * p.K + k] : 1.0f;
    line.L = p.L;
    line.P = p.P;
    line.N = p.N;
    line.S = p.S;
    line.theta_stride = shared.theta_stride;
    line.width = width;
    return line;
}

// What a chunk writes to the state, read and prepared. Tokens beyond the end have dt = 0 and x = 0:
// they change nothing.
struct Keys {
    int64_t count;
    int32_t rows[T];
    alignas(64) float dt[2 * T], A[T], lam[2 * T];  // with the first token of the next chunk
    alignas(64) float gamma[T], scale[T], alpha[T];
    alignas(64) float in[T], out[T];  // products of alphas 0..t, and t+1..15
    float keep;                       // product of all alphas
    float *x;                         // [token][width]
    float *k, *plain_k;               // [n][token]: rotated, times scale; with bias only
    float *cosine, *sine;             // [i][token]
};

// The whole chunk: also what its tokens read.
struct Chunk : Keys {
    alignas(64) float dot[T], same[T];  // q.k of a token with itself, gamma q.k + D
    alignas(64) float decay[T * T], scores[T * T];
    float *q, *plain_q;  // [n][token]
};

// What goes from chunk to chunk, and room for what only the next preparation needs.
struct Carried {
    float *state;   // [n][p]
    double *phase;  // (theta_stride,)
    float *left;    // [n][token], keys with the decay up to the end of the chunk
    float *angles;  // [token][theta_stride]
};

INLINE void place(Keys &keys, const Line &line, Scratch &scratch) {
    keys.x = scratch.take(T * line.width);
    keys.k = scratch.take(T * line.N);
    keys.plain_k = scratch.take(T * line.N);
    keys.cosine = scratch.take(T * line.S);
    keys.sine = scratch.take(T * line.S);
}

INLINE void place_queries(Chunk &chunk, const Line &line, Scratch &scratch) {
    chunk.q = scratch.take(T * line.N);
    chunk.plain_q = scratch.take(T * line.N);
}

INLINE void place(Carried &carried, const Line &line, Scratch &scratch) {
    carried.state = scratch.take(line.N * line.width);
    carried.phase = (double *)scratch.take(2 * line.theta_stride);
    carried.left = scratch.take(T * line.N);
    carried.angles = scratch.take(T * up(line.theta_stride, W));
    for (int64_t i = 0; i < line.theta_stride; i++) carried.phase[i] = 0;
}

int64_t keys_floats(int64_t N, int64_t S, int64_t width) {
    return T * (width + 2 * N + 2 * S);
}

int64_t queries_floats(int64_t N) { return 2 * T * N; }

int64_t carried_floats(int64_t N, int64_t theta_stride, int64_t width) {
    return N * width + T * N + T * up(theta_stride, W) + 2 * up(theta_stride, 8);
}

// Rows of `columns` floats, `step` apart, to [column][token]. `columns` is a multiple of 8.
INLINE void gather(float *to, const float *from, int64_t step, const int32_t *rows,
                   int64_t columns) {
    for (int64_t c = 0; c < columns; c += W) {
        for (int64_t t = 0; t < T; t += W) {
            V tile[W];
            if (W <= 8 || c + W <= columns) {
                UNROLL for (int i = 0; i < W; i++) tile[i] = load(from + rows[t + i] * step + c);
            } else {
                UNROLL for (int i = 0; i < W; i++) {
                    tile[i] = V{};
                    memcpy(&tile[i], from + rows[t + i] * step + c, 8 * sizeof(float));
                }
            }
            transpose(tile);
            const int64_t valid = smaller(W, columns - c);
            if (valid == W) {
                UNROLL for (int i = 0; i < W; i++) store(to + (c + i) * T + t, tile[i]);
            } else {
                UNROLL for (int i = 0; i < W / 2; i++) store(to + (c + i) * T + t, tile[i]);
            }
        }
    }
}

// Add [column][token] to rows, or write it there.
INLINE void scatter(float *to, int64_t step, const int32_t *rows, int64_t count,
                    const float *from, int64_t columns, bool add) {
    for (int64_t c = 0; c < columns; c += W) {
        for (int64_t t = 0; t < count; t += W) {
            V tile[W];
            const bool whole = W <= 8 || c + W <= columns;
            UNROLL for (int i = 0; i < W; i++)
                tile[i] = i < W / 2 || whole ? load(from + (c + i) * T + t) : V{};
            transpose(tile);
            UNROLL for (int i = 0; i < W; i++) {
                if (t + i >= count) break;
                float *row = to + rows[t + i] * step + c;
                if (whole) {
                    store(row, add ? load(row) + tile[i] : tile[i]);
                } else {
                    V old = V{};
                    if (add) memcpy(&old, row, 8 * sizeof(float));
                    old += tile[i];
                    memcpy(row, &old, 8 * sizeof(float));
                }
            }
        }
    }
}

// [token][width] to [p][token].
INLINE void turn(float *to, const float *from, int64_t width) {
    for (int64_t c = 0; c < width; c += W) {
        for (int64_t t = 0; t < T; t += W) {
            V tile[W];
            UNROLL for (int i = 0; i < W; i++) tile[i] = load(from + (t + i) * width + c);
            transpose(tile);
            UNROLL for (int i = 0; i < W; i++) store(to + (c + i) * T + t, tile[i]);
        }
    }
}

// Rows of P floats to [token][width], zeros beyond P and beyond the last token.
INLINE void gather_values(float *to, const float *from, int64_t step, const int32_t *rows,
                          int64_t count, int64_t P, int64_t width) {
    for (int64_t t = 0; t < T; t++) {
        float *row = to + t * width;
        if (t >= count) {
            for (int64_t c = 0; c < width; c += W) store(row + c, V{});
            continue;
        }
        const float *source = from + rows[t] * step;
        int64_t c = 0;
        for (; c + W <= P; c += W) store(row + c, load(source + c));
        if (c < P) {
            store(row + c, V{});
            memcpy(row + c, source + c, 8 * sizeof(float));
        }
    }
}

INLINE void put_values(float *to, V value, int64_t column, int64_t P, bool add) {
    if (W <= 8 || column + W <= P) {
        store(to + column, add ? load(to + column) + value : value);
    } else if (column < P) {
        V old = V{};
        if (add) memcpy(&old, to + column, 8 * sizeof(float));
        old += value;
        memcpy(to + column, &old, 8 * sizeof(float));
    }
}

// Weights, decays and their products.
INLINE void read_scalars(Keys &chunk, const Line &line, int64_t first) {
    const int64_t count = smaller(T, line.L - first);
    const int32_t *rows = line.order + first;
    chunk.count = count;
    alignas(64) float trap[T];
    for (int64_t t = 0; t < count; t++) {
        const int64_t row = rows[t];
        chunk.rows[t] = (int32_t)row;
        chunk.dt[t] = line.dt[row * line.dt_step];
        chunk.A[t] = line.A[row * line.A_step];
        trap[t] = line.trap[row * line.trap_step];
    }
    for (int64_t t = count; t < T; t++) {
        chunk.rows[t] = rows[count - 1];
        chunk.dt[t] = chunk.A[t] = trap[t] = 0;
    }
    chunk.dt[T] = chunk.lam[T] = 0;
    if (first + T < line.L) {
        const int64_t row = rows[T];
        chunk.dt[T] = line.dt[row * line.dt_step];
        chunk.lam[T] = sigmoid(all(line.trap[row * line.trap_step]))[0];
    }
    UNROLL for (int v = 0; v < TV; v++) store(chunk.lam + v * W, sigmoid(load(trap + v * W)));
    UNROLL for (int v = 0; v < TV; v++) {
        const V dt = load(chunk.dt + v * W), gamma = load(chunk.lam + v * W) * dt;
        const V next = (1.0f - load(chunk.lam + v * W + 1)) * load(chunk.dt + v * W + 1);
        store(chunk.gamma + v * W, gamma);
        store(chunk.scale + v * W, gamma + next);
        store(chunk.alpha + v * W, exp_of(dt * load(chunk.A + v * W)));
    }
    float forth = 1, back = 1;
    for (int64_t t = 0; t < T; t++) {
        chunk.in[t] = forth *= chunk.alpha[t];
        chunk.out[T - 1 - t] = back;
        back *= chunk.alpha[T - 1 - t];
    }
    chunk.keep = forth;
}

// decay[t][s] = alpha_{s+1} ... alpha_t below the diagonal, else 0.
INLINE void fill_decays(Chunk &chunk) {
    V row[TV];
    UNROLL for (int v = 0; v < TV; v++) {
        row[v] = V{};
        store(chunk.decay + v * W, row[v]);
    }
    for (int64_t t = 1; t < T; t++) {
        const V alpha = all(chunk.alpha[t]);
        UNROLL for (int v = 0; v < TV; v++) {
            VI lane;
            UNROLL for (int i = 0; i < W; i++) lane[i] = v * W + i;
            row[v] = (lane == (int32_t)(t - 1) ? all(1.0f) : row[v]) * alpha;
            store(chunk.decay + t * T + v * W, row[v]);
        }
    }
}

// Phases of the chunk's tokens, in double modulo one turn; then their sines and cosines.
INLINE void fill_phases(Keys &chunk, const Carried &carried, const Line &line) {
    constexpr int half = W / 2;
    const int64_t stride = up(line.theta_stride, W);
    for (int64_t i = 0; i < line.theta_stride; i += half) {
        VD phase = load_double(carried.phase + i);
        for (int64_t t = 0; t < T; t++) {
            const VD theta = load_double(line.theta + chunk.rows[t] * line.theta_stride + i);
            phase += (double)chunk.dt[t] * theta;
            store_half(carried.angles + t * stride + i,
                       __builtin_convertvector(reduce_phase(phase), VH));
        }
        store_double(carried.phase + i, reduce_phase(phase));
    }
    for (int64_t i = 0; i < line.S; i += W) {
        for (int64_t t = 0; t < T; t += W) {
            V tile[W];
            UNROLL for (int r = 0; r < W; r++)
                tile[r] = load(carried.angles + (t + r) * stride + i);
            transpose(tile);
            UNROLL for (int r = 0; r < W; r++) {
                if (i + r >= line.S) break;
                V sine, cosine;
                sincos_of(tile[r], sine, cosine);
                store(chunk.sine + (i + r) * T + t, sine);
                store(chunk.cosine + (i + r) * T + t, cosine);
            }
        }
    }
}

// plain + bias, and that rotated: all as [n][token]. Calls use(offset, biased, rotated).
template <typename Use>
INLINE void add_bias_and_rotate(const float *plain, const float *bias, int64_t v,
                                const Keys &keys, const Line &line, const Use &use) {
    for (int64_t i = 0; i < line.S; i++) {
        const int64_t at = 2 * i * T + v * W;
        const V cosine = load(keys.cosine + i * T + v * W);
        const V sine = load(keys.sine + i * T + v * W);
        const V first = load(plain + at) + all(bias[2 * i]);
        const V second = load(plain + at + T) + all(bias[2 * i + 1]);
        use(at, first, first * cosine - second * sine);
        use(at + T, second, first * sine + second * cosine);
    }
    for (int64_t n = 2 * line.S; n < line.N; n++) {
        const V value = load(plain + n * T + v * W) + all(bias[n]);
        use(n * T + v * W, value, value);
    }
}

// Orders jump over the image: ask early for the rows of a chunk that comes later.
INLINE void prefetch(const Line &line, int64_t first, const float *y, int64_t y_step) {
    const int64_t last = smaller(first + T, line.L);
    constexpr int64_t floats = 16;  // of a cache line
    for (int64_t t = first < 0 ? last : first; t < last; t++) {
        const int64_t row = line.order[t];
        for (int64_t c = 0; c < line.P; c += floats)
            __builtin_prefetch(line.x + row * line.x_step + c);
        for (int64_t c = 0; y && c < line.P; c += floats)
            __builtin_prefetch(y + row * y_step + c, 1);
    }
}

// Everything about keys and values: enough to carry the state on.
INLINE void prepare_keys(Keys &keys, Carried &carried, const Line &line, int64_t first) {
    read_scalars(keys, line, first);
    fill_phases(keys, carried, line);
    gather_values(keys.x, line.x, line.x_step, keys.rows, keys.count, line.P, line.width);
    gather(keys.plain_k, line.B, line.B_step, keys.rows, line.N);
    UNROLL for (int v = 0; v < TV; v++) {
        const V scale = load(keys.scale + v * W), out = load(keys.out + v * W);
        const auto use = [&](int64_t at, V biased, V rotated) INLINE_LAMBDA {
            rotated *= scale;
            store(keys.plain_k + at, biased);
            store(keys.k + at, rotated);
            store(carried.left + at, rotated * out);
        };
        add_bias_and_rotate(keys.plain_k, line.B_bias, v, keys, line, use);
    }
}

// The rest: queries, the same-token weights, and the scores times `by`.
INLINE void prepare_queries(Chunk &chunk, const Line &line, float by) {
    fill_decays(chunk);
    gather(chunk.plain_q, line.C, line.C_step, chunk.rows, line.N);
    UNROLL for (int v = 0; v < TV; v++) {
        V dot = V{};
        const auto use = [&](int64_t at, V biased, V rotated) INLINE_LAMBDA {
            dot += biased * load(chunk.plain_k + at);
            store(chunk.plain_q + at, biased);
            store(chunk.q + at, rotated);
        };
        add_bias_and_rotate(chunk.plain_q, line.C_bias, v, chunk, line, use);
        store(chunk.dot + v * W, dot);
        store(chunk.same + v * W, load(chunk.gamma + v * W) * dot + all(line.D));
    }
    constexpr int ROWS = TV == 1 ? 16 : TV == 2 ? 4 : 2;
    for (int64_t t = 0; t < T; t += ROWS) {
        V acc[ROWS][TV];
        clear(acc);
        multiply(acc, chunk.q + t, 1, T, chunk.k, T, line.N);
        UNROLL for (int i = 0; i < ROWS; i++)
            UNROLL for (int v = 0; v < TV; v++) {
                const int64_t at = (t + i) * T + v * W;
                store(chunk.scores + at, acc[i][v] * load(chunk.decay + at) * by);
            }
    }
}

}  // namespace
