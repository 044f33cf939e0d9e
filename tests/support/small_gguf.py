"""Small GGUFs: writes a tiny random model of transformers as llama.cpp's converter would."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Quantisation
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

WORDS = ["<unk>", "<s>", "</s>", *(chr(code) for code in range(97, 123)), "Ġ", "he", "Ġhe", "ab"]
MERGES = ["h e", "Ġ he", "a b"]
TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
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


ARCHITECTURES = {
    "llama": Architecture(gguf.MODEL_ARCH.LLAMA, "llama", {"tie_word_embeddings": True}),
    "qwen2": Architecture(gguf.MODEL_ARCH.QWEN2, "qwen2", {"tie_word_embeddings": False}),
    "qwen3": Architecture(gguf.MODEL_ARCH.QWEN3, "qwen3", {"tie_word_embeddings": True, "head_dim": 128}),
    "gemma3": Architecture(gguf.MODEL_ARCH.GEMMA3, "gemma3_text", {"sliding_window": 8}),
}


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
    """The model it holds. changes: fields of the file by their GGUF names, None for none."""
    model = build_model(architecture, quantisation)
    kind, config = ARCHITECTURES[architecture], model.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[kind.gguf])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(changes.get("block_count", config.num_hidden_layers))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(changes.get("feed_forward_length", config.intermediate_size))
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if architecture == "gemma3":
        writer.add_sliding_window(config.sliding_window)
    else:
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if changes.get("scaled_positions"):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    if changes.get("num_parts"):
        writer.add_uint16("split.count", changes["num_parts"])
    if changes.get("tokenizer", True):
        _add_tokenizer(writer, architecture)
    for name, tensor in _tensors(model, kind.gguf).items():
        if name != changes.get("without"):
            packed = tensor.ndim == 2
            data = gguf.quantize(tensor, quantisation) if packed else tensor
            writer.add_tensor(name, data, raw_dtype=quantisation if packed else None)
    for name in changes.get("more", ()):
        writer.add_tensor(name, np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _add_tokenizer(writer: gguf.GGUFWriter, architecture: str) -> None:
    if architecture == "gemma3":
        writer.add_tokenizer_model("llama")
        writer.add_token_list([word.replace("Ġ", "▁") for word in WORDS])
        writer.add_token_scores([-float(index) for index in range(len(WORDS))])
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(WORDS)
        writer.add_token_merges(MERGES)
    writer.add_token_types([3] * 3 + [1] * (len(WORDS) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)


def _tensors(model: PreTrainedModel, architecture: gguf.MODEL_ARCH) -> dict[str, np.ndarray]:
    names = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    found = {}
    for name, parameter in model.named_parameters():
        stem, _, suffix = name.rpartition(".")
        tensor = parameter.detach().numpy()
        if architecture == gguf.MODEL_ARCH.LLAMA and stem.endswith(("q_proj", "k_proj")):
            tensor = _interleave(tensor, model.config.head_dim)
        if architecture == gguf.MODEL_ARCH.GEMMA3 and stem.endswith("norm"):
            tensor = tensor + 1
        found[f"{names.get_name(stem)}.{suffix}"] = tensor
    return found


def _interleave(weight: np.ndarray, dim: int) -> np.ndarray:
    """Rotary pairs beside one another, as llama.cpp wants them."""
    halves = weight.reshape(-1, 2, dim // 2, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
