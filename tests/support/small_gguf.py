"""Small GGUFs: writes a tiny random model of transformers as llama.cpp's converter would."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Quantisation
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

try:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as _SPLITS
except ImportError:
    _SPLITS = None
needs_gguf = pytest.mark.skipif(_SPLITS is None, reason="transformers is too old to read GGUFs right")
WORDS = ["<unk>", "<s>", "</s>", *(chr(code) for code in range(97, 123)), "Ġ", "he", "Ġhe", "ab"]
MERGES = ["h e", "Ġ he", "a b"]
TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
SENTENCEPIECE = ("gemma2", "gemma3")
_NORMS_PLUS_ONE = (gguf.MODEL_ARCH.GEMMA2, gguf.MODEL_ARCH.GEMMA3, gguf.MODEL_ARCH.NEMOTRON)
_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": len(WORDS),
    "max_position_embeddings": 128,
}


@dataclass(frozen=True)
class Architecture:
    """gguf: as llama.cpp calls it. fields: of the configuration beyond _SIZES."""

    gguf: gguf.MODEL_ARCH
    model_type: str
    fields: dict[str, Any]


def _rope(theta: float, share: float = 1.0) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": share}


ARCHITECTURES = {
    "llama": Architecture(gguf.MODEL_ARCH.LLAMA, "llama", {"tie_word_embeddings": True}),
    "qwen2": Architecture(gguf.MODEL_ARCH.QWEN2, "qwen2", {"tie_word_embeddings": False}),
    "qwen3": Architecture(gguf.MODEL_ARCH.QWEN3, "qwen3", {"tie_word_embeddings": True, "head_dim": 128}),
    "gemma2": Architecture(
        gguf.MODEL_ARCH.GEMMA2,
        "gemma2",
        {"sliding_window": 8, "query_pre_attn_scalar": 16, "final_logit_softcapping": 5.0},
    ),
    "gemma3": Architecture(
        gguf.MODEL_ARCH.GEMMA3, "gemma3_text", {"sliding_window": 8, "query_pre_attn_scalar": 16}
    ),
    "phi3": Architecture(
        gguf.MODEL_ARCH.PHI3,
        "phi3",
        {"pad_token_id": 0, "sliding_window": 8, "rope_parameters": _rope(1e4, share=0.5)},
    ),
    "starcoder2": Architecture(
        gguf.MODEL_ARCH.STARCODER2, "starcoder2", {"sliding_window": 8, "rope_parameters": _rope(1e6)}
    ),
    "stablelm": Architecture(
        gguf.MODEL_ARCH.STABLELM, "stablelm", {"rope_parameters": _rope(1e5, share=0.5)}
    ),
    "qwen3moe": Architecture(
        gguf.MODEL_ARCH.QWEN3MOE,
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True},
    ),
    "nemotron": Architecture(gguf.MODEL_ARCH.NEMOTRON, "nemotron", {"norm_eps": 1e-2}),
}
"""With what a file states and transformers would pass over: bases and shares of rotation, windows, scales."""


def build_model(architecture: str, quantisation: Quantisation) -> PreTrainedModel:
    """Its matrices hold what is left of random ones after quantisation."""
    torch.manual_seed(0)
    kind = ARCHITECTURES[architecture]
    config = AutoConfig.for_model(kind.model_type, **(_SIZES | kind.fields))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
            if parameter.dim() == 2:
                packed = gguf.quantize(parameter.numpy(), quantisation)
                parameter.copy_(torch.from_numpy(gguf.dequantize(packed, quantisation)))
    return model


def write_gguf(path: Path, architecture: str, quantisation: Quantisation, **changes: Any) -> PreTrainedModel:
    """The model it holds. changes: `fields` of the file by their GGUF names, where the architecture's own
    begin with a dot, None for none; `tokenizer` False for none; `more`, `without`: tensors."""
    model = build_model(architecture, quantisation)
    kind = ARCHITECTURES[architecture]
    name = gguf.MODEL_ARCH_NAMES[kind.gguf]
    writer = gguf.GGUFWriter(path, name)
    fields = {f".{field}": value for field, value in _fields(model.config).items()}
    if changes.get("tokenizer", True):
        fields |= _tokenizer(architecture)
    for own, value in (fields | changes.get("fields", {})).items():
        field = name + own if own.startswith(".") else own
        if isinstance(value, list):
            writer.add_array(field, value)
        elif value is not None:
            add = {int: "uint32", float: "float32", str: "string", bool: "bool"}[type(value)]
            getattr(writer, f"add_{add}")(field, value)
    for name, tensor in _tensors(model, kind.gguf).items():
        if name != changes.get("without"):
            packed = tensor.ndim == 2
            data = gguf.quantize(tensor, quantisation) if packed else tensor
            writer.add_tensor(name, data, raw_dtype=quantisation if packed else None)
    for name, tensor in changes.get("more", {}).items():
        writer.add_tensor(name, np.asarray(tensor, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _fields(config: Any) -> dict[str, Any]:
    ropes = config.rope_parameters
    rope = ropes.get("full_attention", ropes)
    fields = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.sliding_window": getattr(config, "sliding_window", None),
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
        "rope.dimension_count": int(config.head_dim * rope.get("partial_rotary_factor", 1.0)),
        "rope.freq_base": float(rope["rope_theta"]),
    }
    for field, name in {
        "expert_count": "num_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "moe_intermediate_size",
    }.items():
        fields[field] = getattr(config, name, None)
    for name in ("layer_norm_eps", "norm_epsilon", "norm_eps"):
        fields["attention.layer_norm_epsilon"] = getattr(config, name, None) or fields.get(
            "attention.layer_norm_epsilon"
        )
    if hasattr(config, "rms_norm_eps"):
        fields["attention.layer_norm_rms_epsilon"] = config.rms_norm_eps
    return fields


def _tokenizer(architecture: str) -> dict[str, Any]:
    prefix = "tokenizer.ggml."
    fields: dict[str, Any] = {
        f"{prefix}token_type": [3] * 3 + [1] * (len(WORDS) - 3),
        f"{prefix}bos_token_id": 1,
        f"{prefix}eos_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }
    if architecture in SENTENCEPIECE:
        pieces = [word.replace("Ġ", "▁") for word in WORDS]
        scores = [-float(index) for index in range(len(WORDS))]
        return fields | {f"{prefix}model": "llama", f"{prefix}tokens": pieces, f"{prefix}scores": scores}
    own = {"model": "gpt2", "pre": "gpt-2", "tokens": WORDS, "merges": MERGES}
    return fields | {prefix + name: value for name, value in own.items()}


def _tensors(model: PreTrainedModel, architecture: gguf.MODEL_ARCH) -> dict[str, np.ndarray]:
    names = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    found = {}
    for name, parameter in model.named_parameters():
        stem, _, suffix = name.rpartition(".")
        tensor = parameter.detach().numpy()
        if architecture == gguf.MODEL_ARCH.LLAMA and stem.endswith(("q_proj", "k_proj")):
            tensor = _interleave(tensor, model.config.head_dim)
        if architecture in _NORMS_PLUS_ONE and "norm" in stem and suffix == "weight":
            tensor = tensor + 1
        if suffix == "gate_up_proj":  # of all experts
            layer = stem.split(".")[2]
            for part, half in zip(("gate", "up"), np.split(tensor, 2, axis=1), strict=True):
                found[f"blk.{layer}.ffn_{part}_exps.weight"] = np.ascontiguousarray(half)
            continue
        if suffix == "down_proj":
            stem, suffix = f"{stem}.down_proj", "weight"
        found[f"{names.get_name(stem)}.{suffix}"] = tensor
    return found


def _interleave(weight: np.ndarray, dim: int) -> np.ndarray:
    """Rotary pairs beside one another, as llama.cpp wants them."""
    halves = weight.reshape(-1, 2, dim // 2, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
