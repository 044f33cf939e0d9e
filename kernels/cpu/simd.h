// Vectors of floats, one width per instruction set: compilers' vector extensions, with intrinsics where
// those have no word for it. Everything is inline, and behaves the same on every lane whatever the others hold.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define TRIMTAB_INLINE inline __attribute__((always_inline))

namespace trimtab {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4;
#else
constexpr int kLanes = 8;  // without AVX2 the compiler makes two of each
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t UIntVec __attribute__((vector_size(kLanes * 4)));
typedef uint16_t ShortVec __attribute__((vector_size(kLanes * 2)));
typedef int8_t ByteVec __attribute__((vector_size(kLanes)));
typedef float LooseVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef uint16_t LooseShortVec __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));

// Stored numbers. A float is itself; the others are their bits.
struct Half {
    uint16_t bits;
};
struct Brain {
    uint16_t bits;
};

template <class To, class From> TRIMTAB_INLINE To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

TRIMTAB_INLINE Vec splat(float x) { return x - Vec{}; }
TRIMTAB_INLINE Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
TRIMTAB_INLINE void store(float* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }
TRIMTAB_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }  // one rounding where the CPU has it
TRIMTAB_INLINE Vec select(IntVec which, Vec yes, Vec no) { return which ? yes : no; }
TRIMTAB_INLINE Vec max(Vec a, Vec b) { return select(a < b, b, a); }  // a where either is NaN
TRIMTAB_INLINE Vec min(Vec a, Vec b) { return select(b < a, b, a); }

// The first n lanes, the rest 0.
TRIMTAB_INLINE Vec load_first(const float* p, int n) {
#if defined(__AVX512F__)
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#else
    float lanes[kLanes] = {};
    for (int i = 0; i < n; i++) lanes[i] = p[i];
    return load(lanes);
#endif
}

TRIMTAB_INLINE void store_first(float* p, Vec v, int n) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
#else
    for (int i = 0; i < n; i++) p[i] = v[i];
#endif
}

TRIMTAB_INLINE void store_bytes(int8_t* p, IntVec v) {  // of numbers that bytes hold
    const ByteVec bytes = __builtin_convertvector(v, ByteVec);
    std::memcpy(p, &bytes, sizeof bytes);
}

TRIMTAB_INLINE float sum(Vec v) {  // by halves, always in this order
    float lanes[kLanes];
    store(lanes, v);
    for (int width = kLanes / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

TRIMTAB_INLINE int32_t sum(IntVec v) {
    int32_t total = 0;
    for (int i = 0; i < kLanes; i++) total += v[i];
    return total;
}

TRIMTAB_INLINE float largest(Vec v) {
    float lanes[kLanes];
    store(lanes, v);
    for (int width = kLanes / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] = lanes[i] < lanes[i + width] ? lanes[i + width] : lanes[i];
    return lanes[0];
}

// Half and bfloat16 to floats, exactly.
TRIMTAB_INLINE UIntVec widen(const uint16_t* p) {
    return __builtin_convertvector(*reinterpret_cast<const LooseShortVec*>(p), UIntVec);
}

TRIMTAB_INLINE Vec load(const Brain* p) {
    return bit_cast<Vec>(widen(reinterpret_cast<const uint16_t*>(p)) << 16);
}

TRIMTAB_INLINE Vec load(const Half* p) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__aarch64__)
    return vcvt_f32_f16(vld1_f16(reinterpret_cast<const __fp16*>(p)));
#else
    UIntVec bits = widen(reinterpret_cast<const uint16_t*>(p)), magnitude = (bits & 0x7fff) << 13;
    Vec finite = bit_cast<Vec>(magnitude) * 0x1p112f;  // right for subnormal numbers too
    Vec special = bit_cast<Vec>(magnitude | 0x7f800000);
    Vec unsigned_ = select(bit_cast<IntVec>(magnitude) >= 0x0f800000, special, finite);
    return bit_cast<Vec>(bit_cast<UIntVec>(unsigned_) | (bits & 0x8000) << 16);
#endif
}

