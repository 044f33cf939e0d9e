"""Decoder of the CPU backend: the body of a decoder-only model, a step in one call."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from trimtab.kernels.cpu.library import Library
from trimtab.kernels.cpu.weights import PackedWeight, WeightStruct

__all__ = ["Activation", "Decoder", "DecoderSpec", "LayerSpec"]

Activation = Literal["silu", "gelu_tanh", "gelu"]
_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "gelu": 2}
_FORMATS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_BIASES = ("qkv_bias", "o_bias", "gate_up_bias", "down_bias")
_NORMS = ("input_norm", "post_attention_norm", "pre_mlp_norm", "post_mlp_norm")
_TENSORS = (*_BIASES, *_NORMS, "q_norm", "k_norm", "cos", "sin")


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One layer, H query heads and Hkv of keys and values of D numbers each. Tensors are float32.

    qkv: [(H + 2·Hkv)·D, d]. gate_up: [2I, d], the gates first.
    post_attention_norm, post_mlp_norm: of what attention and the MLP give, before it is added.
    q_norm, k_norm: [D], RMS of each head before it is rotated.
    Norms' weights are what is multiplied with: 1 + w where a model means that.
    cos, sin: [positions, rotary_dim/2]; of D numbers the first rotary_dim turn, i with i + rotary_dim/2.
    softcap: scores become softcap·tanh(score/softcap). window: keys that a token sees, its own too.
    """

    qkv: PackedWeight
    o: PackedWeight
    gate_up: PackedWeight
    down: PackedWeight
    input_norm: Tensor
    pre_mlp_norm: Tensor
    cos: Tensor
    sin: Tensor
    rotary_dim: int
    scale: float
    qkv_bias: Tensor | None = None
    o_bias: Tensor | None = None
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    post_attention_norm: Tensor | None = None
    post_mlp_norm: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    softcap: float | None = None
    window: int | None = None


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """A body: layers between the embedding [V, d] and the final norm.

    embedding: packed (a tied head), or dense. residual_scale: of what attention and the MLP add.
    """

    layers: Sequence[LayerSpec]
    embedding: PackedWeight | Tensor
    final_norm: Tensor
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    block_size: int
    eps: float
    activation: Activation = "silu"
    embedding_scale: float = 1.0
    residual_scale: float = 1.0


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, WeightStruct) for name in ("qkv", "o", "gate_up", "down")),
        *((name, ctypes.c_void_p) for name in _TENSORS),
        *((name, ctypes.c_int64) for name in ("rotary", "window")),
        *((name, ctypes.c_float) for name in ("scale", "softcap")),
    )


