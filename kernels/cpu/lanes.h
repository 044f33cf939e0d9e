// Lanes of the draw: Philox's random integers, and what else of vectors only the draw needs.
#pragma once
#include "simd.h"

namespace trimtab {

typedef uint64_t LongVec __attribute__((vector_size(kLanes * 4)));

// Bit i is set where a ≥ b in lane i.
TRIMTAB_INLINE uint32_t at_least(Vec a, Vec b) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ);
#elif defined(__AVX2__)
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ));
#else
    IntVec is = a >= b;
    uint32_t bits = 0;
    for (int i = 0; i < kLanes; i++) bits |= is[i] ? 1u << i : 0u;
    return bits;
#endif
}

TRIMTAB_INLINE double exact_sum(Vec x) {
    double sum = 0;
    for (int i = 0; i < kLanes; i++) sum += x[i];
    return sum;
}

// Products of the low halves of a's lanes with m.
TRIMTAB_INLINE LongVec multiply(LongVec a, uint32_t m) {
#if defined(__AVX512F__)
    return (LongVec)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(m));
#elif defined(__AVX2__)
    return (LongVec)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(m));
#elif defined(__SSE2__)
    __m128i halves[2], factor = _mm_set1_epi64x(m);
    std::memcpy(halves, &a, sizeof a);
    for (__m128i& half : halves) half = _mm_mul_epu32(half, factor);
    std::memcpy(&a, halves, sizeof a);
    return a;
#else
    return (a & 0xffffffffu) * uint64_t(m);
#endif
}

// Philox-4x32-10 of one row, see philox.py; kDraws tokens at a time.
constexpr int kDraws = 2 * kLanes;

class Philox {
  public:
    Philox(uint64_t seed, uint32_t position, uint32_t choice, uint32_t purpose) {
        for (int i = 0; i < 10; i++) {
            key_0_[i] = uint32_t(uint32_t(seed) + uint32_t(i) * 0x9E3779B9u);
            key_1_[i] = uint32_t(uint32_t(seed >> 32) + uint32_t(i) * 0xBB67AE85u);
        }
        // What of the first two rounds is the same for every token is done here, and joined to their keys.
        uint64_t product = uint64_t(kMultiplier_1) * choice;
        uint32_t word_0 = uint32_t(product >> 32) ^ position ^ uint32_t(key_0_[0]);
        key_0_[1] ^= uint32_t(product);
        product = uint64_t(kMultiplier_0) * word_0;
        key_1_[0] ^= purpose;
        key_1_[1] ^= product >> 32;
        key_1_[2] ^= uint32_t(product);
    }

    // Words of the tokens first … first + kDraws − 1, in order; first is a multiple of 4.
    TRIMTAB_INLINE void words(uint32_t first, UIntVec out[2]) const {
        LongVec block;
        for (int i = 0; i < kLanes / 4; i++) block[2 * i] = i, block[2 * i + 1] = i + kLanes / 4;
        LongVec word_3 = multiply(block + (first >> 2), kMultiplier_0);
        LongVec word_2 = (word_3 >> 32) ^ key_1_[0];
        LongVec word_1 = multiply(word_2, kMultiplier_1);
        LongVec word_0 = (word_1 >> 32) ^ key_0_[1];
        word_2 = word_3 ^ key_1_[1];
        word_3 = LongVec{};
#pragma GCC unroll 8
        for (int i = 2; i < 10; i++) {
            LongVec product_0 = multiply(word_0, kMultiplier_0), product_1 = multiply(word_2, kMultiplier_1);
            word_0 = (product_1 >> 32) ^ word_1 ^ key_0_[i];
            word_2 = (product_0 >> 32) ^ word_3 ^ key_1_[i];
            word_1 = product_1;
            word_3 = product_0;
        }
        LongVec low = (word_0 & 0xffffffffu) | word_1 << 32, high = (word_2 & 0xffffffffu) | word_3 << 32;
        interleave(low, high, out);
    }

  private:
    static constexpr uint32_t kMultiplier_0 = 0xD2511F53, kMultiplier_1 = 0xCD9E8D57;

    // Lane 2i of low and high is a block among the first kLanes/4, lane 2i + 1 one among the others.
    static void interleave(LongVec low, LongVec high, UIntVec out[2]) {
#if defined(__AVX512F__)
        out[0] = (UIntVec)_mm512_unpacklo_epi64((__m512i)low, (__m512i)high);
        out[1] = (UIntVec)_mm512_unpackhi_epi64((__m512i)low, (__m512i)high);
#elif defined(__AVX2__)
        out[0] = (UIntVec)_mm256_unpacklo_epi64((__m256i)low, (__m256i)high);
        out[1] = (UIntVec)_mm256_unpackhi_epi64((__m256i)low, (__m256i)high);
#else
        for (int k = 0; k < 2; k++) {
            LongVec both;
            for (int i = 0; i < kLanes / 2; i += 2) both[i] = low[i + k], both[i + 1] = high[i + k];
            out[k] = bit_cast<UIntVec>(both);
        }
#endif
    }

    uint64_t key_0_[10], key_1_[10];
};

// A bound from above of the noise of random words, close where u is small: −log(u), read off a float's bits.
TRIMTAB_INLINE Vec noise_bound(UIntVec words) {
    Vec half = __builtin_convertvector(bit_cast<IntVec>(words >> 1), Vec);  // u is at least half·2⁻³¹
    IntVec bits = bit_cast<IntVec>(half);
    return fused(__builtin_convertvector(bits, Vec), splat(-0.693147181f / 8388608), splat(0.693147181f * 158));
}

// The noise of a random word, see philox.py.
inline double noise_of(uint32_t word) {
    double u = std::fmin((double(word) + 0.5) * 0x1p-32, 1 - 0x1p-24);
    return -std::log(-std::log1p(-u));
}

}  // namespace trimtab
