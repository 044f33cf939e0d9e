"""Ceiling of the gold task: by hand, and against what a normal reward admits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from examples.gold.ceiling import SHORT, ceiling, load_rewards, table, table_of_words, tilted


def test_two_replies_by_hand():
    kl, gold = tilted(np.array([[0.0, np.log(3)]]), 1.0)
    assert gold[0] == pytest.approx(0.75 * np.log(3))
    assert kl[0] == pytest.approx(0.25 * np.log(0.5) + 0.75 * np.log(1.5))


def test_a_normal_reward_admits_its_deviation_times_the_root_of_twice_the_kl():
    rewards = 1 + 2 * np.random.default_rng(0).standard_normal((8, 20_000))
    one, two, _ = ceiling(rewards, (0.5, 1.0, 2.0))
    assert one.mean == pytest.approx(1 + 2 * 1.0, abs=0.05)
    assert two.mean == pytest.approx(1 + 2 * 2**0.5, abs=0.1)


def test_few_replies_reach_no_high_price():
    assert ceiling(np.array([[0.0, 1.0]] * 3), (5.0,)) == [None]


def test_rewards_are_read_by_prompt(tmp_path: Path):
    given = [("a", "x", 1.0), ("a", "x y", 2.0), ("b", "x y z", 3.0), ("b", "x", 4.0)]
    rows = [{"prompt": prompt, "completion": said, "reward": reward} for prompt, said, reward in given]
    path = tmp_path / "replies.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rewards, words = load_rewards(path, path)
    assert rewards.tolist() == [[1.0, 2.0, 1.0, 2.0], [3.0, 4.0, 3.0, 4.0]]
    assert words.tolist() == [[1, 2, 1, 2], [3, 1, 3, 1]]
    assert [row[0] for row in table(rewards).rows] == ["2", "4"]


def test_short_replies_gain_no_more_than_the_mean():
    draw = np.random.default_rng(0)
    rewards, words = draw.standard_normal((4, 2000)), np.full((4, 2000), 150.0)
    rewards[:, 0], words[:, 0] = 50, SHORT[1]
    rows = table_of_words(rewards, words).rows
    at_2 = [float(row[2].split()[0]) for row in rows]
    assert at_2[0] == at_2[1] > 10  # the lucky short reply counts
    assert at_2[2] == at_2[3] == pytest.approx(2, abs=0.1)  # √(2·2) deviations of a normal reward
