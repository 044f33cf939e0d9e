// Draw: measures a row's tilt and draws its token from materialised logits, reading them once from memory.
//
// The vocabulary is cut into tiles whose numbers stay in the nearest cache: first the largest of a tile, then
// sums of exponentials below it, then the noise. Tiles are merged in their order, in double precision, so
// that a row's results do not depend on the rows beside it or on the number of threads. The arithmetic is
// that of tile_reduce.py, truncate.py, philox.py and tilt.py.
#include "lanes.h"
#include "pool.h"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <limits>
#include <vector>

namespace trimtab {
namespace {

constexpr int kTile = 2048, kGroup = 64, kSpan = 8;  // tokens of a tile and of a group; tiles that one thread takes
constexpr float kInfinite = std::numeric_limits<float>::infinity();
constexpr double kLargestNoise = 22.9, kNoNumber = std::numeric_limits<double>::quiet_NaN();
constexpr float kMinTemperature = 1e-6f;
constexpr double kWeakLift = 1e-5;

// Of each tile, see TilePartials in tile_reduce.py; heat: Σ exp((ℓ − top)/temperature).
struct Tile {
    float base_top, top;
    double base_total, spread, drift, total, lift, heat;
};

struct Best {
    double score = -INFINITY;
    int64_t token = -1;
};

// A row of logits z and what tilts it: ℓ = z + β(A − pivot), z itself without a tilt.
struct Row {
    const float *z, *a;
    int64_t size;
    float pivot, beta;

    bool tilts() const { return a != nullptr; }
    int64_t num_tiles() const { return (size + kTile - 1) / kTile; }
    int64_t num_groups() const { return (size + kGroup - 1) / kGroup; }
};

template <bool TILTS> inline Vec tilted(Vec z, Vec a, float pivot, float beta) {
    return TILTS ? fused(a - pivot, splat(beta), z) : z;
}

// Some tokens of a row in whole groups; where the row ends within, a copy that −∞ fills up.
template <int SIZE> class Piece {
  public:
    Piece(const Row& row, int64_t first) {
        int64_t there = std::min<int64_t>(SIZE, row.size - first);
        z = row.z + first;
        a = row.a ? row.a + first : nullptr;
        count = there;
        if (there % kGroup) {
            count = (there + kGroup - 1) / kGroup * kGroup;
            std::fill(std::copy(z, z + there, z_), z_ + count, -kInfinite);
            z = z_;
            if (a) {
                std::fill(std::copy(a, a + there, a_), a_ + count, row.pivot);
                a = a_;
            }
        }
    }
    const float *z, *a;
    int64_t count;

  private:
    float z_[SIZE], a_[SIZE];
};

// ℓ of one group, in the very roundings of every other place.
void tilt_group(const Row& row, int64_t group, float* out) {
    Piece<kGroup> piece(row, group * kGroup);
    for (int i = 0; i < kGroup; i += kLanes) {
        Vec z = load(piece.z + i);
        store(out + i, row.a ? tilted<true>(z, load(piece.a + i), row.pivot, row.beta) : z);
    }
}

inline float origin_of(float top) { return top == -kInfinite ? 0.0f : top; }

// What a tile measures. maxima: where given, the largest ℓ of each group. inverse: 1/temperature for `heat`,
// 0 where that is not asked for.
template <bool TILTS, bool ENTROPY>
void measure(const Piece<kTile>& piece, const Row& row, float inverse, float* maxima, Tile& tile) {
    Vec base_top = splat(-kInfinite), top = base_top;
    for (int64_t g = 0; g < piece.count; g += kGroup) {
        Vec most = splat(-kInfinite);
        for (int64_t i = g; i < g + kGroup; i += kLanes) {
            Vec z = load(piece.z + i);
            most = max(most, tilted<TILTS>(z, TILTS ? load(piece.a + i) : z, row.pivot, row.beta));
            if (TILTS) base_top = max(base_top, z);
        }
        if (maxima) maxima[g / kGroup] = largest(most);
        top = max(top, most);
    }
    tile.top = largest(top);
    tile.base_top = TILTS ? largest(base_top) : tile.top;
    const float base_origin = origin_of(tile.base_top), origin = origin_of(tile.top);
    Vec base_total{}, spread{}, drift{}, total{}, lift{};
    for (int64_t i = 0; i < piece.count; i += kLanes) {
        Vec z = load(piece.z + i), below = z - base_origin, mass = exp_below(below);
        base_total += mass;
        if (ENTROPY) spread += mass > 0.0f ? mass * below : Vec{};
        if (TILTS) {
            Vec above = load(piece.a + i) - row.pivot;
            drift = fma(mass, above, drift);
            mass = exp_below(fused(above, splat(row.beta), z) - origin);
            total += mass;
            lift = fma(mass, above * row.beta, lift);
        }
    }
    tile.base_total = exact_sum(base_total);
    tile.spread = exact_sum(spread);
    tile.drift = exact_sum(drift);
    tile.total = TILTS ? exact_sum(total) : tile.base_total;
    tile.lift = exact_sum(lift);
    if (inverse == 1) tile.heat = tile.total;
    if (inverse == 0 || inverse == 1) return;
    Vec heat{};
    for (int64_t i = 0; i < piece.count; i += kLanes) {
        Vec z = load(piece.z + i);
        heat += exp_below((tilted<TILTS>(z, TILTS ? load(piece.a + i) : z, row.pivot, row.beta) - origin) * inverse);
    }
    tile.heat = exact_sum(heat);
}

// The best of the row's perturbed logits ℓ/temperature + noise. Only what may pass the best so far is worked
// out: of a group that is too low not even the random words, of a token whose noise is too small no logarithm.
class Race {
  public:
    Race(const Row& row, const Philox& noise, float temperature, float threshold)
        : row_(row), noise_(noise), threshold_(threshold) {
        inverse_ = 1 / double(std::max(temperature, kMinTemperature));
    }

