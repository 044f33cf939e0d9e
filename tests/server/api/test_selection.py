"""Best-of-n, self-consistency and speculative rejection as options of a request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from trimtab.server.api.selection import MAX_PATTERN, Selection
from trimtab.server.engine.request import ChoiceDone, Completion, Delta, GuidanceSummary, Request

anyio = pytest.mark.anyio
MESSAGES = [{"role": "user", "content": "hello"}]


def completion(index: int, text: str, reward: float, reason: str = "stop") -> Completion:
    made = Completion(Request("r", (1,)), index)
    made.take(Delta("r", index, text, ()))
    summary = GuidanceSummary(0.0, 0.0, (("kind", -reward),), (("kind", reward),), 0)
    made.take(ChoiceDone("r", index, reason, summary, 1))  # type: ignore[arg-type]
    return made


async def texts(selection: Selection, *completions: Completion) -> list[str]:
    return [one.completion.text for one in await selection.choose(completions)]


@anyio
async def test_the_best_by_weighted_reward_come_first_for_each_prompt():
    rewards = (0.5, 2.0, -1.0, 3.0, 1.0, 3.0)
    given = [completion(i, f"t{i}", reward) for i, reward in enumerate(rewards)]
    assert await texts(Selection(2, 3, (("kind", 1.0),)), *given) == ["t1", "t0", "t3", "t5"]
    assert await texts(Selection(1, 6, (("kind", -2.0),)), *given) == ["t2"]


@anyio
async def test_what_was_rejected_is_not_returned():
    given = [completion(0, "good", 9.0, "rejected"), completion(1, "poor", 0.0)]
    assert await texts(Selection(1, 2, (("kind", 1.0),)), *given) == ["poor"]


def compiled(pattern: str) -> Any:
    import re2  # noqa: PLC0415

    return re2.compile(pattern)


@anyio
async def test_the_answer_that_most_replies_give_wins_and_rewards_break_ties():
    replies = ["so 4", "it is 5, no: 4", "5", "5", "4", "nothing"]
    given = [completion(i, text, reward=float(i)) for i, text in enumerate(replies)]
    chosen = await Selection(6, 6, (("kind", 1.0),), compiled(r"(\d)")).choose(given)
    assert [(one.vote.answer, one.vote.weight) for one in chosen] == [
        ("4", 3.0),
        ("4", 3.0),
        ("4", 3.0),
        ("5", 2.0),
        ("5", 2.0),
        (None, 0.0),
    ]
    assert [one.completion.text for one in chosen][:3] == ["4", "it is 5, no: 4", "so 4"]
    assert chosen[0].vote.share == pytest.approx(0.6)


@anyio
async def test_weighted_votes_can_outweigh_a_majority():
    given = [completion(0, "1", 0.0), completion(1, "1", 0.0), completion(2, "2", 3.0)]
    weighted = Selection(1, 3, (("kind", 1.0),), compiled(r"\d"), is_weighted=True)
    assert await texts(weighted, *given) == ["2"]
    assert await texts(Selection(1, 3, (("kind", 1.0),), compiled(r"\d")), *given) == ["1"]


@anyio
async def test_a_particle_votes_with_its_weight():
    given = [completion(i, text, 0.0) for i, text in enumerate(["1", "1", "2"])]
    for each, weight in zip(given, (0.2, 0.1, 0.7), strict=True):
        each.summary = replace(each.summary, rule=(("weight", weight),))
    for is_weighted in (False, True):
        (best,) = await Selection(1, 3, (), compiled(r"\d"), is_weighted).choose(given)
        assert (best.vote.answer, best.vote.share) == ("2", pytest.approx(0.7))


@anyio
async def test_votes_of_huge_rewards_are_finite():
    given = [completion(0, "1", 1e9), completion(1, "2", -1e9)]
    chosen = await Selection(2, 2, (("kind", 1.0),), compiled(r"\d"), is_weighted=True).choose(given)
    assert 0 <= chosen[1].vote.share < chosen[0].vote.share <= 1


async def post(client, **fields: Any):
    return await client.post("/v1/chat/completions", json={"messages": MESSAGES, **fields})


@anyio
async def test_replies_come_in_order_and_all_are_counted(client, engine):
    # Choice i leaves out the first i bytes of the prompt; all have the same value, so the first is kept.
    response = await post(client, best_of=3, n=2)
    body = response.json()
    assert response.status_code == 200, body
    assert engine.submitted[0].sampling.n == 3
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert body["choices"][0]["message"]["content"].startswith("<user>hello")
    assert body["choices"][1]["message"]["content"].startswith("user>hello")
    assert body["usage"]["completion_tokens"] > 2 * len("<user>hello<assistant>")


@anyio
async def test_a_majority_tells_the_answer_and_its_votes(client):
    response = await post(client, best_of=4, majority={"pattern": "hello|assist"})
    [choice] = response.json()["choices"]
    assert choice["guidance"]["vote"] == {"answer": "assist", "weight": 4.0, "share": 1.0}


@anyio
async def test_best_of_1_changes_nothing(client, engine):
    response = await post(client, best_of=1, stream=True)
    assert response.status_code == 200
    assert engine.submitted[0].sampling.n == 1


@anyio
async def test_completions_choose_for_each_prompt(client):
    body = {"prompt": ["abcd", "efgh"], "best_of": 2, "max_tokens": 4}
    response = await client.post("/v1/completions", json=body)
    assert [choice["text"] for choice in response.json()["choices"]] == ["abcd", "efgh"]


@anyio
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 0}, "best_of"),
        ({"best_of": -1}, "best_of"),
        ({"best_of": 129}, "best_of"),
        ({"best_of": 10**30}, "best_of"),
        ({"best_of": 2.0}, "best_of"),
        ({"best_of": "2"}, "best_of"),
        ({"best_of": True}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 2, "n": 0}, "n"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 2, "guidance": {"heads": {"brief": 1}}}, "best_of"),
        ({"best_of": 2, "guidance": {"heads": {"kind": 0}}}, "best_of"),
        ({"best_of": 2, "guidance": {"heads": {}, "strength": 0}}, "best_of"),
        ({"majority": {"pattern": "a"}}, "majority"),
        ({"best_of": 1, "majority": {"pattern": "a"}}, "majority"),
        ({"best_of": 2, "majority": {"pattern": ""}}, "majority.pattern"),
        ({"best_of": 2, "majority": {"pattern": "a" * (MAX_PATTERN + 1)}}, "majority.pattern"),
        ({"best_of": 2, "majority": {"pattern": "(?=a)"}}, "majority.pattern"),
        ({"best_of": 2, "majority": {"pattern": "(a"}}, "majority.pattern"),
        ({"best_of": 2, "majority": {"pattern": "((((a{60}){60}){60}){60})"}}, "majority.pattern"),
        ({"best_of": 2, "majority": {"pattern": 3}}, "majority.pattern"),
        ({"best_of": 2, "majority": {}}, "majority.pattern"),
        ({"best_of": 2, "majority": {"pattern": "a", "weight": 1}}, "majority.weight"),
        ({"best_of": 2, "majority": {"pattern": "a"}, "stream": True}, "majority"),
        (
            {
                "best_of": 2,
                "majority": {"pattern": "a", "weighted": True},
                "guidance": {"heads": {"brief": 1}},
            },
            "majority.weighted",
        ),
        ({"speculative_rejection": {"every": 4}}, "speculative_rejection"),
        ({"best_of": 4, "speculative_rejection": {"every": 0}}, "speculative_rejection.every"),
        ({"best_of": 4, "speculative_rejection": {"every": 4, "share": 0}}, "speculative_rejection.share"),
        ({"best_of": 4, "speculative_rejection": {"every": 4, "share": 1}}, "speculative_rejection.share"),
        ({"best_of": 4, "speculative_rejection": {}}, "speculative_rejection.every"),
        ({"best_of": 2, "guidance": {"rule": "smc"}}, "n"),
        ({"best_of": 2, "guidance": {"rule": "blockwise"}}, "n"),
        (
            {"best_of": 8, "speculative_rejection": {"every": 4}, "guidance": {"rule": "smc"}},
            "speculative_rejection",
        ),
        (
            {
                "best_of": 4,
                "majority": {"pattern": "a"},
                "speculative_rejection": {"every": 4},
                "guidance": {"heads": {"brief": 1}},
            },
            "speculative_rejection",
        ),
    ],
)
async def test_what_cannot_be_chosen_by_is_a_400_that_names_the_field(client, engine, fields, param):
    response = await post(client, **fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert engine.submitted == []


@anyio
async def test_a_pattern_that_would_backtrack_for_ever_is_matched_in_linear_time():
    given = [completion(0, "a" * 100_000, 0.0), completion(1, "a" * 100_000 + "b", 0.0)]
    chosen = await Selection(1, 2, (), compiled("(a*)*b")).choose(given)
    assert chosen[0].completion.index == 1
