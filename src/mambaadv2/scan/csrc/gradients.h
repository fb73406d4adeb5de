// The gradients, in closed form: chunks walked backwards, nothing kept from the forward pass.
//
// With G the gradient of y in visiting order and dH that of the state after the chunk:
//     dS = (G x^T) * decay;  dq = diag(in) G H^T + dS k;  dk = dS^T q + diag(out) x dH^T
//     dx = scores^T G + diag(same) G + diag(out) k dH;  dH = keep * dH + (diag(in) q)^T G
//     d(dt A)_t = sum of all weights that pass from before token t to t or after it
//     d(phase)_t = the same sum of <J q, dq> for what t or a later token reads, J(a, b) = (-b, a)
// Both could be had as running sums of q.dq - k.dk and <J q, dq> + <J k, dk>, but where a decay is
// strong these are small differences of large sums. So what passes from the state to tokens, from
// tokens to the state, from state to state and between tokens of the chunk is added up apart.
// y is linear in G: the weight w of a direction multiplies what leaves the chunk, and
// sum over t of q.dq + same * G.x without it is that weight's own gradient. No division by w.
#pragma once

#include "forward.h"

namespace {

// Sums over the whole sequence and what the chunk after this one left to be finished.
struct Walk {
    double D, weight;
    bool live;  // whether dH is anything but zero
    float *B_bias, *C_bias;  // [n][W]
    float *state;            // dH, [n][p]
    // The first token of the chunk after this one still lacks ds of the token before it.
    bool waiting;
    int64_t row;
    float lam, dt;
};

// What turning the tokens of a chunk does to that part of the state that only passes through it.
template <int WIDTH>
INLINE void phases_through(double *through, const float *before, const float *after, float keep,
                           const Line &line) {
    const int64_t width = WIDTH ? WIDTH : line.width;
    for (int64_t i = 0; i < line.S; i++) {
        const float *h = before + 2 * i * width, *d = after + 2 * i * width;
        V across = V{};
        for (int64_t c = 0; c < width; c += W)
            across += load(d + c) * load(h + width + c) - load(d + width + c) * load(h + c);
        through[i] = (double)sum(across) * keep;
    }
}

INLINE double dot(const float *a, const float *b, int64_t size) {
    double total = 0;
    for (int64_t first = 0; first < size; first += 8 * T) {
        V part = V{};
        for (int64_t i = first; i < smaller(first + 8 * T, size); i += W)
            part += load(a + i) * load(b + i);
        total += sum(part);
    }
    return total;
}

struct Work {
    float *g, *g_turned, *x_turned;  // [token][width], [p][token]
    float *left;                     // [n][token]
    float *dq, *dk;                  // [n][token]
    float *weighted_q;               // [n][token]
    double pairs;                    // sum over pairs of scores * their gradient
    // Gradients of the phases, [i][token]: from the state to tokens, to it, between tokens.
    float *e_from, *e_to, *e_pairs;
    float *e_turned;         // the three as [token][i]
    double *phases_through;  // from state to state
    alignas(64) float ds[T * T], ds_turned[T * T], passed[T * T];
    alignas(64) float same_gradient[T], ds_scale[T];
    alignas(64) float from_state[T], to_state[T];  // q.dq and k.dk as far as the state has part
    alignas(64) float across[T];  // sum over pairs j < t <= i of scores * their gradient
};

// Where one (batch, head, direction) puts its gradients.
struct Sinks {
    float *x, *dt, *A, *trap, *B, *C, *angle, *B_bias, *C_bias, *D, *weights;
    int64_t x_step, step, B_step;
    bool add;         // to x, A, trap: not the first direction
    bool add_shared;  // to B, C, angle: not the first of this slot
};

INLINE void place(Work &work, const Line &line, Scratch &scratch) {
    work.g = scratch.take(T * line.width);
    work.g_turned = scratch.take(T * line.width);
    work.x_turned = scratch.take(T * line.width);
    work.left = scratch.take(T * line.N);
    work.dq = scratch.take(T * line.N);
    work.dk = scratch.take(T * line.N);
    work.weighted_q = scratch.take(T * line.N);
    const int64_t angles = T * up(line.theta_stride, W);
    work.e_from = scratch.take(angles);
    work.e_to = scratch.take(angles);
    work.e_pairs = scratch.take(angles);
    work.e_turned = scratch.take(3 * angles);
    work.phases_through = (double *)scratch.take(2 * line.theta_stride);
    for (int64_t i = 0; i < line.theta_stride; i++) work.phases_through[i] = 0;
}

INLINE void place(Walk &walk, const Line &line, Scratch &scratch) {
    walk.B_bias = scratch.take(line.N * W);
    walk.C_bias = scratch.take(line.N * W);
    walk.state = scratch.take(line.N * line.width);
    for (int64_t i = 0; i < line.N * W; i++) walk.B_bias[i] = walk.C_bias[i] = 0;
    for (int64_t i = 0; i < line.N * line.width; i++) walk.state[i] = 0;
    walk.D = walk.weight = 0;
    walk.waiting = walk.live = false;
    walk.row = 0;
    walk.lam = walk.dt = 0;
}

INLINE void clear_row(V (&row)[TV]) {
    UNROLL for (int v = 0; v < TV; v++) row[v] = V{};
}

// dS in both layouts, and what passes over each token by pairs of the chunk, without the weight.
INLINE void score_gradients(Work &work, const Chunk &chunk, const Line &line) {
    constexpr int ROWS = TV == 1 ? 16 : TV == 2 ? 4 : 2;
    for (int64_t t = 0; t < T; t += ROWS) {
        V acc[ROWS][TV];
        clear(acc);
        multiply(acc, work.g_turned + t, 1, T, work.x_turned, T, line.P);
        UNROLL for (int i = 0; i < ROWS; i++)
            UNROLL for (int v = 0; v < TV; v++) {
                const int64_t at = (t + i) * T + v * W;
                store(work.ds + at, acc[i][v] * load(chunk.decay + at));
                store(work.passed + at, acc[i][v] * load(chunk.scores + at));
            }
    }
    turn(work.ds_turned, work.ds, T);

    V below[TV];
    clear_row(below);
    for (int64_t t = T - 1; t >= 0; t--) {
        UNROLL for (int v = 0; v < TV; v++) {
            below[v] += load(work.passed + t * T + v * W);
            store(work.passed + t * T + v * W, below[v]);
        }
    }
    work.pairs = 0;
    UNROLL for (int v = 0; v < TV; v++) work.pairs += sum(below[v]);
    alignas(64) float turned[T * T];
    turn(turned, work.passed, T);
    UNROLL for (int v = 0; v < TV; v++) {
        VI lane;
        UNROLL for (int i = 0; i < W; i++) lane[i] = v * W + i;
        V total = V{};
        for (int32_t j = 0; j < T; j++)
            total += lane > j ? load(turned + j * T + v * W) : V{};
        store(work.across + v * W, total);
    }
}

// to[n][token] = factor[token] * sum over p of state[n][p] * right[p][token]      (by the state)
//              + sum over s of left[n][s] * scores[s][token]                     (between tokens)
// share[token] = sum over n of own[n][token] * the first summand; e_state and e_pairs [i][token]:
// <J own, each summand> times `by`, the latter added to what is there if `add`.
template <int WIDTH>
INLINE void vector_gradients(float *to, float *share, float *e_state, float *e_pairs, float by,
                             bool add, const float *own, const float *state, int64_t state_dims,
                             const float *right, const float *factor, const float *left,
                             const float *scores, const Line &line) {
    const int64_t width = WIDTH ? WIDTH : line.width;
    V shares[TV];
    clear_row(shares);
    const auto by_state = [&](auto &acc, int64_t n) INLINE_LAMBDA {
        constexpr int ROWS = sizeof(acc) / sizeof(V) / TV;
        clear(acc);
        multiply(acc, state + n * width, width, 1, right, T, state_dims);
        UNROLL for (int v = 0; v < TV; v++) {
            const V f = load(factor + v * W);
            UNROLL for (int i = 0; i < ROWS; i++) {
                acc[i][v] *= f;
                shares[v] += acc[i][v] * load(own + (n + i) * T + v * W);
            }
        }
    };
    const auto rows = [&](auto &acc, int64_t n) INLINE_LAMBDA {
        constexpr int ROWS = sizeof(acc) / sizeof(V) / TV;
        by_state(acc, n);
        multiply(acc, left + n * T, T, 1, scores, T, T);
        UNROLL for (int i = 0; i < ROWS; i++)
            UNROLL for (int v = 0; v < TV; v++) store(to + (n + i) * T + v * W, acc[i][v]);
    };
    constexpr int MANY = TV == 1 ? 16 : TV == 2 ? 4 : 2, FEW = TV == 1 ? 8 : 2;
    int64_t n = 0;
    for (; n < 2 * line.S; n += FEW) {
        V acc[FEW][TV], pairs[FEW][TV];
        by_state(acc, n);
        clear(pairs);
        multiply(pairs, left + n * T, T, 1, scores, T, T);
        UNROLL for (int i = 0; i < FEW; i += 2)
            UNROLL for (int v = 0; v < TV; v++) {
                const int64_t at = (n + i) * T + v * W, angle = at / 2 / T * T + v * W;
                if (n + i < 2 * line.S) {
                    const V a = load(own + at) * by, b = load(own + at + T) * by;
                    const V e = a * pairs[i + 1][v] - b * pairs[i][v];
                    store(e_state + angle, a * acc[i + 1][v] - b * acc[i][v]);
                    store(e_pairs + angle, add ? load(e_pairs + angle) + e : e);
                }
                store(to + at, acc[i][v] + pairs[i][v]);
                store(to + at + T, acc[i + 1][v] + pairs[i + 1][v]);
            }
    }
    for (; n + MANY <= line.N; n += MANY) {
        V acc[MANY][TV];
        rows(acc, n);
    }
    for (; n < line.N; n += FEW) {
        V acc[FEW][TV];
        rows(acc, n);
    }
    UNROLL for (int v = 0; v < TV; v++) store(share + v * W, shares[v]);
}

template <int WIDTH>
INLINE void value_gradients(const Work &work, const Chunk &chunk, const Walk &walk,
                            const Line &line, const Sinks &sinks, const float *last_x) {
    const int64_t width = WIDTH ? WIDTH : line.width;
    constexpr int VECTORS = vectors_at_once(WIDTH), ROWS = VECTORS == 1 ? 8 : 4;
    for (int64_t t = 0; t < chunk.count; t += ROWS) {
        for (int64_t c = 0; c < width; c += VECTORS * W) {
            V acc[ROWS][VECTORS];
            UNROLL for (int i = 0; i < ROWS; i++) {
                const V same = all(chunk.same[t + i]);
                UNROLL for (int j = 0; j < VECTORS; j++)
                    acc[i][j] = same * load(work.g + (t + i) * width + c + j * W);
            }
            multiply(acc, chunk.scores + t * T + t, 1, T, work.g + t * width + c, width,
                     chunk.count - t);
            V by_state[ROWS][VECTORS];
            clear(by_state);
            multiply(by_state, chunk.k + t, 1, T, walk.state + c, width, walk.live ? line.N : 0);
            UNROLL for (int i = 0; i < ROWS; i++) {
                const V out = all(chunk.out[t + i]);
                UNROLL for (int j = 0; j < VECTORS; j++)
                    acc[i][j] = acc[i][j] * line.weight + by_state[i][j] * out;
            }
            UNROLL for (int i = 0; i < ROWS; i++) {
                if (t + i >= chunk.count) break;
                float *row = sinks.x + chunk.rows[t + i] * sinks.x_step;
                UNROLL for (int j = 0; j < VECTORS; j++) {
                    V value = acc[i][j];
                    if (last_x && t + i == chunk.count - 1)
                        for (int64_t e = 0; e < smaller(W, line.P - c - j * W); e++)
                            value[e] += last_x[c + j * W + e];
                    put_values(row, value, c + j * W, line.P, sinks.add);
                }
            }
        }
    }
}

// dq and dk turned back and brought to B, C, their biases, the phases and the scalars.
INLINE void finish_vectors(Work &work, const Chunk &chunk, Walk &walk, const Line &line,
                           const float *last_k) {
    const int64_t last = chunk.count - 1;
    UNROLL for (int v = 0; v < TV; v++) {
        const int64_t o = v * W;
        const V own = load(work.same_gradient + o) * load(chunk.gamma + o) * line.weight;
        const V scale = load(chunk.scale + o);
        V ds = V{};
        for (int64_t i = 0; i < line.S; i++) {
            const int64_t at = 2 * i * T + o;
            const V cosine = load(chunk.cosine + i * T + o), sine = load(chunk.sine + i * T + o);
            const V qa = load(chunk.plain_q + at), qb = load(chunk.plain_q + at + T);
            const V ka = load(chunk.plain_k + at), kb = load(chunk.plain_k + at + T);
            const V da = load(work.dq + at), db = load(work.dq + at + T);
            const V ea = load(work.dk + at), eb = load(work.dk + at + T);
            const V ua = da * cosine + db * sine, ub = db * cosine - da * sine;
            const V va = ea * cosine + eb * sine, vb = eb * cosine - ea * sine;
            ds += ka * va + kb * vb;
            store(work.dq + at, ua * line.weight + ka * own);
            store(work.dq + at + T, ub * line.weight + kb * own);
            store(work.dk + at, va * scale + qa * own);
            store(work.dk + at + T, vb * scale + qb * own);
        }
        for (int64_t n = 2 * line.S; n < line.N; n++) {
            const int64_t at = n * T + o;
            const V q = load(chunk.plain_q + at), k = load(chunk.plain_k + at);
            const V u = load(work.dq + at), w = load(work.dk + at);
            ds += k * w;
            store(work.dq + at, u * line.weight + k * own);
            store(work.dk + at, w * scale + q * own);
        }
        store(work.ds_scale + o, ds);
    }
    if (last_k)
        for (int64_t n = 0; n < line.N; n++) work.dk[n * T + last] += last_k[n];
    for (int64_t n = 0; n < line.N; n++) {
        V b = load(walk.B_bias + n * W), c = load(walk.C_bias + n * W);
        UNROLL for (int v = 0; v < TV; v++) {
            b += load(work.dk + n * T + v * W);
            c += load(work.dq + n * T + v * W);
        }
        store(walk.B_bias + n * W, b);
        store(walk.C_bias + n * W, c);
    }
}

// [i][token] to [token][i], rows of `stride`.
INLINE void turn_angles(float *to, const float *from, int64_t S, int64_t stride) {
    for (int64_t i = 0; i < stride; i += W) {
        for (int64_t t = 0; t < T; t += W) {
            V tile[W];
            UNROLL for (int r = 0; r < W; r++)
                tile[r] = i + r < S ? load(from + (i + r) * T + t) : V{};
            transpose(tile);
            UNROLL for (int r = 0; r < W; r++) store(to + (t + r) * stride + i, tile[r]);
        }
    }
}

INLINE VD widen(const float *p) { return __builtin_convertvector(load_half(p), VD); }

// The phases' gradients, brought to the angles and, as a sum, to dt of every token.
INLINE void finish_phases(const Work &work, const Chunk &chunk, const Line &line,
                          const Sinks &sinks, double *to_dt) {
    constexpr int half = W / 2;
    const int64_t stride = up(line.theta_stride, W), count = chunk.count;
    float *e_from = work.e_turned, *e_to = e_from + T * stride, *e_pairs = e_to + T * stride;
    turn_angles(e_from, work.e_from, line.S, stride);
    turn_angles(e_to, work.e_to, line.S, stride);
    turn_angles(e_pairs, work.e_pairs, line.S, stride);
    for (int64_t t = 0; t < T; t++) to_dt[t] = 0;
    // The pairs' sums are taken from both ends to the middle: the first token's phase, for one,
    // changes nothing between them, and must give exactly nothing.
    const int64_t middle = (count + 1) / 2;
    for (int64_t i = 0; i < line.S; i += half) {
        VD from = VD{}, to = VD{}, later = VD{}, earlier = VD{};
        for (int64_t t = 0; t < count; t++) to += widen(e_to + t * stride + i);
        for (int64_t t = 0; t < middle; t++) earlier += widen(e_pairs + t * stride + i);
        const VD through = load_double(work.phases_through + i);
        for (int64_t t = count - 1; t >= 0; t--) {
            from += widen(e_from + t * stride + i);
            to -= widen(e_to + t * stride + i);
            VD pairs = widen(e_pairs + t * stride + i);
            if (t >= middle) {
                pairs = later += pairs;
            } else {
                earlier -= pairs;
                pairs = t > 0 ? -earlier : VD{};
            }
            const VD all = through + from - to + pairs;
            const VD theta = load_double(line.theta + chunk.rows[t] * line.theta_stride + i);
            to_dt[t] += sum(all * theta);
            const VH now = __builtin_convertvector(all * (double)chunk.dt[t], VH);
            float *row = sinks.angle + chunk.rows[t] * line.S + i;
            if (i + half <= line.S) {
                store_half(row, sinks.add_shared ? load_half(row) + now : now);
            } else {
                for (int64_t j = 0; j < line.S - i; j++)
                    row[j] = sinks.add_shared ? row[j] + now[j] : now[j];
            }
        }
    }
}

INLINE void put(float *to, float value, bool add) { *to = add ? *to + value : value; }

INLINE void finish_scalars(const Work &work, const Chunk &chunk, Walk &walk, const Line &line,
                           const Sinks &sinks, const double *to_dt, double through) {
    const int64_t last = chunk.count - 1;
    if (walk.waiting) {
        const float before = work.ds_scale[last];
        sinks.dt[walk.row * sinks.step] += (1 - walk.lam) * before;
        sinks.trap[walk.row * sinks.step] -= walk.dt * before * walk.lam * (1 - walk.lam);
    }
    // What passes over a token from the state that enters the chunk, and to the one that leaves it.
    double after = through, before_it = 0;
    for (int64_t t = 0; t < last; t++) before_it += work.to_state[t];
    for (int64_t t = last; t >= 0; t--) {
        const int64_t row = chunk.rows[t];
        const float lam = chunk.lam[t], dt = chunk.dt[t], ds = work.ds_scale[t];
        const float before = t > 0 ? work.ds_scale[t - 1] : 0.0f;
        const float own = work.same_gradient[t] * line.weight;
        after += (double)work.from_state[t] * line.weight;
        const double running = after + before_it + (double)work.across[t] * line.weight;
        if (t > 0) before_it -= work.to_state[t - 1];
        const float d_gamma = ds + own * chunk.dot[t];
        sinks.dt[row * sinks.step] = (float)(lam * d_gamma + (1 - lam) * before +
                                             chunk.A[t] * running + to_dt[t]);
        put(sinks.A + row * sinks.step, (float)(dt * running), sinks.add);
        put(sinks.trap + row * sinks.step, dt * (d_gamma - before) * lam * (1 - lam), sinks.add);
        walk.D += own;
        walk.weight += (double)work.from_state[t] + (double)work.same_gradient[t] * chunk.same[t];
    }
    walk.weight += work.pairs;
    walk.waiting = true;
    walk.row = chunk.rows[0];
    walk.lam = chunk.lam[0];
    walk.dt = chunk.dt[0];
}

}  // namespace
