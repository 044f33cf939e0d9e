"""A policy small enough to reason about: a random Llama of hidden size 32 over 24 words."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<unk>", "<bos>", "<eos>", "<turn>", "<done>"]
WORDS = [*"abcdefghijklmnopqr"]
TEMPLATE = (
    "{{ '<bos>' }}{% for m in messages %}{{ '<turn> ' + m['role'] + ' ' + m['content'] + ' <done>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn> assistant ' }}{% endif %}"
)


def make_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    words = [*SPECIAL, *WORDS, "user", "assistant", "system"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>", eos_token="<eos>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>", "<done>"]})
    tokenizer.chat_template = template
    return tokenizer


def make_model(seed: int = 0, **overrides: object) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(SPECIAL) + len(WORDS) + 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.15,
        "eos_token_id": 3,
        "bos_token_id": 2,
        "pad_token_id": 0,
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | overrides))).eval()


@pytest.fixture(scope="module", autouse=True)
def _imports_are_not_searched_for_garbage() -> Iterator[None]:
    """A Trainer collects garbage before it trains: half a second over all that transformers has imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def build_model() -> Callable[..., LlamaForCausalLM]:
    return make_model


@pytest.fixture
def build_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return make_tokenizer


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
