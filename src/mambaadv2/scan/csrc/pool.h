// A small pool of threads that stays between calls.
#pragma once

#include <cstdint>
#include <functional>

namespace scan {

// Run job(index, worker) for every index below `jobs` on `threads` threads, the caller included;
// `worker` is below `threads`. Jobs start in order. Returns when all are done.
//
// May be called from several threads at once: the second caller does its jobs alone. A child
// process after fork() starts a pool of its own.
void run_jobs(int64_t jobs, int threads, const std::function<void(int64_t, int)> &job);

}  // namespace scan
