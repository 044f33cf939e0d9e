from __future__ import annotations

import pytest
from text_tokenizers import cut_bytes
from transformers import PreTrainedTokenizerFast

from trimtab.guidance.errors import ChatTemplateError, PolicyError
from trimtab.guidance.text import sandbox as template_sandbox
from trimtab.guidance.text.render import (
    TurnEnd,
    encode_chat,
    reads_tools,
    render_chat,
    turn_end,
    unread_calls,
)

USER = {"role": "user", "content": "hi"}
LOOP = "{% for m in messages %}"
TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}


def tokenizer(template: str | dict[str, str] | None) -> PreTrainedTokenizerFast:
    """Its special tokens are <eos> and <turn>, its other added ones <shown> and more."""
    made = cut_bytes()
    made.chat_template = template
    return made


FAULTS = {
    "{{ raise_exception('no system role') }}": "no system role",
    "{{ raise_exception({'why': 'roles'}) }}": "roles",
    "{{ messages[5].role.name }}": "has no element 5",
    "{{ 1 / 0 }}": "ZeroDivisionError: division by zero",
    "{{ 'a' + 1 }}": "TypeError",
    "{{ strftime_now(3) }}": "TypeError",
    "{% for i in range(10 ** 9) %}{% endfor %}": "Range too big",
    "{{ 'a' * 10 ** 10 }}": "text of more than",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "RecursionError",
    "{{ 10.0 ** 1000 }}": "OverflowError",
    "{{ [1] | first | join }}": "TypeError",
    "{% include 'x' %}": "loader",
    "{{ '\\ud800' }}": "UnicodeEncodeError",
    "{% if %}": "line 1",
    "{{ messages | nonsense }}": "nonsense",
    "{{ ''.__class__.__mro__ }}": "unsafe",
}


@pytest.mark.parametrize("template", FAULTS)
def test_a_template_that_refuses_or_fails_is_told_in_its_words(template: str):
    with pytest.raises(ChatTemplateError) as told:
        encode_chat(tokenizer(template), [USER])
    assert FAULTS[template] in str(told.value)
    assert "\n" not in str(told.value)


def test_words_without_end_are_cut():
    with pytest.raises(ChatTemplateError) as told:
        encode_chat(tokenizer("{{ raise_exception('a' * 100000) }}"), [USER])
    assert len(str(told.value)) < 1200


def test_of_several_templates_the_default_is_taken():
    templates = {"default": "{{ messages[0].content }}", "tool_use": "no"}
    assert render_chat(tokenizer(templates), [USER], add_generation_prompt=True) == "hi"
    assert render_chat(tokenizer(templates), [USER], add_generation_prompt=True, tools=[TOOL]) == "no"
    with pytest.raises(ChatTemplateError, match="rag, tool_use"):
        render_chat(tokenizer({"rag": "", "tool_use": ""}), [USER], add_generation_prompt=True)


@pytest.mark.parametrize("template", [None, ""])
def test_without_a_template_there_is_no_chat(template: str | None):
    with pytest.raises(PolicyError, match="no chat template"):
        encode_chat(tokenizer(template), [USER])


ENDS = {
    "closes every turn": (LOOP + "{{ m.content + '<turn>' }}{% endfor %}", "<turn>", True),
    "after a space": (LOOP + "{{ m.content + ' \n<turn>' }}{% endfor %}", "<turn>", True),
    "a token that is not special": (LOOP + "{{ m.content + '<shown>' }}{% endfor %}", "<shown>", True),
    "the variable": (LOOP + "{{ m.content + eos_token }}{% endfor %}", "<eos>", True),
    "closes only what is followed": (
        LOOP + "{{ '<eos>' + m.content }}{% if not loop.last %}<turn>{% endif %}{% endfor %}",
        "<turn>",
        True,
    ),
    "opens the next": (LOOP + "{{ '<turn>' + m.role + m.content }}{% endfor %}", "<turn>", False),
    "needs a system message": (
        "{% if messages[0].role != 'system' %}{{ raise_exception('none') }}{% endif %}"
        + LOOP
        + "{{ m.content + '<turn>' }}{% endfor %}",
        "<turn>",
        True,
    ),
    "refuses to end with a reply": (
        "{% if messages[-1].role != 'user' %}{{ 1 / 0 }}{% endif %}"
        + LOOP
        + "{{ m.content + '<turn>' }}{% endfor %}",
        "<turn>",
        True,
    ),
    "trims": (LOOP + "{{ m.content | trim }}<turn>{% endfor %}", "<turn>", True),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_end_of_a_turn_is_what_the_template_writes_there(name: str):
    template, token, is_closing = ENDS[name]
    made = tokenizer(template)
    assert turn_end(made) == TurnEnd(made.convert_tokens_to_ids(token), is_closing)


@pytest.mark.parametrize("after", ["", "\n", " [END]"])
def test_a_turn_that_ends_with_no_token_of_its_own_has_no_end(after: str):
    assert turn_end(tokenizer(LOOP + "{{ m.role + m.content }}" + after + "{% endfor %}")) is None


def test_a_template_that_takes_for_ever_is_tried_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(template_sandbox, "MAX_SECONDS", 0.1)
    slow = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ChatTemplateError, match=r"longer than 0\.1 s"):
        turn_end(tokenizer(slow))


CALLS = (
    LOOP
    + "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments.a }}{% endfor %}{% endfor %}"
)
READS = {  # template: whether it reads tools, and what of calls it leaves out
    LOOP + "{{ m.content }}{% endfor %}": (False, ["tool_calls"]),
    LOOP + "{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}": (
        False,
        ["tool_calls", "role tool"],
    ),
    "{{ tools | length }}" + CALLS: (True, []),
    "{{ tools[0].function.name }}" + CALLS: (True, []),
    "{{ raise_exception('a system message first') }}": (True, []),
}


@pytest.mark.parametrize("template", READS)
def test_a_template_that_leaves_out_tools_or_calls_is_known(template: str):
    made = tokenizer(template)
    assert (reads_tools(made, [TOOL]), unread_calls(made)) == READS[template]
