// Pool of threads: one for the process. A region runs a function on every thread, and inside it loops hand their
// items out one by one. A loop is over when its items are done, and a region when its loops are: who has no item
// is not waited for, so that a core which is taken away delays what its thread has in hand, and no more.
#pragma once
#include <atomic>
#include <cstdint>
#include <utility>

#define TRIMTAB_API extern "C" __attribute__((visibility("default")))

namespace trimtab {

struct alignas(64) Team {
    const int size;
    alignas(64) std::atomic<uint64_t> next{0};  // the loop under way, and its next item in the lower half
    alignas(64) std::atomic<int64_t> done{0};   // items of it
    explicit Team(int size) : size(size) {}
};

// What a region's function is given: which thread it is, and how to share loops with the others. Every thread comes
// to the same loops in the same order, and does nothing but what is its own between them: it may be late, where
// the others have done its loops and gone on.
class Worker {
  public:
    Worker(Team& team, int id) : id(id), size(team.size), team_(team) {}
    const int id, size;

    // f(i) for i in 0 … n−1, each once, on any thread; returns when all are done. n is below 2³².
    template <class F> void each(int64_t n, F&& f) {
        for (int64_t i = take(n); i < n; i = take(n)) {
            f(i);
            finish(n);
        }
        leave(n);
    }

    // The same with what this worker takes next, n for nothing: f(i, next).
    template <class F> void each_ahead(int64_t n, F&& f) {
        for (int64_t i = take(n), next; i < n; i = next) {
            next = take(n);
            f(i, next);
            finish(n);
        }
        leave(n);
    }

  private:
    // The next item of this worker's loop, n where none is left.
    int64_t take(int64_t n) {
        uint64_t seen = team_.next.load(std::memory_order_acquire);
        while (seen >> 32 == loop_ && static_cast<int64_t>(seen & 0xffffffff) < n)
            if (team_.next.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel, std::memory_order_acquire))
                return static_cast<int64_t>(seen & 0xffffffff);
        return n;
    }

    // An item: with the last one the next loop begins.
    void finish(int64_t n) {
        if (team_.done.fetch_add(1, std::memory_order_acq_rel) + 1 < n) return;
        team_.done.store(0, std::memory_order_relaxed);
        team_.next.store((loop_ + 1) << 32, std::memory_order_release);
    }

    void leave(int64_t n) {
        if (n > 0) wait();
        else {
            uint64_t mine = loop_ << 32;
            team_.next.compare_exchange_strong(mine, (loop_ + 1) << 32, std::memory_order_acq_rel);
        }
        loop_++;
    }

    void wait() const;

    Team& team_;
    uint64_t loop_ = 0;  // of the region
};

int num_threads();
void run_region(void (*function)(Worker&, void*), void* argument);

// f(worker) on every thread of the pool. Regions do not nest; two at once wait for each other.
template <class F> void parallel(F&& f) {
    run_region([](Worker& worker, void* argument) { (*static_cast<std::remove_reference_t<F>*>(argument))(worker); }, &f);
}

}  // namespace trimtab
