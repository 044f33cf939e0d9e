"""Gold and proxy scores of replies, by name, with the replies that could not be scored counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimtab.guidance.data.load import PromptRow
from trimtab.guidance.data.rollouts import RolloutRow, plain_prompt
from trimtab.guidance.errors import UserError
from trimtab.guidance.evaluation.replies import MeasuredReply, Scores
from trimtab.guidance.text.prompt_form import Form
from trimtab.server.commands.eval.config import EvalConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.judging.questions import RUBRIC
from trimtab.server.scoring.choose import ScorerContext, make_scorer, split_scorer
from trimtab.server.scoring.functions import calling_of, check_result, in_its_place, load_function
from trimtab.server.scoring.scorer import Scorer
from trimtab.server.scoring.token_texts import TokenTexts

GOLD, PROXY = "gold", "proxy"


def reward_name(head: str) -> str:
    """What the score of a head's reward part is called."""
    return f"{head} reward"


@dataclass(slots=True)
class Judges:
    """Scores replies to `prompts`. gold, proxies: scorers by the name of their score, "" where a function
    names its scores itself. gold_names: known once something has been scored. problems: by scorer, how many
    replies have one, and the first. unsaid: by score, how many of how many replies got None."""

    config: EvalConfig
    prompts: Sequence[PromptRow]
    gold: dict[str, Callable[[Sequence[RolloutRow]], Any]]
    proxies: dict[str, Callable[[Sequence[RolloutRow]], Any]]
    measured: tuple[str, ...]
    gold_reward: str = ""
    gold_names: tuple[str, ...] = ()
    problems: dict[str, tuple[int, str]] = field(default_factory=dict)
    unsaid: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __call__(self, replies: Sequence[MeasuredReply]) -> Scores:
        """Gold first. Raises UserError for replies without a score, where those are refused."""
        rows = [_row(reply, self.prompts) for reply in replies]
        gold: Scores = {}
        for name, scorer in self.gold.items():
            gold |= self._checked(name, scorer(rows), replies)
        if self.gold_reward:
            gold[GOLD] = [_finite(reply.rewards.get(self.gold_reward)) for reply in replies]
        self.gold_names = self.gold_names or tuple(gold)
        others: Scores = {}
        for name, scorer in self.proxies.items():
            others |= self._checked(name, scorer(rows), replies)
        for head in self.measured:
            if head != self.gold_reward:
                others[reward_name(head)] = [_finite(reply.rewards.get(head)) for reply in replies]
        return gold | others

    def told(self) -> list[str]:
        """What could not be scored, a line for each scorer."""
        return [
            *(
                f"{name}: {count} replies have no score, first {first}"
                for name, (count, first) in self.problems.items()
            ),
            *(
                f"{name}: {count} of {total} replies were left without a score"
                for name, (count, total) in self.unsaid.items()
                if count
            ),
        ]

    def _checked(
        self, name: str, scored: tuple[Scores, list[str]], replies: Sequence[MeasuredReply]
    ) -> Scores:
        scores, problems = scored
        bad = [i for i, problem in enumerate(problems) if problem]
        if bad:
            count, first = self.problems.get(name, (0, ""))
            first = first or f"to prompt {replies[bad[0]].prompt} ({problems[bad[0]]})"
            self.problems[name] = count + len(bad), first
            if self.config.on_bad_scores == "refuse":
                raise UserError(
                    f"{name}: {len(bad)} of {len(replies)} replies have no score, first {first}: mend it, or "
                    "give --on-bad-scores skip"
                )
        for score, values in scores.items():
            unsaid = sum(
                value is None and not problem for value, problem in zip(values, problems, strict=True)
            )
            if unsaid == len(values) and score not in self.unsaid:  # of the plain replies already
                raise UserError(
                    f"{score}: all {unsaid} replies are left without a score: mend what scores them"
                )
            before, total = self.unsaid.get(score, (0, 0))
            self.unsaid[score] = before + unsaid, total + len(values)
        return scores


