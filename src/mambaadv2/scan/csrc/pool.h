// The threads: those of an OpenMP runtime that is there already, or a small pool of our own.
#pragma once

#include <cstdint>
#include <functional>

namespace scan {

// `GOMP_parallel` of libgomp, which libiomp5 and libomp export too: calls `enter(data)` on up to
// `threads` threads, the caller included, and waits for them.
using Team = void (*)(void (*enter)(void *), void *data, unsigned threads, unsigned flags);

// Take the threads from `team` from now on, or from the own pool where it is null. The threads of
// torch's runtime spin for a while after each of torch's operations: they are awake at once, where
// those of another pool would have to wake up and then share the processors with them.
void use_team(Team team);

// Run job(index, worker) for every index below `jobs` on up to `threads` threads, the caller
// included; `worker` is below `threads`. Jobs start in order. Returns when all are done.
//
// May be called from several threads at once, and from a child process after fork(), which has a
// pool of its own. The second caller of the own pool does its jobs alone.
void run_jobs(int64_t jobs, int threads, const std::function<void(int64_t, int)> &job);

}  // namespace scan
