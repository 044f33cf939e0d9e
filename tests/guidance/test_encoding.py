from __future__ import annotations

import pytest

from trimtab.guidance.encoding import ReplyEncoder, encode_prompt
from trimtab.guidance.errors import DataError, PolicyError
from trimtab.guidance.message import Message
from trimtab.guidance.reply_ends import end_of_reply

CHAT = (Message("system", "a b"), Message("user", "c"))


def test_messages_are_rendered_as_the_server_renders_them(build_tokenizer):
    tokenizer = build_tokenizer()
    plain = [{"role": "system", "content": "a b"}, {"role": "user", "content": "c"}]
    want = tokenizer.apply_chat_template(plain, add_generation_prompt=True, return_dict=False)
    assert list(encode_prompt(tokenizer, CHAT)) == want
    assert tokenizer.decode(want).endswith("assistant")


def test_a_reply_in_a_chat_ends_with_the_templates_token_and_others_with_end_of_sequence(build_tokenizer):
    tokenizer = build_tokenizer()
    encoder = ReplyEncoder(tokenizer)
    letters = tuple(tokenizer.convert_tokens_to_ids(["d", "e"]))
    assert encoder.encode(CHAT, "d e").reply_ids == (*letters, tokenizer.convert_tokens_to_ids("<done>"))
    assert encoder.encode("a b", "d e").reply_ids == (*letters, tokenizer.eos_token_id)


def test_a_template_that_writes_nothing_after_a_reply_falls_back_to_end_of_sequence(build_tokenizer):
    tokenizer = build_tokenizer("{% for m in messages %}{{ m['content'] }} {% endfor %}")
    assert end_of_reply(tokenizer, is_chat=True) == tokenizer.eos_token_id


def test_messages_without_a_template_are_refused(build_tokenizer):
    with pytest.raises(PolicyError, match="no chat template"):
        encode_prompt(build_tokenizer(None), CHAT)


def test_messages_that_the_template_refuses_are_refused(build_tokenizer):
    tokenizer = build_tokenizer("{{ raise_exception('no system role') }}")
    with pytest.raises(DataError, match="no system role"):
        encode_prompt(tokenizer, CHAT)


def test_an_empty_prompt_is_refused_where_nothing_would_predict_the_first_token(build_tokenizer):
    with pytest.raises(DataError, match="prompt is empty"):
        encode_prompt(build_tokenizer(), "")


def test_a_tokenizer_without_end_of_sequence_is_refused(build_tokenizer):
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(PolicyError, match="eos_token"):
        end_of_reply(tokenizer, is_chat=False)
