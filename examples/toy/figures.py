"""Figures of the toy heads: what each does to the judged scores, on topics that nobody trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from examples.toy import judge
from examples.toy.grammar.conversation import draw_prompts
from examples.toy.grammar.subject import Kind
from examples.toy.rollouts import AXES
from trimtab.guidance.evaluation.curve import Curve, Judging, judge_point
from trimtab.guidance.evaluation.plots import plot_scores
from trimtab.guidance.evaluation.replies import MeasuredReply, Scores
from trimtab.guidance.evaluation.report import FrontierReport, as_data
from trimtab.guidance.evaluation.tables import frontier_tables
from trimtab.guidance.files import write_bytes
from trimtab.guidance.plot_style import LIGHT, as_png
from trimtab.guidance.statistics import resample_prompts, share_decided_later
from trimtab.guidance.text.encoding import ReplyEncoder, encode_prompt
from trimtab.guidance.text.message import Message
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Request, SamplingParams
from trimtab.server.rollouts.sample import EncodedPrompt, SamplePlan, sample, sample_measured


@dataclass(frozen=True)
class FiguresConfig:
    """The measurement of every head.

    everyday: harmless prompts, of which a fifth merely sound risky.
    harmful: prompts that ask for harm.
    strengths: at which each prompt is answered once.
    max_tokens: of a reply.
    num_starts, start_tokens: replies, continued twice each after so many tokens, that tell how much of the
    variance of V arises later.
    """

    everyday: int = 250
    harmful: int = 250
    strengths: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0)
    max_tokens: int = 256
    num_starts: int = 500
    start_tokens: int = 5


def measure(config: FiguresConfig, out: Path, seed: int) -> dict[str, Any]:
    """Runs the frontier of every head on both kinds of prompts, prints its tables and writes its plots."""
    engine = Engine.from_config(
        EngineConfig(model=out / "model", heads=tuple(out / "heads" / head for head in AXES))
    )
    prompts = measured_prompts(config, seed)
    figures: dict[str, Any] = {}
    for head in AXES:
        reports = {kind: _frontier(engine, head, texts, config, seed) for kind, texts in prompts.items()}
        for kind, report in reports.items():
            print(f"\nhead {head}, {kind} prompts\n")
            for table in frontier_tables(report):
                print(table.to_markdown())
        shown = reports["harmful" if head == "harmless" else "everyday"]
        write_bytes(out / f"frontier-{head}.png", as_png(plot_scores(shown, LIGHT)))
        figures[head] = {kind: as_data(report) for kind, report in reports.items()}
    share = decided_later(engine, config, seed)
    print(f"\nshare of the variance of V that arises after token {config.start_tokens}: {share}")
    return {**figures, "share_of_variance_after_start": share}


def decided_later(engine: Engine, config: FiguresConfig, seed: int) -> dict[str, float]:
    """Per head, the share of the variance of its judged score that arises after the start of a reply."""
    tokenizer = engine.policy.tokenizer
    kinds: Mapping[str, Kind] = {"kind": "everyday", "concise": "everyday", "harmless": "harmful"}
    shares = {}
    for head, kind in kinds.items():
        texts = [p.text for p in draw_prompts("test", kind, config.num_starts, seed)]
        prompts = [encode_prompt(tokenizer, (Message("user", text),)) for text in texts]
        first = SamplingParams(max_tokens=config.start_tokens, seed=seed)
        starts = _tokens(engine, prompts, first)
        longer = [(*prompt, *start) for prompt, (start,) in zip(prompts, starts, strict=True)]
        rest = _tokens(engine, longer, SamplingParams(max_tokens=config.max_tokens, n=2, seed=seed + 1))
        pairs = []
        for text, (start,), ends in zip(texts, starts, rest, strict=True):
            is_over = start[-1] in engine.policy.eos_token_ids
            replies = [start if is_over else (*start, *end) for end in ends]
            scores = [score(text, tokenizer.decode(r, skip_special_tokens=True))[AXES[head]] for r in replies]
            if None not in scores:
                pairs.append(scores)
        shares[head] = share_decided_later(*zip(*pairs, strict=True))
    return shares


def _tokens(
    engine: Engine, prompts: Sequence[Sequence[int]], sampling: SamplingParams
) -> list[list[tuple[int, ...]]]:
    """The token ids of every choice of every prompt's reply."""
    seeds = np.random.default_rng(sampling.seed).integers(2**62, size=len(prompts)).tolist()
    requests = [
        Request(str(i), tuple(prompt), replace(sampling, seed=seeds[i])) for i, prompt in enumerate(prompts)
    ]
    replies: list[list[tuple[int, ...]]] = [[] for _ in prompts]
    for completion in sample(engine, requests, "where V is decided"):
        replies[int(completion.request.request_id)].append(tuple(completion.token_ids))
    return replies


def measured_prompts(config: FiguresConfig, seed: int) -> Mapping[str, Sequence[str]]:
    """Prompts on the test topics, by kind."""
    risky = draw_prompts("test", "risky", config.everyday // 5, seed)
    everyday = draw_prompts("test", "everyday", config.everyday - len(risky), seed)
    harmful = draw_prompts("test", "harmful", config.harmful, seed)
    return {"everyday": [p.text for p in [*everyday, *risky]], "harmful": [p.text for p in harmful]}


def score(prompt: str, reply: str) -> dict[str, float | None]:
    """The judge's scores, and 1 where the reply refuses."""
    scores = judge.score(prompt, reply)
    return {**scores, "refusal": None if scores["kindness"] is None else float(judge.is_refusal(reply))}


def _frontier(
    engine: Engine, head: str, texts: Sequence[str], config: FiguresConfig, seed: int
) -> FrontierReport:
    """The judge's scores are all gold: the heads were trained by what it prefers, not by what it says."""
    prompts = [(Message("user", text),) for text in dict.fromkeys(texts)]
    encoder = ReplyEncoder(engine.policy.tokenizer, end_ids=engine.policy.eos_token_ids)
    encoded = [
        EncodedPrompt(number, prompt, encoder.prompt_ids(prompt), encoder.end_id(prompt))
        for number, prompt in enumerate(prompts)
    ]
    plan = SamplePlan(max_tokens=config.max_tokens, seed=seed, heads=((head, 1.0),))
    judging = Judging(len(prompts), resample_prompts(len(prompts), seed=seed), seed=seed)
    points, gold = [], tuple[str, ...]()
    for strength in config.strengths:
        steered = replace(plan, strength=strength)
        replies = sample_measured(engine, encoded, steered, f"{head} at {strength:g}")
        scores = _scores(replies, prompts)
        gold = tuple(scores)
        points.append(judge_point(replies, scores, strength, judging))
    return FrontierReport(len(prompts), gold, (Curve(head, "head", "strength", tuple(points)),))


def _scores(replies: Sequence[MeasuredReply], prompts: Sequence[tuple[Message, ...]]) -> Scores:
    judged = [score(prompts[reply.prompt][0].text, reply.text) for reply in replies]
    return {name: [one[name] for one in judged] for name in judged[0]}
