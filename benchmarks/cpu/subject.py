"""Subject of the CPU benchmarks: the random 31M Llama of fixed sizes, and untrained heads that do steer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from trimtab.guidance.heads.fingerprint import identify
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import AdvantagePart, Manifest, Parts, ScalarPart
from trimtab.guidance.heads.store import save_head

VOCAB_SIZE = 8000
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 1376,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
SIZES_135M = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
"""A policy of SmolLM2-135M's shape: many tokens for its width."""
RANK = 64
FORMS = ("lowrank", "tied")


def save_policy(folder: Path, sizes: Mapping[str, Any], seed: int = 0) -> tuple[Any, Any]:
    """Write a Llama of random weights and its tokenizer, which are returned."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes))
    vocabulary = {f"t{i}": i for i in range(sizes["vocab_size"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, "t2")), eos_token="t1"
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def save_subject(folder: Path, seed: int = 0) -> tuple[Path, dict[str, Path]]:
    """Write the 31M model and one head of each form. Returns their folders."""
    model, tokenizer = save_policy(folder / "model", SIZES, seed)
    return folder / "model", save_heads(folder, model, tokenizer, "random 31M")


def save_heads(folder: Path, model: Any, tokenizer: Any, name: str) -> dict[str, Path]:
    """Write one head of each form for a model. Returns their folders."""
    identity = identify(model, tokenizer, name)
    heads = {}
    for form in FORMS:
        parts = Parts(advantage=AdvantagePart(form=form, rank=RANK), value=ScalarPart())
        head = Head(parts, identity.hidden_size, identity.vocab_size)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.normal_(std=0.05)
        manifest = Manifest(form, parts, identity.hidden_size, identity.vocab_size, identity.base_model)
        save_head(folder / form, head, manifest)
        heads[form] = folder / form
    return heads