    // A score that some token of the row is known to have; those below it are left out.
    void aim(double score) {
        // The bound is a float's: it may be off by some units in the last place of what it is made of.
        level_ = std::max<float>(level_, score - 1e-3 - 1e-6 * std::fabs(score));
    }
    void raise(float level) { level_ = std::max(level_, level); }
    float level() const { return level_; }

    template <bool TILTS, int SIZE> void run(const Piece<SIZE>& piece, int64_t first_token) {
        const Vec inverse = splat(inverse_), threshold = splat(threshold_);
        for (int64_t i = 0; i < piece.count; i += kDraws) {
            const Vec low = splat(float((level_ - kLargestNoise) / inverse_));
            Vec guided[2];
            uint32_t hopeful = 0;
            for (int k = 0; k < 2; k++) {
                Vec z = load(piece.z + i + k * kLanes);
                Vec x = tilted<TILTS>(z, TILTS ? load(piece.a + i + k * kLanes) : z, row_.pivot, row_.beta);
                hopeful |= at_least(x, max(threshold, low));
                guided[k] = x;
            }
            if (!hopeful) continue;
            UIntVec words[2];
            noise_.words(first_token + i, words);
            for (int k = 0; k < 2; k++) {
                Vec bound = fused(guided[k], inverse, noise_bound(words[k]));
                uint32_t may_win = at_least(bound, splat(level_)) & at_least(guided[k], threshold);
                if (may_win) compare(may_win, bound, guided[k], words[k], first_token + i + k * kLanes);
            }
        }
    }

    Best best;

  private:
    __attribute__((noinline)) void compare(uint32_t may_win, Vec bound, Vec guided, UIntVec words, int64_t first) {
        while (may_win) {  // the likeliest winner first: it may spare the others
            int lane = __builtin_ctz(may_win);
            for (int i = lane + 1; i < kLanes; i++)
                if (may_win >> i & 1 && bound[i] > bound[lane]) lane = i;
            may_win &= ~(1u << lane);
            if (!(bound[lane] >= level_)) break;
            if (!(guided[lane] > -kInfinite)) continue;
            double score = guided[lane] * inverse_ + noise_of(words[lane]);
            if (score > best.score || (score == best.score && first + lane < best.token)) {
                best = {score, first + lane};
                aim(score);
            }
        }
    }

