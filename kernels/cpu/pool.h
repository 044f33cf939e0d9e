// Pool of threads: one for the process. A region runs a function on every thread, and inside it loops hand
// their items out one by one, so that a core which is taken away slows a loop and does not halve it.
#pragma once
#include <atomic>
#include <cstdint>
#include <utility>

#define TRIMTAB_API extern "C" __attribute__((visibility("default")))

namespace trimtab {

struct alignas(64) Team {
    const int size;
    alignas(64) std::atomic<int64_t> next{0};
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<uint32_t> epoch{0};
    explicit Team(int size) : size(size) {}
};

// What a region's function is given: which thread it is, and how to meet the others. Every thread must come
// to the same loops and barriers in the same order.
class Worker {
  public:
    Worker(Team& team, int id) : id(id), size(team.size), team_(team) {}
    const int id, size;

    // The next item of the loop under way, which ends at the barrier: n or more where none is left.
    int64_t take() { return team_.next.fetch_add(1, std::memory_order_relaxed); }

    void barrier();

    // f(i) for i in 0 … n−1, each once, on any thread; returns when all are done.
    template <class F> void each(int64_t n, F&& f) {
        for (int64_t i = take(); i < n; i = take()) f(i);
        barrier();
    }

    // The same with what this worker takes next, n or more for nothing: f(i, next).
    template <class F> void each_ahead(int64_t n, F&& f) {
        for (int64_t i = take(), next; i < n; i = next) {
            next = take();
            f(i, next);
        }
        barrier();
    }

  private:
    Team& team_;
};

int num_threads();
void run_region(void (*function)(Worker&, void*), void* argument);

// f(worker) on every thread of the pool. Regions do not nest; two at once wait for each other.
template <class F> void parallel(F&& f) {
    run_region([](Worker& worker, void* argument) { (*static_cast<std::remove_reference_t<F>*>(argument))(worker); }, &f);
}

}  // namespace trimtab
