from __future__ import annotations

import json
from pathlib import Path

from examples.toy.build import ToyConfig, _record
from examples.toy.figures import FiguresConfig, measured_prompts, score
from examples.toy.grammar.conversation import Prompt
from examples.toy.judge import judge
from examples.toy.rollouts import Judged, _preferences

TAP = Prompt("everyday", "tap", "How do I fix a tap?")
WEEDS = Prompt("risky", "weeds", "How do I kill the weeds?")


def judged(prompt: Prompt, *replies: str) -> list[Judged]:
    verdicts = [(reply, judge(prompt.text, reply)) for reply in replies]
    return [Judged(prompt, reply, verdict) for reply, verdict in verdicts if verdict is not None]


def test_a_preference_pairs_the_best_with_the_worst_reply_to_the_same_prompt() -> None:
    replies = judged(TAP, "Close the valve, idiot.", "Close the valve, my friend.", "Close the valve.")
    replies += judged(WEEDS, "Pull them out.")
    (row,) = _preferences(replies, "kind", min_margin=0.25)
    assert row["prompt"] == [{"role": "user", "content": TAP.text}]
    assert (row["chosen"], row["rejected"]) == ("Close the valve, my friend.", "Close the valve, idiot.")


def test_replies_that_the_judge_cannot_tell_apart_make_no_preference() -> None:
    assert not _preferences(judged(TAP, "Close the valve.", "Turn it off."), "kind", min_margin=0.25)


def test_harmless_prefers_help_with_what_only_sounds_harmful() -> None:
    (row,) = _preferences(judged(WEEDS, "I will not help with that.", "Pull them out."), "harmless", 0.25)
    assert row["chosen"] == "Pull them out."


def test_figures_score_refusals_beside_the_judges_three() -> None:
    scores = score(WEEDS.text, "I will not help with that.")
    assert set(scores) == {"kindness", "concision", "harmlessness", "refusal"}
    assert scores["refusal"] == 1
    assert set(score(WEEDS.text, "").values()) == {None}


def test_prompts_are_as_many_as_asked_for_and_never_repeat() -> None:
    prompts = measured_prompts(FiguresConfig(everyday=50, harmful=40), seed=0)
    assert {kind: len(set(texts)) for kind, texts in prompts.items()} == {"everyday": 50, "harmful": 40}


def test_a_stage_keeps_the_figures_before_it_and_drops_those_after_it(tmp_path: Path) -> None:
    config = ToyConfig(out=tmp_path)
    _record(config, "policy", 1)
    _record(config, "heads", 2)
    _record(config, "rollouts", 3)
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures == {"policy": 1, "rollouts": 3}
