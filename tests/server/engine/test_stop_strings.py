from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.server.engine.replies import StopMatcher, StopStrings


def cut(text: str, stop: list[str]) -> str:
    """By trying every end of the text."""
    for end in range(1, len(text) + 1):
        lengths = [len(each) for each in stop if text[:end].endswith(each)]
        if lengths:
            return text[: end - max(lengths)]
    return text


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4),
    st.sets(st.integers(0, 30)),
)
@settings(max_examples=300, deadline=None)
def test_a_stop_string_is_cut_wherever_its_pieces_fall(text: str, stop: list[str], cuts: set[int]):
    ends = [0, *sorted(at for at in cuts if at < len(text)), len(text)]
    matcher, emitted = StopMatcher(stop), ""
    for start, end in pairwise(ends):
        safe, has_stopped = matcher.push(text[start:end])
        emitted += safe
        assert cut(text, stop).startswith(emitted)
        if has_stopped:
            break
    else:
        emitted += matcher.flush()
    assert emitted == cut(text, stop)


@given(st.text("ab", max_size=12), st.text("ab", min_size=1, max_size=4), st.text("ab", max_size=6))
@settings(max_examples=200, deadline=None)
def test_what_would_stop_is_what_does(before: str, stop: str, after: str):
    matcher = StopMatcher([stop])
    for character in before:
        if matcher.push(character)[1]:
            return
    for end in range(1, len(after) + 1):
        expected = (before + after[:end]).endswith(stop)
        assert matcher.would_stop(after[:end]) == expected
        if expected:
            assert matcher.push(after[:end])[1]
            return


def test_text_that_may_become_a_stop_string_is_held_back_and_no_more():
    matcher = StopMatcher(("END",))
    assert matcher.push("some EN") == ("some ", False)
    assert matcher.push("D of it") == ("", True)
    matcher = StopMatcher(("END",))
    assert matcher.push("an E") == ("an ", False)
    assert matcher.push("gg") == ("Egg", False)


def test_a_character_takes_no_more_steps_for_more_stop_strings():
    steps = 0

    class Counted(StopStrings):
        def step(self, state: int, character: str) -> int:
            nonlocal steps
            steps += 1
            return super().step(state, character)

    def steps_of(num_stops: int) -> int:
        nonlocal steps
        strings = Counted(f"{i:05d}no" for i in range(num_stops))
        steps = 0
        StopMatcher(strings).push("01234 56789 " * 20)
        return steps

    assert steps_of(2000) == steps_of(1) == 240