    const Row& row_;
    const Philox& noise_;
    double inverse_;
    float threshold_, level_ = -kInfinite;
};

void race_group(Race& race, const Row& row, int64_t group) {
    Piece<kGroup> piece(row, group * kGroup);
    row.a ? race.run<true>(piece, group * kGroup) : race.run<false>(piece, group * kGroup);
}

// Of a row, merged from its tiles in their order.
struct Whole {
    float base_top = -kInfinite, top = -kInfinite;
    double base_total = 0, spread = 0, drift = 0, total = 0, lift = 0, heat = 0;
    int64_t base_tile = 0, tile = 0;  // where the largest are

    Whole(const Tile* tiles, int64_t num_tiles, double inverse) {
        for (int64_t t = 0; t < num_tiles; t++) {
            if (tiles[t].base_top > base_top) base_top = tiles[t].base_top, base_tile = t;
            if (tiles[t].top > top) top = tiles[t].top, tile = t;
        }
        for (int64_t t = 0; t < num_tiles; t++) {
            double below = double(origin_of(tiles[t].base_top)) - origin_of(base_top), scale = std::exp(below);
            base_total += scale * tiles[t].base_total;
            if (scale > 0) spread += scale * (tiles[t].spread + tiles[t].base_total * below);
            drift += scale * tiles[t].drift;
            below = double(origin_of(tiles[t].top)) - origin_of(top), scale = std::exp(below);
            total += scale * tiles[t].total;
            lift += scale * tiles[t].lift;
            if (inverse) heat += std::exp(below * inverse) * tiles[t].heat;
        }
    }
    double entropy() const { return std::log(base_total) - spread / base_total; }
};

// The first token whose z, or ℓ, is the given one, which its tile holds.
int64_t find(const Row& row, int64_t tile, float value, bool of_base) {
    float group[kGroup];
    int64_t last = std::min((tile + 1) * (kTile / kGroup), row.num_groups());
    Row base{row.z, nullptr, row.size, 0, 0};
    for (int64_t g = tile * (kTile / kGroup); g < last; g++) {
        tilt_group(of_base ? base : row, g, group);
        for (int i = 0; i < kGroup; i++)
            if (group[i] == value) return g * kGroup + i;
    }
    return 0;
}

float tilted_at(const Row& row, int64_t token) {
    float group[kGroup];
    tilt_group(row, token / kGroup, group);
    return group[token % kGroup];
}

// Truncation of one row, see `truncation_threshold` in truncate.py.
struct Cut {
    float temperature = 1, min_p = 0, top_p = 1;
    int64_t top_k = 0;

    bool by_count(int64_t size) const { return top_k > 0 && top_k < size; }
    bool any(int64_t size) const { return temperature > 0 && (min_p > 0 || top_p < 1 || by_count(size)); }
    // Σ exp((ℓ − top)/temperature) of all tokens is needed.
    bool needs_heat(int64_t size) const { return temperature > 0 && top_p < 1 && !(min_p > 0) && !by_count(size); }
};

class Truncation {
  public:
    // maxima: the largest ℓ of each of the row's groups; heat: see Cut.needs_heat.
    Truncation(const Row& row, const float* maxima, float top, double heat)
        : row_(row), maxima_(maxima), top_(top), heat_(heat) {}

    float threshold(const Cut& cut) {
        inverse_ = 1 / double(std::max(cut.temperature, FLT_MIN));
        float found = cut.min_p > 0 ? top_ + cut.temperature * std::log(cut.min_p) : -kInfinite;
        if (cut.by_count(row_.size)) found = std::max(found, search<false>(found, double(cut.top_k), 1));
        if (!(cut.top_p < 1)) return found;
        double mass = found > -kInfinite ? mass_from(found) : heat_;
        double target = std::max(cut.top_p * mass, 1e-30);  // of nothing the likeliest stays
        return std::max(found, search<true>(found, target, cut.temperature));
    }

