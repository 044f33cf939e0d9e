from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from text_tokenizers import ALL, TEXT, byte_fallback, cut_bytes
from tiny_models import byte_tokenizer
from transformers import AutoTokenizer

from trimtab.server.engine.detokenizer import ByteDetokenizer, TextDecoder, WindowDetokenizer

DECODERS = {name: TextDecoder(make()) for name, make in ALL.items()}
SIZES = {name: len(make()) for name, make in ALL.items()}
STORIES = Path(__file__).parents[4] / "shared" / "models" / "stories656K"
SMOLLM2 = Path(os.environ.get("TRIMTAB_SMOLLM2", "/nowhere"))


def read(text: TextDecoder, ids: list[int], prompt: tuple[int, ...] = ()) -> list[str]:
    """The deltas; the last one is what was held back to the end."""
    detokenizer = text.detokenizer(prompt)
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@pytest.mark.parametrize("name", ALL)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_deltas_of_any_tokens_join_to_the_text_of_all(name: str, data: st.DataObject):
    few = data.draw(st.lists(st.integers(0, SIZES[name] - 1), min_size=1, max_size=6))
    ids = data.draw(st.lists(st.sampled_from(few), max_size=60))
    assert "".join(read(DECODERS[name], ids)) == DECODERS[name].decode(ids)


@pytest.mark.parametrize("name", ALL)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_fork_goes_on_from_what_both_have_read_and_leaves_the_other_alone(name: str, data: st.DataObject):
    few = st.sampled_from(data.draw(st.lists(st.integers(0, SIZES[name] - 1), min_size=1, max_size=6)))
    common, left, right = (data.draw(st.lists(few, max_size=12)) for _ in range(3))
    one = DECODERS[name].detokenizer(())
    text = "".join(map(one.push, common))
    other = one.fork()
    for detokenizer, ids in ((one, left), (other, right)):
        got = text + "".join(map(detokenizer.push, ids)) + detokenizer.flush()
        assert got == DECODERS[name].decode([*common, *ids])


@pytest.mark.parametrize("name", ["cut bytes", "byte fallback"])
@given(raw=st.binary(max_size=24) | st.text(max_size=8).map(str.encode))
@settings(max_examples=150, deadline=None)
def test_deltas_of_any_bytes_join_to_their_text(name: str, raw: bytes):
    first = 0 if name == "cut bytes" else 1
    ids = [first + byte for byte in raw]
    assert "".join(read(DECODERS[name], ids)) == DECODERS[name].decode(ids)


@given(cuts=st.sets(st.integers(1, len(TEXT.encode()) - 1)))
@settings(max_examples=100, deadline=None)
def test_text_cut_into_tokens_at_any_bytes_is_never_given_half_a_character(cuts: set[int]):
    raw, ends = TEXT.encode(), [0, *sorted(cuts), len(TEXT.encode())]
    pieces = [raw[i:j] for i, j in pairwise(ends)]
    detokenizer = ByteDetokenizer(dict(enumerate(pieces)))
    given_out = ""
    for token in range(len(pieces)):
        given_out += detokenizer.push(token)
        whole = raw[: ends[token + 1]].decode(errors="ignore")
        assert given_out == whole
    assert detokenizer.flush() == ""


def ids_of_bytes(text: TextDecoder, *pieces: bytes) -> list[int]:
    of = {text._pieces[i]: i for i in range(SIZES["cut bytes"])}
    return [of[piece] for piece in pieces]


def test_tokens_that_straddle_characters_on_both_sides_lose_none():
    text, raw = DECODERS["cut bytes"], "日本語テスト!".encode()
    ids = ids_of_bytes(text, raw[:2], *(raw[i : i + 3] for i in range(2, len(raw) - 2, 3)), raw[-2:])
    assert "".join(read(text, ids)) == "日本語テスト!"


def test_a_broken_byte_costs_one_mark_and_not_the_character_after_it():
    text = DECODERS["cut bytes"]
    assert "".join(read(text, [0xFF, 0xF0, 0x9F, 0x98, 0x80])) == "\ufffd😀"
    assert read(text, [0xFF]) == ["\ufffd", ""]


def test_what_is_held_at_the_end_is_given_out_then():
    text = DECODERS["cut bytes"]
    assert "".join(read(text, [ord("a"), *"\ufffd".encode()])) == "a\ufffd"
    assert read(text, [ord("a"), 0xE6, 0x97]) == ["a", "", "", "\ufffd"]
    pieces = DECODERS["byte fallback"]
    mark = byte_fallback().convert_tokens_to_ids("\ufffd")
    assert "".join(read(pieces, [mark])) == "\ufffd"


def test_special_tokens_are_left_out_and_break_no_character():
    for tokenizer, first in ((cut_bytes(), 0), (byte_fallback(), 1)):
        text, special = TextDecoder(tokenizer), tokenizer.convert_tokens_to_ids("<turn>")
        ids = [token for byte in "日".encode() for token in (first + byte, special)]
        assert "".join(read(text, ids)) == "日"


@pytest.mark.parametrize("name", ALL)
def test_a_token_costs_the_same_however_long_the_reply_is(name: str, monkeypatch: pytest.MonkeyPatch):
    text = DECODERS[name]
    detokenizer = text.detokenizer(())
    if isinstance(detokenizer, WindowDetokenizer):
        longest, decode = 0, detokenizer._decode

        def counted(ids):
            nonlocal longest
            longest = max(longest, len(ids))
            return decode(ids)

        monkeypatch.setattr(detokenizer, "_decode", counted)
        tokens = [token for token in range(SIZES[name]) if token not in detokenizer._byte_of]
        for token in tokens * 100:
            detokenizer.push(token)
        assert longest <= 17
    else:
        for token in [0xE6, 0x97] * 1000:
            detokenizer.push(token)
        assert len(detokenizer._utf8.getstate()[0]) <= 3


