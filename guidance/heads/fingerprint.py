"""Fingerprint: hashes by which a head recognises the model, tokenizer and template it was trained on."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from trimtab.guidance.errors import PolicyError
from trimtab.guidance.heads.manifest import BaseModel, as_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SAMPLES_PER_TENSOR = 64
_SAMPLES_TO_KEEP = 256
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
        digest.update(_bytes(_strided(parameter, _SAMPLES_PER_TENSOR)))
    return digest.hexdigest()


def weight_sample(model: PreTrainedModel) -> str:
    """256 elements of the fingerprint's, evenly strided over those of all matrices, as base64 of bfloat16.

    Vectors are left out: those of norms are large, and quantisation does not touch them.
    """
    matrices = [weight for _, weight in sorted(model.named_parameters()) if weight.dim() > 1]
    if not matrices:
        return ""
    samples = torch.cat([_strided(weight, _SAMPLES_PER_TENSOR) for weight in matrices])
    return base64.b64encode(_bytes(_strided(samples, _SAMPLES_TO_KEEP))).decode("ascii")


def weight_difference(theirs: str, ours: str) -> float | None:
    """Root mean square of the difference of two samples over that of the first; None where they cannot be
    compared: one is of an older head, or of a model of other matrices."""
    try:
        a, b = (
            torch.frombuffer(bytearray(base64.b64decode(x)), dtype=torch.bfloat16) for x in (theirs, ours)
        )
    except (binascii.Error, ValueError):
        return None
    if a.shape != b.shape:
        return None
    difference = float((a.float() - b.float()).norm() / a.float().norm())
    return difference if math.isfinite(difference) else None


def _strided(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """At most so many elements, evenly, as bf16 on the host."""
    # An odd stride: an even one would visit a single column of a matrix whose width is a power of two.
    stride = max(1, tensor.numel() // count) | 1
    return tensor.detach().reshape(-1)[::stride][:count].to("cpu", torch.bfloat16)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.view(torch.int16).numpy().tobytes()


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
    base = BaseModel(
        as_text(name),
        fingerprint(model),
        tokenizer_hash(tokenizer),
        template_hash(tokenizer),
        weight_sample(model),
    )
    return PolicyIdentity(base, hidden_size, vocab_size)
