from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from trimtab.guidance.publish.classifier import end_tokens, set_pad_token


def bare_tokenizer(*words: str, **special: str) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", **special)


@pytest.fixture
def tokenizer(build_tokenizer):
    return build_tokenizer()


def test_replies_end_as_the_template_or_the_tokenizer_ends_them(tokenizer):
    assert {tokenizer.convert_ids_to_tokens(i) for i in end_tokens(tokenizer)} == {"<eos>", "<done>"}


def test_a_pad_token_of_its_own_stays(tokenizer):
    assert set_pad_token(tokenizer, 27) == 0
    assert tokenizer.pad_token == "<pad>"


def test_one_that_ends_chats_is_replaced_by_one_that_was_made_for_it(tokenizer):
    tokenizer.pad_token = "<done>"
    assert set_pad_token(tokenizer, 27) == 0


@pytest.mark.parametrize(
    ("words", "special", "wanted"),
    [
        (("a", "<unk>", "<bos>", "<eos>"), {"unk_token": "<unk>", "bos_token": "<bos>"}, 1),
        (("a", "<bos>", "<eos>"), {"bos_token": "<bos>"}, 1),
        (("a", "<eos>", "<reserved>", "<eos_pad>"), {"extra_special_tokens": ["<reserved>", "<eos_pad>"]}, 3),
        (("a", "<eos>", "<reserved>"), {"extra_special_tokens": ["<reserved>"], "bos_token": "<eos>"}, 2),
    ],
)
def test_a_special_token_that_never_ends_a_reply_serves(words, special, wanted: int):
    tokenizer = bare_tokenizer(*words, **special)
    assert set_pad_token(tokenizer, len(words)) == wanted
    assert tokenizer.pad_token == words[wanted]


@pytest.mark.parametrize(("vocab_size", "wanted"), [(4, 3), (3, None)])
def test_without_any_a_spare_row_of_the_embedding_serves(vocab_size: int, wanted: int | None):
    bare = bare_tokenizer("a", "b", "<eos>")
    assert set_pad_token(bare, vocab_size) == wanted
    assert bare.pad_token_id == wanted
