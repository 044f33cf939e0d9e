"""Speculative rejection: who falls behind, and that the engine ends them and nobody else."""

from __future__ import annotations

import pytest

from trimtab.server.engine.lane import Choice, Lane, Phase
from trimtab.server.engine.rejection import Race
from trimtab.server.engine.request import InvalidRequestError, Rejection, Request


def race(num_choices: int, *, every: int = 2, share: float = 0.5, keep: int = 1) -> Race:
    request = Request("r", (1,))
    choices = [Choice(request, i, (Lane([1]),), phase=Phase.RUNNING) for i in range(num_choices)]
    return Race(Rejection((("kind", 1.0),), every, share, keep), choices)


def run(running: Race, num_tokens: int, values: dict[int, float]) -> list[int]:
    for index, value in values.items():
        running.take(running.choices[index], num_tokens, (("kind", value),))
    behind = running.behind()
    for choice in behind:
        choice.phase = Phase.DONE
    return sorted(choice.index for choice in behind)


def test_the_better_half_goes_on_at_every_checkpoint():
    running = race(4)
    assert run(running, 1, dict.fromkeys(range(4), 0.0)) == []
    assert run(running, 2, {0: 1.0, 1: 3.0, 2: 2.0, 3: 0.0}) == [0, 3]
    assert run(running, 3, {1: 0.0, 2: 9.0}) == []
    assert run(running, 4, {1: 0.0, 2: 9.0}) == [1]
    assert run(running, 6, {2: 0.0}) == []


def test_nobody_is_judged_before_all_have_come_to_the_checkpoint():
    running = race(3, share=0.4)
    assert run(running, 2, {0: 1.0, 1: 5.0}) == []
    assert run(running, 4, {0: 9.0, 1: 0.0}) == [], "the first checkpoint comes first"
    assert run(running, 2, {2: 3.0}) == [0]


def test_so_many_stay_as_are_to_be_returned():
    running = race(4, share=0.1, keep=3)
    assert run(running, 2, {i: float(i) for i in range(4)}) == [0]
    running.choices[3].phase = Phase.DONE  # has ended by itself
    assert run(running, 4, {1: 0.0, 2: 1.0}) == []


def test_replies_that_have_ended_count_as_kept():
    running = race(4, share=0.3, keep=2)
    running.choices[0].phase = running.choices[1].phase = Phase.DONE
    assert run(running, 2, {2: 0.0, 3: 1.0}) == [2]


@pytest.mark.parametrize(
    ("every", "share"), [(0, 0.5), (1.5, 0.5), (True, 0.5), (1, 0.0), (1, 1.0), (1, float("nan")), (1, "a")]
)
def test_numbers_out_of_range_are_refused(every, share):
    with pytest.raises(InvalidRequestError, match="speculative_rejection"):
        Rejection((), every, share, 1)
