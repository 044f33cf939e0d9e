// Decoder: a step of a decoder-only model's body in one call, from tokens to hidden states.
#include <algorithm>
#include <utility>
#include <vector>

#include "attention.h"
#include "elementwise.h"
#include "memory.h"
#include "pool.h"
#include "products.h"

namespace trimtab {

// What decoder.py describes: its structures have the same fields in the same order. Null is absent.
struct LayerSpec {
    Weight qkv, o, gate_up, down;
    const float *qkv_bias, *o_bias, *gate_up_bias, *down_bias;
    const float *input_norm, *post_attention_norm, *pre_mlp_norm, *post_mlp_norm, *q_norm, *k_norm;
    const float *cosine, *sine;  // [positions, rotary/2]
    int64_t rotary, window;
    float scale, softcap;
};

struct DecoderSpec {
    const LayerSpec* layers;
    int64_t num_layers, hidden, intermediate, heads, kv_heads, dim, block_size;
    Weight embedding;             // packed, or
    const void* dense_embedding;  // [V, hidden] of dense_format
    const float* final_norm;
    float embedding_scale, residual_scale, eps;
    int32_t dense_format, activation;
};

struct Step {
    const int64_t *ids, *positions, *slots, *row_first, *tables, *outputs;
    int64_t tokens, rows, table_stride, num_outputs;
    const void *const *keys, *const *values;
    int64_t cache_format;
    float* hidden;  // [num_outputs, hidden]
};

class Decoder {
  public:
    explicit Decoder(const DecoderSpec& spec) : s(spec), layers(spec.layers, spec.layers + spec.num_layers) {}

    void run(const Step& step);

  private:
    // One plan for each width of window, and one for the last layer, where only some tokens ask.
    const AttentionShape shape_of(const LayerSpec& layer, const Step& step) const {
        return {s.heads, s.kv_heads, s.dim, s.block_size, static_cast<int32_t>(step.cache_format), in_pairs(step), layer.softcap, layer.window};
    }
    // Whether keys and values lie in pairs: where products round what they multiply, and vectors fit.
    bool in_pairs(const Step& step) const {
        return step.cache_format == kBFloat16 && layers[0].qkv.rounds && multiplies_bfloat16() && s.block_size % kLanes == 0 && s.dim % kPanel == 0;
    }
    void embed(int64_t id, float* out) const;
    void store(const Step& step, int64_t layer, int64_t token, int64_t head);
    template <class T> void store_as_kept(void* keys, void* values, int64_t slot, int64_t head, const float* key, const float* value) const;
    void store_in_pairs(void* keys, void* values, int64_t slot, int64_t head, const float* key, const float* value) const;

