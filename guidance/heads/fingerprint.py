"""Fingerprint: hashes by which a head recognises the model, tokenizer and template it was trained on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from trimtab.guidance.errors import PolicyError
from trimtab.guidance.heads.manifest import BaseModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SAMPLES_PER_TENSOR = 64
_PROBE = "The rain (in Spain) didn't stop: 12.5 km, 3 naïve cafés,\n\ttwo  spaces. Дождь 雨 🌧"


@dataclass(frozen=True, slots=True)
class PolicyIdentity:
    """hidden_size and vocab_size are those of the checkpoint's output embedding [vocab_size, hidden_size], of
    which the last rows may be padding: see guidance.policy.cut_padding."""

    base_model: BaseModel
    hidden_size: int
    vocab_size: int


def fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 over architecture, tensor names and shapes, and 64 evenly strided elements of each parameter.

    Elements are rounded to bfloat16 first, so a bfloat16 copy of a float32 model has the same fingerprint.
    """
    digest = hashlib.sha256(str(model.config.model_type).encode())
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"\n{name} {list(parameter.shape)} ".encode())
        # An odd stride: an even one would visit a single column of a matrix whose width is a power of two.
        stride = max(1, parameter.numel() // _SAMPLES_PER_TENSOR) | 1
        sample = parameter.detach().reshape(-1)[::stride][:_SAMPLES_PER_TENSOR]
        digest.update(sample.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over the vocabulary and over how a probe text is split: what it does, not how it is stored."""
    vocabulary = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    probe = tokenizer(_PROBE)["input_ids"]
    return hashlib.sha256(json.dumps([vocabulary, probe]).encode()).hexdigest()


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over the chat template; empty where the tokenizer has none."""
    template = tokenizer.chat_template
    return hashlib.sha256(json.dumps(template).encode()).hexdigest() if template else ""


def identify(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> PolicyIdentity:
    """The identity of a loaded causal LM, called `name` in messages.

    Raises:
        PolicyError: the model has no output embedding for heads to attach to.
    """
    lm_head = model.get_output_embeddings()
    if lm_head is None:
        raise PolicyError(f"{name} has no output embedding: heads need a causal language model")
    vocab_size, hidden_size = lm_head.weight.shape
    base = BaseModel(name, fingerprint(model), tokenizer_hash(tokenizer), template_hash(tokenizer))
    return PolicyIdentity(base, hidden_size, vocab_size)