  private:
    double mass_from(float floor) {
        double mass = 0;
        float group[kGroup];
        for (int64_t g = 0; g < row_.num_groups(); g++) {
            if (!(maxima_[g] >= floor)) continue;
            tilt_group(row_, g, group);
            Vec sum{};
            for (int i = 0; i < kGroup; i += kLanes) {
                Vec x = load(group + i);
                sum += x >= floor ? exp_below((x - top_) * float(inverse_)) : Vec{};
            }
            mass += exact_sum(sum);
        }
        return mass;
    }

    // The largest x with Σ weight(ℓ ≥ x) ≥ target among those from floor on, −∞ if there is none; weights
    // are masses or 1. Looks in rings from the top down, and orders what is in the one where it lies.
    template <bool BY_MASS> float search(float floor, double target, double width) {
        double above = 0;
        float upper = kInfinite;
        for (int ring = 1;; ring++) {
            double depth = ring <= 16 ? ring : ring <= 24 ? 16 + 4.0 * (ring - 16) : INFINITY;
            float lower = std::max<float>(floor, top_ - width * depth);
            double weight = collect<BY_MASS>(lower, upper);
            if (above + weight >= target) return select(target - above);
            if (!(lower > floor)) return -kInfinite;
            above += weight;
            upper = lower;
        }
    }

    // Those of [lower, upper), and their weight.
    template <bool BY_MASS> double collect(float lower, float upper) {
        slots_.clear();
        float group[kGroup], weights[kGroup];
        double weight = 0;
        for (int64_t g = 0; g < row_.num_groups(); g++) {
            if (!(maxima_[g] >= lower)) continue;
            tilt_group(row_, g, group);
            bool is_weighed = false;
            for (int i = 0; i < kGroup; i += kLanes) {
                Vec x = load(group + i);
                uint32_t inside = at_least(x, splat(lower)) & ~at_least(x, splat(upper));
                for (; inside; inside &= inside - 1) {
                    if (BY_MASS && !is_weighed) weigh(group, weights), is_weighed = true;
                    int at = i + __builtin_ctz(inside);
                    if (!(group[at] > -kInfinite)) continue;
                    slots_.push_back({group[at], BY_MASS ? weights[at] : 1.0f});
                    weight += slots_.back().weight;
                }
            }
        }
        return weight;
    }

    void weigh(const float* group, float* weights) const {
        for (int i = 0; i < kGroup; i += kLanes) store(weights + i, exp_below((load(group + i) - top_) * float(inverse_)));
    }

    // The largest value in the slots with Σ weight(≥ it) ≥ target; the least one if rounding leaves none.
    float select(double target) {
        auto first = slots_.begin(), last = slots_.end();
        float least = kInfinite;
        while (first != last) {
            float a = first->value, b = (first + (last - first) / 2)->value, c = (last - 1)->value;
            float pivot = std::max(std::min(a, b), std::min(std::max(a, b), c));
            auto equal = std::partition(first, last, [&](const Slot& s) { return s.value > pivot; });
            auto below = std::partition(equal, last, [&](const Slot& s) { return s.value == pivot; });
            double higher = 0, same = 0;
            for (auto s = first; s != equal; s++) higher += s->weight;
            for (auto s = equal; s != below; s++) same += s->weight;
            if (higher >= target) {
                last = equal;
            } else if (higher + same >= target) {
                return pivot;
            } else {
                least = pivot;
                target -= higher + same;
                first = below;
            }
        }
        return least;
    }

    struct Slot {
        float value, weight;
    };
    const Row& row_;
    const float* maxima_;
    float top_;
    double heat_, inverse_ = 1;
    std::vector<Slot> slots_;
};

}  // namespace

// A batch, as Python lays it out; what may be null says so.
struct Batch {
    int64_t num_rows, vocab_size;
    const float* logits;
    int64_t logits_stride;
    const float* advantage;  // null where no row has a tilt
    int64_t advantage_stride;
    const int64_t* advantage_row;
    const float* beta;

