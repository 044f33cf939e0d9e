// Attention over paged keys and values: parts of keys, gathered for many queries and read in place for one.
#include "attention.h"

#include <algorithm>

namespace trimtab {
namespace {

constexpr int kQueryRows = 96;  // queries × heads of a group that share what is gathered
constexpr int kScoreStride = kPart + 16;

// What a part of the keys gives for one query: the largest score, Σ e^{score−m} and Σ e^{score−m} v.
struct Softmax {
    float most, total;
};

struct Span {
    int begin, end;  // places in a part
};

Span visible(int64_t position, int64_t window, int64_t part) {
    int64_t from = part * kPart, oldest = window ? std::max<int64_t>(0, position - window + 1) : 0;
    int begin = static_cast<int>(std::min<int64_t>(kPart, std::max<int64_t>(0, oldest - from)));
    int end = static_cast<int>(std::min<int64_t>(kPart, std::max<int64_t>(0, position + 1 - from)));
    return {begin, std::max(begin, end)};
}

int round_up(int64_t n, int step) { return static_cast<int>((n + step - 1) / step * step); }

// Two numbers of bfloat16.
struct Pair {
    uint32_t bits;
};

template <class T> constexpr int kEach = std::is_same<T, Pair>::value ? 2 : 1;  // numbers in a T

// One step's keys and values of one layer, as a row and a group of heads find them.
template <class T> struct Cache {
    const T *keys, *values;
    const AttentionShape& shape;
    const int64_t* table;
    int64_t head;

    int64_t block(int64_t place) const { return table[place / shape.block_size] * shape.kv_heads + head; }
    // First of the dims, block_size apart, of the key at `place`.
    const T* key(int64_t place) const { return keys + block(place) * (shape.dim / kEach<T>) * shape.block_size + place % shape.block_size; }
    const T* value(int64_t place) const { return values + (block(place) * shape.block_size + place % shape.block_size) / kEach<T> * shape.dim; }
    bool whole_groups() const { return shape.block_size % kLanes == 0; }
};

// Scores of one part to weights e^{s−m}, in place: exactly 0 outside the span, up to `padded`.
__attribute__((noinline)) Softmax softmax(float* scores, Span span, int padded, float softcap) {
    IntVec lane;
    for (int i = 0; i < kLanes; i++) lane[i] = i;
    if (span.begin == span.end) {
        std::fill(scores, scores + padded, 0.0f);
        return {-INFINITY, 0.0f};
    }
    const int first = span.begin / kLanes * kLanes, last = round_up(span.end, kLanes);
    auto inside = [&](int i) { return (lane + i >= span.begin) & (lane + i < span.end); };
    Vec most = splat(-INFINITY);
    for (int i = first; i < last; i += kLanes) {
        Vec s = load(scores + i);
        if (softcap > 0) s = softcap * tanh(s / softcap);
        s = select(inside(i), s, splat(-INFINITY));
        store(scores + i, s);
        most = max(most, s);
    }
    const float m = largest(most);
    Vec total = {};
    for (int i = first; i < last; i += kLanes) {
        Vec weight = exp_of(load(scores + i) - m);
        weight = select(inside(i), weight, Vec{});
        store(scores + i, weight);
        total += weight;
    }
    std::fill(scores, scores + std::min(first, padded), 0.0f);
    std::fill(scores + std::min(last, padded), scores + padded, 0.0f);
    return {m, sum(total)};
}

// Adds a part to what the parts before it gave. values, more: [dim].
__attribute__((noinline)) void merge(Softmax& all, float* values, const Softmax& part, const float* more, int64_t dim) {
    if (part.total == 0.0f) return;  // nothing of it was seen
    if (all.total == 0.0f) {
        all = part;
        std::copy(more, more + dim, values);
        return;
    }
    float most = std::max(all.most, part.most);
    float old_scale = exp(splat(all.most - most))[0], new_scale = exp(splat(part.most - most))[0];
    all = {most, all.total * old_scale + part.total * new_scale};
    for (int64_t i = 0; i < dim; i++) values[i] = values[i] * old_scale + more[i] * new_scale;
}

void finish(const Softmax& all, const float* values, int64_t dim, float* out) {
    float inverse = 1.0f / all.total;
    for (int64_t i = 0; i < dim; i++) out[i] = values[i] * inverse;
}

// One query of each of Heads heads, keys read where they lie: scores of `span`.
template <class T, int Heads>
void score_in_place(const Cache<T>& cache, const float* queries, int64_t stride, int64_t part, Span span, float* scores) {
    const int64_t dim = cache.shape.dim, step = cache.shape.block_size;
    constexpr int some = 4;  // groups of places at a time
    for (int i = span.begin / kLanes * kLanes; i < span.end; i += some * kLanes) {
        const T *keys[some], *after[some];  // after: fetched meanwhile
        for (int g = 0; g < some; g++) {
            const int place = i + g * kLanes, later = place + some * kLanes;
            keys[g] = cache.key(part * kPart + (place < span.end ? place : i));
            after[g] = later < span.end ? cache.key(part * kPart + later) : keys[g];
        }
        Vec sums[Heads][some] = {};
        for (int64_t d = 0; d < dim; d++) {
            Vec key[some];
            for (int g = 0; g < some; g++) {
                key[g] = load(keys[g] + d * step);
                __builtin_prefetch(after[g] + d * step);
            }
            for (int h = 0; h < Heads; h++)
                for (int g = 0; g < some; g++) sums[h][g] = fma(splat(queries[h * stride + d]), key[g], sums[h][g]);
        }
        for (int h = 0; h < Heads; h++)
            for (int g = 0; g < some && i + g * kLanes < span.end; g++) store(scores + h * kScoreStride + i + g * kLanes, sums[h][g]);
    }
}

template <class T, int Heads, int Vectors>
void weigh_in_place(const Cache<T>& cache, const float* weights, int64_t part, Span span, int64_t dim_first, float* out) {
    Vec sums[Heads][Vectors] = {};
    const int64_t step = cache.shape.block_size, dim = cache.shape.dim;
    for (int i = span.begin; i < span.end;) {
        const int64_t place = part * kPart + i;
        const int end = static_cast<int>(std::min<int64_t>(span.end, i + step - place % step));
        const T* value = cache.value(place) + dim_first;
        const T* after = end < span.end ? cache.value(part * kPart + end) + dim_first : value;
        for (; i < end; i++, value += dim, after += dim)
            for (int v = 0; v < Vectors; v++) {
                Vec one = load(value + v * kLanes);
                __builtin_prefetch(after + v * kLanes);
                for (int h = 0; h < Heads; h++) sums[h][v] = fma(splat(weights[h * kScoreStride + i]), one, sums[h][v]);
            }
    }
    for (int h = 0; h < Heads; h++)
        for (int v = 0; v < Vectors; v++) store(out + h * dim + dim_first + v * kLanes, sums[h][v]);
}

template <class T, int Heads>
void part_in_place(const Cache<T>& cache, const float* queries, int64_t part, Span span, float* scores, Softmax* found, float* out) {
    const int64_t dim = cache.shape.dim;
    score_in_place<T, Heads>(cache, queries, dim, part, span, scores);
    for (int h = 0; h < Heads; h++) found[h] = softmax(scores + h * kScoreStride, span, 0, cache.shape.softcap);
    int64_t first = 0;
    for (; first + 4 * kLanes <= dim; first += 4 * kLanes) weigh_in_place<T, Heads, 4>(cache, scores, part, span, first, out);
    for (; first < dim; first += kLanes) weigh_in_place<T, Heads, 1>(cache, scores, part, span, first, out);
}

// The same of pairs: queries [Heads, dim], weights [Heads, kScoreStride].
template <int Heads>
TRIMTAB_PAIRS void score_pairs(const Cache<Pair>& cache, const Brain* queries, int64_t part, Span span, float* scores) {
    const int64_t dim = cache.shape.dim, step = cache.shape.block_size;
    constexpr int some = 4;
    for (int i = span.begin / kLanes * kLanes; i < span.end; i += some * kLanes) {
        const Pair *keys[some], *after[some];
        for (int g = 0; g < some; g++) {
            const int place = i + g * kLanes, later = place + some * kLanes;
            keys[g] = cache.key(part * kPart + (place < span.end ? place : i));
            after[g] = later < span.end ? cache.key(part * kPart + later) : keys[g];
        }
        Vec sums[Heads][some] = {};
        for (int64_t d = 0; d < dim / 2; d++) {
            UIntVec key[some];
            for (int g = 0; g < some; g++) {
                key[g] = load_words(keys[g] + d * step);
                __builtin_prefetch(after[g] + d * step);
            }
            for (int h = 0; h < Heads; h++)
                for (int g = 0; g < some; g++) sums[h][g] = dot2(sums[h][g], key[g], pair_at(queries + h * dim + d * 2));
        }
        for (int h = 0; h < Heads; h++)
            for (int g = 0; g < some && i + g * kLanes < span.end; g++) store(scores + h * kScoreStride + i + g * kLanes, sums[h][g]);
    }
}

// What of the pair at `place` lies in the span: the rest may be NaN.
uint32_t seen_of_pair(int place, Span span) {
    return (place >= span.begin && place < span.end ? 0xffffu : 0u) | (place + 1 >= span.begin && place + 1 < span.end ? 0xffff0000u : 0u);
}

template <int Heads, int Vectors>
TRIMTAB_PAIRS void weigh_pairs(const Cache<Pair>& cache, const Brain* weights, int64_t part, Span span, int64_t dim_first, float* out) {
    Vec sums[Heads][Vectors] = {};
    const int64_t step = cache.shape.block_size, dim = cache.shape.dim;
    for (int i = span.begin / 2 * 2; i < span.end;) {
        const int64_t place = part * kPart + i;
        const int end = static_cast<int>(std::min<int64_t>(span.end, i + step - place % step));
        const Pair* value = cache.value(place) + dim_first;
        const Pair* after = end < span.end ? cache.value(part * kPart + end) + dim_first : value;
        for (; i < end; i += 2, value += dim, after += dim) {
            const uint32_t seen = seen_of_pair(i, span);
            for (int v = 0; v < Vectors; v++) {
                const UIntVec pair = load_words(value + v * kLanes) & seen;
                __builtin_prefetch(after + v * kLanes);
                for (int h = 0; h < Heads; h++) sums[h][v] = dot2(sums[h][v], pair, pair_at(weights + h * kScoreStride + i));
            }
        }
    }
    for (int h = 0; h < Heads; h++)
        for (int v = 0; v < Vectors; v++) store(out + h * dim + dim_first + v * kLanes, sums[h][v]);
}

// queries: [Heads, dim], narrow; weights: room for them.
template <int Heads>
void part_in_place(const Cache<Pair>& cache, const Brain* queries, int64_t part, Span span, float* scores, Brain* weights, Softmax* found, float* out) {
    const int64_t dim = cache.shape.dim;
    score_pairs<Heads>(cache, queries, part, span, scores);
    const int padded = round_up(span.end, kLanes);
    for (int h = 0; h < Heads; h++) {
        found[h] = softmax(scores + h * kScoreStride, span, padded, cache.shape.softcap);
        narrow(scores + h * kScoreStride, padded, weights + h * kScoreStride);
    }
    for (int64_t first = 0; first < dim; first += 2 * kLanes) weigh_pairs<Heads, 2>(cache, weights, part, span, first, out);
}

// Keys of places begin … end−1 of a part as panels [places/kPanel, dim, kPanel]; what no one sees is anything.
template <class T> void gather_keys(const Cache<T>& cache, int64_t part, Span span, float* panels) {
    const int64_t dim = cache.shape.dim, step = cache.shape.block_size, from = part * kPart;
    auto target = [&](int place) { return panels + place / kPanel * kPanel * dim + place % kPanel; };
    const int last = round_up(span.end, kPanel);
    for (int i = span.begin / kPanel * kPanel; i < last; i += kLanes) {
        float* to = target(i);
        if (i >= span.end || i + kLanes <= span.begin)
            for (int64_t d = 0; d < dim; d++) store(to + d * kPanel, Vec{});
        else if (cache.whole_groups()) {
            const T* key = cache.key(from + i);
            for (int64_t d = 0; d < dim; d++) store(to + d * kPanel, load(key + d * step));
        } else
            for (int lane = 0; lane < kLanes; lane++) {
                const bool seen = i + lane >= span.begin && i + lane < span.end;
                const T* key = seen ? cache.key(from + i + lane) : nullptr;
                for (int64_t d = 0; d < dim; d++) to[d * kPanel + lane] = seen ? to_float(key[d * step]) : 0.0f;
            }
    }
}

// Values as panels [dim/kPanel, kPart, kPanel]; 0 where no one sees them, for 0·NaN is no 0.
template <class T> void gather_values(const Cache<T>& cache, int64_t part, Span span, float* panels) {
    const int64_t dim = cache.shape.dim;
    for (int i = 0; i < span.end; i++) {
        const T* value = i < span.begin ? nullptr : cache.value(part * kPart + i);
        for (int64_t d = 0; d < dim; d += kLanes) {
            float* to = panels + d / kPanel * kPanel * kPart + i * kPanel + d % kPanel;
            if (!value) store(to, Vec{});
            else if (d + kLanes <= dim) store(to, load(value + d));
            else for (int lane = 0; lane < kLanes; lane++) to[lane] = d + lane < dim ? to_float(value[d + lane]) : 0.0f;
        }
    }
}

// The same of pairs: keys as [places/kPanel, dim/2, kPanel], values as [dim/kPanel, kPart/2, kPanel].
void gather_keys(const Cache<Pair>& cache, int64_t part, Span span, uint32_t* panels) {
    const int64_t half = cache.shape.dim / 2, step = cache.shape.block_size, from = part * kPart;
    const int last = round_up(span.end, kPanel);
    for (int i = span.begin / kPanel * kPanel; i < last; i += kLanes) {
        uint32_t* to = panels + i / kPanel * kPanel * half + i % kPanel;
        const bool is_seen = i < span.end && i + kLanes > span.begin;
        const Pair* key = is_seen ? cache.key(from + i) : nullptr;
        for (int64_t d = 0; d < half; d++) {
            const UIntVec words = is_seen ? load_words(key + d * step) : UIntVec{};
            std::memcpy(to + d * kPanel, &words, sizeof words);
        }
    }
}

void gather_values(const Cache<Pair>& cache, int64_t part, Span span, uint32_t* panels) {
    const int64_t dim = cache.shape.dim;
    for (int i = 0; i < span.end; i += 2) {
        const uint32_t seen = seen_of_pair(i, span);
        const Pair* value = seen ? cache.value(part * kPart + i) : nullptr;
        for (int64_t d = 0; d < dim; d += kLanes) {
            const UIntVec words = seen ? load_words(value + d) & seen : UIntVec{};
            std::memcpy(panels + d / kPanel * kPanel * (kPart / 2) + i / 2 * kPanel + d % kPanel, &words, sizeof words);
        }
    }
}

template <class F> void in_tiles(int rows, F&& f) {
    for (int first = 0; first < rows; first += kTileRows) f(first, std::min(kTileRows, rows - first));
}

// Work space of a thread.
struct Space {
    Buffer memory;
    float *queries, *keys, *values, *scores, *part, *all;
    Brain *narrow_queries, *narrow_weights;
    Softmax *part_found, *all_found;

