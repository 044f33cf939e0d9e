"""GGUF conversion: writes a GGUF's model, tokenizer and template as a folder of transformers."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers import modeling_gguf_pytorch_utils as loader

import gguf
from trimtab.guidance.errors import UserError
from trimtab.guidance.files import write_json
from trimtab.guidance.gguf.fields import (
    FACTORS,
    READ_BY_THEIR_OWN,
    check_fields,
    hold_config,
    hold_factors,
    rotate_less,
    rotated_width,
)
from trimtab.guidance.gguf.header import Header, TensorInfo
from trimtab.guidance.gguf.tokenizer import OPTIONAL_TOKENS, write_tokenizer

_NO_ARCHITECTURES = {"general", "tokenizer", "t5", "umt5", "t5encoder"}  # headings, and encoder-decoders
_NOT_HELD = {"gpt_oss", "mamba", "minimax_m2", "gemma4"}  # with fields of their own


def convert(path: Path, header: Header, folder: Path) -> None:
    """Weights are written in float32, to which all that a GGUF holds expands exactly.

    Raises:
        UserError: one line: transformers does not read this architecture, or not all that the file holds.
    """
    check_architecture(path, header)
    check_fields(path, header)
    where: dict[str, Any] = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    with mock.patch.multiple(
        gguf, GGUFReader=cache(_PlainReader), get_tensor_name_map=cache(gguf.get_tensor_name_map)
    ):  # transformers reads the file three times over, and all names anew for every module
        write_tokenizer(path, header, folder)
        config = AutoConfig.from_pretrained(**where)
        hold_config(path, header, config)
        _check_model(path, header, config)
        model, report = AutoModelForCausalLM.from_pretrained(
            **where, config=config, dtype=torch.float32, output_loading_info=True
        )
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise UserError(f"{path} lacks weights ({missing}, …): convert the whole model anew")
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(f"{path} is damaged: its weight {name} holds what is no number; copy it again")
    _forget_gguf(model)
    model.save_pretrained(folder)
    _set_dtype(folder, header)


def check_architecture(path: Path, header: Header) -> None:
    """Raises UserError where transformers reads no such GGUF."""
    known = set(loader.GGUF_SUPPORTED_ARCHITECTURES) - _NO_ARCHITECTURES - _NOT_HELD
    with contextlib.suppress(ImportError):  # a second table, which transformers did not always have
        from transformers.integrations.gguf import GGUF_ARCHS  # noqa: PLC0415

        known |= set(GGUF_ARCHS)
    if _bare(header.architecture) not in {_bare(name) for name in known}:
        raise UserError(
            f"{path} is of the architecture {header.architecture}, of which transformers reads no GGUF "
            f"(it reads {', '.join(sorted(known))}): name the model's own folder or hub id"
        )
    for field, value in header.metadata.items():
        if field == f"{header.architecture}.rope.scaling.type" and value != "none":
            raise UserError(
                f"{path} scales its positions ({field} {value}), which transformers reads from no GGUF: "
                "name the model's own folder or hub id"
            )


def _bare(name: str) -> str:
    """qwen2moe, qwen2_moe: transformers lists an architecture by either name."""
    return name.replace("-", "").replace("_", "")


def _check_model(path: Path, header: Header, config: PreTrainedConfig) -> None:
    """That the model of this configuration is the file's, before anything is expanded."""
    if (
        header.architecture not in loader.TENSOR_PROCESSORS
        and header.architecture not in loader.GGUF_SUPPORTED_ARCHITECTURES
    ):
        return  # of the second table, whose loader itself refuses
    model = _empty(config)
    if header.architecture not in READ_BY_THEIR_OWN:
        width = rotated_width(header)
        if _rotated(model) - {width}:
            rotate_less(config, width)
            model = _empty(config)
        if _rotated(model) - {width}:
            raise UserError(
                f"{path} rotates {width} numbers of a head ({header.architecture}.rope.dimension_count), and "
                "transformers others of it: name the model's own folder or hub id"
            )
        if header.architecture == "llama" and any(tensor.name == FACTORS for tensor in header.tensors):
            tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
            hold_factors(path, config, np.array(tensors[FACTORS].data, np.float32), width)
    _check_tensors(path, header, model)


