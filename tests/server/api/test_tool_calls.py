"""Calls in replies: the same however the text is cut, and what is no call stays words."""

from __future__ import annotations

import time

import pytest

from trimtab.server.api.tools.formats import FORMATS
from trimtab.server.api.tools.reading import Arguments, Call, CallReader, TagWriter, Words
from trimtab.server.engine.request import TokenRecord

F = '<tool_call>\n{"name": "f", "arguments": {"a": "}{\\"]</tool_call>"}}\n</tool_call>'
G = '<tool_call>{"arguments": {"b": [1, {}]}, "name": "g"}</tool_call>'
A, B = '{"a": "}{\\"]</tool_call>"}', '{"b": [1, {}]}'
HERMES = [
    ("", "", []),
    (" \n", " \n", []),
    ("Hello <tool", "Hello <tool", []),
    ("a < b \n\n c ", "a < b \n\n c ", []),
    (F, "", [("f", A)]),
    (f" Well.\n\n{F}\n", " Well.", [("f", A)]),
    (f"{F}{G}\n\n and {F} so", "and so", [("f", A), ("g", B), ("f", A)]),
    (F.removesuffix("</tool_call>"), "", [("f", A)]),  # the end of the turn closes it
    (F.removesuffix("}\n</tool_call>"), "", [("f", A)]),
    (F.replace("}\n<", "\n<") + G, "", [("f", A), ("g", B)]),  # a forgotten bracket
    (F[:50], "", [("f", '{"a": "}{\\"')]),  # cut off
    (F[:40], "", [("f", "{")]),
    ("x <tool_call>" + F[12:20], 'x <tool_call>{"name":', []),
    (
        '<tool_call>[{"name": "f", "arguments": {}}, {"name": "g"}]</tool_call>',
        "",
        [("f", "{}"), ("g", "{}")],
    ),
    ('<tool_call>{"name": "g", "arguments": "{\\"c\\": 1}"}</tool_call>', "", [("g", '{"c": 1}')]),
    ('<tool_call>{"name": "g", "arguments": {"é": NaN}, "id": 1}</tool_call>', "", [("g", '{"é": NaN}')]),
]
NO_CALLS = [
    "The tag <tool_call> opens a call.",
    '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
    '<tool_call>{"name": "f", "arguments": "x"}</tool_call> ',
    '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "f" "arguments": {}}',
    '<tool_call>{"name": ["f"]}\n',
    "<tool_call>" + "[" * 1200 + "]" * 1200,
]
HERMES += [(text, text, []) for text in NO_CALLS]
L = '{"name": "f", "parameters": {"a": "; {"}}'
LLAMA = [
    (L, "", [("f", '{"a": "; {"}')]),
    (f"\n {L}; {L}\n{L};", "", [("f", '{"a": "; {"}')] * 3),
    (f'{{"type": "function", {L[1:]}', "", [("f", '{"a": "; {"}')]),
    (f"I say {L}", f"I say {L}", []),
    (f"{L} and {L}", f"and {L}", [("f", '{"a": "; {"}')]),
    ('{"warm": true}', '{"warm": true}', []),
    ('{"warm": true, "why": {"name": "f"}} ', '{"warm": true, "why": {"name": "f"}} ', []),
    ("{", "{", []),
]
CASES = [("hermes", *case) for case in HERMES] + [("llama3_json", *case) for case in LLAMA]


def read(pieces, format, **options):
    reader = CallReader(FORMATS[format], {"f", "g"}, **options)
    words, calls = "", []
    for part in [part for piece in pieces for part in reader.push(piece)] + reader.finish():
        match part:
            case Words(text):
                words += text
            case Call(index, name):
                assert index == len(calls)
                calls.append((name, ""))
            case Arguments(index, text):
                assert index == len(calls) - 1
                calls[-1] = (calls[-1][0], calls[-1][1] + text)
    assert reader.num_calls == len(calls)
    return words, calls


@pytest.mark.parametrize(("format", "text", "words", "calls"), CASES)
def test_a_reply_is_read_alike_however_it_is_cut(format, text, words, calls):
    assert read([text], format) == (words, calls)
    assert read(text, format) == (words, calls)
    for cut in range(0, len(text), 1 + len(text) // 100):
        assert read([text[:cut], text[cut:]], format) == (words, calls), text[:cut]


def test_a_call_is_told_before_its_arguments_are_whole():
    reader = CallReader(FORMATS["hermes"], {"f"})
    assert reader.push("Well. <tool_ca") == [Words("Well.")]
    assert reader.push('ll> {"name": "f", "arg') == []
    assert reader.push('uments": {"a": ') == [Call(0, "f"), Arguments(0, '{"a": ')]
    assert reader.push('"b') == [Arguments(0, '"b')]
    assert reader.push('"}}') == [Arguments(0, '"}')]
    assert reader.push("</tool_call>") == reader.finish() == []


def test_what_follows_the_last_call_that_is_wanted_is_left_out():
    assert read([f"Well. {F} {G} so"], "hermes", max_calls=1) == ("Well.", [("f", A)])
    several = '<tool_call>[{"name": "f"}, {"name": "g"}]</tool_call>'
    assert read(several, "hermes", max_calls=1) == ("", [("f", "{}")])


@pytest.mark.parametrize(
    "begins",
    ["<tool_call>" + " " * 9, '<tool_call>{"name": "', '<tool_call>{"x": "', "<tool_call>[", " ", F[:45]],
)
def test_reading_takes_time_by_the_length_of_a_reply(begins):
    start = time.thread_time()
    read([begins, *["\\u00e9 ["] * 20_000], "hermes")
    assert time.thread_time() - start < 2


def test_special_tags_are_put_back_where_they_stood():
    writer = TagWriter({7: "<tag>"})
    a, tag = TokenRecord(1, 0.0), TokenRecord(7, 0.0)
    assert writer.push("ab", [a, a], [0, 1]) == "ab"
    assert writer.push("", [tag], [2]) == "<tag>"
    assert writer.push("", [tag, a], [4, 4]) == ""  # text is held back
    assert writer.push("cdef", [a], [5]) == "cd<tag>ef"
    assert writer.push("g", [a, tag, tag], [6, 7, 7]) == "g<tag><tag>"
