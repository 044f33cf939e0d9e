"""Tokenizer of a GGUF: written as transformers makes it, with what that leaves out set right."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import transformers
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trimtab.guidance.errors import UserError
from trimtab.guidance.files import write_json, write_text
from trimtab.guidance.gguf.header import Header

try:
    from transformers.integrations.gguf import gguf_tokenizer_mapping as theirs

    theirs.GGUF_PRE_TOKENIZER_SPLITS  # noqa: B018
except (ImportError, AttributeError):  # of a transformers that is too old
    theirs = None

logger = logging.getLogger(__name__)

OPTIONAL_TOKENS = {"unknown": "unk_token", "padding": "pad_token"}

# How llama.cpp splits a text before it merges, by `tokenizer.ggml.pre` (src/llama-vocab.cpp).
_GPT2 = {
    *("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat", "mellum"),
    *("jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "modern-bert", "exaone4", "a.x-4.0"),
}
_DIGITS_FIRST = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
_AS_QWEN2 = {"stablelm2", "hunyuan"}
_WHOLE_WORDS = {
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"),
}
"""Whose words are tokens where the vocabulary has them whole, and whose texts have a beginning."""


def write_tokenizer(path: Path, header: Header, folder: Path) -> None:
    """Raises UserError where it is not known how the file's vocabulary splits a text, or its tokens are not
    those that the tokenizer has."""
    if theirs is None:
        raise UserError(
            f"transformers {transformers.__version__} does not read the tokenizers of GGUF files right: "
            "pip install -U transformers, or name the model's own folder"
        )
    num_tokens = int(header.metadata["tokenizer.ggml.tokens"])
    with mock.patch.dict(theirs._SPECIAL_TOKENS):
        for name, ours in OPTIONAL_TOKENS.items():
            if not 0 <= int(header.metadata.get(f"tokenizer.ggml.{name}_token_id", 0)) < num_tokens:
                del theirs._SPECIAL_TOKENS[ours]
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    backend = tokenizer.backend_tokenizer
    if header.metadata["tokenizer.ggml.model"] == "gpt2":
        _set_split(path, header, backend, theirs.GGUF_PRE_TOKENIZER_SPLITS)
        begins = header.metadata.get("tokenizer.ggml.pre") in _WHOLE_WORDS and tokenizer.bos_token is not None
        if begins and "tokenizer.ggml.add_bos_token" not in header.metadata:
            tokenizer.add_bos_token = True
    else:
        _set_unknown(header, tokenizer)
        if header.metadata.get("tokenizer.ggml.add_space_prefix") is False:
            _leave_out_prefix(backend)
    tokenizer.save_pretrained(folder)
    _settle(folder, num_tokens)
    if len(AutoTokenizer.from_pretrained(folder)) > num_tokens:
        raise UserError(
            f"{path}: transformers makes more tokens of its vocabulary than its {num_tokens}: "
            "name the model's own folder or hub id"
        )


def _set_split(path: Path, header: Header, backend: Tokenizer, splits: Mapping[str, str]) -> None:
    kind = header.metadata.get("tokenizer.ggml.pre", "default")
    if kind == "default":
        logger.warning("%s does not say how its vocabulary splits a text: it is split as GPT-2 does", path)
    elif kind in _DIGITS_FIRST:
        split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), split]
        )
    elif kind not in _GPT2:
        regex = splits.get("qwen2" if kind in _AS_QWEN2 else str(kind))
        if regex is None:
            raise UserError(
                f"{path} splits texts by tokenizer.ggml.pre {kind}, which transformers does not know, so it "
                "would be served wrong: name the model's own folder or hub id"
            )
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(regex), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        if kind in _WHOLE_WORDS:
            backend.model.ignore_merges = True


def _set_unknown(header: Header, tokenizer: PreTrainedTokenizerBase) -> None:
    """What a sentencepiece vocabulary has no piece for is token 0 unless the file says otherwise."""
    model = tokenizer.backend_tokenizer.model
    if getattr(model, "unk_token", None) not in tokenizer.get_vocab():
        unknown = tokenizer.convert_ids_to_tokens(
            int(header.metadata.get("tokenizer.ggml.unknown_token_id", 0))
        )
        tokenizer.unk_token = unknown
        model.unk_token = unknown


def _leave_out_prefix(backend: Tokenizer) -> None:
    """The space that sentencepiece would put before a text."""
    state: dict[str, Any] = json.loads(backend.to_str())

    def without(part: dict[str, Any] | None) -> dict[str, Any] | None:
        if part is None or part["type"] == "Prepend":
            return None
        for inner in ("normalizers", "pretokenizers"):
            if inner in part:
                part[inner] = [kept for one in part[inner] if (kept := without(one)) is not None]
        if part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
        return part

    edited = Tokenizer.from_str(
        json.dumps(state | {key: without(state[key]) for key in ("normalizer", "pre_tokenizer")})
    )
    if edited.normalizer is not None:
        backend.normalizer = edited.normalizer
    if edited.pre_tokenizer is not None:
        backend.pre_tokenizer = edited.pre_tokenizer


def _settle(folder: Path, num_tokens: int) -> None:
    """Makes tokenizer.json all there is: a class of transformers would put its own in place of some of it,
    and adds tokens of its own, such as GPT-2's `<|endoftext|>`, for which the model has no row."""
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    strangers = {token["content"] for token in state["added_tokens"] if token["id"] >= num_tokens}
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < num_tokens]
    if state["model"].get("unk_token") in strangers:
        state["model"]["unk_token"] = None
    write_text(path, json.dumps(state, ensure_ascii=False))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = {
        key: value for key, value in config.items() if not (isinstance(value, str) and value in strangers)
    }
    write_json(path, kept | {"tokenizer_class": "PreTrainedTokenizerFast"})
