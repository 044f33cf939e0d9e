// Packing of matrices into panels, whole or rounded, and rows of them again: column n of a panel is row n of W.
#include "groups.h"
#include "pool.h"

#include <algorithm>
#include <atomic>
#include <type_traits>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace trimtab {
namespace {

// Rows `stride` apart of numbers of a format.
struct Matrix {
    const void* numbers;
    int64_t stride;
    int32_t format;

    float at(int64_t row, int64_t i) const {
        const int64_t place = row * stride + i;
        if (format == kFloat32) return static_cast<const float*>(numbers)[place];
        if (format == kFloat16) return to_float(static_cast<const Half*>(numbers)[place]);
        return to_float(static_cast<const Brain*>(numbers)[place]);
    }
};

Half half(float x) {
    Half bits;
    store_as(&bits, x);
    return bits;
}

// Groups on their way into a panel. Each `fit`s numbers: to the nearest, or not at all if they must be these.
struct Bytes {
    Half step;
    int8_t numbers[kGroup];

    bool fit(const float* values, int count, bool exactly) {
        float most = 0;
        for (int i = 0; i < count; i++) most = std::max(most, std::fabs(values[i]));
        step = half(most / 127.0f);
        if (with_step(values, count, true)) return true;
        if (to_float(step) < most / 127.0f) step.bits++;  // so that no byte passes 127
        return !exactly && with_step(values, count, false);
    }

  private:
    bool with_step(const float* values, int count, bool exactly) {
        const float size = to_float(step);
        for (int i = 0; i < count; i++) {
            const int whole = size > 0 ? static_cast<int>(std::lrint(values[i] / size)) : 0;
            numbers[i] = static_cast<int8_t>(std::min(127, std::max(-127, whole)));
            if (exactly && numbers[i] * size != values[i]) return false;
        }
        return true;
    }
};

struct Nibbles {
    Half step, least;
    uint8_t numbers[kGroup];

    bool fit(const float* values, int count, bool exactly) {
        const auto [low, high] = std::minmax_element(values, values + count);
        const float width = *high - *low, rounding = 0x1p-22f * std::max(std::fabs(*low), std::fabs(*high));
        for (int steps = 15; steps > 0 && width > 0; steps--) {  // as many lie between lowest and highest
            const Half size = half(width / static_cast<float>(steps));
            if (std::fabs(to_float(size) * static_cast<float>(steps) - width) > rounding) continue;
            const Half negative{static_cast<uint16_t>(size.bits | 0x8000)};
            for (int below = 0; below + steps <= 15; below++) {  // as many lie beyond
                const float beyond = static_cast<float>(below) * to_float(size);
                if (from(size, *low - beyond, values, count, true) || from(negative, *high + beyond, values, count, true)) return true;
            }
        }
        return from(half(width / 15.0f), *low, values, count, exactly);
    }

  private:
    bool from(Half size, float start, const float* values, int count, bool exactly) {
        step = size;
        least = half(start);
        const float scale = to_float(step), offset = to_float(least);
        for (int i = 0; i < count; i++) {
            const int whole = scale != 0 ? static_cast<int>(std::lrint((values[i] - offset) / scale)) : 0;
            numbers[i] = static_cast<uint8_t>(std::min(15, std::max(0, whole)));
            if (exactly && numbers[i] * scale + offset != values[i]) return false;
        }
        return true;
    }
};

void put(const Bytes& group, int column, uint8_t* panel) {
    for (int i = 0; i < kGroup; i++) panel[i / 4 * kPanel * 4 + column * 4 + i % 4] = static_cast<uint8_t>(group.numbers[i] + kByteOffset);
    reinterpret_cast<Half*>(panel + kWords<kQ8> * kPanel * 4)[column] = group.step;
}

void put(const Nibbles& group, int column, uint8_t* panel) {
    for (int i = 0; i < kGroup; i += 8)
        for (int j = 0; j < 4; j++)
            panel[i / 8 * kPanel * 4 + column * 4 + j] = static_cast<uint8_t>(group.numbers[i + j] | group.numbers[i + j + 4] << 4);
    Half* halves = reinterpret_cast<Half*>(panel + kWords<kQ4> * kPanel * 4);
    halves[column] = group.step;
    halves[kPanel + column] = group.least;
}

// Of a row's numbers from `from` on; beyond k nothing is read but by products with 0.
template <class Group> bool fit(const Matrix& matrix, int64_t row, int64_t from, int64_t k, bool exactly, Group& group) {
    float values[kGroup];
    const int count = static_cast<int>(std::min<int64_t>(kGroup, k - from));
    for (int i = 0; i < count; i++) values[i] = matrix.at(row, from + i);
    return group.fit(values, count, exactly);
}

template <class Group> void pack_groups(const Matrix& matrix, const Weight& w, int64_t first, int columns, uint8_t* panel) {
    for (int64_t from = 0; from < w.k; from += kGroup, panel += group_bytes(w.format))
        for (int column = 0; column < kPanel; column++) {
            Group group{};
            if (column < columns) fit(matrix, first + column, from, w.k, false, group);
            put(group, column, panel);
        }
}

template <class Group> bool holds(const Matrix& matrix, int64_t row, int64_t k) {
    Group group{};
    for (int64_t from = 0; from < k; from += kGroup)
        if (!fit(matrix, row, from, k, true, group)) return false;
    return true;
}

template <class From, class To> void pack_panel(const From* source, int64_t stride, int columns, int64_t k, To* panel) {
    constexpr int64_t some = 64;  // of k: the lines read are used up while they are at hand
    const int64_t whole = (k + kTogether<To> - 1) / kTogether<To> * kTogether<To>;
    for (int64_t from = 0; from < k; from += some)
        for (int column = 0; column < kPanel; column++)
            for (int64_t i = from; i < std::min(whole, from + some); i++) {
                To& target = panel[place_of(std::is_same<To, Brain>::value ? kBFloat16 : kFloat32, i, column)];
                const bool is_there = column < columns && i < k;
                if constexpr (std::is_same<From, To>::value) target = is_there ? source[column * stride + i] : To{};
                else store_as(&target, is_there ? to_float(source[column * stride + i]) : 0.0f);
            }
}

template <class From> void pack_floats(const Matrix& matrix, const Weight& w, int64_t first, int columns, uint8_t* panel) {
    const From* source = static_cast<const From*>(matrix.numbers) + first * matrix.stride;
    if (w.format == kFloat32) pack_panel(source, matrix.stride, columns, w.k, reinterpret_cast<float*>(panel));
    else if (w.format == kFloat16) pack_panel(source, matrix.stride, columns, w.k, reinterpret_cast<Half*>(panel));
    else pack_panel(source, matrix.stride, columns, w.k, reinterpret_cast<Brain*>(panel));
}

template <int F> void group_row(const Weight& weight, int64_t id, float* out) {
    const uint8_t* panel = weight.panel(id / kPanel);
    float floats[kGroup * kPanel];
    for (int64_t from = 0; from < weight.k; from += kGroup, panel += group_bytes(F)) {
        write_floats<F>(panel, kGroup, floats);
        for (int64_t i = 0; i < std::min<int64_t>(kGroup, weight.k - from); i++) out[from + i] = floats[i * kPanel + id % kPanel];
    }
}

}  // namespace

