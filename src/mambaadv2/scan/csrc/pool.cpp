#include "pool.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace scan {
namespace {

struct Pool {
    std::mutex busy;  // held by the caller whose jobs are running

    std::mutex mutex;
    std::condition_variable work, done;
    uint64_t round = 0;
    bool open = false;  // a thread that wakes too late must not keep the caller waiting
    int started = 0;    // threads of the pool, numbered from 1; the caller is 0
    int wanted = 0;     // of them in this round
    int running = 0;
    const std::function<void(int64_t, int)> *job = nullptr;
    int64_t jobs = 0;
    std::atomic<int64_t> next{0};

    void take_jobs(int worker) {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < jobs;)
            (*job)(i, worker);
    }

    void serve(int worker, uint64_t seen) {
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            work.wait(lock, [&] { return round != seen; });
            seen = round;
            if (worker > wanted || !open) continue;
            running++;
            lock.unlock();
            take_jobs(worker);
            lock.lock();
            if (--running == 0 && !open) done.notify_one();
        }
    }

    void run(int64_t count, int threads, const std::function<void(int64_t, int)> &what) {
        {
            std::lock_guard<std::mutex> lock(mutex);
            try {
                for (; started < threads - 1; started++)
                    std::thread(&Pool::serve, this, started + 1, round).detach();
            } catch (const std::system_error &) {
                // A limit on threads: those that there are will do.
            }
            jobs = count;
            job = &what;
            next.store(0, std::memory_order_relaxed);
            wanted = threads - 1;
            open = true;
            round++;
        }
        work.notify_all();
        take_jobs(0);
        std::unique_lock<std::mutex> lock(mutex);
        open = false;
        done.wait(lock, [&] { return running == 0; });
    }
};

// Never destroyed: its threads may outlive static destructors. After fork() the child has none of
// the threads and perhaps a locked mutex, so it leaves the old pool alone and takes a new one.
std::atomic<Pool *> pool{nullptr};

// Of an OpenMP runtime, which hangs in a child of fork() where the parent had used it.
std::atomic<Team> team{nullptr};

void prepare_for_fork() {
    static std::once_flag once;
    std::call_once(once, [] {
        pool = new Pool;
        pthread_atfork(nullptr, nullptr, [] {
            pool = new Pool;
            team = nullptr;
        });
    });
}

// One parallel region: every thread that the runtime gives takes a number and then jobs.
struct Region {
    const std::function<void(int64_t, int)> *job;
    int64_t jobs;
    std::atomic<int64_t> next{0};
    std::atomic<int> workers{0};

    static void enter(void *region) { static_cast<Region *>(region)->take_jobs(); }

    void take_jobs() {
        const int worker = workers.fetch_add(1, std::memory_order_relaxed);
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < jobs;)
            (*job)(i, worker);
    }
};

}  // namespace

void use_team(Team given) {
    prepare_for_fork();
    team = given;
}

void run_jobs(int64_t jobs, int threads, const std::function<void(int64_t, int)> &job) {
    if (threads > jobs) threads = static_cast<int>(jobs);
    if (threads > 1) {
        prepare_for_fork();
        if (const Team parallel = team) {
            Region region{&job, jobs};
            parallel(Region::enter, &region, static_cast<unsigned>(threads), 0);
            return;
        }
        Pool &mine = *pool;
        std::unique_lock<std::mutex> alone(mine.busy, std::try_to_lock);
        if (alone.owns_lock()) {
            mine.run(jobs, threads, job);
            return;
        }
    }
    for (int64_t i = 0; i < jobs; i++) job(i, 0);
}

}  // namespace scan
