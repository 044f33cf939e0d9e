"""Reading answers: strictly from text, softly from probabilities."""

from __future__ import annotations

import math

import pytest

from trimtab.server.judging.answers import Answer, GarbageError, read_answer
from trimtab.server.judging.questions import read_choice, read_rating


@pytest.mark.parametrize(("text", "choice"), [("A", 1.0), (" B\n", 0.0), ("(A)", 1.0), ("**B**.", 0.0)])
def test_a_letter_alone_is_a_choice(text, choice):
    assert read_choice(Answer(text)) == choice


@pytest.mark.parametrize("text", ["", "a", "AB", "A or B", "Answer: A", "C", "A is better"])
def test_anything_else_is_garbage_that_is_shown(text):
    with pytest.raises(GarbageError, match="want A or B"):
        read_choice(Answer(text))


def test_probabilities_are_summed_over_spellings_and_normalised():
    """A 0.3 + 0.15, B 0.15, others 0.4: 0.45 / 0.6 = 0.75."""
    first = (("A", 0.3), (" A", 0.15), ("B", 0.15), ("The", 0.3), ("Ab", 0.1))
    assert read_choice(Answer("A", tuple((t, math.log(p)) for t, p in first))) == pytest.approx(0.75)


def test_a_judge_that_means_something_else_is_not_taken_at_its_few_percent():
    with pytest.raises(GarbageError, match="10%"):
        read_choice(Answer("The", (("The", math.log(0.9)), ("A", math.log(0.1)))))


@pytest.mark.parametrize(("text", "rating"), [("7", 7), (" 10\n", 10), ("3.", 3), ("8/10", 8), ("1 / 10", 1)])
def test_a_number_alone_is_a_rating(text, rating):
    assert read_rating(Answer(text)) == rating


@pytest.mark.parametrize("text", ["", "0", "11", "7.5", "seven", "7 or 8", "Rating: 7", "-3", "10/7"])
def test_other_ratings_are_garbage(text):
    with pytest.raises(GarbageError, match="1 to 10"):
        read_rating(Answer(text))


@pytest.mark.parametrize(
    "data",
    [{}, [], {"choices": []}, {"choices": [{"message": {"content": None}}]}, {"choices": [3]}, "A", None],
)
def test_what_is_no_chat_completion_is_garbage(data):
    with pytest.raises(GarbageError):
        read_answer(data)
