"""`trimtab frontier`: what each strength buys by a judge's scores, and what it costs in KL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.server.commands.flags import parse
from trimtab.server.commands.model import BUNDLED, resolve_engine
from trimtab.server.commands.weights import parse_weights
from trimtab.server.engine.config import EngineConfig
from trimtab.server.scoring.functions import load_function as load_judge

Score = Callable[[str, str], dict[str, float | None]]


@dataclass(frozen=True, kw_only=True)
class FrontierConfig(EngineConfig):
    """Samples replies to the same prompts at several strengths, has a judge score them, and writes
    frontier.json, frontier.md and frontier.png: mean scores with 95 % intervals, KL per reply, examples.

    model: `bundled`, or the folder or hub id of a causal LM.
    heads: head folders; `bundled` for those of the bundled model, which are also what it has by default.
    prompts: rows {prompt} as JSONL, Parquet or a datasets folder; strings are completed as they are, lists
    of messages go through the chat template.
    judge: `module:function`, found on the Python path or in the current folder; called with prompt and
    reply, returns scores by name, None where it cannot say.
    out: folder for the results.
    steer: heads with weights, such as kind=1,concise=0.5; by default every head that is loaded weighs 1.
    strengths: each is one row of the table.
    num_prompts: how many of the prompts are used, from the first.
    num_replies: to each prompt.
    max_tokens: of a reply.
    seed: of the sampling and of the intervals.
    """

    model: str | Path = BUNDLED
    prompts: Path
    judge: str = "trimtab.guidance.bundled.judge:score"
    out: Path = Path("runs/frontier")
    steer: str = ""
    strengths: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0)
    num_prompts: int = 200
    num_replies: int = 1
    max_tokens: int = 128
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_prompts", "num_replies", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.strengths:
            raise ValueError("strengths must hold at least one number")


def main(prog: str, args: Sequence[str]) -> None:
    """Measures, prints the table and writes the results."""
    config = parse(FrontierConfig, prog, args)
    score = load_judge(config.judge)
    from trimtab.server.commands.frontier_run import run  # noqa: PLC0415 (heavy; a bad judge is told before)

    print(run(config, resolve_engine(config), parse_weights(config.steer), score), end="")