void weight_row(const Weight& weight, int64_t id, float* out) {
    if (weight.format == kQ8) return group_row<kQ8>(weight, id, out);
    if (weight.format == kQ4) return group_row<kQ4>(weight, id, out);
    const Matrix panel{weight.panel(id / kPanel), 0, weight.format};
    for (int64_t i = 0; i < weight.k; i++) out[i] = panel.at(0, place_of(weight.format, i, id % kPanel));
}

}  // namespace trimtab

using namespace trimtab;

TRIMTAB_API int64_t trimtab_packed_bytes(const Weight* weight) { return weight->panels() * weight->panel_bytes(); }

// Asks for huge pages in memory that nothing has touched yet.
TRIMTAB_API void trimtab_prepare(void* memory, int64_t bytes) {
#if defined(__linux__)
    constexpr uintptr_t huge = 1 << 21;
    uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + huge - 1) / huge * huge;
    uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / huge * huge;
    if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// W [n, k] in rows `stride` apart, of format `from` (floats), into weight->data.
TRIMTAB_API void trimtab_pack(const Weight* weight, int32_t from, const void* source, int64_t stride) {
    uint8_t* target = const_cast<uint8_t*>(weight->data);
    const Matrix matrix{source, stride, from};
    parallel([&](Worker& worker) {
        worker.each(weight->panels(), [&](int64_t i) {
            uint8_t* panel = target + i * weight->panel_bytes();
            const int64_t first = i * kPanel;
            const int columns = static_cast<int>(std::min<int64_t>(kPanel, weight->n - first));
            if (weight->format == kQ8) pack_groups<Bytes>(matrix, *weight, first, columns, panel);
            else if (weight->format == kQ4) pack_groups<Nibbles>(matrix, *weight, first, columns, panel);
            else if (from == kFloat32) pack_floats<float>(matrix, *weight, first, columns, panel);
            else if (from == kFloat16) pack_floats<Half>(matrix, *weight, first, columns, panel);
            else pack_floats<Brain>(matrix, *weight, first, columns, panel);
        });
    });
}

// Whether W's numbers are the same in weight's format, q8 or q4.
TRIMTAB_API int32_t trimtab_holds(const Weight* weight, int32_t from, const void* source, int64_t stride) {
    const Matrix matrix{source, stride, from};
    std::atomic<bool> so_far{true};
    parallel([&](Worker& worker) {
        worker.each(weight->n, [&](int64_t row) {
            if (!so_far.load(std::memory_order_relaxed)) return;
            if (!(weight->format == kQ8 ? holds<Bytes>(matrix, row, weight->k) : holds<Nibbles>(matrix, row, weight->k)))
                so_far.store(false, std::memory_order_relaxed);
        });
    });
    return so_far;
}

TRIMTAB_API void trimtab_weight_rows(const Weight* weight, const int64_t* ids, int64_t count, float* out) {
    parallel([&](Worker& worker) {
        worker.each(count, [&](int64_t i) { weight_row(*weight, ids[i], out + i * weight->k); });
    });
}
