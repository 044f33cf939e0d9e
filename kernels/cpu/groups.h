// Groups of 32 weights along K with a scale: bytes, or four bits from a least number on; as GGUF's Q8_0 and Q4_1.
// In a panel group after group: kPanel words for some of k, the words of the next; then the columns' scales in
// float16, and for q4 what they start from. A word holds, of its column, bytes of four of k (with kByteOffset), or
// four bits of eight: of the first four in its bytes' lower halves.
#pragma once
#include "products.h"

#include <algorithm>

namespace trimtab {

template <int F> constexpr bool kIsGrouped = F == kQ8 || F == kQ4;
template <int F> constexpr int kPerWord = F == kQ8 ? 4 : 8;  // of k
template <int F> constexpr int kWords = kGroup / kPerWord<F>;

template <int F> struct GroupScales {
    Vec step[2], least[2];

    TRIMTAB_INLINE explicit GroupScales(const uint8_t* group) {
        const Half* halves = reinterpret_cast<const Half*>(group + kWords<F> * kPanel * 4);
        for (int side = 0; side < 2; side++) {
            step[side] = load(halves + side * kLanes);
            if (F == kQ4) least[side] = load(halves + kPanel + side * kLanes);
        }
    }
};

// Bytes of k 4·i … 4·i+3, as dot4 takes them.
template <int F> TRIMTAB_INLINE UIntVec four_bytes(const uint8_t* group, int i, int side) {
    if (F == kQ8) return load_words(group + (i * kPanel + side * kLanes) * 4);
    return load_words(group + (i / 2 * kPanel + side * kLanes) * 4) >> (i % 2 * 4) & 0x0f0f0f0fu;
}

// Number j of every word, as the float that was stored: a product of so few bits is exact, and a sum is rounded once.
template <int F> TRIMTAB_INLINE Vec number_of(UIntVec words, int j, const GroupScales<F>& scales, int side) {
    if (F == kQ8) {
        const IntVec whole = kByteOffset ? (IntVec)(words >> (8 * j) & 255u) - kByteOffset : (IntVec)(words << (24 - 8 * j)) >> 24;
        return __builtin_convertvector(whole, Vec) * scales.step[side];
    }
    return fused(nibble(words >> (j < 4 ? 8 * j : 8 * j - 28)), scales.step[side], scales.least[side]);
}

// f(place in the group, left columns, right columns) for the first `depth` of k.
template <int F, class Use> TRIMTAB_INLINE void each_number(const uint8_t* group, int64_t depth, Use&& use) {
    const GroupScales<F> scales(group);
    for (int w = 0; w < kWords<F>; w++) {
        const UIntVec left = load_words(group + w * kPanel * 4), right = load_words(group + (w * kPanel + kLanes) * 4);
        auto numbers = [&](int count) __attribute__((always_inline)) {
#pragma GCC unroll 8
            for (int j = 0; j < count; j++)
                use(w * kPerWord<F> + j, number_of<F>(left, j, scales, 0), number_of<F>(right, j, scales, 1));
        };
        const int64_t left_over = depth - w * kPerWord<F>;
        if (left_over >= kPerWord<F>) numbers(kPerWord<F>);
        else return numbers(static_cast<int>(left_over > 0 ? left_over : 0));
    }
}

// `depth` of k as floats [depth, kPanel].
template <int F> void write_floats(const uint8_t* group, int64_t depth, float* floats) {
    for (int64_t i = 0; i < depth; i += kGroup, group += group_bytes(F)) {
        for (int b = 0; b < group_bytes(F); b += 64) __builtin_prefetch(group + kAhead + b);
        each_number<F>(group, std::min<int64_t>(kGroup, depth - i), [&](int place, Vec left, Vec right) __attribute__((always_inline)) {
            store(floats + (i + place) * kPanel, left);
            store(floats + (i + place) * kPanel + kLanes, right);
        });
    }
}

}  // namespace trimtab
