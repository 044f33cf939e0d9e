// Products of few and many rows with packed weights: the tiles, and who computes which.
#include "products.h"

#include "elementwise.h"
#include "groups.h"

#include <algorithm>
#include <type_traits>
#include <utility>

namespace trimtab {
namespace {

constexpr int kChunk = 128;           // of k, that are summed by themselves: a long sum loses less so
constexpr int kBlockK = 512;          // of k that a tile takes at a time where rows are many
constexpr int kBlockRows = 10 * kTileRows;
constexpr int kByteTileRows = kTileRows < 4 ? 2 : kTileRows * 2 / 3;
constexpr int64_t kFetchBytes = 1 << 17;  // a panel up to here is fetched whole while the one before is used

// Where sums start, what is fetched meanwhile.
struct Tile {
    const float* bias;  // or null
    bool more;          // go on from what out holds
    int columns;
    const uint8_t* fetch;
    int64_t fetch_step;     // bytes a step of k
    float* kept = nullptr;  // where the panel is left as floats, if Keeps
    int64_t chunk = kChunk;
};

TRIMTAB_INLINE void load_columns(const float* p, int columns, Vec& left, Vec& right) {
    if (columns == kPanel) {
        left = load(p);
        right = load(p + kLanes);
    } else {
        left = load_first(p, std::min(columns, kLanes));
        right = columns > kLanes ? load_first(p + kLanes, columns - kLanes) : Vec{};
    }
}

TRIMTAB_INLINE void store_columns(float* p, int columns, Vec left, Vec right) {
    if (columns == kPanel) {
        store(p, left);
        store(p + kLanes, right);
    } else {
        store_first(p, left, std::min(columns, kLanes));
        if (columns > kLanes) store_first(p + kLanes, right, columns - kLanes);
    }
}

// One load of a panel, kTogether of k. In bfloat16 two of them share a word, which two operations take apart.
template <class T> TRIMTAB_INLINE void load_panel(const T* p, Vec (&columns)[kTogether<T>][2]) {
    for (int side = 0; side < 2; side++) {
        if constexpr (std::is_same<T, Brain>::value) {
            const UIntVec both = load_words(p + side * 2 * kLanes);
            columns[0][side] = bit_cast<Vec>(both << 16);
            columns[1][side] = bit_cast<Vec>(both & 0xffff0000u);
        } else columns[0][side] = load(p + side * kLanes);
    }
}

template <int Rows> TRIMTAB_INLINE void start(Vec (&sums)[Rows][2], const float* out, int64_t out_stride, const Tile& tile) {
    if (tile.more) {
        for (int m = 0; m < Rows; m++) load_columns(out + m * out_stride, tile.columns, sums[m][0], sums[m][1]);
        return;
    }
    Vec left = {}, right = {};
    if (tile.bias) load_columns(tile.bias, tile.columns, left, right);
    for (int m = 0; m < Rows; m++) sums[m][0] = left, sums[m][1] = right;
}

template <class T, int Rows, bool Keeps>
void float_tile(const T* panel, int64_t k, const float* x, int64_t x_stride, float* out, int64_t out_stride, const Tile& tile) {
    Vec sums[Rows][2], total[Rows][2];
    start<Rows>(total, out, out_stride, tile);
    const uint8_t* fetch = tile.fetch;
    auto step = [&](int64_t i, int together) __attribute__((always_inline)) {
        for (int b = 0; b < kPanel * 2 * static_cast<int>(sizeof(T)); b += 64) {
            if (kTogether<T> == 2 || b < kPanel * static_cast<int>(sizeof(T))) __builtin_prefetch(fetch + b);
        }
        fetch += tile.fetch_step * kTogether<T>;
        Vec columns[kTogether<T>][2];
        load_panel(panel + i * kPanel, columns);
        for (int j = 0; j < together; j++) {
            if (Keeps) store_columns(tile.kept + (i + j) * kPanel, kPanel, columns[j][0], columns[j][1]);
#pragma GCC unroll 12
            for (int m = 0; m < Rows; m++) {
                Vec value = splat(x[m * x_stride + i + j]);
                sums[m][0] = fma(value, columns[j][0], sums[m][0]);
                sums[m][1] = fma(value, columns[j][1], sums[m][1]);
            }
        }
    };
    constexpr int some = kTogether<T>;
    for (int64_t i = 0; i < k;) {
        const int64_t end = std::min(k, i + tile.chunk);
        for (int m = 0; m < Rows; m++) sums[m][0] = sums[m][1] = Vec{};
        if (Rows <= 4)
            for (; i + 4 <= end; i += 4)
                for (int j = 0; j < 4; j += some) step(i + j, some);
        for (; i + some <= end; i += some) step(i, some);
        if (i < end) step(i, 1), i++;  // the first of a pair, at the end of an odd k
        for (int m = 0; m < Rows; m++) total[m][0] += sums[m][0], total[m][1] += sums[m][1];
    }
    for (int m = 0; m < Rows; m++) store_columns(out + m * out_stride, tile.columns, total[m][0], total[m][1]);
}

// The sums are those of the same numbers stored as floats, bit for bit.
template <int F, int Rows>
void group_tile(const uint8_t* panel, int64_t k, const float* x, int64_t x_stride, float* out, int64_t out_stride, const Tile& tile) {
    Vec sums[Rows][2], total[Rows][2];
    start<Rows>(total, out, out_stride, tile);
    const uint8_t* fetch = tile.fetch;
    for (int64_t i = 0; i < k;) {
        const int64_t end = std::min(k, i + kChunk);
        for (int m = 0; m < Rows; m++) sums[m][0] = sums[m][1] = Vec{};
        for (; i < end; i += kGroup, panel += group_bytes(F), fetch += tile.fetch_step) {
            for (int b = 0; b < group_bytes(F); b += 64) __builtin_prefetch(fetch + b);
            each_number<F>(panel, std::min<int64_t>(kGroup, end - i), [&](int place, Vec left, Vec right) __attribute__((always_inline)) {
                for (int m = 0; m < Rows; m++) {
                    const Vec value = splat(x[m * x_stride + i + place]);
                    sums[m][0] = fma(value, left, sums[m][0]);
                    sums[m][1] = fma(value, right, sums[m][1]);
                }
            });
        }
        for (int m = 0; m < Rows; m++) total[m][0] += sums[m][0], total[m][1] += sums[m][1];
    }
    for (int m = 0; m < Rows; m++) store_columns(out + m * out_stride, tile.columns, total[m][0], total[m][1]);
}

template <int F, int Rows>
void byte_tile(const uint8_t* panel, int64_t groups, const Quantised& x, float* out, int64_t out_stride, const Tile& tile) {
    Vec sums[Rows][2];
    start<Rows>(sums, out, out_stride, tile);
    const uint8_t* fetch = tile.fetch;
    for (int64_t g = 0; g < groups; g++, panel += group_bytes(F), fetch += tile.fetch_step) {
        for (int b = 0; b < group_bytes(F); b += 64) __builtin_prefetch(fetch + b);
        IntVec whole[Rows][2];
        for (int m = 0; m < Rows; m++)
            whole[m][0] = whole[m][1] = (F == kQ8 ? -kByteOffset * x.sum[m * groups + g] : 0) - IntVec{};
#pragma GCC unroll 8
        for (int i = 0; i < kGroup / 4; i++) {
            const UIntVec left = four_bytes<F>(panel, i, 0), right = four_bytes<F>(panel, i, 1);
#pragma GCC unroll 8
            for (int m = 0; m < Rows; m++) {
                int32_t four;
                std::memcpy(&four, x.bytes + (m * groups + g) * kGroup + i * 4, 4);
                whole[m][0] = dot4(whole[m][0], left, four);
                whole[m][1] = dot4(whole[m][1], right, four);
            }
        }
        const GroupScales<F> scales(panel);
        for (int m = 0; m < Rows; m++) {
            const float scale = x.scale[m * groups + g], sum = scale * static_cast<float>(x.sum[m * groups + g]);
            for (int side = 0; side < 2; side++) {
                sums[m][side] = fused(__builtin_convertvector(whole[m][side], Vec), splat(scale) * scales.step[side], sums[m][side]);
                if (F == kQ4) sums[m][side] = fused(splat(sum), scales.least[side], sums[m][side]);
            }
        }
    }
    for (int m = 0; m < Rows; m++) store_columns(out + m * out_stride, tile.columns, sums[m][0], sums[m][1]);
}

template <int Rows>
TRIMTAB_PAIRS void brain_tile(const uint8_t* panel, int64_t pairs, const Brain* x, int64_t x_stride, float* out, int64_t out_stride, const Tile& tile) {
    Vec sums[Rows][2];
    start<Rows>(sums, out, out_stride, tile);
    const uint8_t* fetch = tile.fetch;
    for (int64_t i = 0; i < pairs; i++, panel += kPanel * 4, fetch += tile.fetch_step) {
        for (int b = 0; b < kPanel * 4; b += 64) __builtin_prefetch(fetch + b);
        const UIntVec left = load_words(panel), right = load_words(panel + kLanes * 4);
#pragma GCC unroll 12
        for (int m = 0; m < Rows; m++) {
            const uint32_t pair = pair_at(x + m * x_stride + i * 2);
            sums[m][0] = dot2(sums[m][0], left, pair);
            sums[m][1] = dot2(sums[m][1], right, pair);
        }
    }
    for (int m = 0; m < Rows; m++) store_columns(out + m * out_stride, tile.columns, sums[m][0], sums[m][1]);
}

template <class T> using FloatTile = void (*)(const T*, int64_t, const float*, int64_t, float*, int64_t, const Tile&);
using ByteTile = void (*)(const uint8_t*, int64_t, const Quantised&, float*, int64_t, const Tile&);
using GroupTile = void (*)(const uint8_t*, int64_t, const float*, int64_t, float*, int64_t, const Tile&);
using BrainTile = void (*)(const uint8_t*, int64_t, const Brain*, int64_t, float*, int64_t, const Tile&);

template <class T, bool Keeps, int... I> FloatTile<T> float_tile_of(int rows, std::integer_sequence<int, I...>) {
    static constexpr FloatTile<T> tiles[] = {float_tile<T, I + 1, Keeps>...};
    return tiles[rows - 1];
}

template <class T, bool Keeps = false> FloatTile<T> float_tile_of(int rows) {
    return float_tile_of<T, Keeps>(rows, std::make_integer_sequence<int, kTileRows>());
}

template <int F, int... I> ByteTile byte_tile_of(int rows, std::integer_sequence<int, I...>) {
    static constexpr ByteTile tiles[] = {byte_tile<F, I + 1>...};
    return tiles[rows - 1];
}

template <int F, int... I> GroupTile group_tile_of(int rows, std::integer_sequence<int, I...>) {
    static constexpr GroupTile tiles[] = {group_tile<F, I + 1>...};
    return tiles[rows - 1];
}

template <int F> GroupTile group_tile_of(int rows) { return group_tile_of<F>(rows, std::make_integer_sequence<int, kTileRows>()); }

template <int... I> BrainTile brain_tile_of(int rows, std::integer_sequence<int, I...>) {
    static constexpr BrainTile tiles[] = {brain_tile<I + 1>...};
    return tiles[rows - 1];
}

BrainTile brain_tile_of(int rows) { return brain_tile_of(rows, std::make_integer_sequence<int, kTileRows>()); }

// Rows in tiles of nearly the same height: f(first, count, tile's number, how many).
template <class F> void each_tile(int64_t rows, int height, F&& f) {
    int64_t tiles = (rows + height - 1) / height;
    for (int64_t t = 0; t < tiles; t++) f(rows * t / tiles, static_cast<int>(rows * (t + 1) / tiles - rows * t / tiles), t, tiles);
}

struct Product {
    const Weight& weight;
    const float* x;
    int64_t x_stride, rows;
    float* out;
    int64_t out_stride;
    const float* bias;

