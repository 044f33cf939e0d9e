"""Fields of a GGUF: held against the configuration that transformers makes of them, which leaves some out.

What a file states is set right where the configuration has a place for it. A file that states what the
configuration cannot say, or leaves out what cannot be guessed, is refused by the field's name. What a file
may leave out is what llama.cpp takes then (src/llama-model.cpp, load_hparams).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PretrainedConfig

from trimtab.guidance.errors import UserError
from trimtab.guidance.gguf.header import Header, Scalar

READ_BY_THEIR_OWN = {"qwen35", "qwen35moe", "lfm2"}
"""Architectures whose fields transformers reads by functions of their own."""
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "feed_forward_length": ("intermediate_size", "n_inner", "ffn_hidden_size"),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
}
"""A field, below its architecture's name -> what a configuration calls it."""
_REQUIRED = ("context_length", "embedding_length", "block_count", "attention.head_count")
_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
_ROPE = ("rope.freq_base", "rope.freq_base_swa", "rope.dimension_count")
_FREE = {  # of which no logit depends, or but for rope.scaling.type
    *("vocab_size", "tensor_data_layout", "pooling_type", "rope.scaling.original_context_length"),
    *("rope.scaling.finetuned", "decoder_start_token_id"),
    "use_parallel_residual",  # which the tensors tell, as llama.cpp and transformers have it
}
_NEUTRAL: Mapping[str, tuple[Scalar, ...]] = {
    "attention.causal": (True,),
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scale_linear": (0.0, 1.0),
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "expert_weights_scale": (0.0, 1.0),
}
"""Where nothing reads them: also 0, False and no text, but for `attention.causal`."""
FACTORS = "rope_freqs.weight"
_LOW_HIGH = ("low_freq_factor", "high_freq_factor")
_LLAMA_3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_QUERY_SCALES = {"gemma2": 46, "gemma3": 62}
"""Architectures with a scale of their own -> layers of the one size that divides by hidden size ÷ heads."""
_WINDOW_PERIODS = {"gemma2": 2, "gemma3": 6}


def own_fields(header: Header) -> dict[str, Scalar]:
    """Of the architecture, without its name."""
    prefix = f"{header.architecture}."
    return {name.removeprefix(prefix): v for name, v in header.metadata.items() if name.startswith(prefix)}


def check_fields(path: Path, header: Header) -> None:
    """Raises UserError where one is missing without which nothing is computed, or one that nothing reads is
    not neutral."""
    if header.architecture in READ_BY_THEIR_OWN:
        return
    given = own_fields(header)
    more = ("attention.sliding_window",) if header.architecture == "gemma3" else ()
    for field in (*_REQUIRED, *more):
        if field not in given:
            raise UserError(f"{path} does not say {header.architecture}.{field}: convert the model anew")
    if not any(field in given for field in _EPSILONS):
        raise UserError(f"{path} does not say {header.architecture}.{_EPSILONS[0]}: convert the model anew")
    for field, value in given.items():
        _check_number(path, header, field, value)
        is_read = field in ATTRIBUTES or field in _ROPE or field in _FREE
        is_neutral = value in _NEUTRAL.get(field, ()) or (not value and field != "attention.causal")
        if not is_read and not is_neutral and not _is_gemmas(header, field, value):
            raise _unread(path, header, field, value)


def _check_number(path: Path, header: Header, field: str, value: Scalar) -> None:
    if f"{header.architecture}.{field}" in header.arrays:
        raise UserError(
            f"{path} says {header.architecture}.{field} layer by layer, which transformers does not read: "
            "name the model's own folder or hub id"
        )
    is_positive = field in (*_EPSILONS, *_ROPE, *_REQUIRED, "attention.head_count_kv")
    number = float(value) if isinstance(value, int | float) else 1.0
    if not math.isfinite(number) or (is_positive and number <= 0) or (field in _EPSILONS and number >= 1):
        raise UserError(f"{path} is damaged: {header.architecture}.{field} is {value}; copy it again")


def _is_gemmas(header: Header, field: str, value: Scalar) -> bool:
    architecture = header.architecture
    if field == "attention.sliding_window_pattern":
        return value == _WINDOW_PERIODS.get(architecture)
    return field == "attention.scale" and architecture in _QUERY_SCALES


def _unread(path: Path, header: Header, field: str, value: Scalar) -> UserError:
    return UserError(
        f"{path} says {header.architecture}.{field} {value}, which transformers reads from no GGUF of it, so "
        "that it would be served wrong: name the model's own folder or hub id"
    )


def hold_config(path: Path, header: Header, config: PretrainedConfig) -> None:
    """Sets right what the configuration has otherwise than the file, or raises UserError."""
    if header.architecture in READ_BY_THEIR_OWN:
        return
    given = own_fields(header)
    given.setdefault("attention.head_count_kv", given["attention.head_count"])
    if hasattr(config, "head_dim"):
        for field in ("attention.key_length", "attention.value_length"):
            given.setdefault(field, _head_size(header))
    for field, names in ATTRIBUTES.items():
        if field in given:
            _set(path, header, config, field, given[field], names)
    config.vocab_size = header.num_rows("token_embd.weight", int(given["embedding_length"]))
    if (config.pad_token_id or 0) >= config.vocab_size:  # a class's default
        config.pad_token_id = None
    _hold_rope(config, given)
    _hold_query_scale(header, config, given)