    DecoderSpec s;
    std::vector<LayerSpec> layers;
    std::vector<std::pair<int64_t, std::unique_ptr<AttentionPlan>>> plans;
    AttentionPlan last_plan;
    Buffer x_, y_, qkv_, attended_, gates_, last_, shared_;
    float *x, *y, *qkv, *attended, *gates;
    int64_t x_stride, qkv_stride, attended_stride, gates_stride;
};

void Decoder::embed(int64_t id, float* out) const {
    if (!s.dense_embedding) weight_row(s.embedding, id, out);
    else
        for (int64_t i = 0; i < s.hidden; i++) {
            int64_t at = id * s.hidden + i;
            out[i] = s.dense_format == kFloat32 ? static_cast<const float*>(s.dense_embedding)[at]
                     : s.dense_format == kFloat16 ? to_float(static_cast<const Half*>(s.dense_embedding)[at])
                                                  : to_float(static_cast<const Brain*>(s.dense_embedding)[at]);
        }
    if (s.embedding_scale != 1.0f) for (int64_t i = 0; i < s.hidden; i++) out[i] *= s.embedding_scale;
}

template <class T>
void Decoder::store_as_kept(void* keys, void* values, int64_t slot, int64_t head, const float* key, const float* value) const {
    const int64_t block = slot / s.block_size * s.kv_heads + head, place = slot % s.block_size;
    T *to_keys = static_cast<T*>(keys) + block * s.dim * s.block_size, *to_values = static_cast<T*>(values) + block * s.block_size * s.dim;
    for (int64_t d = 0; d < s.dim; d++) trimtab::store_as(to_keys + d * s.block_size + place, key[d]);
    for (int64_t d = 0; d < s.dim; d++) trimtab::store_as(to_values + place * s.dim + d, value[d]);
}

void Decoder::store_in_pairs(void* keys, void* values, int64_t slot, int64_t head, const float* key, const float* value) const {
    static thread_local Buffer memory;
    Brain* narrowed = memory.get<Brain>(s.dim);
    const int64_t block = slot / s.block_size * s.kv_heads + head, place = slot % s.block_size;
    Brain* to = static_cast<Brain*>(keys) + block * s.dim * s.block_size + place * 2;
    narrow(key, s.dim, narrowed);
    for (int64_t d = 0; d < s.dim; d += 2) std::memcpy(to + d * s.block_size, narrowed + d, 2 * sizeof(Brain));
    to = static_cast<Brain*>(values) + block * s.dim * s.block_size + place / 2 * s.dim * 2 + place % 2;
    narrow(value, s.dim, narrowed);
    for (int64_t d = 0; d < s.dim; d++) to[d * 2] = narrowed[d];
}

// Queries of a group normed, rotated and scaled in place; its key and value into the cache.
void Decoder::store(const Step& step, int64_t index, int64_t token, int64_t head) {
    const LayerSpec& layer = layers[index];
    const int64_t group = s.heads / s.kv_heads, half = layer.rotary / 2;
    float* row = qkv + token * qkv_stride;
    const float *cosine = layer.cosine + step.positions[token] * half, *sine = layer.sine + step.positions[token] * half;
    for (int64_t h = head * group; h < (head + 1) * group; h++) {
        float* query = row + h * s.dim;
        if (layer.q_norm) rms_norm(query, layer.q_norm, s.eps, s.dim, query);
        rotate(query, cosine, sine, half);
        for (int64_t d = 0; d < s.dim; d++) query[d] *= layer.scale;
    }
    float *key = row + (s.heads + head) * s.dim, *value = row + (s.heads + s.kv_heads + head) * s.dim;
    if (layer.k_norm) rms_norm(key, layer.k_norm, s.eps, s.dim, key);
    rotate(key, cosine, sine, half);
    void *keys = const_cast<void*>(step.keys[index]), *values = const_cast<void*>(step.values[index]);
    const int64_t slot = step.slots[token];
    if (in_pairs(step)) store_in_pairs(keys, values, slot, head, key, value);
    else if (step.cache_format == kFloat32) store_as_kept<float>(keys, values, slot, head, key, value);
    else if (step.cache_format == kFloat16) store_as_kept<Half>(keys, values, slot, head, key, value);
    else store_as_kept<Brain>(keys, values, slot, head, key, value);
}

void Decoder::run(const Step& step) {
    const int64_t d = s.hidden, wide = s.intermediate, out_dim = s.heads * s.dim;
    const int64_t tokens = step.tokens, asked = step.num_outputs;
    x_stride = row_stride(d);
    qkv_stride = row_stride((s.heads + 2 * s.kv_heads) * s.dim);
    attended_stride = row_stride(out_dim);
    gates_stride = row_stride(2 * wide);
    const int64_t most = std::max(tokens, asked);
    x = x_.get<float>(tokens * x_stride);
    y = y_.get<float>(most * x_stride);
    qkv = qkv_.get<float>(tokens * qkv_stride);
    attended = attended_.get<float>(most * attended_stride);
    gates = gates_.get<float>(most * gates_stride);
    float* last = last_.get<float>(asked * x_stride);
    void* shared = shared_.get<char>(narrowed_room(most, std::max({d, wide, out_dim})));

    const Packed packed{step.positions, step.row_first, step.tables, step.rows, step.table_stride};
    auto plan_of = [&](int64_t window) -> AttentionPlan& {
        for (auto& plan : plans)
            if (plan.first == window) return *plan.second;
        plans.emplace_back(window, new AttentionPlan);
        return *plans.back().second;
    };
    for (const LayerSpec& layer : layers) plan_of(layer.window);
    for (auto& plan : plans) {
        LayerSpec any = layers[0];
        any.window = plan.first;
        plan.second->make(shape_of(any, step), packed, nullptr, 0);
    }
    last_plan.make(shape_of(layers.back(), step), packed, step.outputs, asked);
    // Tokens that one worker stores together: of a prompt they share lines of the cache.
    const int64_t together = tokens < 64 ? 1 : 16;

    parallel([&](Worker& worker) {
        worker.each(tokens, [&](int64_t t) {
            embed(step.ids[t], x + t * x_stride);
            rms_norm(x + t * x_stride, layers[0].input_norm, s.eps, d, y + t * x_stride);
        });
        for (int64_t i = 0; i < s.num_layers; i++) {
            const LayerSpec& layer = layers[i];
            const AttentionShape shape = shape_of(layer, step);
            const bool is_last = i + 1 == s.num_layers;
            const int64_t rows = is_last ? asked : tokens;
            float* to = is_last ? last : x;
            // x and what is added to it, of row r, into `to` and normed into out
            auto add = [&](const float* from, int64_t r, const float* own_norm, const float* next_norm, float* out) {
                float* added = y + r * x_stride;
                if (own_norm) rms_norm(added, own_norm, s.eps, d, added);
                in_vectors(d, [&](int64_t j, int n) {
                    Vec sum = fma(load_some(added + j, n), splat(s.residual_scale), load_some(from + j, n));
                    store_some(to + r * x_stride + j, sum, n);
                });
                rms_norm(to + r * x_stride, next_norm, s.eps, d, out);
            };
            product(worker, layer.qkv, y, x_stride, tokens, qkv, qkv_stride, layer.qkv_bias, shared);
            worker.each((tokens + together - 1) / together * s.kv_heads, [&](int64_t item) {
                const int64_t first = item / s.kv_heads * together;
                for (int64_t t = first; t < std::min(tokens, first + together); t++) store(step, i, t, item % s.kv_heads);
            });
            if (rows == 0) break;
            AttentionPlan& plan = is_last ? last_plan : plan_of(layer.window);
            plan.run(worker, shape, packed, qkv, qkv_stride, step.keys[i], step.values[i], attended, attended_stride);
            product(worker, layer.o, attended, attended_stride, rows, y, x_stride, layer.o_bias, shared);
            worker.each(rows, [&](int64_t r) {
                add(x + (is_last ? step.outputs[r] : r) * x_stride, r, layer.post_attention_norm, layer.pre_mlp_norm, y + r * x_stride);
            });
            product(worker, layer.gate_up, y, x_stride, rows, gates, gates_stride, layer.gate_up_bias, shared);
            worker.each(rows, [&](int64_t r) {
                float* gate = gates + r * gates_stride;
                in_vectors(wide, [&](int64_t j, int n) {
                    store_some(gate + j, activate(load_some(gate + j, n), s.activation) * load_some(gate + wide + j, n), n);
                });
            });
            product(worker, layer.down, gates, gates_stride, rows, y, x_stride, layer.down_bias, shared);
            worker.each(rows, [&](int64_t r) {
                const float* next_norm = is_last ? s.final_norm : layers[i + 1].input_norm;
                add(to + r * x_stride, r, layer.post_mlp_norm, next_norm, is_last ? step.hidden + r * d : y + r * x_stride);
            });
        }
    });
}

}  // namespace trimtab

using namespace trimtab;

TRIMTAB_API void* trimtab_decoder_new(const DecoderSpec* spec) { return new Decoder(*spec); }
TRIMTAB_API void trimtab_decoder_free(void* decoder) { delete static_cast<Decoder*>(decoder); }
TRIMTAB_API void trimtab_decoder_run(void* decoder, const Step* step) { static_cast<Decoder*>(decoder)->run(*step); }