def test_a_leading_space_is_kept_after_a_prompt_and_left_out_at_the_beginning_of_a_text():
    tokenizer = byte_fallback()
    hello, world, mark = tokenizer.convert_tokens_to_ids(["▁Hello", "▁world", "!"])
    text = TextDecoder(tokenizer)
    assert "".join(read(text, [hello, world, mark])) == "Hello world!"
    assert "".join(read(text, [world, mark], prompt=(hello,))) == " world!"


@given(raw=st.binary(min_size=1, max_size=6), tail=st.binary(max_size=4))
@settings(max_examples=100, deadline=None)
def test_the_bytes_that_a_prompt_ends_with_cost_no_text_of_the_reply(raw: bytes, tail: bytes):
    tokenizer = byte_fallback()
    hello, mark = tokenizer.convert_tokens_to_ids(["▁Hello", "!"])
    assume(raw[0] != 0x20)  # a space that a text begins with is left out of it, and kept after a prompt
    text, ids = TextDecoder(tokenizer), [*(1 + byte for byte in raw), mark]
    prompt = (hello, *(1 + byte for byte in tail))
    assert "".join(read(text, ids, prompt)) == text.decode(ids)


@pytest.mark.parametrize("prompt", ["context", ""])
@given(text=st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_a_decoder_of_unknown_kind_is_read_by_its_text_alone(prompt: str, text: str):
    tokenizer = byte_tokenizer()
    encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    detokenizer = WindowDetokenizer(TextDecoder(tokenizer).decode, encode(prompt))
    pieces = [detokenizer.push(token) for token in encode(text)]
    assert "".join(pieces) + detokenizer.flush() == text
    assert "\ufffd" in text or all("\ufffd" not in piece for piece in pieces)


def test_a_surrogates_first_bytes_are_as_many_marks_before_a_tokens_text():
    detokenizer = DECODERS["cut bytes"].detokenizer(())
    text = "".join(detokenizer.push(token) for token in (0xED, 0xA0, ord("!"))) + detokenizer.flush()
    assert (text, detokenizer.offset) == ("\ufffd\ufffd!", 2)


@pytest.mark.parametrize("name", ["cut bytes", "byte fallback"])
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_tokens_offset_is_where_its_own_text_begins(name: str, data: st.DataObject):
    """Of a token that is text by itself: after the text of what comes before it."""
    ids = data.draw(st.lists(st.integers(0, SIZES[name] - 1), max_size=12))
    last = ord("!") if name == "cut bytes" else byte_fallback().convert_tokens_to_ids("!")
    detokenizer = DECODERS[name].detokenizer(())
    text = "".join(detokenizer.push(token) for token in [*ids, last]) + detokenizer.flush()
    assert detokenizer.offset == len(text) - 1
    assert text[detokenizer.offset] == "!"


def offsets(text: TextDecoder, ids: list[int]) -> list[int]:
    detokenizer, found = text.detokenizer(()), []
    for token in ids:
        detokenizer.push(token)
        found.append(detokenizer.offset)
    return found


def test_offsets_count_the_characters_of_the_text():
    assert offsets(DECODERS["cut bytes"], [*"hi 😀!".encode()]) == [0, 1, 2, 3, 3, 3, 3, 4]
    pieces = byte_fallback()
    ids = pieces.convert_tokens_to_ids(["▁Hello", "▁world", "!"])
    assert offsets(TextDecoder(pieces), ids) == [0, 5, 11]
    smile = [1 + byte for byte in "😀".encode()]
    assert offsets(TextDecoder(pieces), [*smile, ids[2]]) == [0, 0, 0, 0, 1]


def test_a_space_that_the_decoder_drops_at_the_start_of_a_text_counts_for_no_offset():
    pieces = byte_fallback()
    space, letter, mark = 1 + ord(" "), 1 + ord("a"), pieces.convert_tokens_to_ids("!")
    text = TextDecoder(pieces)
    assert text.decode([space, letter, mark]) == "a!"
    assert offsets(text, [space, letter, mark]) == [0, 0, 1]
    assert offsets(text, [space, mark]) == [0, 0]
    assert offsets(text, [letter, space, mark]) == [0, 1, 2]
    assert offsets(text, [mark, space, letter, mark]) == [0, 1, 2, 3]


@pytest.mark.parametrize("folder", [STORIES, SMOLLM2], ids=["stories656K", "SmolLM2"])
def test_real_tokenizers_are_read_right(folder: Path):
    if not folder.exists():
        pytest.skip(f"no model at {folder}; TRIMTAB_SMOLLM2 names the folder of SmolLM2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = TextDecoder(tokenizer)
    for said in (TEXT, "Once upon a time, there was a café.\n\n  Two spaces 🙂 and\ttabs", "🙂" * 30):
        ids = tokenizer(said, add_special_tokens=False).input_ids
        assert "".join(read(text, ids)) == text.decode(ids)
    for start in range(0, len(tokenizer), 997):
        ids = [(start + 31 * i * i) % len(tokenizer) for i in range(50)]
        assert "".join(read(text, ids)) == text.decode(ids)
