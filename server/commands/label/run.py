"""Labels from a judge: candidates to questions, answers to preferences or rankings, and a report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from trimtab.guidance.data.load import load_rankings, load_rollouts
from trimtab.guidance.data.rollouts import plain_prompt, prompt_type
from trimtab.guidance.data.training_rows import PREFERENCE_COLUMNS, RANKING_COLUMNS, ranks_of
from trimtab.guidance.errors import DataError, UserError
from trimtab.guidance.files import write_parquet, write_text
from trimtab.guidance.text.prompt_form import recorded_form
from trimtab.server.commands.label.config import LabelConfig
from trimtab.server.judging.answers import AnswerFile
from trimtab.server.judging.client import Answers, Judge
from trimtab.server.judging.compare import (
    Candidate,
    Candidates,
    Comparison,
    Outcome,
    Pair,
    Tally,
    both_orders,
    by_principle,
    draw_comparisons,
    draw_pairs,
    from_rankings,
    from_rollouts,
    outcomes,
    preferences,
    to_json,
    to_lines,
    win_rates,
)
from trimtab.server.judging.constitution import Constitution, load_constitution
from trimtab.server.judging.questions import read_choice

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Labelling:
    """What was asked, answered and made of it. preferred: of each pair's first reply, 0…1."""

    constitution: Constitution
    groups: list[Candidates]
    pairs: list[Pair]
    comparisons: list[Comparison]
    answers: Answers[float]
    judged: list[Outcome]
    preferred: dict[Pair, float]
    rows: list[Row]


def run(config: LabelConfig) -> str:
    """Writes labels and report; returns what a user is told.

    Raises UserError or DataError with one line. Answers that were got are kept in any case.
    """
    done = _label(config)
    _write_report(config, done)
    if not done.rows:
        share = Tally.of(done.judged).disagreement or 0.0
        raise UserError(
            f"no {config.write}: the judge's two orders disagree in {share:.0%} of {len(done.judged)} "
            f"comparisons; {config.out.with_suffix('.report.json')} tells more"
        )
    _write_rows(config, done)
    texts = recorded_form(config.source) == "text"  # which the labels' own file cannot say
    how = "; their prompts were completed as texts: train with --rows text" if texts else ""
    return f"{_told(done)}{len(done.rows)} {config.write} written to {config.out}{how}\n"


def _label(config: LabelConfig) -> Labelling:
    constitution = load_constitution(config.constitution)
    judge = Judge(config.judge, AnswerFile(config.out.with_suffix(".answers.jsonl")))
    groups = _candidates(config)
    pairs = draw_pairs(groups, config.pairs_per_prompt, config.seed)
    comparisons = draw_comparisons(pairs, constitution, config.principles, config.seed)
    asked = both_orders(comparisons, groups, constitution, wants_logprobs=config.answers == "logprobs")
    answers = judge.ask(list(asked), read_choice, progress="answers")
    judged = outcomes(comparisons, answers.results)
    preferred = preferences(judged, constitution, config.on_disagreement)
    rows = _ROWS[config.write](groups, preferred)
    return Labelling(constitution, groups, pairs, comparisons, answers, judged, preferred, rows)


def _candidates(config: LabelConfig) -> list[Candidates]:
    if config.rollouts is not None:
        groups = from_rollouts(load_rollouts(config.rollouts, config.row_options).rows)
    else:
        groups = from_rankings(load_rankings(config.source, config.row_options).rows)
    if not groups:
        raise DataError(
            f"{config.source}: no prompt has two different replies; sample more with --num-replies"
        )
    return groups


def _preference_rows(groups: Sequence[Candidates], preferred: Mapping[Pair, float]) -> list[Row]:
    rows = []
    for pair, value in preferred.items():
        group = groups[pair.group]
        chosen, rejected = group.replies[pair.first], group.replies[pair.second]
        if value < 0.5:
            chosen, rejected = rejected, chosen
        if value != 0.5:
            row = {"prompt": plain_prompt(group.prompt), "chosen": chosen.text, "rejected": rejected.text}
            rows.append({**row, **_tokens(chosen, "chosen_"), **_tokens(rejected, "rejected_")})
    return rows


def _ranking_rows(groups: Sequence[Candidates], preferred: Mapping[Pair, float]) -> list[Row]:
    rates = win_rates(preferred)
    rows = []
    for number, group in enumerate(groups):
        ranked = [index for index in range(len(group.replies)) if (number, index) in rates]
        ranks = ranks_of([rates[number, index] for index in ranked])
        if len(set(ranks)) > 1:
            rows.append(_ranking_row(group, [group.replies[index] for index in ranked], ranks))
    return rows


def _ranking_row(group: Candidates, replies: Sequence[Candidate], ranks: Sequence[float]) -> Row:
    texts = [reply.text for reply in replies]
    row: Row = {"prompt": plain_prompt(group.prompt), "responses": texts, "ranks": ranks}
    tokens = [_tokens(reply) for reply in replies]
    if all(tokens):
        row |= {name: [entry[name] for entry in tokens] for name in ("token_ids", "is_cut")}
    return row


_ROWS: Mapping[str, Callable[[Sequence[Candidates], Mapping[Pair, float]], list[Row]]] = {
    "preferences": _preference_rows,
    "rankings": _ranking_rows,
}
_SETTINGS = ("write", "principles", "pairs_per_prompt", "on_disagreement", "answers", "seed")
_COLUMNS = {"preferences": PREFERENCE_COLUMNS, "rankings": RANKING_COLUMNS}


def _tokens(reply: Candidate, prefix: str = "") -> Row:
    if reply.sampled is None:
        return {}
    return {f"{prefix}token_ids": list(reply.sampled.token_ids), f"{prefix}is_cut": reply.sampled.is_cut}


def _write_rows(config: LabelConfig, done: Labelling) -> None:
    """Columns that no row has are left out: the margin, and tokens where they are not known."""
    prompt = ("prompt", prompt_type(group.prompt for group in done.groups))
    found = {name for row in done.rows for name in row}
    columns = [(name, kind) for name, kind in _COLUMNS[config.write].items() if name in found]
    write_parquet(config.out, pa.Table.from_pylist(done.rows, schema=pa.schema([prompt, *columns])))


def _write_report(config: LabelConfig, done: Labelling) -> None:
    principles = by_principle(done.judged, done.constitution)
    report = {
        "constitution": done.constitution.name,
        "judge": {"url": config.judge.judge_url, "model": config.judge.judge_model},
        "source": str(config.source),
        "settings": {name: getattr(config, name) for name in _SETTINGS},
        "num_prompts": len(done.groups),
        "num_pairs": len(done.pairs),
        "num_comparisons": len(done.comparisons),
        "num_questions": len(done.answers.results),
        "num_answers_from_file": done.answers.num_cached,
        "failures": dict(done.answers.failures),
        "num_unjudged": len(done.comparisons) - len(done.judged),
        **to_json(Tally.of(done.judged)),
        "by_principle": [{"text": text, **to_json(tally)} for text, tally in principles],
        "num_tied_pairs": sum(value == 0.5 for value in done.preferred.values()),
        "num_dropped_pairs": len(done.pairs) - len(done.preferred),
        "num_rows": len(done.rows),
    }
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    write_text(config.out.with_suffix(".report.json"), text)


def _told(done: Labelling) -> str:
    lines = ["the two orders disagree in"]
    lines += to_lines(Tally.of(done.judged), by_principle(done.judged, done.constitution))
    if done.answers.failures:
        lines.append(f"skipped: {done.answers}")
    return "\n".join(lines) + "\n"