    const float* bias_of(int64_t panel) const { return bias ? bias + panel * kPanel : nullptr; }
    int columns_of(int64_t panel) const { return static_cast<int>(std::min<int64_t>(kPanel, weight.n - panel * kPanel)); }
};

// What is fetched while a panel is used: the one that this worker takes next, or its own farther on.
const uint8_t* fetched(const Weight& weight, int64_t panel, int64_t next) {
    if (weight.panel_bytes() > kFetchBytes) return weight.panel(panel) + kAhead;
    return weight.panel(next < weight.panels() ? next : panel);
}

template <int F> using Number = std::conditional_t<F == kFloat32, float, std::conditional_t<F == kFloat16, Half, Brain>>;

// Few rows: panels as they are stored.
template <int F> void direct_panel(const Product& p, int64_t panel, int64_t next) {
    const uint8_t *data = p.weight.panel(panel), *ahead = fetched(p.weight, panel, next);
    float* out = p.out + panel * kPanel;
    const int rows = static_cast<int>(p.rows);
    if constexpr (kIsGrouped<F>) {
        const Tile tile{p.bias_of(panel), false, p.columns_of(panel), ahead, group_bytes(F)};
        group_tile_of<F>(rows)(data, p.weight.k, p.x, p.x_stride, out, p.out_stride, tile);
    } else {
        using T = Number<F>;
        const Tile tile{p.bias_of(panel), false, p.columns_of(panel), ahead, kPanel * sizeof(T)};
        float_tile_of<T>(rows)(reinterpret_cast<const T*>(data), p.weight.k, p.x, p.x_stride, out, p.out_stride, tile);
    }
}

// Many rows: a few panels, some of k at a time. They become floats, which stay in a cache while the rows pass by:
// groups before, other numbers as the first rows use them, while the second rows fetch what comes after.
template <int F> void blocked_panels(const Product& p, int64_t panel, int count, int64_t first_row, int64_t rows) {
    static thread_local Buffer memory;
    constexpr bool keeps = F != kFloat32 && !kIsGrouped<F>;
    float* floats = memory.get<float>(static_cast<int64_t>(count) * kBlockK * kPanel);
    const int64_t some = kIsGrouped<F> && rows <= kBlockRows / 2 ? kChunk : kBlockK;  // the first cache holds a chunk
    for (int64_t from = 0; from < p.weight.k; from += some) {
        int64_t depth = std::min<int64_t>(some, p.weight.k - from);
        if constexpr (kIsGrouped<F>) {
            for (int i = 0; i < count; i++) {
                const uint8_t* groups = p.weight.panel(panel + i) + from / kGroup * group_bytes(F);
                write_floats<F>(groups, depth, floats + static_cast<int64_t>(i) * kBlockK * kPanel);
            }
        }
        each_tile(rows, kTileRows, [&](int64_t first, int height, int64_t t, int64_t) {
            first += first_row;
            const float* x = p.x + first * p.x_stride + from;
            for (int i = 0; i < count; i++) {
                float* kept = floats + static_cast<int64_t>(i) * kBlockK * kPanel;
                float* out = p.out + first * p.out_stride + (panel + i) * kPanel;
                Tile tile{p.bias_of(panel + i), from > 0, p.columns_of(panel + i), reinterpret_cast<const uint8_t*>(kept), 0, kept};
                if constexpr (!kIsGrouped<F>) {
                    using T = Number<F>;
                    const T* stored = reinterpret_cast<const T*>(p.weight.panel(panel + i)) + from * kPanel;
                    tile.fetch = reinterpret_cast<const uint8_t*>(t == 1 ? stored + depth * kPanel : stored);
                    tile.fetch_step = t < 2 ? kPanel * sizeof(T) : 0;
                    if (!keeps || t == 0) {
                        float_tile_of<T, keeps>(height)(stored, depth, x, p.x_stride, out, p.out_stride, tile);
                        continue;
                    }
                }
                float_tile_of<float>(height)(kept, depth, x, p.x_stride, out, p.out_stride, tile);
            }
        });
    }
}

template <int F> void float_product(Worker& worker, const Product& p) {
    const int64_t panels = p.weight.panels();
    if (p.rows <= kTileRows) {
        worker.each_ahead(panels, [&](int64_t panel, int64_t next) { direct_panel<F>(p, panel, next); });
        return;
    }
    int64_t blocks = (p.rows + kBlockRows - 1) / kBlockRows;
    int some = panels * blocks >= 32 * worker.size ? 4 : panels * blocks >= 16 * worker.size ? 2 : 1;
    if (blocks == 1) some = 1;
    worker.each((panels + some - 1) / some * blocks, [&](int64_t item) {
        int64_t panel = item / blocks * some, block = item % blocks;
        int64_t first = p.rows * block / blocks, last = p.rows * (block + 1) / blocks;
        blocked_panels<F>(p, panel, static_cast<int>(std::min<int64_t>(some, panels - panel)), first, last - first);
    });
}

void quantise_row(const float* x, int64_t k, int64_t row, const Quantised& q) {
    int64_t groups = (k + kGroup - 1) / kGroup;
    for (int64_t g = 0; g < groups; g++) {
        float last[kGroup] = {};
        const float* values = x + g * kGroup;
        if (k - g * kGroup < kGroup) values = static_cast<float*>(std::memcpy(last, values, sizeof(float) * (k - g * kGroup)));
        Vec most = {}, poison = {};
        for (int i = 0; i < kGroup; i += kLanes) {
            Vec v = load(values + i);
            most = max(most, max(v, -v));
            poison += v * 0.0f;  // NaN where a number is not finite
        }
        float scale = largest(most) / 127.0f;
        float inverse = scale > 0 ? 1.0f / scale : 0.0f;
        IntVec total = {};
        for (int i = 0; i < kGroup; i += kLanes) {
            const Vec v = min(splat(127.0f), max(splat(-127.0f), load(values + i) * inverse));
            const IntVec whole = bit_cast<IntVec>(v + 12582912.0f) - 0x4b400000;
            store_bytes(q.bytes + (row * groups + g) * kGroup + i, whole);
            total += whole;
        }
        q.scale[row * groups + g] = scale + sum(poison);
        q.sum[row * groups + g] = sum(total);
    }
}

// Products of what is narrowed first: where rows are few, by every worker that takes an item, for itself.
// narrow(room, row) narrows a row; multiply(room, panel, first row, rows, out, tile) does a tile of at most `height`
// rows, in so many steps along a panel.
constexpr int64_t kAloneRows = 4;

template <class Narrow, class Multiply>
void narrowed_product(Worker& worker, const Product& p, void* shared, int height, int64_t steps, Narrow&& narrow, Multiply&& multiply) {
    static thread_local Buffer memory;
    const bool alone = p.rows <= kAloneRows;
    void* room = alone ? memory.get<char>(narrowed_room(p.rows, p.weight.k)) : shared;
    if (!alone) worker.each(p.rows, [&](int64_t row) { narrow(room, row); });
    bool is_narrowed = !alone;
    const int64_t blocks = (p.rows + kBlockRows - 1) / kBlockRows;
    worker.each_ahead(p.weight.panels() * blocks, [&](int64_t item, int64_t next) {
        if (!is_narrowed)
            for (int64_t row = 0; row < p.rows; row++) narrow(room, row);
        is_narrowed = true;
        const int64_t panel = item / blocks, block = item % blocks;
        const int64_t first_row = p.rows * block / blocks, rows = p.rows * (block + 1) / blocks - first_row;
        const uint8_t* fetch = fetched(p.weight, panel, next / blocks);
        each_tile(rows, height, [&](int64_t first, int count, int64_t t, int64_t tiles) {
            first += first_row;
            const int64_t step = p.weight.panel_bytes() / steps / tiles;  // fetched meanwhile: each tile its share
            const Tile tile{p.bias_of(panel), false, p.columns_of(panel), fetch + t * step * steps, step};
            multiply(room, p.weight.panel(panel), first, count, p.out + first * p.out_stride + panel * kPanel, tile);
        });
    });
}

template <int F> void byte_product(Worker& worker, const Product& p, void* shared) {
    const int64_t k = p.weight.k, groups = p.weight.groups();
    narrowed_product(
        worker, p, shared, kByteTileRows, groups,
        [&](void* room, int64_t row) { quantise_row(p.x + row * p.x_stride, k, row, Quantised::in(room, p.rows, k)); },
        [&](void* room, const uint8_t* panel, int64_t first, int count, float* out, const Tile& tile) {
            Quantised q = Quantised::in(room, p.rows, k);
            Quantised part{q.bytes + first * groups * kGroup, q.scale + first * groups, q.sum + first * groups};
            byte_tile_of<F>(count, std::make_integer_sequence<int, kByteTileRows>())(panel, groups, part, out, p.out_stride, tile);
        });
}

void brain_product(Worker& worker, const Product& p, void* shared) {
    const int64_t k = p.weight.k, pairs = (k + 1) / 2;
    narrowed_product(
        worker, p, shared, kTileRows, pairs,
        [&](void* room, int64_t row) {
            Brain* to = static_cast<Brain*>(room) + row * pairs * 2;
            narrow(p.x + row * p.x_stride, k, to);
            if (k % 2) to[k] = Brain{0};
        },
        [&](void* room, const uint8_t* panel, int64_t first, int count, float* out, const Tile& tile) {
            const Brain* x = static_cast<const Brain*>(room) + first * pairs * 2;
            brain_tile_of(count)(panel, pairs, x, pairs * 2, out, p.out_stride, tile);
        });
}

}  // namespace

bool multiplies_bfloat16() {
#if defined(__AVX512F__)
    return __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

int64_t narrowed_room(int64_t rows, int64_t k) {
    int64_t groups = (k + kGroup - 1) / kGroup, pairs = (k + 1) / 2;
    return rows * std::max<int64_t>(groups * (kGroup + 8), pairs * 4);
}

Quantised Quantised::in(void* memory, int64_t rows, int64_t k) {
    int64_t groups = (k + kGroup - 1) / kGroup;
    int8_t* bytes = static_cast<int8_t*>(memory);
    float* scale = reinterpret_cast<float*>(bytes + rows * groups * kGroup);
    return {bytes, scale, reinterpret_cast<int32_t*>(scale + rows * groups)};
}

void product(Worker& worker, const Weight& weight, const float* x, int64_t x_stride, int64_t rows, float* out,
             int64_t out_stride, const float* bias, void* shared) {
    if (!rows) return;
    Product p{weight, x, x_stride, rows, out, out_stride, bias};
    switch (weight.format) {
        case kFloat32: return float_product<kFloat32>(worker, p);
        case kFloat16: return float_product<kFloat16>(worker, p);
        case kBFloat16: return weight.rounds ? brain_product(worker, p, shared) : float_product<kBFloat16>(worker, p);
        case kQ8: return weight.rounds ? byte_product<kQ8>(worker, p, shared) : float_product<kQ8>(worker, p);
        case kQ4: return weight.rounds ? byte_product<kQ4>(worker, p, shared) : float_product<kQ4>(worker, p);
    }
}

void tile_product(const float* panel, int64_t k, const float* x, int64_t x_stride, int rows, float* out,
                  int64_t out_stride, int columns, bool more) {
    Tile tile{nullptr, more, columns, reinterpret_cast<const uint8_t*>(panel), 0, nullptr, k};
    float_tile_of<float>(rows)(panel, k, x, x_stride, out, out_stride, tile);
}

void pair_product(const uint32_t* panel, int64_t pairs, const Brain* x, int64_t x_stride, int rows, float* out, int64_t out_stride) {
    const uint8_t* data = reinterpret_cast<const uint8_t*>(panel);
    brain_tile_of(rows)(data, pairs, x, x_stride, out, out_stride, Tile{nullptr, false, kPanel, data, 0});
}

}  // namespace trimtab

using namespace trimtab;

TRIMTAB_API int trimtab_multiplies_bfloat16() { return multiplies_bfloat16(); }

TRIMTAB_API void trimtab_product(const Weight* weight, const float* x, int64_t x_stride, int64_t rows, float* out,
                                 int64_t out_stride) {
    Buffer copied, narrowed;
    const int64_t k = weight->k;
    const float* from = x;
    int64_t stride = x_stride;
    if (rows > 1 && !weight->rounds && x_stride % 256 == 0) {  // rows would share lines of the cache
        stride = row_stride(k);
        float* copy = copied.get<float>(rows * stride);
        for (int64_t i = 0; i < rows; i++) std::memcpy(copy + i * stride, x + i * x_stride, k * sizeof(float));
        from = copy;
    }
    void* shared = weight->rounds ? narrowed.get<char>(narrowed_room(rows, k)) : nullptr;
    parallel([&](Worker& worker) { product(worker, *weight, from, stride, rows, out, out_stride, nullptr, shared); });
}

// out [rows, V] = weights[row] · up φ(down h); 0 where a row's weight is.
TRIMTAB_API void trimtab_adapter(const Weight* down, const Weight* up, int32_t silu, const float* h, int64_t h_stride,
                                 int64_t rows, const float* weights, int64_t weights_stride, float* out, int64_t out_stride) {
    static thread_local Buffer memory, narrowed;
    const int64_t rank = down->n, stride = row_stride(rank);
    float* inner = memory.get<float>(rows * stride);
    void* shared = narrowed.get<char>(narrowed_room(rows, std::max(down->k, rank)));
    parallel([&](Worker& worker) {
        product(worker, *down, h, h_stride, rows, inner, stride, nullptr, shared);
        worker.each(rows, [&](int64_t row) {
            float* x = inner + row * stride;
            const float weight = weights[row * weights_stride];
            in_vectors(rank, [&](int64_t i, int n) {
                Vec value = load_some(x + i, n);
                if (silu) value = activate(value, kSilu);
                store_some(x + i, weight == 0 ? Vec{} : value * weight, n);
            });
        });
        product(worker, *up, inner, stride, rows, out, out_stride, nullptr, shared);
    });
}
