// Products x·Wᵀ with W packed in panels of a few columns, rows of x together. A row's result is the same bits
// whatever rows are beside it: sums run over 128 of k in one chain, and those are added in order, from the bias on.
#pragma once
#include "memory.h"
#include "pool.h"
#include "simd.h"

#include <type_traits>

namespace trimtab {

enum Format : int32_t { kFloat32, kFloat16, kBFloat16, kQ8, kQ4 };

constexpr int kPanel = 2 * kLanes;  // columns
constexpr int64_t kAhead = 4096;    // bytes that are fetched ahead of those in use
constexpr int kGroup = 32;          // of k, that share a scale in q8 and q4

constexpr int group_bytes(int32_t format) {
    return format == kQ8 ? kGroup * kPanel + 2 * kPanel : kGroup * kPanel / 2 + 4 * kPanel;
}

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 12;  // two accumulators each, in 32 registers
#elif defined(__AVX2__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 3;
#endif

// W [n, k], as Python describes it. data: panel after panel; in a panel k after k, kPanel columns each; in bfloat16
// two of k together, the pairs of column after column; q8 and q4 as groups.h says. rounds: x is rounded as well, to
// bfloat16 for bfloat16 weights, where multiplies_bfloat16(), and to bytes for q8 and q4; else arithmetic is fp32.
struct Weight {
    const uint8_t* data;
    int64_t n, k;
    int32_t format, rounds;

    int64_t panels() const { return (n + kPanel - 1) / kPanel; }
    int64_t groups() const { return (k + kGroup - 1) / kGroup; }
    bool grouped() const { return format == kQ8 || format == kQ4; }
    int64_t panel_bytes() const {
        if (grouped()) return groups() * group_bytes(format);
        return format == kBFloat16 ? (k + 1) / 2 * kPanel * 4 : k * kPanel * (format == kFloat32 ? 4 : 2);
    }
    const uint8_t* panel(int64_t i) const { return data + i * panel_bytes(); }
};

// Whether this CPU multiplies pairs of bfloat16.
bool multiplies_bfloat16();

// x [rows, k] on its way into products of bytes: its own, and each group's scale and sum.
struct Quantised {
    int8_t* bytes;  // [rows, groups, kGroup]
    float* scale;   // [rows, groups]
    int32_t* sum;
    static Quantised in(void* memory, int64_t rows, int64_t k);
};

// Bytes that x [rows, k] takes once it is narrowed, in either way.
int64_t narrowed_room(int64_t rows, int64_t k);

// out [rows, n] = x [rows, k] · Wᵀ + bias. Every worker calls it. bias: [n] or null.
// shared: narrowed_room, the same for all, where the weight rounds.
void product(Worker& worker, const Weight& weight, const float* x, int64_t x_stride, int64_t rows, float* out,
             int64_t out_stride, const float* bias, void* shared);

// The same for up to kTileRows rows and one panel of floats by itself, k of them: columns 0 … columns−1 of out,
// which is where the sums start if `more`, in one chain. What attention is made of.
void tile_product(const float* panel, int64_t k, const float* x, int64_t x_stride, int rows, float* out,
                  int64_t out_stride, int columns, bool more);

// The same of pairs of bfloat16: panel [pairs, kPanel, 2], x [rows, 2·pairs].
void pair_product(const uint32_t* panel, int64_t pairs, const Brain* x, int64_t x_stride, int rows, float* out,
                  int64_t out_stride);

template <class T> constexpr int kTogether = std::is_same<T, Brain>::value ? 2 : 1;  // of k, in a panel of floats

// Where a number of a panel of floats lies, in numbers.
inline int64_t place_of(int32_t format, int64_t k, int64_t column) {
    return format == kBFloat16 ? k / 2 * kPanel * 2 + column * 2 + k % 2 : k * kPanel + column;
}

// Row `id` of W as floats.
void weight_row(const Weight& weight, int64_t id, float* out);

}  // namespace trimtab
