// Norms, activations and rotations of a row, in vectors.
#pragma once
#include "simd.h"

namespace trimtab {

enum Activation : int32_t { kSilu, kGeluTanh, kGelu };

// f(i, n) for a row of `count` in vectors; n is how many lanes count.
template <class F> TRIMTAB_INLINE void in_vectors(int64_t count, F&& f) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) f(i, kLanes);
    if (i < count) f(i, static_cast<int>(count - i));
}

TRIMTAB_INLINE Vec load_some(const float* p, int n) { return n == kLanes ? load(p) : load_first(p, n); }
TRIMTAB_INLINE void store_some(float* p, Vec v, int n) { n == kLanes ? store(p, v) : store_first(p, v, n); }

// out = x / √(mean x² + eps) · weight; out may be x.
inline void rms_norm(const float* x, const float* weight, float eps, int64_t count, float* out) {
    Vec squares = {};
    in_vectors(count, [&](int64_t i, int n) {
        Vec v = load_some(x + i, n);
        squares = fma(v, v, squares);
    });
    float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(count) + eps);
    in_vectors(count, [&](int64_t i, int n) { store_some(out + i, load_some(x + i, n) * scale * load_some(weight + i, n), n); });
}

TRIMTAB_INLINE Vec activate(Vec x, int32_t kind) {
    if (kind == kSilu) return x / (1.0f + exp(-x));
    if (kind == kGeluTanh) return 0.5f * x * (1.0f + tanh(0.7978845608f * (x + 0.044715f * x * x * x)));
    for (int i = 0; i < kLanes; i++) x[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.7071067812f));
    return x;
}

// Turns pairs (i, i + half) of the first 2·half numbers by their angles.
inline void rotate(float* x, const float* cosine, const float* sine, int64_t half) {
    in_vectors(half, [&](int64_t i, int n) {
        Vec a = load_some(x + i, n), b = load_some(x + half + i, n), c = load_some(cosine + i, n), s = load_some(sine + i, n);
        store_some(x + i, a * c - b * s, n);
        store_some(x + half + i, fma(b, c, a * s), n);
    });
}

}  // namespace trimtab
