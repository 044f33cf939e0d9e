"""Rollouts of the toy policy: its own replies, judged, and the preferences among them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.toy.grammar.conversation import Prompt, draw_prompts
from examples.toy.grammar.subject import Kind
from examples.toy.judge import Verdict, is_harmful_request, is_refusal, judge_all, unparsable_rate
from trimtab.guidance.files import write_json_lines
from trimtab.guidance.text.encoding import encode_prompt
from trimtab.guidance.text.message import Message
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.rollouts.sample import EncodedPrompt, SamplePlan, sample

AXES: Mapping[str, str] = {"kind": "kindness", "concise": "concision", "harmless": "harmlessness"}
"""Head -> the judge's score that it is trained for."""

Row = dict[str, Any]


@dataclass(frozen=True)
class RolloutConfig:
    """Replies that the policy gives to prompts on the preference topics.

    everyday, risky, harmful: prompts of each kind; a risky one only sounds so.
    num_replies: to each prompt; the best and the worst make a preference.
    max_tokens: of a reply.
    min_margin: by which the judge must tell them apart.
    """

    everyday: int = 350
    risky: int = 150
    harmful: int = 300
    num_replies: int = 8
    max_tokens: int = 256
    min_margin: float = 0.25


@dataclass(frozen=True)
class Judged:
    """One reply and what the judge made of it."""

    prompt: Prompt
    reply: str
    verdict: Verdict


def sample_rollouts(config: RolloutConfig, model: Path, work: Path, seed: int) -> Row:
    """Writes rollouts.jsonl and, for each head, its preferences to `work`; returns what was counted."""
    counts: Mapping[Kind, int] = {
        "everyday": config.everyday,
        "risky": config.risky,
        "harmful": config.harmful,
    }
    prompts = [p for kind, count in counts.items() for p in draw_prompts("preferences", kind, count, seed)]
    replies = _sample(config, model, prompts, seed)
    verdicts = judge_all((prompt.text, reply) for prompt, reply in replies)
    judged = [Judged(p, r, v) for (p, r), v in zip(replies, verdicts, strict=True) if v is not None]
    rows = ({"prompt": as_messages(j.prompt.text), "completion": j.reply} for j in judged)
    write_json_lines(work / "rollouts.jsonl", rows)
    pairs = {head: _preferences(judged, head, config.min_margin) for head in AXES}
    for head, preferences in pairs.items():
        write_json_lines(work / f"{head}.jsonl", preferences)
    return {
        "num_prompts": len(prompts),
        "num_replies": len(replies),
        "unparsable": unparsable_rate(verdicts),
        "distinct": len({reply for _, reply in replies}) / len(replies),
        "num_pairs": {head: len(preferences) for head, preferences in pairs.items()},
    }


def as_messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _sample(
    config: RolloutConfig, model: Path, prompts: Sequence[Prompt], seed: int
) -> list[tuple[Prompt, str]]:
    engine = Engine.from_config(EngineConfig(model=model))
    plan = SamplePlan(config.num_replies, config.max_tokens, seed=seed)
    chats = [(Message("user", prompt.text),) for prompt in prompts]
    requests = [
        plan.request(EncodedPrompt(number, chat, encode_prompt(engine.policy.tokenizer, chat)))
        for number, chat in enumerate(chats)
    ]
    return [
        (prompts[int(completion.request.request_id)], completion.text)
        for completion in sample(engine, requests, "rollouts")
        if not completion.is_cut
    ]


def _worth(head: str, judged: Judged) -> float:
    """The judge's score, less for refusing what is harmless: else `harmless` would learn to refuse all."""
    score = float(getattr(judged.verdict, AXES[head]))
    needless = is_refusal(judged.reply) and not is_harmful_request(judged.prompt.text)
    return score - (head == "harmless" and needless)


def _preferences(judged: Sequence[Judged], head: str, min_margin: float) -> list[Row]:
    """Of each prompt's replies the best against the worst, and the second best against the second worst."""
    by_prompt: defaultdict[str, list[Judged]] = defaultdict(list)
    for reply in judged:
        by_prompt[reply.prompt.text].append(reply)
    rows = []
    for prompt, replies in by_prompt.items():
        ranked = sorted(((_worth(head, j), j.reply) for j in replies), reverse=True)
        for rank in range(min(2, len(ranked) // 2)):
            (best, chosen), (worst, rejected) = ranked[rank], ranked[-1 - rank]
            if best - worst >= min_margin:
                rows.append({"prompt": as_messages(prompt), "chosen": chosen, "rejected": rejected})
    return rows
