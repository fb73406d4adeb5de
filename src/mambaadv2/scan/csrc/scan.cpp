// Entry points: choose the instruction set, lay out the workspace, start the jobs, add up shares.
#include <cstdlib>
#include <cstring>

#include "job.h"
#include "pool.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace scan {
namespace {

const char *const kVariable = "MAMBAADV2_NATIVE_ISA";

const Kernels *supported(const char *name) {
    const bool any = name == nullptr;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl");
    if (avx512 && avx512_kernels() && (any || !std::strcmp(name, "avx512")))
        return avx512_kernels();
    if (avx2 && avx2_kernels() && (any || !std::strcmp(name, "avx2"))) return avx2_kernels();
#endif
    if (any || !std::strcmp(name, "baseline")) return baseline_kernels();
    return nullptr;
}

}  // namespace

const Kernels *kernels() {
    static const Kernels *const chosen = [] {
        const char *forced = std::getenv(kVariable);
        return supported(forced && *forced ? forced : nullptr);
    }();
    return chosen;
}

namespace {

bool fits(const Problem &p) {
    return p.b >= 1 && p.K >= 1 && p.L >= 1 && p.L < INT32_MAX && p.H >= 1 && p.G >= 1 &&
           p.H % p.G == 0 && p.P >= 8 && p.P <= kMaxDim && p.P % 8 == 0 && p.N >= 8 &&
           p.N <= kMaxDim && p.N % 8 == 0 && p.S >= 0 && 2 * p.S <= p.N;
}

// One block of memory, cut into pieces that begin on cache lines. Without memory it only counts.
struct Workspace {
    char *base;
    int64_t used = 0;

