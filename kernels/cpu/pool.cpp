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

// While another thread is waited for, for the i-th time.
inline void pause(int i) {
    if (i < kSpinsForPartner) pause_core();
    else sched_yield();
}

class Pool {
  public:
    explicit Pool(int size) : team_(size) {
        for (int id = 1; id < size; id++) threads_.emplace_back([this, id] { serve(id); });
    }

    ~Pool() {
        is_over_ = true;
        post();
        for (auto& thread : threads_) thread.join();
    }

    int size() const { return team_.size; }

    void run(void (*function)(Worker&, void*), void* argument) {
        team_.next.store(0, std::memory_order_relaxed);
        function_ = function;
        argument_ = argument;
        if (size() > 1) post();
        Worker worker(team_, 0);
        function(worker, argument);
        open_ = 0;  // whoever comes now is too late; whoever is inside must leave before the region's data goes
        for (int i = 0; inside_ != 0; i++) pause(i);
    }

  private:
    void post() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            const uint32_t region = posted_ + 1 ? posted_ + 1 : 1;
            open_ = region;  // before it is posted: who sees that finds it open
            posted_ = region;
        }
        wake_.notify_all();
    }

    void serve(int id) {
        for (uint32_t seen = 0;;) {
            for (int i = 0; i < kSpinsForRegion && posted_ == seen; i++) pause_core();
            if (posted_ == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return posted_ != seen; });
            }
            seen = posted_;
            if (is_over_) return;
            inside_++;  // before the look at open_, as run() closes before it looks at inside_
            if (uint32_t open = open_) {
                seen = open;
                Worker worker(team_, id);
                function_(worker, argument_);
            }
            inside_--;
        }
    }

    Team team_;
    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<uint32_t> posted_{0};  // regions so far
    std::atomic<uint32_t> open_{0};    // the region that threads may enter, 0 for none
    std::atomic<int> inside_{0};       // threads in it
    std::atomic<bool> is_over_{false};
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

void Worker::wait() const {
    for (int i = 0; team_.next.load(std::memory_order_acquire) >> 32 == loop_; i++) pause(i);
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

// What tests of the pool look at: so many times a loop over n items that adds each one's number to what it was, one
// over none, and one that sums what they are.
TRIMTAB_API int64_t trimtab_pool_sum(int64_t n, int64_t loops) {
    std::atomic<int64_t> sum{0};
    std::vector<int64_t> items(n, 0);  // which no two threads touch at a time
    trimtab::parallel([&](trimtab::Worker& worker) {
        for (int64_t loop = 0; loop < loops; loop++) {
            worker.each(n, [&](int64_t i) { items[n - 1 - i] += i; });
            worker.each(0, [&](int64_t) { sum += 1; });
            worker.each_ahead(n, [&](int64_t i, int64_t) { sum.fetch_add(items[i], std::memory_order_relaxed); });
        }
    });
    return sum.load();
}

TRIMTAB_API int trimtab_lanes() { return trimtab::kLanes; }
