"""Reward functions that are called for batches, as TRL calls its own."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch

from trimtab.guidance.data.rollouts import RolloutRow
from trimtab.guidance.errors import DataError, UserError
from trimtab.guidance.text.message import Message
from trimtab.server.scoring.functions import BatchFunctionScorer, calling_of
from trimtab.server.scoring.scorer import Score


def rows(count=3, prompt="p", **columns):
    return [
        RolloutRow(prompt, f"r{i}", (1, 2), False, i // 2, i % 2, 0, 0.0, 0.0, columns=columns)
        for i in range(count)
    ]


def score(function, given):
    return BatchFunctionScorer(function, calling_of(function), "mine:f").score(given)


def test_a_function_gets_whole_batches_by_keyword_as_strings():
    seen = []

    def f(completions, prompts, completion_ids):
        seen.append((completions, prompts, completion_ids))
        return [1, 2.5, 0]

    assert score(f, rows()) == [Score(1.0), Score(2.5), Score(0.0)]
    assert seen == [(["r0", "r1", "r2"], ["p"] * 3, [[1, 2]] * 3)]


def test_messages_are_answered_by_messages():
    seen = []

    def f(prompts, completions, **kwargs):
        seen.append((prompts, completions))
        return [0.0]

    score(f, rows(1, (Message("system", "be brief"), Message("user", "hi"))))
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert seen == [([turns], [[{"role": "assistant", "content": "r0"}]])]


def test_columns_come_by_name_as_lists_and_only_those_that_are_taken():
    seen = []

    def named(completions, answer, topic="none", missing=7):
        seen.append((answer, topic, missing))
        return [0.0] * len(completions)

    def everything(completions, **columns):
        seen.append(columns)
        return [0.0] * len(completions)

    def nothing(completions):
        return [0.0] * len(completions)

    for function in (named, everything, nothing):
        score(function, rows(2, answer=4, topic="sums", other=[1]))
    assert seen[0] == ([4, 4], ["sums", "sums"], 7)
    assert {name: seen[1][name] for name in ("answer", "topic", "other")} == {
        "answer": [4, 4],
        "topic": ["sums", "sums"],
        "other": [[1], [1]],
    }
    assert set(seen[1]) == {"answer", "topic", "other", "prompts", "completion_ids"}


def test_a_column_that_is_needed_and_not_there_is_named():
    def f(completions, solution):
        raise AssertionError

    with pytest.raises(DataError, match=r"f reads the column solution.*are answer"):
        score(f, rows(answer=1))


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor])
def test_any_sequence_of_numbers_is_taken(make):
    assert score(lambda completions: make([1.0, 2.0, 3.0]), rows()) == [Score(1.0), Score(2.0), Score(3.0)]


def test_none_leaves_a_reply_without_a_reward_and_what_is_no_number_is_a_problem():
    left, bad, tokens = score(lambda completions: [None, math.nan, [1, 2]], rows())
    assert left == Score(None)
    assert "nan" in bad.problem
    assert tokens == Score(3.0, (1.0, 2.0))


def test_batches_are_small_and_in_order_and_an_exception_names_its_own():
    sizes = []

    def f(completions, **kwargs):
        sizes.append(len(completions))
        if "r64" in completions:
            raise KeyError("no such word")
        return [float(text[1:]) for text in completions]

    found = score(f, rows(150))
    assert sizes == [64, 64, 22]
    assert [s.reward for s in found[:64]] == list(range(64))
    assert [s.reward for s in found[128:]] == list(range(128, 150))
    assert len({s.problem for s in found[64:128]}) == 1
    for text in ("mine:f", "64 replies from prompt 32 sample 0 to prompt 63 sample 1", "KeyError: 'no such"):
        assert text in found[64].problem


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ([1.0], "1 rewards for 3 replies"),
        ([0.0] * 4, "4 rewards"),
        (None, "NoneType"),
        (1.0, "float"),
        ({}, "dict"),
    ],
)
def test_anything_but_a_result_for_every_reply_is_an_error_that_names_function_and_batch(result, says):
    with pytest.raises(UserError, match=r"mine:f, called for 3 replies from prompt 0") as told:
        score(lambda completions: result, rows())
    assert says in str(told.value)


class Reward:
    __name__ = "Reward"

    def __call__(self, prompts, completions, **kwargs):
        return [1.0] * len(completions)


def test_what_tells_a_batch_from_a_reply_is_a_parameter_of_that_name():
    def keywords(**kwargs):
        return [1.0] * len(kwargs["completions"])

    def scaled(completions, scale):
        return [scale] * len(completions)

    partial = functools.partial(scaled, scale=1.0)
    for function in (Reward(), keywords, partial, lambda *, completions: [1.0] * len(completions)):
        assert calling_of(function).style == "batch"
        assert score(function, rows(2)) == [Score(1.0)] * 2


async def later(prompts, completions):
    return [1.0]


class Later:
    async def __call__(self, prompt, reply):
        return 1.0


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (later, "later is asynchronous"),
        (Later(), "Later is asynchronous"),
        (lambda completions, trainer_state: 0, "trainer_state, which only TRL's trainer has"),
        (lambda completions, /: 0, "take away the `/`"),
        (lambda prompts: 0, r"\(prompts, completions, \*\*columns\)"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_by_name(function, says):
    with pytest.raises(UserError, match=says):
        calling_of(function)