    Row row(int64_t i) const {
        Row row{logits + i * logits_stride, nullptr, vocab_size, 0, 0};
        if (advantage && advantage_row[i] >= 0) {
            row.beta = beta ? beta[i] : 0;
            row.a = advantage + advantage_row[i] * advantage_stride;
            row.pivot = row.a[0];
        }
        return row;
    }
    Row tilted_row(int64_t i) const {
        Row found = row(i);
        if (found.beta == 0) found.a = nullptr;
        return found;
    }
};

struct Keys {
    const int64_t *seeds, *positions, *choices;
    int64_t purpose;
    const float *temperature, *min_p;  // min_p, top_p, top_k: null where no row has one
    const int64_t* top_k;
    const float* top_p;

    Cut cut(int64_t i) const {
        return {temperature[i], min_p ? min_p[i] : 0, top_p ? top_p[i] : 1, top_k ? top_k[i] : 0};
    }
    Philox noise(int64_t i) const {
        return Philox(seeds[i], uint32_t(positions[i]), uint32_t(choices[i]), uint32_t(purpose));
    }
};

struct Drawn {
    int64_t* token;
    float *logprob, *base_logprob, *kl, *soft_value, *entropy, *lse_base, *lse_guided;  // entropy: may be null
    uint8_t* flip;
};

namespace {

// What the tiles of a batch leave for its rows.
class Partials {
  public:
    Partials(int64_t num_rows, int64_t vocab_size)
        : num_tiles_((vocab_size + kTile - 1) / kTile), num_groups_(num_tiles_ * (kTile / kGroup)),
          num_spans_((num_tiles_ + kSpan - 1) / kSpan), tiles_(num_rows * num_tiles_),
          best_(num_rows * num_spans_), maxima_(num_rows * num_groups_), level_(num_rows) {
        for (auto& level : level_) level.store(-kInfinite, std::memory_order_relaxed);
    }
    int64_t num_tiles() const { return num_tiles_; }
    int64_t num_spans() const { return num_spans_; }
    Tile* tiles(int64_t row) { return &tiles_[row * num_tiles_]; }
    Best* best(int64_t row) { return &best_[row * num_spans_]; }
    float* maxima(int64_t row) { return &maxima_[row * num_groups_]; }
    std::atomic<float>& level(int64_t row) { return level_[row]; }