    void make(int64_t rows, int64_t dim) {
        const int64_t padded = round_up(dim, kPanel), stride = row_stride(dim);
        const int64_t counts[] = {rows * stride, padded * kPart, padded * kPart, rows * kScoreStride, rows * dim, rows * dim, rows * 2, rows * 2, rows * round_up(dim, 2) / 2, rows * kScoreStride / 2};
        int64_t all_counts = 0;
        for (int64_t count : counts) all_counts += round_up(count, 16);
        float* at = memory.get<float>(all_counts);
        float** const places[] = {&queries, &keys, &values, &scores, &part, &all};
        for (int i = 0; i < 6; i++) *places[i] = at, at += round_up(counts[i], 16);
        part_found = reinterpret_cast<Softmax*>(at);
        all_found = reinterpret_cast<Softmax*>(at += round_up(counts[6], 16));
        narrow_queries = reinterpret_cast<Brain*>(at += round_up(counts[7], 16));
        narrow_weights = reinterpret_cast<Brain*>(at + round_up(counts[8], 16));
    }
};

thread_local Space space;

}  // namespace

void AttentionPlan::add(const AttentionShape& shape, const Packed& packed, int64_t row, int64_t first, int64_t count, int64_t place) {
    int64_t newest = 0, oldest = INT64_MAX;
    for (int64_t i = first; i < first + count; i++) {
        newest = std::max(newest, packed.positions[i]);
        oldest = std::min(oldest, shape.window ? std::max<int64_t>(0, packed.positions[i] - shape.window + 1) : 0);
    }
    const int64_t part = oldest / kPart, end = newest / kPart + 1;
    if (count > 1 || end - part == 1) {
        items_.push_back({row, first, count, place, part, end, -1, 0, 0, 0});
        return;
    }
    for (int64_t i = part; i < end; i++) items_.push_back({row, first, 1, place, i, i + 1, splits_, slots_ + i - part, part, end});
    splits_++;
    slots_ += end - part;
}

void AttentionPlan::make(const AttentionShape& shape, const Packed& packed, const int64_t* tokens, int64_t count) {
    items_.clear();
    splits_ = slots_ = 0;
    const int64_t some = std::max<int64_t>(1, kQueryRows / (shape.heads / shape.kv_heads));
    if (tokens) {
        for (int64_t i = 0; i < count; i++) {
            int64_t row = std::upper_bound(packed.row_first, packed.row_first + packed.rows + 1, tokens[i]) - packed.row_first - 1;
            add(shape, packed, row, tokens[i], 1, i);
        }
    } else
        for (int64_t row = 0; row < packed.rows; row++) {  // a row's last tokens have the most to read: they begin
            int64_t first = packed.row_first[row], end = packed.row_first[row + 1];
            for (int64_t to = end; to > first; to -= some) add(shape, packed, row, std::max(first, to - some), std::min(some, to - first), std::max(first, to - some));
        }
    if (splits_ * shape.kv_heads > room_) {
        room_ = splits_ * shape.kv_heads;
        left_.reset(new std::atomic<int64_t>[room_]);
    }
    for (const Item& item : items_)
        if (item.split >= 0)
            for (int64_t head = 0; head < shape.kv_heads; head++) left_[item.split * shape.kv_heads + head].store(item.split_end - item.split_first, std::memory_order_relaxed);
    partial_.get<float>(slots_ * shape.heads * (shape.dim + 2));
}

// Results of a part for the heads of a group: [heads of the group] Softmax, then their values.
float* AttentionPlan::slot(const AttentionShape& shape, const Item& item, int64_t head, int64_t part) {
    const int64_t group = shape.heads / shape.kv_heads;
    const int64_t index = (item.slot + part - item.part) * shape.kv_heads + head;
    return partial_.get<float>(0) + index * group * (shape.dim + 2);
}

template <class T> struct Attend {
    using Gathered = std::conditional_t<kEach<T> == 2, uint32_t, float>;
    const AttentionShape& shape;
    const Packed& packed;
    const float* queries;
    int64_t query_stride;
    const T *keys, *values;

    // A part for queries first … first+count−1 of a group; found, out: [count, group(, dim)].
    void part(const Cache<T>& cache, int64_t first, int64_t count, int64_t part, Softmax* found, float* out) const {
        const int64_t group = shape.heads / shape.kv_heads, dim = shape.dim;
        const float* own = queries + first * query_stride + cache.head * group * dim;
        if (count == 1 && cache.whole_groups() && dim % kLanes == 0) {
            Span span = visible(packed.positions[first], shape.window, part);
            if constexpr (kEach<T> == 2) narrow(own, group * dim, space.narrow_queries);
            for (int64_t h = 0; h < group; h += 4) {
                auto run = [&](auto heads) {
                    if constexpr (kEach<T> == 2)
                        part_in_place<decltype(heads)::value>(cache, space.narrow_queries + h * dim, part, span, space.scores, space.narrow_weights, found + h, out + h * dim);
                    else part_in_place<T, decltype(heads)::value>(cache, own + h * dim, part, span, space.scores, found + h, out + h * dim);
                };
                if (group - h >= 4) run(std::integral_constant<int, 4>());
                else if (group - h == 3) run(std::integral_constant<int, 3>());
                else if (group - h == 2) run(std::integral_constant<int, 2>());
                else run(std::integral_constant<int, 1>());
            }
            return;
        }
        const int rows = static_cast<int>(count * group);
        const int64_t stride = row_stride(dim);
        Span seen{kPart, 0};
        for (int64_t i = 0; i < count; i++) {
            Span span = visible(packed.positions[first + i], shape.window, part);
            if (span.begin < span.end) seen = {std::min(seen.begin, span.begin), std::max(seen.end, span.end)};
            for (int64_t h = 0; h < group; h++) {
                const float* query = own + i * query_stride + h * dim;
                if constexpr (kEach<T> == 2) narrow(query, dim, space.narrow_queries + (i * group + h) * dim);
                else std::copy_n(query, dim, space.queries + (i * group + h) * stride);
            }
        }
        if (seen.begin >= seen.end) {
            std::fill_n(found, rows, Softmax{-INFINITY, 0.0f});
            return;
        }
        auto *keys = reinterpret_cast<Gathered*>(space.keys), *values = reinterpret_cast<Gathered*>(space.values);
        gather_keys(cache, part, seen, keys);
        gather_values(cache, part, seen, values);
        for (int i = seen.begin / kPanel * kPanel; i < seen.end; i += kPanel)
            in_tiles(rows, [&](int row, int height) {
                const Gathered* panel = keys + i * dim / kEach<T>;
                float* to = space.scores + row * kScoreStride + i;
                if constexpr (kEach<T> == 2) pair_product(panel, dim / 2, space.narrow_queries + row * dim, dim, height, to, kScoreStride);
                else tile_product(panel, dim, space.queries + row * stride, stride, height, to, kScoreStride, kPanel, false);
            });
        const int padded = round_up(seen.end, kLanes);
        for (int row = 0; row < rows; row++) {
            float* scores = space.scores + row * kScoreStride;
            found[row] = softmax(scores, visible(packed.positions[first + row / group], shape.window, part), padded, shape.softcap);
            if constexpr (kEach<T> == 2) narrow(scores, padded, space.narrow_weights + row * kScoreStride);
        }
        for (int64_t d = 0; d < dim; d += kPanel)
            in_tiles(rows, [&](int row, int height) {
                const Gathered* panel = values + d * kPart / kEach<T>;
                float* to = out + row * dim + d;
                if constexpr (kEach<T> == 2) pair_product(panel, (seen.end + 1) / 2, space.narrow_weights + row * kScoreStride, kScoreStride, height, to, dim);
                else tile_product(panel, seen.end, space.scores + row * kScoreStride, kScoreStride, height, to, dim, static_cast<int>(std::min<int64_t>(kPanel, dim - d)), false);
            });
    }
};

void AttentionPlan::run(Worker& worker, const AttentionShape& shape, const Packed& packed, const float* queries,
                        int64_t query_stride, const void* keys, const void* values, float* out, int64_t out_stride) {
    auto with = [&](auto number) {
        using T = decltype(number);
        const Attend<T> attend{shape, packed, queries, query_stride, static_cast<const T*>(keys), static_cast<const T*>(values)};
        const int64_t group = shape.heads / shape.kv_heads, dim = shape.dim;
        worker.each(static_cast<int64_t>(items_.size()) * shape.kv_heads, [&](int64_t index) {
            const Item& item = items_[index / shape.kv_heads];
            const int64_t head = index % shape.kv_heads, rows = item.count * group;
            const Cache<T> cache{attend.keys, attend.values, shape, packed.tables + item.row * packed.table_stride, head};
            space.make(std::max<int64_t>(rows, 4), dim);
            auto write = [&](const Softmax* found, const float* values) {
                for (int64_t row = 0; row < rows; row++)
                    finish(found[row], values + row * dim, dim, out + (item.place + row / group) * out_stride + (head * group + row % group) * dim);
            };
            if (item.split >= 0) {
                float* own = slot(shape, item, head, item.part);
                attend.part(cache, item.first, 1, item.part, reinterpret_cast<Softmax*>(own), own + group * 2);
                auto& left = left_[item.split * shape.kv_heads + head];
                if (left.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
                left.store(item.split_end - item.split_first, std::memory_order_relaxed);  // for the next layer
                std::fill_n(space.all_found, rows, Softmax{-INFINITY, 0.0f});
                for (int64_t part = item.split_first; part < item.split_end; part++) {
                    const float* found = slot(shape, item, head, part);
                    for (int64_t row = 0; row < rows; row++)
                        merge(space.all_found[row], space.all + row * dim, reinterpret_cast<const Softmax*>(found)[row], found + group * 2 + row * dim, dim);
                }
                write(space.all_found, space.all);
                return;
            }
            attend.part(cache, item.first, item.count, item.part, space.all_found, space.all);
            for (int64_t part = item.part + 1; part < item.end; part++) {
                attend.part(cache, item.first, item.count, part, space.part_found, space.part);
                for (int64_t row = 0; row < rows; row++)
                    merge(space.all_found[row], space.all + row * dim, space.part_found[row], space.part + row * dim, dim);
            }
            write(space.all_found, space.all);
        });
    };
    if (shape.in_pairs) with(Pair());
    else if (shape.format == kFloat32) with(float());
    else if (shape.format == kFloat16) with(Half());
    else with(Brain());
}

}  // namespace trimtab
