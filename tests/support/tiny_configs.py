"""Tiny configurations of every causal-LM type that transformers knows, derived by name from its defaults.

Sizes shrink, and so do the lengths at which a model changes its ways (windows, chunks, scaled positions), so
that a hundred tokens go beyond all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

CAUSAL_LM_TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCAB_SIZE, NUM_LAYERS, NUM_HEADS, HEAD_DIM, HIDDEN = 260, 4, 4, 8, 32


@dataclass(frozen=True, slots=True)
class Reach:
    """The lengths at which a model changes its ways, all below `longest`."""

    window: int
    chunk: int
    kept: int
    original: int
    longest: int

    def sizes(self) -> dict[str, int]:
        groups = (
            (
                self.longest,
                "max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length "
                "max_target_positions max_source_positions seq_length",
            ),
            (self.original, "original_max_position_embeddings"),
            (
                self.window,
                "sliding_window sliding_window_size attention_window_size window_size keep_window_size",
            ),
            (2 * self.window, "local_attention"),
            (self.chunk, "attention_chunk_size floor_scale log_scaling_n_floor"),
            (self.kept, "index_topk token_budget rel_extent"),
        )
        return {name: value for value, names in groups for name in names.split()}


NEAR = Reach(window=9, chunk=16, kept=8, original=32, longest=128)
FAR = Reach(window=650, chunk=200, kept=96, original=256, longest=1024)
"""Beyond what a self-check on a few tokens can see."""

_NAMES: tuple[tuple[int, str], ...] = (
    (VOCAB_SIZE, "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size"),
    (
        HIDDEN,
        "hidden_size d_model n_embd dim emb_dim embedding_dim embedding_size word_embed_proj_dim "
        "lru_width attention_hidden_size backbone_hidden_size input_size out_hidden_size "
        "hidden_size_global vision_output_dim output_channels cross_attention_hidden_size "
        "vector_quantization_hidden_dimension codebook_dim projector_input_dim projector_output_dim "
        "shape_embed_dim pronunciation_embed_dim input_embedding_size output_embedding_size "
        "adapter_out_dim image_size latent_channels upsample_groups",
    ),
    (
        NUM_LAYERS,
        "num_hidden_layers n_layer n_layers num_layers num_blocks decoder_layers encoder_layers "
        "num_decoder_layers num_encoder_layers depth n_input_layers n_recurrent_layers "
        "n_output_layers num_layers_per_stack num_global_layers conf_num_hidden_layers "
        "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads "
        "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads "
        "swa_num_attention_heads mamba_n_heads linear_num_heads linear_num_key_heads "
        "linear_num_value_heads conf_num_attention_heads num_experts n_routed_experts "
        "num_local_experts moe_num_experts heads_per_ngram zero_expert_num num_centroids "
        "split_ngram_parts num_filters patch_size",
    ),
    (
        2,
        "num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads num_experts_per_tok "
        "moe_k moe_topk num_experts_per_token moe_top_k index_n_heads num_kv_shared_layers "
        "max_window_layers n_group num_expert_group topk_group global_attn_every_n_layers "
        "centroid_intermediate_top_k",
    ),
    (
        1,
        "n_shared_experts num_shared_experts moe_num_shared_experts first_k_dense_replace "
        "num_dense_layers moe_layer_start_index index_local_blocks",
    ),
    (NUM_LAYERS - 1, "moe_layer_end_index"),
    (
        HEAD_DIM,
        "head_dim d_head d_kv kv_channels dim_head global_head_dim swa_head_dim v_head_dim rotary_dim "
        "qk_rope_head_dim qk_nope_head_dim index_head_dim linear_head_dim linear_key_head_dim "
        "query_pre_attn_scalar linear_value_head_dim hidden_size_per_layer_input mamba_d_state d_rel "
        "index_block_size ple_embed_dim",
    ),
    (2 * HEAD_DIM, "qk_head_dim rel_extent mamba_d_head local_attn_chunk_length lsh_attn_chunk_length"),
    (12, "kv_lora_rank q_lora_rank o_lora_rank hc_lowrank laurel_rank loop_gate_rank"),
    (
        48,
        "intermediate_size moe_intermediate_size shared_expert_intermediate_size "
        "shared_intermediate_size shared_experts_intermediate_size "
        "moe_shared_expert_intermediate_size intermediate_size_mlp ffn_dim d_ff dff dim_ff d_inner "
        "ffn_hidden_size expert_ffn_hidden_size decoder_ffn_dim encoder_ffn_dim mlp_dim "
        "feed_forward_size dense_intermediate_size router_hidden_size",
    ),
)
_SIZES = {name: value for value, names in _NAMES for name in names.split()} | {
    "use_sliding_window": True,
    "pad_token_id": 3,
    "bos_token_id": 4,
    "eos_token_id": 5,
    "is_decoder": True,
}
_LISTS_OF_KINDS = (
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    "indexer_types",
    "block_types",
    "attention_layers",
    "no_rope_layers",
)
_WINDOWED = ("full_attention", "sliding_attention")
"""Kinds of layers of a type that has a window and by default none that uses it."""

_INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "layer_types": ["linear_attention", "indexed_attention"] * 2,
}
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
OVERRIDES: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(_WINDOWED, _ROPE)},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "dory": {
        "layer_types": None,
        "num_hidden_layers": 8,
        "n_input_layers": 2,
        "n_recurrent_layers": 4,
        "n_output_layers": 2,
    },
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": HEAD_DIM, "mamba_d_ssm": 64},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"] * 2},
    "reformer": {"axial_pos_shape": [8, 16], "axial_pos_embds_dim": [16, 16]},
    "qwen4_exp_text": _INDEXER,
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_head_dim": 16, "attention_hidden_size": 64},
    "zamba2": {"attention_head_dim": 16, "attention_hidden_size": 64},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a type needs besides."""


def tiny_config(model_type: str, reach: Reach, **overrides: Any) -> PretrainedConfig:
    """A configuration with every kind of layer that the type's default has.

    Raises whatever the type's configuration raises where the sizes do not fit one another."""
    kind = CONFIG_MAPPING[model_type]
    given = OVERRIDES.get(model_type, {}) | overrides
    try:
        default = kind()
    except Exception:  # a type whose defaults contradict one another
        default = kind(**given)
    return kind(**(_shrunk(default, reach) | given))


def _shrunk(config: PretrainedConfig, reach: Reach) -> dict[str, Any]:
    values = config.to_dict()
    sizes = {name: value for name, value in (_SIZES | reach.sizes()).items() if name in values}
    for name in _LISTS_OF_KINDS:
        if values.get(name):
            sizes[name] = _one_of_each(name, values)
    if values.get("kv_lora_rank"):  # latent attention: every head has its own keys
        sizes["num_key_value_heads"] = NUM_HEADS
    for name in (name for name, value in values.items() if isinstance(value, dict)):
        part = getattr(config, name, None)
        if isinstance(part, PretrainedConfig):
            sizes[name] = {"model_type": part.model_type} | _shrunk(part, reach)
    return sizes


def _one_of_each(name: str, values: dict[str, Any]) -> list[Any]:
    kinds = list(dict.fromkeys(values[name]))
    if name == "layer_types" and kinds == ["full_attention"] and "sliding_window" in values:
        kinds = list(_WINDOWED)
    return [kinds[i % len(kinds)] for i in range(NUM_LAYERS)]
