from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import byte_tokenizer

from trimtab.server.engine.detokenizer import Detokenizer, StopMatcher

TOKENIZER = byte_tokenizer()


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False).input_ids


def decode(ids: object) -> str:
    return TOKENIZER.backend_tokenizer.decode(ids, skip_special_tokens=True)


@given(st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_pieces_join_to_the_text_and_none_holds_half_a_character(text: str):
    detokenizer = Detokenizer(decode, ids_of("context"))
    pieces = [detokenizer.push(token) for token in ids_of(text)]
    assert "".join(pieces) == text
    assert "\ufffd" in text or all("\ufffd" not in piece for piece in pieces)


def test_bytes_that_never_become_a_character_do_not_hold_back_what_follows():
    detokenizer = Detokenizer(decode)
    broken = ids_of("é")[:1] * 6
    text = "".join(detokenizer.push(token) for token in [*broken, *ids_of("ok")])
    assert text.endswith("ok")


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
@settings(max_examples=300, deadline=None)
def test_a_stop_string_is_found_wherever_its_pieces_fall(text: str, stop: list[str]):
    expected = text
    for end in range(len(text) + 1):
        if any(text[:end].endswith(each) for each in stop):
            expected = text[: min(i for i in (text[:end].find(each) for each in stop) if i >= 0)]
            break
    matcher = StopMatcher(tuple(stop))
    emitted = ""
    for character in text:
        safe, has_stopped = matcher.push(character)
        emitted += safe
        if has_stopped:
            break
    else:
        emitted += matcher.flush()
    assert emitted == expected


def test_text_that_may_become_a_stop_string_is_held_back_and_no_more():
    matcher = StopMatcher(("END",))
    assert matcher.push("some EN") == ("some ", False)
    assert matcher.push("D of it") == ("", True)
    matcher = StopMatcher(("END",))
    assert matcher.push("an E") == ("an ", False)
    assert matcher.push("gg") == ("Egg", False)
