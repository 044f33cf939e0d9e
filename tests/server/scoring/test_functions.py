"""Rewards from a user's function: what counts as a number, and what is a problem with a name."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from trimtab.guidance.data.rollouts import RolloutRow
from trimtab.guidance.errors import UserError
from trimtab.guidance.text.message import Message
from trimtab.server.scoring.functions import FunctionScorer, calling_of, check_result, load_function
from trimtab.server.scoring.scorer import Score, ScoreCount, apply


def row(prompt="p", completion="reply", num_tokens=3, sample=0) -> RolloutRow:
    return RolloutRow(prompt, completion, tuple(range(num_tokens)), False, 7, sample, 0, 0.0, 0.0)


@pytest.mark.parametrize("number", [2, 2.0, np.float32(2), np.int64(2), torch.tensor(2.0)])
def test_one_number_is_the_reply_s_reward(number):
    assert check_result(number, num_tokens=3) == Score(2.0)


@pytest.mark.parametrize(
    "numbers", [[1, 0.5, -2], (1, 0.5, -2), np.array([1, 0.5, -2]), torch.tensor([1, 0.5, -2])]
)
def test_one_number_per_token_sums_to_the_reply_s_reward(numbers):
    assert check_result(numbers, num_tokens=3) == Score(-0.5, (1.0, 0.5, -2.0))


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (10**400, "inf"),
        (None, "None"),
        ("3", "str"),
        ({"kind": 1}, "dict"),
        ([1.0, 2.0], "2 token rewards for 3 tokens"),
        ([1.0, math.nan, 2.0], "token 1 is nan"),
        ([1.0, 2.0, "x"], "token 2 is None"),
    ],
)
def test_what_is_no_finite_reward_is_a_problem_that_says_so(result, problem):
    score = check_result(result, num_tokens=3)
    assert (score.reward, score.token_rewards) == (None, None)
    assert problem in score.problem


def test_an_exception_is_one_reply_s_problem_and_is_counted():
    def reward(prompt, reply):
        if reply == "bad":
            raise KeyError("no such word")
        return 1.0

    count = ScoreCount()
    given = [row(), row(completion="bad", sample=1), row()]
    rows = list(apply(FunctionScorer(reward).score(given), given, count))
    assert [r.reward for r in rows] == [1.0, None, 1.0]
    assert (count.num_rows, count.num_bad) == (3, 1)
    assert "prompt 7 sample 1" in str(count)
    assert "KeyError: 'no such word'" in str(count)


def test_one_number_for_some_replies_and_one_per_token_for_others_is_a_problem():
    by_token = iter([False, True, False])
    scorer = FunctionScorer(lambda prompt, reply: [1.0, 2.0] if next(by_token) else 1.0)
    scores = scorer.score([row(num_tokens=2)] * 3)
    assert [bool(score.problem) for score in scores] == [False, True, False]


def test_a_function_that_changes_the_folder_changes_none_of_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def leaves(prompt, reply):
        os.chdir("/")
        return 1.0

    assert [score.reward for score in FunctionScorer(leaves).score([row(), row()])] == [1.0, 1.0]
    assert Path.cwd() == tmp_path


def test_a_problem_takes_away_an_older_reward():
    scored = list(apply([Score(1.0)], [row()], ScoreCount()))
    (again,) = apply(FunctionScorer(lambda p, r: math.nan).score(scored), scored, ScoreCount())
    assert again.reward is None


def test_the_function_gets_strings_message_dicts_and_token_texts():
    seen = []
    scorer = FunctionScorer(lambda p, r, t: seen.append((p, r, t)) or [0, 0, 0], lambda r: ["re", "ply", ""])
    scorer.score([row(), row(prompt=(Message("user", "hi"),))])
    assert seen == [
        ("p", "reply", ["re", "ply", ""]),
        ([{"role": "user", "content": "hi"}], "reply", ["re", "ply", ""]),
    ]


def test_whether_tokens_are_wanted_is_read_from_the_signature():
    assert calling_of(lambda prompt, reply: 0).style == "reply"
    assert calling_of(lambda prompt, reply, *, strict=True: 0).style == "reply"
    assert calling_of(lambda prompts, replies: 0).style == "reply"
    assert calling_of(lambda prompt, reply, tokens: 0).style == "tokens"
    with pytest.raises(UserError, match=r"must take \(prompt, reply\)"):
        calling_of(lambda reply: 0)


@pytest.mark.parametrize("name", ["no_such_module:f", "json:no_such", "json", ":f", "", "json:__doc__"])
def test_a_function_that_cannot_be_had_is_named(name):
    with pytest.raises(UserError, match="--score"):
        load_function(name, "--score")