def _set(
    path: Path, header: Header, config: PretrainedConfig, field: str, value: Scalar, names: tuple[str, ...]
) -> None:
    name = next((name for name in names if hasattr(config, name)), names[0])
    have = getattr(config, name, None)
    if have is None and field == "feed_forward_length":
        have = 4 * config.hidden_size
    if have is None and field in ("attention.key_length", "attention.value_length"):
        have = config.hidden_size // config.num_attention_heads
    if have is None and field == "attention.head_count_kv":
        have = config.num_attention_heads if not getattr(config, "multi_query", False) else 1
    if have == value or (
        isinstance(value, float) and have is not None and math.isclose(have, value, rel_tol=1e-6)
    ):
        return
    if field == "attention.sliding_window":
        if int(value) >= config.max_position_embeddings:
            return  # it never cuts
        if getattr(config, "layer_types", None) is not None:
            raise _unread(path, header, field, value)
    if not value and not have:
        return
    if field == "context_length" and not hasattr(config, name):
        return  # positions without an end
    if not hasattr(config, name):
        raise _unread(path, header, field, value)
    setattr(config, name, value)


def _ropes(config: PretrainedConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind of layer or "", parameters)."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = {kind: inner for kind, inner in parameters.items() if isinstance(inner, dict)}
    yield from nested.items() or [("", parameters)]


def _hold_rope(config: PretrainedConfig, given: Mapping[str, Scalar]) -> None:
    base = given.get("rope.freq_base", 10_000.0)
    for kind, parameters in _ropes(config):
        if "rope_theta" not in parameters:
            continue
        near = kind == "sliding_attention"
        want = float(given.get("rope.freq_base_swa", parameters["rope_theta"]) if near else base)
        if not math.isclose(parameters["rope_theta"], want, rel_tol=1e-6):
            parameters["rope_theta"] = want


def _head_size(header: Header) -> int:
    """Numbers of a query's head, by its tensor where the file does not say."""
    given = own_fields(header)
    width, num_heads = int(given["embedding_length"]), int(given["attention.head_count"])
    rows = header.num_rows("blk.0.attn_q.weight", width) or width
    return int(given.get("attention.key_length", rows // num_heads))


def rotated_width(header: Header) -> int:
    """How many numbers of a head are rotated: all, where the file does not say."""
    return int(own_fields(header).get("rope.dimension_count", _head_size(header)))


def rotate_less(config: PretrainedConfig, width: int) -> None:
    """For a model of which only so many numbers of each head are rotated."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for _, parameters in _ropes(config):
        parameters["partial_rotary_factor"] = width / head_dim
    if hasattr(config, "partial_rotary_factor"):
        config.partial_rotary_factor = width / head_dim


def hold_factors(path: Path, config: PretrainedConfig, factors: np.ndarray, width: int) -> None:
    """Sets Llama 3.1's scaling of rotations, by what each frequency is divided by [width ÷ 2], as llama.cpp's
    converter writes it. Raises UserError for other factors, which transformers cannot say."""
    parameters = config.rope_parameters
    if len(factors) != width // 2 or "rope_theta" not in parameters:
        raise _unknown_factors(path)
    if np.all(factors == 1):
        return
    scaling = {"factor": float(factors.max())} | _LLAMA_3_SCALING
    wavelengths = 2 * math.pi * parameters["rope_theta"] ** (np.arange(0, width, 2) / width)
    context, low, high = (float(scaling[name]) for name in ("original_max_position_embeddings", *_LOW_HIGH))
    smooth = np.clip((context / wavelengths - low) / (high - low), 0, 1)
    if not np.allclose(factors, 1 / ((1 - smooth) / scaling["factor"] + smooth), rtol=1e-4):
        raise _unknown_factors(path)
    config.rope_parameters = {**parameters, **scaling, "rope_type": "llama3"}


def _unknown_factors(path: Path) -> UserError:
    return UserError(
        f"{path} scales its positions by factors ({FACTORS}) that are not Llama 3.1's, so it would be served "
        "wrong: name the model's own folder or hub id"
    )


def _hold_query_scale(header: Header, config: PretrainedConfig, given: Mapping[str, Scalar]) -> None:
    """Gemma 2 and 3 divide by √query_pre_attn_scalar, which no file states: it follows from the size."""
    layers = _QUERY_SCALES.get(header.architecture)
    if layers is None or not hasattr(config, "query_pre_attn_scalar"):
        return
    whole = config.hidden_size // config.num_attention_heads
    config.query_pre_attn_scalar = whole if config.num_hidden_layers == layers else config.head_dim
    if "attention.scale" in given:
        config.query_pre_attn_scalar = round(float(given["attention.scale"]) ** -2)
