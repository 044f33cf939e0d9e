// Products x·Wᵀ with W packed in panels of a few columns, rows of x together. A row's result is the same bits
// whatever rows are beside it: sums run over 128 of k in one chain, and those are added in order, from the bias on.
#pragma once
#include "memory.h"
#include "pool.h"
#include "simd.h"

namespace trimtab {

enum Format : int32_t { kFloat32, kFloat16, kBFloat16, kQ8 };

constexpr int kPanel = 2 * kLanes;  // columns
constexpr int kGroup = 32;          // of k, that share a scale in q8
constexpr int kGroupBytes = kGroup * kPanel + 2 * kPanel;

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 12;  // two accumulators each, in 32 registers
#elif defined(__AVX2__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 3;
#endif

// W [n, k], as Python describes it. data: panel after panel; in a panel k after k, kPanel columns each; in bfloat16
// two of k together, the pairs of column after column. In q8, group after group: kGroup/4 times kPanel columns of
// 4 bytes, then the columns' scales in bfloat16. rounds: x is rounded to bfloat16 as well, products are summed in
// fp32; for bfloat16 alone, where multiplies_bfloat16().
struct Weight {
    const uint8_t* data;
    int64_t n, k;
    int32_t format, rounds;

    int64_t panels() const { return (n + kPanel - 1) / kPanel; }
    int64_t groups() const { return (k + kGroup - 1) / kGroup; }
    int64_t panel_bytes() const {
        if (format == kQ8) return groups() * kGroupBytes;
        return format == kBFloat16 ? (k + 1) / 2 * kPanel * 4 : k * kPanel * (format == kFloat32 ? 4 : 2);
    }
    const uint8_t* panel(int64_t i) const { return data + i * panel_bytes(); }
    bool narrows() const { return format == kQ8 || rounds; }  // x, before it is multiplied
};

// Whether this CPU multiplies pairs of bfloat16.
bool multiplies_bfloat16();

// x [rows, k] on its way into products of q8: its bytes, and each group's scale and what kByteOffset added.
struct Quantised {
    int8_t* bytes;  // [rows, groups, kGroup]
    float* scale;   // [rows, groups]
    int32_t* start;
    static Quantised in(void* memory, int64_t rows, int64_t k);
};

// Bytes that x [rows, k] takes once it is narrowed, in either way.
int64_t narrowed_room(int64_t rows, int64_t k);

// out [rows, n] = x [rows, k] · Wᵀ + bias. Every worker calls it; it ends with a barrier. bias: [n] or null.
// shared: narrowed_room, the same for all, where the weight narrows.
void product(Worker& worker, const Weight& weight, const float* x, int64_t x_stride, int64_t rows, float* out,
             int64_t out_stride, const float* bias, void* shared);

// The same for up to kTileRows rows and one panel of floats by itself, k of them: columns 0 … columns−1 of out,
// which is where the sums start if `more`, in one chain. What attention is made of.
void tile_product(const float* panel, int64_t k, const float* x, int64_t x_stride, int rows, float* out,
                  int64_t out_stride, int columns, bool more);

// The same of pairs of bfloat16: panel [pairs, kPanel, 2], x [rows, 2·pairs].
void pair_product(const uint32_t* panel, int64_t pairs, const Brain* x, int64_t x_stride, int rows, float* out,
                  int64_t out_stride);

// Row `id` of W as floats.
void weight_row(const Weight& weight, int64_t id, float* out);

}  // namespace trimtab
