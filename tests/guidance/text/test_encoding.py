from __future__ import annotations

import pytest
from tokenizers import processors

from trimtab.guidance.errors import DataError, PolicyError
from trimtab.guidance.text.encoding import ReplyEncoder, Sampled, encode_prompt
from trimtab.guidance.text.ends import end_of_reply
from trimtab.guidance.text.message import Message
from trimtab.guidance.text.render import render_chat

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
    texts = ReplyEncoder(tokenizer, "text")
    assert texts.encode("a b", "d e").reply_ids == (*letters, tokenizer.eos_token_id)


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
        encode_prompt(build_tokenizer(), "", "text")


def test_a_tokenizer_without_end_of_sequence_is_refused(build_tokenizer):
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(PolicyError, match="eos_token"):
        end_of_reply(tokenizer, is_chat=False)


def words_of(tokenizer, *words):
    return tuple(tokenizer.convert_tokens_to_ids(list(words)))


ENDS = {
    "as it is": ("d e", ""),
    "its end": ("d e <done>", "end"),
    "its end and a line": ("d e <done>\n", "end"),
    "several": ("d e <done> <done>\n<eos> ", "end"),
    "end of sequence": ("d e<eos>", "end"),
    "a header": ("<turn> assistant d e", "header"),
    "a header and its end": ("\n<turn> assistant d e <done>\n", "header"),
}


@pytest.mark.parametrize("case", ENDS)
def test_a_reply_in_a_chat_has_its_end_once_and_no_header(build_tokenizer, case: str):
    tokenizer = build_tokenizer()
    text, note = ENDS[case]
    encoder = ReplyEncoder(tokenizer)
    assert encoder.encode(CHAT, text).reply_ids == words_of(tokenizer, "d", "e", "<done>")
    assert (note in encoder.notes.counts) == bool(note)
    assert case != "as it is" or not encoder.notes.counts


def test_a_text_keeps_the_end_that_it_was_given_once(build_tokenizer):
    """Where a chat was rendered beforehand, the turn's end is the one to learn."""
    tokenizer = build_tokenizer()
    encoder = ReplyEncoder(tokenizer, "text")
    for text, end in (("d", "<eos>"), ("d <eos> ", "<eos>"), ("d <done>\n", "<done>")):
        assert encoder.encode("a b", text).reply_ids == words_of(tokenizer, "d", end)
    assert encoder.notes.counts == {"end": 2}


def test_a_reply_that_is_nothing_but_its_end_is_refused(build_tokenizer):
    with pytest.raises(DataError, match="nothing but its end"):
        ReplyEncoder(build_tokenizer()).encode(CHAT, "<done>\n")


def test_an_end_inside_a_reply_and_another_models_end_are_counted(build_tokenizer):
    encoder = ReplyEncoder(build_tokenizer())
    encoder.encode(CHAT, "d <done> <turn> user e")
    encoder.encode(CHAT, "d e</s>")
    assert encoder.notes.counts == {"end inside": 1, "foreign end": 1}


SAMPLED = {
    "an end that was drawn": (("d", "<eos>"), False, ("d", "<eos>"), False),
    "cut": (("d", "e"), True, ("d", "e", "<done>"), True),
    "cut, and yet ended": (("d", "<done>"), True, ("d", "<done>"), False),
    "stopped by something else": (("d", "e"), False, ("d", "e", "<done>"), True),
    "an end of the model's own": (("d", "q"), False, ("d", "q"), False),
}


@pytest.mark.parametrize("case", SAMPLED)
def test_sampled_tokens_end_once_as_the_engine_ends_them(build_tokenizer, case: str):
    tokenizer = build_tokenizer()
    drawn, is_cut, wanted, still_cut = SAMPLED[case]
    encoder = ReplyEncoder(tokenizer, end_ids=words_of(tokenizer, "q"))
    encoded = encoder.encode(CHAT, "", Sampled(words_of(tokenizer, *drawn), is_cut))
    assert (encoded.reply_ids, encoded.is_cut) == (words_of(tokenizer, *wanted), still_cut)
    assert encoder.notes.counts == ({"no end": 1} if case.startswith("stopped") else {})


def test_sampled_tokens_with_two_ends_are_refused(build_tokenizer):
    tokenizer = build_tokenizer()
    drawn = Sampled(words_of(tokenizer, "d", "<done>", "<eos>"))
    with pytest.raises(DataError, match="more than one end token"):
        ReplyEncoder(tokenizer).encode(CHAT, "d", drawn)


def test_a_string_is_a_message_of_the_user_where_there_is_a_template(build_tokenizer):
    chat = ReplyEncoder(build_tokenizer())
    assert chat.prompt_ids("a b") == chat.prompt_ids((Message("user", "a b"),))
    assert chat.notes.counts == {"chat": 1}
    for text in (ReplyEncoder(build_tokenizer(), "text"), ReplyEncoder(build_tokenizer(None))):
        assert text.form == "text"
        assert text.prompt_ids("a b") == tuple(text.tokenizer("a b")["input_ids"])
        assert not text.notes.counts


def test_messages_among_texts_are_refused(build_tokenizer):
    with pytest.raises(DataError, match="rows are texts"):
        ReplyEncoder(build_tokenizer(), "text").prompt_ids(CHAT)


