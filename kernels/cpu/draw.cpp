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

constexpr int kTileTokens = 2048, kGroupTokens = 64, kSpanTiles = 8;  // tokens of a tile and of a group; tiles that one thread takes
constexpr float kInfinite = std::numeric_limits<float>::infinity();
constexpr double kLargestNoise = 22.9, kNoNumber = std::numeric_limits<double>::quiet_NaN();
constexpr float kFar = 40;  // nats from a tile's origin within which exponentials over it hold well
constexpr float kMinTemperature = 1e-6f;
constexpr double kWeakLift = 1e-5;

// Of each tile, see TilePartials in tile_reduce.py. Sums are of exponentials over an origin that is near the
// largest: base_total is Σ exp(z − origin), and with x = z − origin + β(A − pivot), which an offset of z costs no
// digits, total is Σ exp(x − level), lift Σ exp(x − level)·(A − pivot). heat: Σ exp((ℓ − top)/temperature).
struct Tile {
    float base_top, top, origin, level;
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
    int64_t num_tiles() const { return (size + kTileTokens - 1) / kTileTokens; }
    int64_t num_groups() const { return (size + kGroupTokens - 1) / kGroupTokens; }
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
        if (there % kGroupTokens) {
            count = (there + kGroupTokens - 1) / kGroupTokens * kGroupTokens;
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
    Piece<kGroupTokens> piece(row, group * kGroupTokens);
    for (int i = 0; i < kGroupTokens; i += kLanes) {
        Vec z = load(piece.z + i);
        store(out + i, row.a ? tilted<true>(z, load(piece.a + i), row.pivot, row.beta) : z);
    }
}

inline float number(float top) { return top == -kInfinite ? 0.0f : top; }

// The sums of a tile over its origin and level, and its largest.
template <bool TILTS, bool ENTROPY> void sum_tile(const Piece<kTileTokens>& piece, const Row& row, float* maxima, Tile& tile) {
    const Vec origin = splat(tile.origin), level = splat(tile.level), pivot = splat(row.pivot), beta = splat(row.beta);
    Vec base_top = splat(-kInfinite), top = base_top, base_total{}, spread{}, drift{}, total{}, lift{};
    for (int64_t g = 0; g < piece.count; g += kGroupTokens) {
        Vec most = splat(-kInfinite);
        for (int64_t i = g; i < g + kGroupTokens; i += kLanes) {
            Vec z = load(piece.z + i), below = z - origin, mass = exp_of(below);
            base_total += mass;
            if (ENTROPY) spread += mass > 0.0f ? mass * below : Vec{};
            if (TILTS) {
                Vec above = load(piece.a + i) - pivot;
                base_top = max(base_top, z);
                most = max(most, fused(above, beta, z));
                drift = fma(mass, above, drift);
                mass = exp_of(fused(above, beta, below) - level);
                total += mass;
                lift = fma(mass, above, lift);
            } else {
                most = max(most, z);
            }
        }
        if (maxima) maxima[g / kGroupTokens] = largest(most);
        top = max(top, most);
    }
    tile.top = largest(top);
    tile.base_top = TILTS ? largest(base_top) : tile.top;
    tile.base_total = exact_sum(base_total);
    tile.spread = exact_sum(spread);
    tile.drift = exact_sum(drift);
    tile.total = TILTS ? exact_sum(total) : tile.base_total;
    tile.lift = exact_sum(lift);
}

// What a tile measures. maxima: where given, the largest ℓ of each group. inverse: 1/temperature for `heat`,
// 0 where that is not asked for.
template <bool TILTS, bool ENTROPY>
void measure(const Piece<kTileTokens>& piece, const Row& row, float inverse, float* maxima, Tile& tile) {
    // The first group's largest will do for an origin, nearly always.
    Vec base_top = splat(-kInfinite), top = base_top;
    for (int i = 0; i < kGroupTokens; i += kLanes) {
        Vec z = load(piece.z + i);
        base_top = max(base_top, z);
        if (TILTS) top = max(top, tilted<TILTS>(z, load(piece.a + i), row.pivot, row.beta));
    }
    tile.origin = number(largest(base_top));
    tile.level = TILTS ? number(largest(top)) - tile.origin : 0;
    sum_tile<TILTS, ENTROPY>(piece, row, maxima, tile);
    if (std::fabs(number(tile.base_top) - tile.origin) > kFar ||
        std::fabs(number(tile.top) - tile.origin - tile.level) > kFar) {
        tile.origin = number(tile.base_top);
        tile.level = TILTS ? number(tile.top) - tile.origin : 0;
        sum_tile<TILTS, ENTROPY>(piece, row, nullptr, tile);
    }
    tile.heat = tile.total * std::exp(double(tile.origin) + tile.level - number(tile.top));
    if (inverse == 0 || inverse == 1) return;
    Vec heat{}, origin = splat(number(tile.top));
    for (int64_t i = 0; i < piece.count; i += kLanes) {
        Vec z = load(piece.z + i);
        Vec x = tilted<TILTS>(z, TILTS ? load(piece.a + i) : z, row.pivot, row.beta);
        heat += exp_of((x - origin) * inverse);
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
        raise(score - 1e-3 - 1e-6 * std::fabs(score));
    }
    void raise(float level) {
        if (!(level > level_)) return;
        level_ = level;
        low_ = (level - kLargestNoise) / inverse_;
    }
    float level() const { return level_; }

    template <bool TILTS, int SIZE> void run(const Piece<SIZE>& piece, int64_t first_token) {
        const Vec inverse = splat(inverse_), threshold = splat(threshold_);
        constexpr int kVecs = kGroupTokens / kLanes;
        for (int64_t i = 0; i < piece.count; i += kGroupTokens) {
            Vec guided[kVecs];
            uint32_t hopeful = 0;
            for (int k = 0; k < kVecs; k++) {
                Vec z = load(piece.z + i + k * kLanes);
                Vec x = tilted<TILTS>(z, TILTS ? load(piece.a + i + k * kLanes) : z, row_.pivot, row_.beta);
                hopeful |= at_least(x, max(threshold, splat(low_)));
                guided[k] = x;
            }
            if (!hopeful) continue;
            UIntVec words[kVecs];
            for (int k = 0; k < kVecs; k += 2) noise_.words(first_token + i + k * kLanes, words + k);
            for (int k = 0; k < kVecs; k++) {
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
    float threshold_, level_ = -kInfinite, low_ = -kInfinite;
};

void race_group(Race& race, const Row& row, int64_t group) {
    Piece<kGroupTokens> piece(row, group * kGroupTokens);
    row.a ? race.run<true>(piece, group * kGroupTokens) : race.run<false>(piece, group * kGroupTokens);
}

// Of a row, merged from its tiles in their order.
struct Whole {
    float base_top = -kInfinite, top = -kInfinite;
    double lead = 0;  // of the tilt's origin over the base's, log Σ exp ℓ = base_top + lead + log total
    double base_total = 0, spread = 0, drift = 0, total = 0, lift = 0, heat = 0;
    int64_t base_tile = 0, tile = 0;  // where the largest are

    Whole(const Tile* tiles, int64_t num_tiles, double inverse) {
        for (int64_t t = 0; t < num_tiles; t++) {
            if (tiles[t].base_top > base_top) base_top = tiles[t].base_top, base_tile = t;
            if (tiles[t].top > top) top = tiles[t].top, tile = t;
        }
        const double base_origin = number(base_top), origin = number(top);
        lead = origin - base_origin;
        for (int64_t t = 0; t < num_tiles; t++) {
            double below = double(tiles[t].origin) - base_origin, scale = std::exp(below);
            base_total += scale * tiles[t].base_total;
            if (scale > 0) spread += scale * (tiles[t].spread + tiles[t].base_total * below);
            drift += scale * tiles[t].drift;
            scale = std::exp(below + tiles[t].level - lead);
            total += scale * tiles[t].total;
            lift += scale * tiles[t].lift;
            if (inverse) heat += std::exp((number(tiles[t].top) - origin) * inverse) * tiles[t].heat;
        }
    }
    double entropy() const { return std::log(base_total) - spread / base_total; }
};

// The first token whose z, or ℓ, is the given one, which its tile holds.
int64_t find(const Row& row, int64_t tile, float value, bool of_base) {
    float group[kGroupTokens];
    int64_t last = std::min((tile + 1) * (kTileTokens / kGroupTokens), row.num_groups());
    Row base{row.z, nullptr, row.size, 0, 0};
    for (int64_t g = tile * (kTileTokens / kGroupTokens); g < last; g++) {
        tilt_group(of_base ? base : row, g, group);
        for (int i = 0; i < kGroupTokens; i++)
            if (group[i] == value) return g * kGroupTokens + i;
    }
    return 0;
}

float tilted_at(const Row& row, int64_t token) {
    float group[kGroupTokens];
    tilt_group(row, token / kGroupTokens, group);
    return group[token % kGroupTokens];
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
        double mass = cut.needs_heat(row_.size) ? heat_ : mass_from(found);
        double target = std::max(cut.top_p * mass, 1e-30);  // of nothing the likeliest stays
        return std::max(found, search<true>(found, target, cut.temperature));
    }

  private:
    double mass_from(float floor) {
        double mass = 0;
        float group[kGroupTokens];
        for (int64_t g = 0; g < row_.num_groups(); g++) {
            if (!(maxima_[g] >= floor)) continue;
            tilt_group(row_, g, group);
            Vec sum{};
            for (int i = 0; i < kGroupTokens; i += kLanes) {
                Vec x = load(group + i);
                sum += x >= floor ? exp_of((x - top_) * float(inverse_)) : Vec{};
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
        float group[kGroupTokens], weights[kGroupTokens];
        double weight = 0;
        for (int64_t g = 0; g < row_.num_groups(); g++) {
            if (!(maxima_[g] >= lower)) continue;
            tilt_group(row_, g, group);
            bool is_weighed = false;
            for (int i = 0; i < kGroupTokens; i += kLanes) {
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
        for (int i = 0; i < kGroupTokens; i += kLanes) store(weights + i, exp_of((load(group + i) - top_) * float(inverse_)));
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
        : num_tiles_((vocab_size + kTileTokens - 1) / kTileTokens), num_groups_(num_tiles_ * (kTileTokens / kGroupTokens)),
          num_spans_((num_tiles_ + kSpanTiles - 1) / kSpanTiles), tiles_(num_rows * num_tiles_),
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

void measure(const Row& row, int64_t t, const Piece<kTileTokens>& piece, float inverse, bool entropy, float* maxima, Tile& tile) {
    if (maxima) maxima += t * (kTileTokens / kGroupTokens);
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
    int64_t last = std::min((span + 1) * kSpanTiles, partials.num_tiles());
    for (int64_t t = span * kSpanTiles; t < last; t++) {
        Piece<kTileTokens> piece(row, t * kTileTokens);
        measure(row, t, piece, inverse, entropy, cuts ? partials.maxima(i) : nullptr, partials.tiles(i)[t]);
        if (races) row.a ? race.run<true>(piece, t * kTileTokens) : race.run<false>(piece, t * kTileTokens);
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
    out.base_logprob[i] = std::min(double(row.z[token]) - whole.base_top - base_log_total, 0.0);
    out.lse_base[i] = whole.base_top + base_log_total;
    if (!row.a) {
        out.logprob[i] = out.base_logprob[i];
        out.lse_guided[i] = out.lse_base[i];
        out.kl[i] = out.soft_value[i] = 0;
        out.flip[i] = 0;
        return;
    }
    double drift = row.beta * whole.drift / whole.base_total;
    double lift = row.beta * whole.lift / whole.total - drift;
    double log_mean = whole.lead + std::log(whole.total / whole.base_total) - drift, kl = lift - log_mean;
    double shift = row.beta * double(row.a[token] - row.pivot);
    out.logprob[i] = std::min(double(row.z[token]) - whole.base_top + shift - whole.lead - log_total, 0.0);
    out.kl[i] = kl > 0x1p-22 + 0x1p-24 * std::fabs(drift) ? kl : 0;  // what is less rounding can make
    out.soft_value[i] = (lift < kWeakLift ? lift / 2 : log_mean) / row.beta;
    out.flip[i] = tilted_at(row, find(row, whole.base_tile, whole.base_top, true)) < whole.top;
    out.lse_guided[i] = whole.base_top + whole.lead + log_total - drift;
}

// Of a row whose tiles were measured in one thread.
Whole measure_row(const Row& row, std::vector<Tile>& tiles, bool entropy, float inverse, float* maxima) {
    tiles.resize(row.num_tiles());
    for (int64_t t = 0; t < row.num_tiles(); t++) {
        Piece<kTileTokens> piece(row, t * kTileTokens);
        measure(row, t, piece, inverse, entropy, maxima, tiles[t]);
    }
    return Whole(tiles.data(), row.num_tiles(), inverse);
}

void add_tilt(const Row& row, float mean, float* out) {
    Vec shift = splat(mean), beta = splat(row.beta);
    int64_t i = 0;
    for (; i + kLanes <= row.size; i += kLanes)
        store(out + i, fused(load(row.a + i) - row.pivot - shift, beta, load(row.z + i)));
    for (int64_t rest = row.size - i; rest > 0; rest = 0) {
        Vec centred = load_first(row.a + i, rest) - row.pivot - shift;
        store_first(out + i, fused(centred, beta, load_first(row.z + i, rest)), rest);
    }
}

float threshold_of(const Row& row, const Cut& cut, std::vector<Tile>& tiles, std::vector<float>& maxima) {
    if (!cut.any(row.size)) return -kInfinite;
    maxima.resize(row.num_tiles() * (kTileTokens / kGroupTokens));
    float inverse = cut.needs_heat(row.size) ? 1 / std::max(cut.temperature, FLT_MIN) : 0;
    Whole whole = measure_row(row, tiles, false, inverse, maxima.data());
    return Truncation(row, maxima.data(), whole.top, whole.heat).threshold(cut);
}

// Solving for a row's strength: `_Search` of tilt.py, where each step is explained.
constexpr int kMaxReadings = 8;
constexpr double kSlack = 0x1p-8, kAim = 1 - kSlack / 2, kNear = 0.5, kWeak = 1e-3, kTiny = 1e-30;

struct Moments {
    double top, total, first, second;  // of x = z + β(Ā): the largest, Σ exp(x − top), E[Ā], E[Ā²]
};

// mean: see BaseStatistics.
Moments moments(const Row& row, float beta, float mean) {
    Moments found{-INFINITY, 0, 0, 0};
    for (int64_t t = 0; t < row.num_tiles(); t++) {
        Piece<kTileTokens> piece(row, t * kTileTokens);
        Vec most = splat(-kInfinite), pivot = splat(row.pivot), shift = splat(mean), strength = splat(beta);
        for (int64_t i = 0; i < piece.count; i += kLanes)
            most = max(most, fused(load(piece.a + i) - pivot - shift, strength, load(piece.z + i)));
        float top = largest(most), origin = number(top);
        Vec total{}, first{}, second{};
        for (int64_t i = 0; i < piece.count; i += kLanes) {
            Vec centred = load(piece.a + i) - pivot - shift;
            Vec mass = exp_of(fused(centred, strength, load(piece.z + i)) - origin);
            total += mass;
            mass *= centred;
            first += mass;
            second = fma(mass, centred, second);
        }
        double higher = std::max<double>(found.top, top), level = higher == -INFINITY ? 0 : higher;
        double old = std::exp(found.top - level), now = std::exp(origin - level);
        found = {higher, old * found.total + now * exact_sum(total), old * found.first + now * exact_sum(first),
                 old * found.second + now * exact_sum(second)};
    }
    found.first /= found.total;
    found.second /= found.total;
    return found;
}

class Search {
  public:
    Search(double limit, double sign, double kl_cap, double lift)
        : limit_(limit), sign_(sign), kl_cap_(kl_cap), wanted_(lift), high_{limit, INFINITY, 0, INFINITY, 0} {}

    double run(const Row& row) {
        Moments base = moments(row, 0, 0);
        double mean = base.first, variance = base.second - mean * mean;
        if (!(base.total > 0) || !std::isfinite(mean)) return 0;
        low_.slope = std::max(std::sqrt(std::max(variance, 0.0) / (2 * kl_cap_)), (1 - kSlack) * variance / wanted_);
        double b = std::min(limit_, kAim / std::max(low_.slope, kTiny));
        for (int reading = 1; reading < kMaxReadings; reading++) {
            float beta = sign_ * b;
            if (!judge(beta, moments(row, beta, mean), base)) break;
            b = propose();
        }
        return sign_ * low_.at;
    }

  private:
    struct Point {
        double at = 0, reach = 0, slope = 0, kl = 0, lift = 0;
    };

    // Takes in what β gave; false where no more need be read.
    bool judge(double beta, const Moments& now, const Moments& base) {
        double b = sign_ * beta, lift = sign_ * now.first;
        double variance = std::max(now.second - lift * lift, 0.0);
        double rise = b * lift, spread = b * b * variance;
        double log_mean = (now.top - base.top) + std::log(now.total / base.total);
        bool is_weak = rise < kWeak && spread < 1.25 * rise;
        double kl = std::max(is_weak ? (2 * rise + spread) / 6 : rise - log_mean, 0.0);
        double by_cap = std::sqrt(kl / kl_cap_), by_lift = (1 - kSlack) * lift / wanted_;
        double reach = std::max(by_cap, by_lift);
        double slope = by_cap >= by_lift ? by_cap * b * variance / (2 * std::max(kl, kTiny))
                                         : (1 - kSlack) * variance / wanted_;
        if (std::isnan(reach) || std::isnan(lift)) return false;
        Point point{b, reach, slope, kl, lift};
        (reach <= 1 ? low_ : high_) = point;
        return !(reach <= 1 && (reach >= 1 - kSlack || b == limit_));
    }

    double propose() {
        double below = kAim - low_.reach, above = high_.reach - kAim;
        double from_low = low_.at + below / std::max(low_.slope, kTiny);
        if (std::isinf(above)) return std::min(from_low, high_.at);
        double newton = below < above ? from_low : high_.at - above / std::max(high_.slope, kTiny);
        if (std::min(below, above) < kNear && low_.at < newton && newton < high_.at) return newton;
        is_cautious_ = !is_cautious_;
        double found;
        if (!is_cautious_) {
            double knee = (high_.kl - low_.kl) / std::max(high_.lift - low_.lift, kTiny);
            found = std::min(from_low, knee);
        } else {
            double width = high_.at - low_.at, height = high_.reach - low_.reach;
            double secant = width / height, t = below / height, rest = 1 - t;
            double start = std::min(1 / std::max(low_.slope, kTiny), 3 * secant);
            double end = std::min(1 / std::max(high_.slope, kTiny), 3 * secant);
            found = low_.at + width * t * t * (3 - 2 * t) + height * t * rest * (start * rest - end * t);
        }
        return std::min(std::max(found, low_.at), high_.at);
    }

    double limit_, sign_, kl_cap_, wanted_;
    Point low_, high_;
    bool is_cautious_ = true;
};

float solve(const Row& row, float strength, double kl_cap, double lift) {
    double limit = std::fabs(strength);
    if (!row.a || kl_cap <= 0 || lift <= 0) limit = 0;
    if (limit > 0 && std::min(kl_cap, lift) < INFINITY)
        limit = std::fabs(Search(limit, strength < 0 ? -1 : 1, kl_cap, lift).run(row));
    return std::copysign(limit, strength);
}

// −∞ for the tokens of a row whose bit is not set, a word's lowest bit first.
void mask_row(const uint32_t* words, int64_t size, float* row) {
    IntVec bit;
    for (int i = 0; i < kLanes; i++) bit[i] = 1 << i;
    int64_t w = 0;
    for (; (w + 1) * 32 <= size; w++) {
        if (words[w] == 0xffffffffu) continue;
        for (int i = 0; i < 32; i += kLanes) {
            float* at = row + w * 32 + i;
            IntVec allowed = (int32_t(words[w] >> i) & bit) != 0;
            store(at, select(allowed, load(at), splat(-kInfinite)));
        }
    }
    for (int64_t i = w * 32; i < size; i++)
        if (!(words[w] >> (i % 32) & 1)) row[i] = -kInfinite;
}

}  // namespace
}  // namespace trimtab

using namespace trimtab;

// See base_statistics.py; entropy may be null.
TRIMTAB_API void trimtab_base_statistics(const Batch* batch, float* top, float* total, float* entropy, float* mean) {
    parallel([&](Worker& worker) {
        std::vector<Tile> tiles;
        worker.each(batch->num_rows, [&](int64_t i) {
            Row row = batch->row(i);
            Whole whole = measure_row(row, tiles, entropy != nullptr, 0, nullptr);
            top[i] = whole.base_top;
            total[i] = whole.base_total;
            if (entropy) entropy[i] = whole.entropy();
            mean[i] = row.a ? whole.drift / whole.base_total : 0;
        });
    });
}

// z + βĀ of each row; out: f32[B, V].
TRIMTAB_API void trimtab_tilted_logits(const Batch* batch, float* out) {
    parallel([&](Worker& worker) {
        std::vector<Tile> tiles;
        worker.each(batch->num_rows, [&](int64_t i) {
            Row row = batch->tilted_row(i);
            float* mine = out + i * row.size;
            if (!row.a) {
                std::copy(row.z, row.z + row.size, mine);
                return;
            }
            Whole whole = measure_row(row, tiles, false, 0, nullptr);
            add_tilt(row, whole.drift / whole.base_total, mine);
        });
    });
}

TRIMTAB_API void trimtab_truncation_threshold(const Batch* batch, const Keys* keys, float* out) {
    parallel([&](Worker& worker) {
        std::vector<Tile> tiles;
        std::vector<float> maxima;
        worker.each(batch->num_rows,
                    [&](int64_t i) { out[i] = threshold_of(batch->tilted_row(i), keys->cut(i), tiles, maxima); });
    });
}

// batch->beta: the strengths; kl_cap, lift: null where no row has one.
TRIMTAB_API void trimtab_solve_tilt(const Batch* batch, const float* kl_cap, const float* lift, float* out) {
    parallel([&](Worker& worker) {
        worker.each(batch->num_rows, [&](int64_t i) {
            Row row = batch->row(i);
            out[i] = solve(row, batch->beta[i], kl_cap ? kl_cap[i] : INFINITY, lift ? lift[i] : INFINITY);
        });
    });
}

// words: [R, ⌈V/32⌉], of the given rows.
TRIMTAB_API void trimtab_apply_token_mask(float* logits, int64_t stride, int64_t vocab_size, const int64_t* rows,
                                          int64_t num_rows, const uint32_t* words) {
    const int64_t num_words = (vocab_size + 31) / 32;
    parallel([&](Worker& worker) {
        worker.each(num_rows, [&](int64_t i) { mask_row(words + i * num_words, vocab_size, logits + rows[i] * stride); });
    });
}

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
