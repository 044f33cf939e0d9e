from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from trimtab.server.api.tokens import TokenText

TEXT = "Hello  world, é 漢 🙂\n\tend<eos>"


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece's way: `▁` for a space, `<0xXX>` for what the vocabulary lacks."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + list("▁Helowrd,né")
    vocab = {piece: index for index, piece in enumerate(pieces)}
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bpe.add_special_tokens(["<eos>"])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>")


def merged_tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, special_tokens=["<eos>"])
    bpe.train_from_iterator(["Hello world, é 漢 " * 20], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>")


@pytest.mark.parametrize("make", [byte_fallback_tokenizer, merged_tokenizer])
def test_the_bytes_of_all_tokens_together_are_the_text(make):
    tokenizer = make()
    token_text = TokenText(tokenizer)
    assert b"".join(map(token_text.bytes, tokenizer.encode(TEXT))).decode() == TEXT


def test_part_of_a_character_is_written_as_its_bytes():
    tokenizer = byte_fallback_tokenizer()
    token_text = TokenText(tokenizer)
    assert token_text.text(0xE6) == "bytes:\\xe6"
    assert token_text.text(ord("A")) == "A"


def test_an_id_beyond_the_tokenizers_vocabulary_is_empty():
    tokenizer = byte_fallback_tokenizer()
    assert TokenText(tokenizer).text(len(tokenizer) + 5) == ""
