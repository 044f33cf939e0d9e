"""GGUF conversion: writes a GGUF's model, tokenizer and template as a folder of transformers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from unittest import mock

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


class _PlainReader(gguf.GGUFReader):
    """Over a plain array: numpy.memmap pays for each of a million slices."""

    @property
    def data(self) -> np.ndarray:
        return self._data

    @data.setter
    def data(self, data: np.ndarray) -> None:
        self._data = data.view(np.ndarray)


def convert(path: Path, folder: Path) -> None:
    """Writes weights in float32, to which all that a GGUF holds is expanded exactly."""
    where = {"gguf_file": path.name, "local_files_only": True}
    with mock.patch.multiple(
        gguf, GGUFReader=cache(_PlainReader), get_tensor_name_map=cache(gguf.get_tensor_name_map)
    ):  # transformers reads the file three times over, and the names once for every module
        AutoTokenizer.from_pretrained(path.parent, **where).save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **where)
    _forget_gguf(model)
    model.save_pretrained(folder)


def _forget_gguf(model: PreTrainedModel) -> None:
    """What a loader of GGUFs leaves on a model, which holds float32 by now and could not be saved with it."""
    for owner, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)
