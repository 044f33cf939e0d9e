"""Tokenizers of the families that chat models have, trained on a few lines: as spaces and ends are theirs."""

from __future__ import annotations

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXT = [
    "Once upon a time there was a little boat. Sure, here is the answer: yes, no, 12 and 34.",
    "Tell me about the time of the sea and the boat. The answer is here, on the little sea.",
    "Question: who is there? Answer: nobody is there, and there is no answer to the question.",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|assistant|>", "<|user|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
BARE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "llama-2": LLAMA2, "zephyr": ZEPHYR, "bare": BARE}


def llama_legacy() -> PreTrainedTokenizerFast:
    """SentencePiece's BPE, a space put before every piece of text between special tokens."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _llama(core, Regex(r"▁?[^▁]+"))


def llama() -> PreTrainedTokenizerFast:
    """The same, a space put before the text alone."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _llama(core, None)


def across_words() -> PreTrainedTokenizerFast:
    """SentencePiece's BPE with tokens that go over spaces and end with one."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _llama(core, None)


def unigram() -> PreTrainedTokenizerFast:
    """SentencePiece's unigram, as T5, Gemma's elders and XLNet have it."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=160, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator([*TEXT, "\n"] * 20, trainer)
    return _finished(core)


def byte_level(prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """GPT-2's BPE, whose words begin with their space."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator([*TEXT, "\n\n \n\n"] * 20, trainer)
    return _finished(core)


FAMILIES = {
    "llama, legacy": llama_legacy,
    "llama": llama,
    "across words": across_words,
    "unigram": unigram,
    "byte level": byte_level,
    "byte level, a space before": lambda: byte_level(prefix_space=True),
}


def _llama(core: Tokenizer, words: Regex | None) -> PreTrainedTokenizerFast:
    if words is not None:  # while it is trained
        core.pre_tokenizer = pre_tokenizers.Split(words, "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=460, special_tokens=[*SPECIAL, *BYTES], initial_alphabet=["▁"], show_progress=False
    )
    core.train_from_iterator(TEXT * 20, trainer)
    if words is not None:
        core.pre_tokenizer = None  # type: ignore[assignment]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(steps)
    return _finished(core)


def _finished(core: Tokenizer) -> PreTrainedTokenizerFast:
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