def _empty(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _rotated(model: PreTrainedModel) -> set[int]:
    """How many numbers of a head are rotated by position, in each kind of layer."""
    return {2 * len(b) for name, b in model.named_buffers() if name.endswith("inv_freq")}


def _check_tensors(path: Path, header: Header, model: PreTrainedModel) -> None:
    """That each tensor of the file is a weight of the model, and of its size: the loader passes over others,
    such as factors of rotary embeddings, and would give a model that is a little wrong."""
    config = model.config
    processor = loader.TENSOR_PROCESSORS.get(header.architecture, loader.TensorProcessor)(
        config=config.to_dict()
    )
    names = loader.get_gguf_hf_weights_map(model, processor)
    unread = [
        tensor.name
        for tensor in header.tensors
        if tensor.name not in names
        and tensor.name.removesuffix(".weight") not in names
        and (header.architecture, tensor.name) != ("llama", FACTORS)
    ]
    if unread and unread != ["output.weight"]:
        raise UserError(
            f"{path}: transformers does not read its tensor {unread[0]} ({len(unread)} such), so it would be "
            "served wrong: name the model's own folder or hub id"
        )
    parts: defaultdict[str, list[TensorInfo]] = defaultdict(list)  # a weight may be held in two tensors
    for tensor in header.tensors:
        parts[names.get(tensor.name, names.get(tensor.name.removesuffix(".weight"), ""))].append(tensor)
    for name, weight in model.named_parameters():
        have = sum(tensor.num_elements for tensor in parts[name])
        if have not in (0, weight.numel()):
            raise UserError(
                f"{path} is damaged: its tensor {parts[name][0].name} has {have} numbers, and its fields "
                f"describe {weight.numel()}; copy it again"
            )
    num_weights = sum(weight.numel() for weight in model.parameters())
    if num_weights > 2 * header.num_elements:  # a few that are missing are named later; memory is not risked
        raise UserError(
            f"{path} is damaged: its fields describe {num_weights} weights, and its tensors hold "
            f"{header.num_elements}; copy it again"
        )


class _PlainReader(gguf.GGUFReader):  # type: ignore[misc]
    """Over a plain array: numpy.memmap pays for each of a million slices. With as many key as query heads
    where the file does not say, which llama.cpp takes too; without a name, which transformers may take for an
    architecture's."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields.pop("general.name", None)
        num_tokens = len(self.fields["tokenizer.ggml.tokens"].data)
        for name in OPTIONAL_TOKENS:
            field = self.fields.get(f"tokenizer.ggml.{name}_token_id")
            if field is not None and not 0 <= field.contents() < num_tokens:
                del self.fields[field.name]
        architecture = self.fields["general.architecture"].contents()
        heads = self.fields.get(f"{architecture}.attention.head_count")
        if heads is not None:
            name = f"{architecture}.attention.head_count_kv"
            self.fields.setdefault(name, heads._replace(name=name))

    @property
    def data(self) -> np.ndarray:
        return self._data

    @data.setter
    def data(self, data: np.ndarray) -> None:
        self._data = data.view(np.ndarray)


def _forget_gguf(model: PreTrainedModel) -> None:
    """What a loader of GGUFs leaves on a model, which holds float32 by now and could not be saved with it."""
    for owner, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)


def _set_dtype(folder: Path, header: Header) -> None:
    """What a GPU is to load them in: 16 bits, unless the GGUF spends 32 on them itself."""
    is_full = all(tensor.dtype == gguf.GGMLQuantizationType.F32 for tensor in header.tensors)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**config, "dtype": "float32" if is_full else "bfloat16"})
