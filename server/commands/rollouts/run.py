"""Rollouts from beginning to end: sampled or read, scored, written, made into training rows."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from trimtab.guidance.data.plain_rollouts import departure
from trimtab.guidance.data.rollouts import (
    RolloutRow,
    carried_type,
    prompt_type,
    read_rollouts,
    rollout_schema,
    to_table,
)
from trimtab.guidance.data.training_rows import (
    PREFERENCE_COLUMNS,
    RANKING_COLUMNS,
    UNPAIRED_COLUMNS,
    preferences,
    rankings,
    unpaired,
)
from trimtab.guidance.errors import DataError, UserError
from trimtab.guidance.files import write_parquet
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.prompt_form import METADATA_KEY, Rows, recorded_form
from trimtab.server.commands.rollouts.config import RolloutsConfig, read_rubric
from trimtab.server.commands.rollouts.partial import Partial
from trimtab.server.commands.rollouts.sampling import SampledRollouts, sample_all
from trimtab.server.engine.config import EngineConfig
from trimtab.server.judging.questions import RUBRIC
from trimtab.server.scoring.choose import ScorerContext, identity_of, make_scorer
from trimtab.server.scoring.kept_scores import KeptScores
from trimtab.server.scoring.reward_part import RAW_UNITS
from trimtab.server.scoring.scorer import Score, ScoreCount, Scorer, apply
from trimtab.server.scoring.token_texts import TokenTexts, load_tokenizer
from trimtab.server.scoring.windows import WindowScorer


def run(config: RolloutsConfig, engine_config: EngineConfig, policy: Policy | None = None) -> str:
    """Writes the rollouts and what is asked to be made of them; returns what a user is told. policy: the
    model, where it is loaded already.

    Raises UserError, HeadError, PolicyError, DataError or InvalidRequestError with one line.
    """
    out = config.destination
    told: list[str] = []
    if config.rescore is not None:
        rows, made_by = read_rollouts(config.rescore)
        form = recorded_form(config.rescore)
        sampled = SampledRollouts(rows, made_by | ({"rows": form} if form else {}), config.rescore)
    else:
        sampled = sample_all(config, engine_config, told, policy)
    rows = sampled.rows
    if config.score:
        rows = _scored(config, engine_config, sampled, told, policy)
    if config.score or config.rescore is None:
        kinds = prompt_type(r.prompt for r in rows), carried_type([r.columns for r in rows])
        write_parquet(out, to_table(rows, rollout_schema(kinds[0], sampled.made_by, kinds[1])))
        told += [_summary(rows), f"written to {out}"]
    _kept_scores(out).unlink(missing_ok=True)
    if config.rescore is None:
        Partial(sampled.source).remove()
    return "\n".join([*told, *_write_training_rows(config, out, rows, sampled.rows_as)]) + "\n"


def _scored(
    config: RolloutsConfig,
    engine_config: EngineConfig,
    sampled: SampledRollouts,
    told: list[str],
    policy: Policy | None,
) -> list[RolloutRow]:
    """Raises UserError where a reply has no score and bad scores are refused, and says where all are kept."""
    count = ScoreCount()
    if sampled.is_scored:
        units, rows = RAW_UNITS, sampled.rows
        for row in rows:
            problem = "" if row.reward is not None else "the reward part gave no finite number"
            count.take(row, Score(row.reward, None, problem))
    else:
        scorer, scores = _scores(config, engine_config, sampled, policy)
        units, rows = scorer.units, list(apply(scores, sampled.rows, count))
    if count.num_bad + count.num_left == count.num_rows or (
        count.num_bad and config.on_bad_scores == "refuse"
    ):
        _kept_scores(config.destination).unlink(missing_ok=True)
        raise UserError(
            f"{count}; the replies are kept in {sampled.source}: mend the scorer and run the same again, "
            "which only scores, or give --on-bad-scores skip"
        )
    if count.num_bad:
        told.append(f"skipped: {count}")
    if count.num_left:
        told.append(f"{config.score} left {count.num_left} of {count.num_rows} replies without a reward")
    sampled.made_by.update(score=config.score, units=units)
    if config.score_windows:
        sampled.made_by.update(score_windows=config.score_windows)
    return rows


def _scores(
    config: RolloutsConfig, engine_config: EngineConfig, sampled: SampledRollouts, policy: Policy | None
) -> tuple[Scorer, list[Score]]:
    """Those that a run which was killed has kept among them. One whose scorer fails keeps none."""
    context = replace(_context(config, engine_config, sampled.rows_as), policy=policy)
    identity = identity_of(config.score, context)
    if config.score_windows:
        identity += f" by windows of {config.score_windows}"
    kept = KeptScores(_kept_scores(config.destination), identity, sampled.rows)
    try:
        scorer = make_scorer(config.score, context)
        if config.score_windows:
            texts = TokenTexts(load_tokenizer(context.model), context.rows)
            scorer = WindowScorer(scorer, config.score_windows, texts)
        return scorer, kept.score(scorer)
    except (UserError, DataError) as error:
        kept.remove()
        raise UserError(f"{error}; the replies are kept in {sampled.source}") from error


def _kept_scores(out: Path) -> Path:
    return out.with_suffix(".scores.jsonl")


def _context(config: RolloutsConfig, engine_config: EngineConfig, form: Rows) -> ScorerContext:
    rubric = RUBRIC if config.rubric is None else read_rubric(config.rubric)
    answers = config.destination.with_suffix(".answers.jsonl")
    return ScorerContext(
        engine_config.model, engine_config.heads, config.judge, answers, rubric, engine_config.device, form
    )


def _write_training_rows(
    config: RolloutsConfig, out: Path, rows: Sequence[RolloutRow], rows_as: Rows
) -> list[str]:
    if not config.wants_training_rows:
        return []
    if all(row.reward is None for row in rows):
        raise UserError(f"{out}: no reply has a reward; give --score")
    prompt, told = pa.field("prompt", prompt_type(row.prompt for row in rows)), []
    told_by = {} if rows_as == "auto" else {METADATA_KEY: json.dumps({"rows": rows_as}).encode()}
    made: list[tuple[str, Sequence[Mapping[str, Any]], Mapping[str, pa.DataType]]] = []
    if config.pairs != "none":
        made.append(("preference", preferences(rows, config.pairs, config.min_margin), PREFERENCE_COLUMNS))
    if config.rankings:
        made.append(("ranking", rankings(rows), RANKING_COLUMNS))
    if config.labels is not None:
        made.append(("unpaired", unpaired(rows, config.labels), UNPAIRED_COLUMNS))
    for name, some, columns in made:
        schema = pa.schema([prompt, *(pa.field(*column) for column in columns.items())], metadata=told_by)
        told.append(_write(out.with_suffix(f".{name}.parquet"), name, some, schema))
    return told


def _write(path: Path, name: str, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> str:
    if not rows:
        raise UserError(
            f"{path} is not written: no prompt has replies whose texts differ and whose rewards differ enough"
        )
    write_parquet(path, pa.Table.from_pylist(list(rows), schema=schema))
    return f"{len(rows)} {name} rows written to {path}"


def _summary(rows: Sequence[RolloutRow]) -> str:
    num_tokens = sum(len(row.token_ids) for row in rows)
    kl, cut = (statistics.fmean(getattr(row, name) for row in rows) for name in ("kl", "is_cut"))
    rewards = [row.reward for row in rows if row.reward is not None]
    scored = "not scored"
    if rewards:
        scored = (
            f"reward {statistics.fmean(rewards):.3f} (sd {statistics.pstdev(rewards):.3f}) of {len(rewards)}"
        )
    told = f"{len(rows)} replies, {num_tokens} tokens, {cut:.0%} cut, KL {kl:.2f} nats; {scored}"
    how = {departure(strength=r.strength, temperature=r.temperature, top_p=r.top_p) for r in rows} - {""}
    if how:
        told += f"; no plain samples ({', '.join(sorted(how))}): a value or monte_carlo would refuse them"
    return told
