// Attention of packed tokens over paged keys and values, causal, query heads of a group together.
//
// Keys lie [block, head, dim, place], values [block, head, place, dim]; in pairs of bfloat16, keys
// [block, head, dim/2, place, 2], values [block, head, place/2, dim, 2]. A token's result is the same bits
// whatever is computed with it: keys are taken in parts of kPart, cut at multiples of it; within a part every
// sum runs in one order, and parts are merged in order.
#pragma once
#include <memory>
#include <vector>

#include "memory.h"
#include "pool.h"
#include "products.h"

namespace trimtab {

constexpr int kPart = 256;

struct AttentionShape {
    int64_t heads, kv_heads, dim, block_size;
    int32_t format;   // of keys and values
    bool in_pairs;    // in bfloat16, and what they are multiplied with is rounded to it
    float softcap;    // 0: none
    int64_t window;   // keys that a token sees, itself too; 0: all
};

// Tokens of a step: which row each belongs to, by rows' first tokens, and where that row's keys lie.
struct Packed {
    const int64_t* positions;     // [tokens]
    const int64_t* row_first;     // [rows + 1]
    const int64_t* tables;        // [rows, table_stride]
    int64_t rows, table_stride;
};

// Work of one layer's attention, the same for every layer with that window.
class AttentionPlan {
  public:
    // tokens: those that ask, in ascending order, or null for all; their results lie in this order.
    void make(const AttentionShape& shape, const Packed& packed, const int64_t* tokens, int64_t count);

    // out [asking tokens, heads·dim] from queries [tokens, …], which are rotated and scaled.
    void run(Worker& worker, const AttentionShape& shape, const Packed& packed, const float* queries,
             int64_t query_stride, const void* keys, const void* values, float* out, int64_t out_stride);

  private:
    struct Item {
        int64_t row, first, count;   // tokens `first` … of the step
        int64_t place;               // of the first one's result
        int64_t part, end;           // of keys, this many parts on their own
        int64_t split, slot;         // counter and first slot of a token whose parts are apart, or −1
        int64_t split_first, split_end;
    };
    void add(const AttentionShape& shape, const Packed& packed, int64_t row, int64_t first, int64_t count, int64_t place);
    float* slot(const AttentionShape& shape, const Item& item, int64_t head, int64_t part);

    std::vector<Item> items_;
    std::unique_ptr<std::atomic<int64_t>[]> left_;  // [splits, kv heads] parts still to come
    int64_t splits_ = 0, room_ = 0, slots_ = 0;
    Buffer partial_;
};

}  // namespace trimtab
