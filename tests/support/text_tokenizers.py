"""Tokenizers of every kind that models come with, small, and cruel to who reads them token by token."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models
from tokenizers.decoders import Decoder
from transformers import PreTrainedTokenizerFast

from trimtab.server.engine.detokenizer import BYTE_OF

TEXT = "日本語テスト!😀é\ufffd a"
SPECIAL = ["<eos>", "<turn>"]
_CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}


def cut_bytes() -> PreTrainedTokenizerFast:
    """Byte-level, with every piece of up to 5 bytes of TEXT as a token: cut at any byte, and across any."""
    raw = TEXT.encode()
    pieces = {raw[i : i + n] for n in range(2, 6) for i in range(len(raw) - n + 1)}
    words = [*map(bytes, zip(range(256))), *sorted(pieces)]
    vocab = {"".join(_CHARACTER_OF[byte] for byte in word): i for i, word in enumerate(words)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.decoder = decoders.ByteLevel()
    core.add_tokens(["<shown>", "na ïve", "日"])
    return _finished(core)


def byte_fallback(strip: bool = True) -> PreTrainedTokenizerFast:
    """SentencePiece's way: `▁` for a space, `<0xXX>` for a byte; the first space of a text is left out."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁▁", "▁Hello", "▁world", "!", "a", "日", "\ufffd"]
    core = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    return _finished(core)


def word_pieces() -> PreTrainedTokenizerFast:
    """Spaces are put between words, and cleaned away before punctuation."""
    return _words(["[UNK]", "we", "##ing", "do", "n't", ".", "'s", "##\ufffd"], decoders.WordPiece())


def metaspace() -> PreTrainedTokenizerFast:
    return _words(["▁a", "b", "▁", "\ufffd"], decoders.Metaspace())


def word_ends() -> PreTrainedTokenizerFast:
    """A token's end is a space unless it is the last."""
    return _words(["a</w>", "b", "c</w>", "\ufffd"], decoders.BPEDecoder())


def bare_words() -> PreTrainedTokenizerFast:
    return _words(["a", "b", "\ufffd"], None)


ALL = {
    "cut bytes": cut_bytes,
    "byte fallback": byte_fallback,
    "byte fallback, spaces kept": lambda: byte_fallback(strip=False),
    "word pieces": word_pieces,
    "metaspace": metaspace,
    "word ends": word_ends,
    "bare words": bare_words,
}


def _words(words: list[str], decoder: Decoder | None) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, words[0]))
    core.decoder = decoder  # type: ignore[assignment]
    return _finished(core)


def _finished(core: Tokenizer) -> PreTrainedTokenizerFast:
    core.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")