TRIMTAB_INLINE float to_float(float x) { return x; }
TRIMTAB_INLINE float to_float(Brain x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
TRIMTAB_INLINE float to_float(Half x) {
    uint32_t magnitude = (x.bits & 0x7fffu) << 13;
    float finite = bit_cast<float>(magnitude) * 0x1p112f;
    if (magnitude >= 0x0f800000) finite = bit_cast<float>(magnitude | 0x7f800000);
    return bit_cast<float>(bit_cast<uint32_t>(finite) | (x.bits & 0x8000u) << 16);
}

// Floats to what is stored, to the nearest, ties to even.
TRIMTAB_INLINE void store_as(float* p, float x) { *p = x; }
TRIMTAB_INLINE void store_as(Brain* p, float x) {
    uint32_t bits = bit_cast<uint32_t>(x);
    p->bits = x != x ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
TRIMTAB_INLINE void store_as(Half* p, float x) {
    uint32_t bits = bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    uint32_t half;
    if (magnitude > 0x7f800000) half = 0x7e00;
    else if (magnitude >= 0x477ff000) half = 0x7c00;  // 65520 and above round to infinity
    else if (magnitude < 0x38800000)                  // subnormal: the addition rounds at the right bit
        half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
    else half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    p->bits = static_cast<uint16_t>(sign | half);
}

// Products of signed bytes, four to a lane: sum += w₄·x₄, exactly. Weights are stored with kByteOffset added.
#if defined(__AVX512VNNI__)
constexpr int kByteOffset = 128;
#else
constexpr int kByteOffset = 0;
#endif

TRIMTAB_INLINE IntVec dot4(IntVec sum, UIntVec w, int32_t x) {
#if defined(__AVX512VNNI__)
    return (IntVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(x));
#elif defined(__AVX2__)
    __m256i signed_ = (__m256i)w;
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(signed_), _mm256_sign_epi8(_mm256_set1_epi32(x), signed_));
    return sum + (IntVec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#elif defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(sum, (int8x16_t)w, vreinterpretq_s8_s32(vdupq_n_s32(x)));
#else
    const IntVec four = (IntVec)w;
    for (int shift = 24; shift >= 0; shift -= 8)
        sum += (four << shift >> 24) * (static_cast<int32_t>(static_cast<uint32_t>(x) << shift) >> 24);
    return sum;
#endif
}

// The lowest four bits of every lane, as a float.
TRIMTAB_INLINE Vec nibble(UIntVec words) {
#if defined(__AVX512F__)
    const __m512 numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_permutexvar_ps((__m512i)words, numbers);
#else
    return __builtin_convertvector((IntVec)(words & 15), Vec);
#endif
}

// Products of pairs of bfloat16, two to a lane, summed in fp32: first the upper ones, then the lower. Functions
// that use it are TRIMTAB_PAIRS, and run where multiplies_bfloat16().
#if defined(__AVX512F__)
#define TRIMTAB_PAIRS __attribute__((target("avx512bf16")))
TRIMTAB_INLINE TRIMTAB_PAIRS Vec dot2(Vec sum, UIntVec pairs, uint32_t x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)pairs, (__m512bh)_mm512_set1_epi32(static_cast<int>(x)));
}
#else
#define TRIMTAB_PAIRS
TRIMTAB_INLINE Vec dot2(Vec sum, UIntVec pairs, uint32_t x) {
    sum = fma(bit_cast<Vec>(pairs & 0xffff0000u), splat(bit_cast<float>(x & 0xffff0000u)), sum);
    return fma(bit_cast<Vec>(pairs << 16), splat(bit_cast<float>(x << 16)), sum);
}
#endif

TRIMTAB_INLINE UIntVec load_words(const void* p) {
    UIntVec words;
    std::memcpy(&words, p, sizeof words);
    return words;
}

TRIMTAB_INLINE uint32_t pair_at(const Brain* p) {
    uint32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return pair;
}

inline void narrow(const float* x, int64_t count, Brain* to) {
    for (int64_t i = 0; i < count; i++) store_as(to + i, x[i]);
}

// e^x within 2 ulp; 0 below −87.3, and NaN stays. Polynomial after Cephes (expf), argument reduced in two parts.
TRIMTAB_INLINE Vec exp(Vec x) {
    Vec y = min(max(x, splat(-87.33f)), splat(88.72f));
    Vec shifted = y * 1.44269504f + 12582912.0f;  // 1.5·2²³: the fraction falls off
    Vec n = shifted - 12582912.0f;
    Vec r = y - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    Vec p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p * r, r, r + 1.0f);
    IntVec power = bit_cast<IntVec>(shifted) - 0x4b400000;
    // 2ⁿ in two factors: n reaches 128, which no exponent holds
    Vec half = bit_cast<Vec>(((power >> 1) + 127) << 23), rest = bit_cast<Vec>((power - (power >> 1) + 127) << 23);
    return select(x < -87.33f, splat(0.0f), p * half * rest);
}

// a·b + c, rounded once where the CPU can, whatever else is done with a·b: every place that works out the
// same number gets the same bits.
TRIMTAB_INLINE Vec fused(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
    return vfmaq_f32(c, a, b);
#else
    return a * b + c;
#endif
}

// e^x for sums of many, within 2⁻²² of it for x ≤ 64; 0 below −87.3, and NaN stays.
TRIMTAB_INLINE Vec exp_of(Vec x) {
#if defined(__AVX512F__)
    Vec n = _mm512_roundscale_ps(x * 1.44269504f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    Vec r = fused(n, splat(-0.693147181f), x);
    Vec p = fused(splat(8.312526e-3f), r, splat(4.1890156e-2f));  // 1 + r + r²·(…), fitted to |r| ≤ ½ log 2
    p = fused(p, r, splat(0.16667114f));
    p = fused(p, r, splat(0.4999923f));
    p = fused(p, r, splat(1.0f));
    p = fused(p, r, splat(1.0f));
    __mmask16 is_some = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.33f), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(is_some, p, n);
#else
    return exp(x);
#endif
}

TRIMTAB_INLINE Vec tanh(Vec x) { return 1.0f - 2.0f / (exp(2.0f * x) + 1.0f); }

}  // namespace trimtab
