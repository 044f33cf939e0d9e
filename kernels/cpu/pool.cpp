// Pool of threads: they spin a little for the next region, then sleep.
#include "pool.h"
#include "simd.h"

#include <condition_variable>
#include <memory>
#include <mutex>
#include <pthread.h>
#include <sched.h>
#include <thread>
#include <vector>

namespace trimtab {
namespace {

constexpr int kSpinsForRegion = 4000;  // some 100 µs
constexpr int kSpinsForPartner = 2000;

inline void pause_core() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Pool {
  public:
    explicit Pool(int size) : team_(size) {
        for (int id = 1; id < size; id++) threads_.emplace_back([this, id] { serve(id); });
    }

    ~Pool() {
        post(nullptr, nullptr);
        for (auto& thread : threads_) thread.join();
    }

    int size() const { return team_.size; }

    void run(void (*function)(Worker&, void*), void* argument) {
        team_.next.store(0, std::memory_order_relaxed);
        if (size() > 1) post(function, argument);
        Worker worker(team_, 0);
        function(worker, argument);
        worker.barrier();
    }

  private:
    void post(void (*function)(Worker&, void*), void* argument) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            function_ = function;
            argument_ = argument;
            posted_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
    }

    void serve(int id) {
        for (uint32_t seen = 0;; seen++) {
            for (int i = 0; i < kSpinsForRegion && posted_.load(std::memory_order_acquire) == seen; i++) pause_core();
            if (posted_.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return posted_.load(std::memory_order_acquire) != seen; });
            }
            if (!function_) return;
            Worker worker(team_, id);
            function_(worker, argument_);
            worker.barrier();
        }
    }

    Team team_;
    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<uint32_t> posted_{0};
    void (*function_)(Worker&, void*) = nullptr;
    void* argument_ = nullptr;
};

struct Shared {
    std::mutex mutex;  // held while a region runs
    std::unique_ptr<Pool> pool;
    int wanted = 1;
};

// Never destroyed: at exit the threads may be at work. A forked child has no threads, so it begins anew.
Shared* shared = nullptr;
std::once_flag once;

Shared& pools() {
    std::call_once(once, [] {
        shared = new Shared;
        pthread_atfork([] { shared->mutex.lock(); }, [] { shared->mutex.unlock(); },
                       [] {
                           int wanted = shared->wanted;
                           shared = new Shared;
                           shared->wanted = wanted;
                       });
    });
    return *shared;
}

}  // namespace

void Worker::barrier() {
    uint32_t epoch = team_.epoch.load(std::memory_order_relaxed);
    if (team_.arrived.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
        team_.arrived.store(0, std::memory_order_relaxed);
        team_.next.store(0, std::memory_order_relaxed);
        team_.epoch.store(epoch + 1, std::memory_order_release);
        return;
    }
    for (int i = 0; team_.epoch.load(std::memory_order_acquire) == epoch; i++) {
        if (i < kSpinsForPartner) pause_core();
        else sched_yield();
    }
}

int num_threads() {
    std::lock_guard<std::mutex> lock(pools().mutex);
    return pools().wanted;
}

void run_region(void (*function)(Worker&, void*), void* argument) {
    Shared& all = pools();
    std::lock_guard<std::mutex> lock(all.mutex);
    if (!all.pool || all.pool->size() != all.wanted) {
        all.pool.reset();
        all.pool.reset(new Pool(all.wanted));
    }
    all.pool->run(function, argument);
}

}  // namespace trimtab

TRIMTAB_API int trimtab_num_threads() { return trimtab::num_threads(); }

TRIMTAB_API void trimtab_set_num_threads(int count) {
    std::lock_guard<std::mutex> lock(trimtab::pools().mutex);
    trimtab::pools().wanted = count;
}

// What tests of the pool look at: `loops` loops over n items, every item adding its number; the sum of all.
TRIMTAB_API int64_t trimtab_pool_sum(int64_t n, int64_t loops) {
    std::atomic<int64_t> sum{0};
    trimtab::parallel([&](trimtab::Worker& worker) {
        for (int64_t loop = 0; loop < loops; loop++) {
            int64_t own = 0;
            worker.each(n, [&](int64_t i) { own += i; });
            sum.fetch_add(own, std::memory_order_relaxed);
        }
    });
    return sum.load();
}

TRIMTAB_API int trimtab_lanes() { return trimtab::kLanes; }
