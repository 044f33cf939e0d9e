"""Options of `trimtab label`, checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from trimtab.guidance.data.options import RowOptions
from trimtab.server.judging.compare import OnDisagreement, WhichPrinciples
from trimtab.server.judging.config import JudgeConfig


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """AI feedback: asks a judge model which of two replies follows a principle better, always in both orders,
    so that a liking for the first one cancels, and writes preferences or rankings as Parquet, with a report
    as JSON beside it. Good answers are kept in a file beside it, too: the same command asks only for the
    rest.
    Example: `trimtab label --constitution kind.yaml --rollouts rollouts.parquet
    --judge-url http://127.0.0.1:8000/v1 --out kind.parquet`, where kind.yaml holds
    `name`, and `principles`, a list of {text, weight?, question?}.

    constitution: YAML of principles; a question is asked in place of "Which reply follows the principle
    better?".
    rollouts: rows {prompt, completion}, at least two different ones to a prompt, such as `trimtab rollouts`
    writes.
    rankings: rows {prompt, responses, ranks} in their place; the ranks are not read.
    out: the file that is written.
    write: `preferences` of two replies each, or `rankings` of each prompt's replies by mean win rate.
    principles: which principles each pair is judged by: `draw` one, by weight, or ask by `all`, whose
    weighted mean counts.
    pairs_per_prompt: how many pairs of a prompt's replies are asked about, drawn; by default all.
    on_disagreement: what happens where the two orders disagree: `drop` the comparison, or keep it as a
    `tie`.
    answers: `logprobs` reads the probabilities of A and B where the judge gives them, else its text; `text`
    asks for none, for judges that refuse to give them.
    seed: of the pairs and principles that are drawn.
    """

    constitution: Path
    rollouts: Path | None = None
    rankings: Path | None = None
    out: Path = Path("labels.parquet")
    write: Literal["preferences", "rankings"] = "preferences"
    principles: WhichPrinciples = "draw"
    pairs_per_prompt: int | None = None
    on_disagreement: OnDisagreement = "drop"
    answers: Literal["logprobs", "text"] = "logprobs"
    seed: int = 0
    judge: tyro.conf.OmitArgPrefixes[JudgeConfig] = field(default_factory=JudgeConfig)
    row_options: tyro.conf.OmitArgPrefixes[RowOptions] = field(default_factory=RowOptions)

    def __post_init__(self) -> None:
        if (self.rollouts is None) == (self.rankings is None):
            raise ValueError("give one of --rollouts and --rankings, which hold the replies")
        if self.pairs_per_prompt is not None and self.pairs_per_prompt < 1:
            raise ValueError(f"pairs_per_prompt must be at least 1, got {self.pairs_per_prompt}")

    @property
    def source(self) -> Path:
        """Where the replies are."""
        path = self.rollouts or self.rankings
        assert path is not None
        return path