ODD = {
    "a b <turn> c": "rendered",
    "<bos><turn> user a b <done><turn> assistant": "rendered",
    '[{"role": "user", "content": "a"}]': "json",
    " [{'content': 'a', 'role': 'user'}]": "json",
    '{"value": "a", "from": "human"}': "json",
}


@pytest.mark.parametrize("prompt", ODD)
def test_an_odd_prompt_is_counted_and_told_with_the_first(build_tokenizer, prompt: str):
    encoder = ReplyEncoder(build_tokenizer())
    encoder.prompt_ids(prompt)
    encoder.prompt_ids("a b")
    encoder.prompt_ids(prompt + " c")
    assert encoder.notes.counts == {ODD[prompt]: 2, "chat": 3}
    (told,) = (line for line in encoder.notes.lines() if "became one user message each, as" not in line)
    assert told.startswith("2 prompts ")
    assert told.endswith(f"first {prompt!r}")


def test_json_that_is_no_message_is_left_alone_and_a_message_as_a_reply_is_counted(build_tokenizer):
    encoder = ReplyEncoder(build_tokenizer())
    encoder.prompt_ids('{"value": 3, "content": ["a"]}')
    assert encoder.notes.counts == {"chat": 1}
    encoder.encode(CHAT, '[{"role": "assistant", "content": "a"}]')
    assert encoder.notes.counts == {"chat": 1, "json reply": 1}


def test_special_tokens_and_late_system_texts_in_messages_are_counted(build_tokenizer):
    encoder = ReplyEncoder(build_tokenizer())
    encoder.prompt_ids((Message("user", "a <done> b"),))
    encoder.prompt_ids((Message("user", "a"), Message("system", "b")))
    encoder.encode(CHAT, "a <turn> b")
    assert encoder.notes.counts == {"special": 2, "system": 1}


def test_a_beginning_that_the_tokenizer_adds_again_is_counted(build_tokenizer):
    tokenizer = build_tokenizer(None)
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    encoder = ReplyEncoder(tokenizer)
    assert encoder.prompt_ids("<bos> a")[:2] == (bos, bos)
    assert encoder.notes.counts == {"two beginnings": 1}


TOOLS = (
    "{% for m in messages %}{{ m.role + ' ' }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
    "{% if m.content %}{{ m.content + ' ' }}{% endif %}<done>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn> assistant ' }}{% endif %}"
)
CALL = (("tool_calls", '[{"function": {"name": "a", "arguments": {"z": 1, "b": null}}}]'),)


def test_keys_of_a_message_go_to_the_template_as_they_are(build_tokenizer):
    tokenizer = build_tokenizer(TOOLS)
    asked = (Message("user", "a"), Message("assistant", None, CALL), Message("tool", "b"))
    text = render_chat(tokenizer, [message.turn() for message in asked], add_generation_prompt=True)
    assert CALL[0][1] in text  # and in the order of the file
    assert encode_prompt(tokenizer, asked) == tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("template", "message", "named"),
    [
        (None, Message("user", "a", (("name", '"c"'),)), "name"),
        (None, Message("assistant", "a", CALL), "tool_calls"),
        (None, Message("assistant", "a", (("reasoning_content", '"c"'),)), "reasoning_content"),
        (
            "{% for m in messages if m.role != 'tool' %}{{ m.content }}{% endfor %}",
            Message("tool", "c"),
            "role tool",
        ),
    ],
)
def test_what_the_template_leaves_out_is_refused_by_name_or_counted(
    build_tokenizer, template, message, named
):
    tokenizer = build_tokenizer(template) if template else build_tokenizer()
    asked = (Message("user", "a"), message, Message("user", "b"))
    with pytest.raises(DataError, match=f"leaves out {named}"):
        ReplyEncoder(tokenizer).prompt_ids(asked)
    lenient = ReplyEncoder(tokenizer, extra_keys="ignore")
    lenient.prompt_ids(asked)
    assert [named in line for line in lenient.notes.lines()] == [True]


def test_a_key_that_the_template_leaves_out_in_this_place_alone_is_counted(build_tokenizer):
    """As Qwen 3 does with the reasoning of earlier turns."""
    template = (
        "{% for m in messages %}{{ m.content }}{% if loop.last %}{{ m.thinking }}{% endif %} {% endfor %}"
    )
    encoder = ReplyEncoder(build_tokenizer(template))
    encoder.prompt_ids((Message("assistant", "a", (("thinking", '"c"'),)), Message("user", "b")))
    assert len(encoder.notes.counts) == 1


def test_developer_is_read_as_system_as_the_server_reads_it(build_tokenizer):
    tokenizer = build_tokenizer()
    developer, system = (
        encode_prompt(tokenizer, (Message(role, "a b"), Message("user", "c")))
        for role in ("developer", "system")
    )
    assert developer == system


def test_a_reply_that_the_template_alters_stays_as_it_is(build_tokenizer):
    turn = "{{ '<turn> ' + m.role + ' ' + m.content | replace('d', '') }}<done>"
    trims = f"{{% for m in messages %}}{turn}{{% endfor %}}"
    tokenizer = build_tokenizer(trims + "{% if add_generation_prompt %}<turn> assistant {% endif %}")
    assert ReplyEncoder(tokenizer).encode(CHAT, "d e").reply_ids == words_of(tokenizer, "d", "e", "<done>")
