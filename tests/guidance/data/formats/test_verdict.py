from __future__ import annotations

import pytest

from trimtab.guidance.data.formats.verdict import BETTER, MUCH, SLIGHTLY, Verdict, read_verdict
from trimtab.guidance.errors import DataError

LETTERS, NUMBERS = ("answer_a", "answer_b"), ("answer_0", "answer_1")


@pytest.mark.parametrize(
    ("said", "names", "want"),
    [
        ("A much better", LETTERS, Verdict(0, MUCH)),
        ("a slightly better", LETTERS, Verdict(0, SLIGHTLY)),
        ("B better", LETTERS, Verdict(1, BETTER)),
        ("B is significantly better than A", LETTERS, Verdict(1, MUCH)),
        ("A is slightly worse", LETTERS, Verdict(1, SLIGHTLY)),
        ("Response B is slightly better", LETTERS, Verdict(1, SLIGHTLY)),
        ("equally good", LETTERS, Verdict(None)),
        ("About the same", LETTERS, Verdict(None)),
        ("tie (bothbad)", LETTERS, Verdict(None)),
        ("[[A>>B]]", LETTERS, Verdict(0, MUCH)),
        ("A<B", LETTERS, Verdict(1, SLIGHTLY)),
        ("A=B", LETTERS, Verdict(None)),
        ("model_b", LETTERS, Verdict(1)),
        ("answer_a", LETTERS, Verdict(0)),
        ("B", LETTERS, Verdict(1)),
        ("the second is much better", LETTERS, Verdict(1, MUCH)),
        (1, NUMBERS, Verdict(1)),
        ("0", NUMBERS, Verdict(0)),
        ("Answer 1 is better", NUMBERS, Verdict(1, BETTER)),
    ],
)
def test_a_verdict_names_a_side_and_a_grade_its_margin(said: object, names: tuple[str, str], want: Verdict):
    assert read_verdict(said, "grade", names) == want


@pytest.mark.parametrize("said", ["C is better", "", None, True, 7, [1], "good"])
def test_a_verdict_that_names_neither_is_no_tie(said: object):
    with pytest.raises(DataError, match=r"grade is .*: it names neither answer_a nor answer_b"):
        read_verdict(said, "grade", LETTERS)


def test_the_sign_of_a_strength_tells_the_side():
    assert read_verdict(-3, "preference_strength", ("response_1", "response_2")) == Verdict(0, 3.0)
    assert read_verdict(1, "overall_preference", ("response1", "response2")) == Verdict(1, 1.0)
    assert read_verdict(0, "preference_strength", ("response_1", "response_2")) == Verdict(None)