def make_judges(
    config: EvalConfig,
    engine: Engine,
    prompts: Sequence[PromptRow],
    form: Form,
    heads: Sequence[str],
    gold_head: str,
) -> Judges:
    """form: as what the prompts were read. heads: those whose reward part is read. gold_head: the one that
    `--gold reward:HEAD` names, or "".

    Raises UserError or HeadError, one line, for a scorer that cannot be had.
    """
    gold, proxies = (
        {score: _scorer(name, score, config, engine, form)} if name and not name.startswith("reward:") else {}
        for name, score in ((config.gold_scorer, GOLD), (config.proxy_scorer, PROXY))
    )
    return Judges(config, prompts, gold, proxies, tuple(heads), gold_head)


def _scorer(
    name: str, score: str, config: EvalConfig, engine: Engine, rows: Form
) -> Callable[[Sequence[RolloutRow]], tuple[Scores, list[str]]]:
    kind, rest = split_scorer(name, f"--{score}")
    if kind == "function":
        function = load_function(rest, f"--{score}")
        calling = calling_of(function)
        if calling.style != "batch":
            texts = TokenTexts(engine.policy.tokenizer, rows)
            return _Named(function, calling.style == "tokens", score, texts)
    context = ScorerContext(
        engine.config.model,
        (),
        config.judge,
        config.out / f"{score}.answers.jsonl",
        RUBRIC if config.rubric is None else _read(config),
        engine.config.device,
        rows,
        f"--{score}",
    )
    return _of_scorer(make_scorer(name, context), score)


def _of_scorer(scorer: Scorer, name: str) -> Callable[[Sequence[RolloutRow]], tuple[Scores, list[str]]]:
    def score(rows: Sequence[RolloutRow]) -> tuple[Scores, list[str]]:
        found = scorer.score(rows)
        return {name: [one.reward for one in found]}, [one.problem for one in found]

    return score


@dataclass(frozen=True, slots=True)
class _Named:
    """A function that returns a number, one per token, or a dict of numbers by name, None where it cannot
    say."""

    function: Callable[..., Any]
    takes_tokens: bool
    name: str
    token_texts: TokenTexts

    def __call__(self, rows: Sequence[RolloutRow]) -> tuple[Scores, list[str]]:
        found = [self._one(row) for row in rows]
        names = next((list(scores) for scores, problem in found if not problem), [self.name])
        problems = [p or ("" if list(s) == names else f"the names are {list(s)}") for s, p in found]
        columns: Scores = {name: [scores.get(name) for scores, _ in found] for name in names}
        return columns, problems

    def _one(self, row: RolloutRow) -> tuple[dict[str, float | None], str]:
        arguments: list[Any] = [plain_prompt(row.prompt), row.completion]
        if self.takes_tokens:
            arguments.append(self.token_texts(row))
        try:
            with in_its_place():
                result = self.function(*arguments)
        except (Exception, SystemExit) as error:  # the user's code may raise anything: this reply's problem
            return {}, f"the function raised {type(error).__name__}: {error}"
        if isinstance(result, dict):
            return _by_name(result)
        score = check_result(result, len(row.token_ids))
        return {self.name: score.reward}, score.problem


def _by_name(result: dict[Any, Any]) -> tuple[dict[str, float | None], str]:
    scores: dict[str, float | None] = {}
    for name, value in result.items():
        if value is None:
            scores[str(name)] = None
            continue
        score = check_result(value, -1)
        if score.reward is None:
            return {}, f"{name}: {score.problem}"
        scores[str(name)] = score.reward
    return scores, "" if scores else "the function returned an empty dict"


def _row(reply: MeasuredReply, prompts: Sequence[PromptRow]) -> RolloutRow:
    return RolloutRow(
        prompts[reply.prompt].prompt,
        reply.text,
        reply.token_ids,
        reply.finish_reason == "length",
        prompt_id=reply.prompt,
        sample=0,
        seed=0,
        kl=reply.kl,
        strength=0.0,
        columns=prompts[reply.prompt].columns,
    )


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def _read(config: EvalConfig) -> str:
    assert config.rubric is not None
    try:
        return config.rubric.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--rubric {config.rubric} cannot be read ({error}); name a text file") from error