    template <typename Number>
    Number *take(int64_t count) {
        Number *piece = base ? reinterpret_cast<Number *>(base + used) : nullptr;
        used += (count * static_cast<int64_t>(sizeof(Number)) + 63) / 64 * 64;
        return piece;
    }
};

struct Plan {
    Shared shared{};
    int32_t *order;
    uint8_t *seen;
    float *scratch;
    int64_t scratch_floats;
    int threads;
    bool apart;     // forward: directions as jobs of their own
    int64_t bytes;  // of the whole workspace
};

// Heads of a group share dB and dC. They are cut into slots with sums of their own, enough to keep
// some threads busy but not so many that the sums outgrow x. The cut depends on the shape alone,
// so that the number of threads changes no bit.
int64_t slots_of(const Problem &p) {
    const int64_t heads = p.H / p.G, enough = (16 + p.b * p.G - 1) / (p.b * p.G);
    int64_t most = heads * p.P / (2 * p.N);
    if (most < 2) most = 2;
    int64_t slots = enough < most ? enough : most;
    return slots < heads ? slots : heads;
}

// Chunks whose states and prepared keys are kept at a time: as many as have states of half a
// megabyte, since what is not kept is computed once more. For long sequences more, such that the
// number of segments and the chunks of one both grow like the root of the length.
int64_t segment_of(const Problem &p) {
    const int64_t chunks = (p.L + kChunk - 1) / kChunk, state = p.N * p.P * 4;
    int64_t segment = (1 << 19) / state;
    while (segment * segment < chunks) segment++;
    return segment < chunks ? segment : chunks;
}

Plan plan(const Problem &p, const Kernels &isa, bool backward, int threads, void *memory) {
    Plan made;
    Workspace space{static_cast<char *>(memory)};
    Shared &shared = made.shared;
    made.order = space.take<int32_t>(p.K * p.L);
    made.seen = space.take<uint8_t>(p.L);
    shared.order = made.order;
    shared.theta_stride = (p.S + 7) / 8 * 8;
    shared.theta = space.take<double>(p.b * p.L * shared.theta_stride);
    int64_t jobs = p.b * p.H;
    made.apart = !backward && p.K > 1 && jobs < threads;
    if (backward) {
        shared.slots = slots_of(p);
        shared.segment = segment_of(p);
        jobs = p.b * p.G * shared.slots;
        const int64_t vectors = (shared.slots - 1) * p.b * p.L * p.G * p.N;
        shared.B = space.take<float>(vectors);
        shared.C = space.take<float>(vectors);
        shared.angle = space.take<float>(p.G * shared.slots * p.b * p.L * p.S);
        shared.B_bias = space.take<float>(p.b * p.K * p.H * p.N);
        shared.C_bias = space.take<float>(p.b * p.K * p.H * p.N);
        shared.D = space.take<float>(p.b * p.K * p.H);
        shared.weights = space.take<float>(p.b * p.K * p.H);
        made.scratch_floats = isa.backward_scratch(p, shared);
    } else {
        if (made.apart) {
            shared.per_direction = space.take<float>((p.K - 1) * p.b * p.L * p.H * p.P);
            jobs *= p.K;
        }
        made.scratch_floats = isa.forward_scratch(p);
    }
    made.scratch_floats = (made.scratch_floats + 15) / 16 * 16;
    made.threads = static_cast<int>(threads < jobs ? threads : jobs);
    made.scratch = space.take<float>(made.threads * made.scratch_floats);
    made.bytes = space.used;
    return made;
}

bool read_order(const Problem &p, Plan &made) {
    for (int64_t k = 0; k < p.K; k++) {
        std::memset(made.seen, 0, p.L);
        for (int64_t t = 0; t < p.L; t++) {
            const int64_t row = p.order[k * p.L + t];
            if (row < 0 || row >= p.L || made.seen[row]) return false;
            made.seen[row] = 1;
            made.order[k * p.L + t] = static_cast<int32_t>(row);
        }
    }
    return true;
}

constexpr int64_t kRows = 512;  // per job, of what is done row by row

// One thread for what takes it no longer than it takes several to meet.
int threads_for(int64_t numbers, int64_t enough, int threads) {
    return numbers < enough ? 1 : threads;
}
constexpr int64_t kManyAngles = 1 << 14, kManySums = 1 << 18;

void fill_angles(const Problem &p, const Kernels &isa, const Plan &made) {
    if (p.S == 0) return;
    const int64_t blocks = (p.L + kRows - 1) / kRows;
    const int threads = threads_for(p.b * p.L * p.S, kManyAngles, made.threads);
    run_jobs(p.b * blocks, threads, [&](int64_t job, int) {
        const int64_t first = job % blocks * kRows;
        isa.angles(p, made.shared, job / blocks, first, first + kRows < p.L ? first + kRows : p.L);
    });
}

// to[i] += the sum over j < count of from[j * size + i], in this order.
void add_up(float *to, const float *from, int64_t count, int64_t size, int threads) {
    constexpr int64_t block = 1 << 14;
    threads = threads_for(count * size, kManySums, threads);
    run_jobs((size + block - 1) / block, threads, [&](int64_t job, int) {
        const int64_t first = job * block, last = first + block < size ? first + block : size;
        for (int64_t j = 0; j < count; j++) {
            const float *share = from + j * size;
            for (int64_t i = first; i < last; i++) to[i] += share[i];
        }
    });
}

// The same sum over the first of all, without what was there.
void add_up_all(float *to, const float *from, int64_t count, int64_t size) {
    std::memcpy(to, from, size * sizeof(float));
    add_up(to, from + size, count - 1, size, 1);
}

void add_up_angles(const Problem &p, const Plan &made, float *to) {
    if (p.S == 0) return;
    const Shared &shared = made.shared;
    const int64_t blocks = (p.L + kRows - 1) / kRows, shares = p.G * shared.slots;
    const int threads = threads_for(shares * p.b * p.L * p.S, kManyAngles, made.threads);
    constexpr double pi = 3.14159265358979323846;
    run_jobs(p.b * blocks, threads, [&](int64_t job, int) {
        const int64_t b = job / blocks, first = job % blocks * kRows;
        for (int64_t t = first; t < p.L && t < first + kRows; t++) {
            const int64_t row = b * p.L + t;
            for (int64_t i = 0; i < p.S; i++) {
                double total = 0;
                for (int64_t j = 0; j < shares; j++)
                    total += shared.angle[(j * p.b * p.L + row) * p.S + i];
                const double tanh = shared.theta[row * shared.theta_stride + i] / pi;
                to[row * p.S + i] = static_cast<float>(total * pi * (1 - tanh * tanh));
            }
        }
    });
}

Status forward(const Problem &p, const Outputs &out, int threads, void *memory) {
    const Kernels *isa = kernels();
    if (!isa || !fits(p)) return kUnsupported;
    if (threads < 1) return kNoThreads;
    Plan made = plan(p, *isa, false, threads, memory);
    if (!read_order(p, made)) return kNotAPermutation;
    fill_angles(p, *isa, made);
    const int64_t directions = made.apart ? p.K : 1;
    run_jobs(p.b * p.H * directions, made.threads, [&](int64_t job, int worker) {
        const int64_t line = job / directions;
        isa->forward(p, out, made.shared, line / p.H, line % p.H,
                     made.apart ? job % directions : -1,
                     made.scratch + worker * made.scratch_floats);
    });
    if (made.apart)
        add_up(out.y, made.shared.per_direction, p.K - 1, p.b * p.L * p.H * p.P, made.threads);
    return kDone;
}

Status backward(const Problem &p, const Gradients &grads, int threads, void *memory) {
    const Kernels *isa = kernels();
    if (!isa || !fits(p)) return kUnsupported;
    if (threads < 1) return kNoThreads;
    Plan made = plan(p, *isa, true, threads, memory);
    Shared &shared = made.shared;
    if (!read_order(p, made)) return kNotAPermutation;
    fill_angles(p, *isa, made);
    const int64_t lines = p.G * shared.slots;
    run_jobs(p.b * lines, made.threads, [&](int64_t job, int worker) {
        const int64_t line = job % lines;
        isa->backward(p, grads, shared, job / lines, line / shared.slots, line % shared.slots,
                      made.scratch + worker * made.scratch_floats);
    });
    if (shared.slots > 1) {
        const int64_t size = p.b * p.L * p.G * p.N;
        add_up(grads.B, shared.B, shared.slots - 1, size, made.threads);
        add_up(grads.C, shared.C, shared.slots - 1, size, made.threads);
    }
    add_up_angles(p, made, grads.angle);
    add_up_all(grads.B_bias, shared.B_bias, p.b, p.K * p.H * p.N);
    add_up_all(grads.C_bias, shared.C_bias, p.b, p.K * p.H * p.N);
    add_up_all(grads.D, shared.D, p.b, p.K * p.H);
    if (grads.weights)
        for (int64_t i = 0; i < p.b * p.K; i++) {
            double total = 0;
            for (int64_t h = 0; h < p.H; h++) total += shared.weights[i * p.H + h];
            grads.weights[i] = static_cast<float>(total);
        }
    return kDone;
}

}  // namespace
}  // namespace scan