class _Decoder(ctypes.Structure):
    _SIZES = ("num_layers", "hidden", "intermediate", "num_heads", "num_kv_heads", "head_dim", "block_size")
    _fields_ = (
        ("layers", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("embedding", WeightStruct),
        *((name, ctypes.c_void_p) for name in ("dense_embedding", "final_norm")),
        *((name, ctypes.c_float) for name in ("embedding_scale", "residual_scale", "eps")),
        *((name, ctypes.c_int32) for name in ("dense_format", "activation")),
    )


class _Step(ctypes.Structure):
    _ARRAYS = ("ids", "positions", "slots", "row_first", "tables", "outputs")
    _fields_ = (
        *((name, ctypes.c_void_p) for name in _ARRAYS),
        *((name, ctypes.c_int64) for name in ("tokens", "rows", "table_stride", "num_outputs")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        ("cache_format", ctypes.c_int64),
        ("hidden", ctypes.c_void_p),
    )


class Decoder:
    """The body of `spec` on `library`. A token's result is the same bits whatever is computed with it, and
    however its row was cut into steps. One step at a time.

    Keys lie [blocks, Hkv, D, block_size], values [blocks, Hkv, block_size, D], a tensor each for a layer, all
    of float32, float16 or bfloat16.

    Raises:
        ValueError: parts that do not fit each other.
    """

    def __init__(self, spec: DecoderSpec, library: Library) -> None:
        _check(spec)
        self.spec, self.library = spec, library
        self._cdll = library.cdll
        self._kept: list[Any] = []  # what the library's pointers point to
        layers = (_Layer * len(spec.layers))(*(self._layer(layer) for layer in spec.layers))
        packed, dense, code = WeightStruct(), None, 0
        if isinstance(spec.embedding, PackedWeight):
            packed = spec.embedding.struct
        else:
            dense, code = self._address(spec.embedding, spec.embedding.dtype), _FORMATS[spec.embedding.dtype]
        sizes = (getattr(spec, name) for name in _Decoder._SIZES[1:])
        scales = (spec.embedding_scale, spec.residual_scale, spec.eps)
        kinds = (code, _ACTIVATIONS[spec.activation])
        norm = self._address(spec.final_norm)
        struct = _Decoder(
            ctypes.addressof(layers), len(spec.layers), *sizes, packed, dense, norm, *scales, *kinds
        )
        self._cdll.trimtab_decoder_new.restype = ctypes.c_void_p
        self._cdll.trimtab_decoder_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self._cdll.trimtab_decoder_free.argtypes = [ctypes.c_void_p]
        self._handle = self._cdll.trimtab_decoder_new(ctypes.byref(struct))
        weakref.finalize(self, self._cdll.trimtab_decoder_free, self._handle)
        self._caches: tuple[Any, ...] = ()

    def run(
        self,
        ids: Tensor,
        positions: Tensor,
        cache_slots: Tensor,
        rows: Tensor,
        block_tables: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        outputs: Tensor,
    ) -> Tensor:
        """Hidden states after the final norm, f32 [K, d], at places `outputs` of the packed tokens.

        ids, positions, cache_slots: i64 [T]; a slot is block·block_size + place. rows: i64 [R + 1], where
        each row's tokens begin. block_tables: i64 [R, N], where each row's keys lie, this step's included;
        the token at position p sees positions ≤ p. outputs: i64 [K], in any order.
        """
        hidden = torch.empty(len(outputs), self.spec.hidden)
        arrays = [tensor.contiguous() for tensor in (ids, positions, cache_slots, rows)]
        tables = block_tables if block_tables.stride(-1) == 1 else block_tables.contiguous()
        arrays += [tables, outputs.contiguous()]
        if any(tensor.dtype != torch.int64 for tensor in arrays):
            raise ValueError("a step's numbers must be int64")
        caches = self._cache_pointers(keys, values)
        step = _Step(
            *(tensor.data_ptr() for tensor in arrays),
            len(ids),
            len(rows) - 1,
            tables.stride(0),
            len(outputs),
            *caches,
            hidden.data_ptr(),
        )
        self._cdll.trimtab_decoder_run(self._handle, ctypes.byref(step))
        return hidden

    def _cache_pointers(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[int, int, int]:
        """Addresses of the arrays of addresses, and the format; worked out anew for other sequences only."""
        if not self._caches or self._caches[0] is not keys or self._caches[1] is not values:
            spec = self.spec
            shape = (spec.num_kv_heads, spec.head_dim, spec.block_size)
            dtype = keys[0].dtype
            for name, tensors, right in (
                ("keys", keys, shape),
                ("values", values, (shape[0], shape[2], shape[1])),
            ):
                for tensor in tensors:
                    if tensor.shape[1:] != right or tensor.dtype != dtype or not tensor.is_contiguous():
                        raise ValueError(
                            f"{name} must be [blocks, {right}] of one dtype, not {tuple(tensor.shape)}"
                        )
                if len(tensors) != len(spec.layers) or dtype not in _FORMATS:
                    raise ValueError(f"{name} must be one tensor a layer of float32, float16 or bfloat16")
            arrays = [(ctypes.c_void_p * len(t))(*(one.data_ptr() for one in t)) for t in (keys, values)]
            self._caches = (keys, values, arrays, _FORMATS[dtype])
        _, _, arrays, code = self._caches
        return ctypes.addressof(arrays[0]), ctypes.addressof(arrays[1]), code

    def _layer(self, layer: LayerSpec) -> _Layer:
        weights = [getattr(layer, name).struct for name in ("qkv", "o", "gate_up", "down")]
        tensors = [self._address(getattr(layer, name)) for name in _TENSORS]
        return _Layer(
            *weights, *tensors, layer.rotary_dim, layer.window or 0, layer.scale, layer.softcap or 0.0
        )

    def _address(self, tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
        if tensor is None:
            return None
        kept = tensor.detach().to("cpu", dtype).contiguous()
        self._kept.append(kept)
        return kept.data_ptr()


def _check(spec: DecoderSpec) -> None:
    d, dim, wide = spec.hidden, spec.head_dim, spec.intermediate
    out = spec.num_heads * dim
    if spec.num_heads % spec.num_kv_heads or not spec.layers:
        raise ValueError("a decoder needs layers, and as many query heads for every head of keys")
    if spec.activation not in _ACTIVATIONS:
        raise ValueError(
            f"activation {spec.activation!r} does not exist: use one of {', '.join(_ACTIVATIONS)}"
        )
    for i, layer in enumerate(spec.layers):
        qkv = out + 2 * spec.num_kv_heads * dim
        right: dict[str, tuple[int, ...]] = {
            "qkv": (qkv, d), "o": (d, out), "gate_up": (2 * wide, d), "down": (d, wide),
            "qkv_bias": (qkv,), "o_bias": (d,), "gate_up_bias": (2 * wide,), "down_bias": (d,),
            **dict.fromkeys(_NORMS, (d,)), "q_norm": (dim,), "k_norm": (dim,),
            "cos": (len(layer.cos), layer.rotary_dim // 2), "sin": (len(layer.cos), layer.rotary_dim // 2),
        }  # fmt: skip
        for field in fields(layer):
            part = getattr(layer, field.name)
            if field.name in right and part is not None and tuple(part.shape) != right[field.name]:
                raise ValueError(f"layer {i}: {field.name} is {tuple(part.shape)}, not {right[field.name]}")
        if layer.rotary_dim > dim or layer.rotary_dim % 2:
            raise ValueError(f"layer {i}: rotary_dim {layer.rotary_dim} must be even and at most {dim}")
