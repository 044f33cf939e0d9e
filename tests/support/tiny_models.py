"""Tiny random models with a byte tokenizer, saved as folders."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast

from trimtab.guidance.heads.fingerprint import identify
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import AdvantagePart, Manifest, Parts, ScalarPart
from trimtab.guidance.heads.store import save_head

VOCAB_SIZE = 260
EOS = 257
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 256,
    "eos_token_id": EOS,
    "pad_token_id": 258,
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte: half of most non-ASCII characters, which makes it a hard case."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        additional_special_tokens=["<spare>"],
    )


def save_random_model(config: PretrainedConfig, folder: Path, seed: int = 0) -> Path:
    """A random model with logits spread out enough for its greedy replies to differ, and its tokenizer."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4 if "embed" in name or "wte" in name else 2)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def save_random_head(
    folder: Path,
    policy: Path,
    name: str,
    form: str = "tied",
    seed: int = 0,
    parts: str = "avr",
    scale: float = 1.0,
    value: ScalarPart | None = None,
    slope: float | None = None,
) -> Path:
    """A head of random weights for the model in `policy`. parts: any of a(dvantage), v(alue), r(eward).
    slope: its value_per_advantage."""
    model = AutoModelForCausalLM.from_pretrained(policy)
    identity = identify(model, AutoTokenizer.from_pretrained(policy), policy.name)
    kept = Parts(
        advantage=(
            AdvantagePart(form=form, rank=4, scale=scale, value_per_advantage=slope) if "a" in parts else None
        ),
        value=(value or ScalarPart()) if "v" in parts else None,
        reward=ScalarPart(form="mlp", width=8) if "r" in parts else None,
    )
    torch.manual_seed(seed)
    head = Head(kept, identity.hidden_size, identity.vocab_size)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.3)
    manifest = Manifest(
        name=name,
        parts=kept,
        hidden_size=identity.hidden_size,
        vocab_size=identity.vocab_size,
        base_model=identity.base_model,
        reward_mean=0.25,
        reward_std=2.0,
    )
    save_head(folder / name, head, manifest)
    return folder / name