  private:
    int64_t num_tiles_, num_groups_, num_spans_;
    std::vector<Tile> tiles_;
    std::vector<Best> best_;
    std::vector<float> maxima_;
    std::vector<std::atomic<float>> level_;
};

void measure(const Row& row, int64_t t, const Piece<kTile>& piece, float inverse, bool entropy, float* maxima, Tile& tile) {
    if (maxima) maxima += t * (kTile / kGroup);
    if (row.a) {
        entropy ? measure<true, true>(piece, row, inverse, maxima, tile)
                : measure<true, false>(piece, row, inverse, maxima, tile);
    } else {
        entropy ? measure<false, true>(piece, row, inverse, maxima, tile)
                : measure<false, false>(piece, row, inverse, maxima, tile);
    }
}

void draw_span(const Batch& batch, const Keys& keys, bool entropy, Partials& partials, int64_t i, int64_t span) {
    Row row = batch.tilted_row(i);
    Cut cut = keys.cut(i);
    bool cuts = cut.any(row.size), races = cut.temperature > 0 && !cuts;
    float inverse = cut.needs_heat(row.size) ? 1 / std::max(cut.temperature, FLT_MIN) : 0;
    Philox noise = keys.noise(i);
    Race race(row, noise, cut.temperature, -kInfinite);
    std::atomic<float>& level = partials.level(i);
    race.raise(level.load(std::memory_order_relaxed));
    int64_t last = std::min((span + 1) * kSpan, partials.num_tiles());
    for (int64_t t = span * kSpan; t < last; t++) {
        Piece<kTile> piece(row, t * kTile);
        measure(row, t, piece, inverse, entropy, cuts ? partials.maxima(i) : nullptr, partials.tiles(i)[t]);
        if (races) row.a ? race.run<true>(piece, t * kTile) : race.run<false>(piece, t * kTile);
    }
    partials.best(i)[span] = race.best;
    for (float known = level.load(std::memory_order_relaxed);
         race.level() > known && !level.compare_exchange_weak(known, race.level(), std::memory_order_relaxed);) {
    }
}

int64_t draw_token(const Row& row, const Keys& keys, Partials& partials, int64_t i, const Whole& whole) {
    Cut cut = keys.cut(i);
    if (!(cut.temperature > 0)) return find(row, whole.tile, whole.top, false);
    Best best;
    if (!cut.any(row.size)) {
        for (int64_t s = 0; s < partials.num_spans(); s++)
            if (partials.best(i)[s].score > best.score) best = partials.best(i)[s];
        return best.token;
    }
    const float* maxima = partials.maxima(i);
    float threshold = Truncation(row, maxima, whole.top, whole.heat).threshold(cut);
    Philox noise = keys.noise(i);
    Race race(row, noise, cut.temperature, threshold);
    for (int64_t g = 0; g < row.num_groups(); g++)
        if (maxima[g] >= threshold) race_group(race, row, g);
    return race.best.token;
}

void finish_row(const Batch& batch, const Keys& keys, Partials& partials, int64_t i, const Drawn& out) {
    Row row = batch.tilted_row(i);
    Cut cut = keys.cut(i);
    double inverse = cut.needs_heat(row.size) ? 1 / double(std::max(cut.temperature, FLT_MIN)) : 0;
    Whole whole(partials.tiles(i), partials.num_tiles(), inverse);
    double log_total = std::log(whole.total), base_log_total = std::log(whole.base_total);
    if (out.entropy) out.entropy[i] = whole.entropy();
    if (!std::isfinite(log_total) || !std::isfinite(base_log_total)) {
        out.token[i] = -1;
        out.flip[i] = 0;
        for (float* field : {out.logprob, out.base_logprob, out.kl, out.soft_value, out.lse_base, out.lse_guided})
            field[i] = kNoNumber;
        return;
    }
    int64_t token = draw_token(row, keys, partials, i, whole);
    out.token[i] = token;
    out.base_logprob[i] = double(row.z[token]) - whole.base_top - base_log_total;
    out.lse_base[i] = whole.base_top + base_log_total;
    if (!row.a) {
        out.logprob[i] = out.base_logprob[i];
        out.lse_guided[i] = out.lse_base[i];
        out.kl[i] = out.soft_value[i] = 0;
        out.flip[i] = 0;
        return;
    }
    double drift = row.beta * whole.drift / whole.base_total;
    double lift = whole.lift / whole.total - drift;
    double log_mean = (double(whole.top) - whole.base_top) + std::log(whole.total / whole.base_total) - drift;
    out.logprob[i] = double(tilted_at(row, token)) - whole.top - log_total;
    out.kl[i] = std::max(lift - log_mean, 0.0);
    out.soft_value[i] = (lift < kWeakLift ? lift / 2 : log_mean) / row.beta;
    out.flip[i] = tilted_at(row, find(row, whole.base_tile, whole.base_top, true)) < whole.top;
    out.lse_guided[i] = whole.top + log_total - drift;
}

}  // namespace
}  // namespace trimtab

using namespace trimtab;

TRIMTAB_API void trimtab_draw(const Batch* batch, const Keys* keys, const Drawn* out) {
    Partials partials(batch->num_rows, batch->vocab_size);
    parallel([&](Worker& worker) {
        worker.each(batch->num_rows * partials.num_spans(), [&](int64_t item) {
            int64_t row = item / partials.num_spans(), span = item % partials.num_spans();
            draw_span(*batch, *keys, out->entropy != nullptr, partials, row, span);
        });
        worker.each(batch->num_rows, [&](int64_t row) { finish_row(*batch, *keys, partials, row, *out); });
    });
}