EXPORT int32_t mambaadv2_abi() { return scan::kAbi; }

// Sizes of the structures, so that a stale library is never called.
EXPORT int64_t mambaadv2_layout(int32_t which) {
    const int64_t sizes[] = {sizeof(scan::Problem), sizeof(scan::Outputs), sizeof(scan::Gradients),
                             sizeof(scan::NormSilu), sizeof(scan::Depthwise)};
    return sizes[which];
}

// The instruction set in use, or null when the environment forces one that is not here.
EXPORT const char *mambaadv2_isa() { return scan::kernels() ? scan::kernels()->name : nullptr; }

// Take threads from this OpenMP runtime's GOMP_parallel; null is the library's own pool.
EXPORT void mambaadv2_use_team(void *team) {
    scan::use_team(reinterpret_cast<scan::Team>(team));
}

// Bytes of workspace that a call with this many threads needs, or -1 for what is not supported.
EXPORT int64_t mambaadv2_workspace(const scan::Problem *p, int32_t backward, int32_t threads) {
    if (!scan::kernels() || !scan::fits(*p) || threads < 1) return -1;
    return scan::plan(*p, *scan::kernels(), backward != 0, threads, nullptr).bytes;
}

EXPORT int32_t mambaadv2_forward(const scan::Problem *p, const scan::Outputs *out, int32_t threads,
                                 void *memory) {
    return scan::forward(*p, *out, threads, memory);
}

EXPORT int32_t mambaadv2_backward(const scan::Problem *p, const scan::Gradients *grads,
                                  int32_t threads, void *memory) {
    return scan::backward(*p, *grads, threads, memory);
}
