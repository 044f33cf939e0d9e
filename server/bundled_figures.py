"""What each bundled head does to the judged scores, on topics that nobody trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.guidance.bundled import judge
from trimtab.guidance.bundled.grammar.conversation import draw_prompts
from trimtab.guidance.data import Message
from trimtab.guidance.evaluation.frontier import frontier
from trimtab.guidance.evaluation.plot import plot_frontier
from trimtab.guidance.evaluation.report import FrontierReport
from trimtab.server.bundled_rollouts import AXES
from trimtab.server.commands.frontier_run import sampler
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import SamplingParams


@dataclass(frozen=True)
class FiguresConfig:
    """The measurement of every head.

    everyday: harmless prompts, of which a fifth merely sound risky.
    harmful: prompts that ask for harm.
    strengths: at which each prompt is answered once.
    max_tokens: of a reply.
    """

    everyday: int = 250
    harmful: int = 250
    strengths: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0)
    max_tokens: int = 256


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
            print(f"\nhead {head}, {kind} prompts\n\n{report.to_markdown()}")
        shown = reports["harmful" if head == "harmless" else "everyday"]
        plot_frontier(shown, out / f"frontier-{head}.png")
        figures[head] = {kind: json.loads(report.to_json()) for kind, report in reports.items()}
    return figures


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
    prompts = {text: (Message("user", text),) for text in texts}
    sampling = SamplingParams(max_tokens=config.max_tokens)
    return frontier(
        sampler(engine, prompts, sampling, seed),
        score,
        texts,
        heads=((head, 1.0),),
        strengths=config.strengths,
        seed=seed,
    )
