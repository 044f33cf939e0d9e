"""Rollouts sampled in parts by an engine of our own, on from where an earlier run was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm.auto import tqdm

from trimtab.guidance.data.load import PromptRow, load_prompt_rows
from trimtab.guidance.data.rollouts import (
    RolloutRow,
    carried_type,
    from_table,
    plain_prompt,
    prompt_type,
    rollout_schema,
    to_table,
)
from trimtab.guidance.errors import DataError, ModelError, UserError
from trimtab.guidance.heads.manifest import MANIFEST_FILE, TENSORS_FILE
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import ReplyEncoder
from trimtab.guidance.text.prompt_form import Form, Rows, mismatches
from trimtab.server.commands.rollouts.config import RolloutsConfig
from trimtab.server.commands.rollouts.features import FeatureKeeper, check_features
from trimtab.server.commands.rollouts.partial import Partial
from trimtab.server.commands.work_size import MIN_ROWS, tokens_at_once
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import InvalidRequestError
from trimtab.server.engine.state_recorder import StateRecorder
from trimtab.server.flags import parse_weights
from trimtab.server.rollouts.sample import EncodedPrompt, GenerationError, SamplePlan, sample_rollouts
from trimtab.server.scoring.choose import check_scorer, with_reward_head

Metadata = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SampledRollouts:
    """made_by: what made the rows. source: where they are kept. is_scored: by the engine, as it sampled."""

    rows: list[RolloutRow]
    made_by: Metadata
    source: Path
    is_scored: bool = False

    @property
    def rows_as(self) -> Rows:
        """As what prompts that are strings were read."""
        rows: Rows = self.made_by.get("rows", "auto")
        return rows


def sample_all(
    config: RolloutsConfig, engine_config: EngineConfig, told: list[str], policy: Policy | None = None
) -> SampledRollouts:
    """Replies to the prompts of the file, those of an earlier run among them; told: what a user is to know.

    Raises UserError, HeadError, PolicyError, DataError or InvalidRequestError with one line.
    """
    assert config.prompts is not None
    read, keep_all = check_scorer(config.score), config.keep_columns
    as_text = config.row_options.rows == "text"
    loaded = load_prompt_rows(config.prompts, config.row_options, read, keep_all=keep_all, as_text=as_text)
    prompts = loaded.rows[: config.num_prompts]
    kind, carried = prompt_type(row.prompt for row in prompts), carried_type([row.columns for row in prompts])
    if loaded.num_bad:
        told.append(f"{loaded.num_bad} bad rows of {config.prompts} were skipped, first {loaded.first_bad}")
    as_sampled = "" if config.score_windows else config.score  # the engine reads whole replies
    heads, measure = with_reward_head(as_sampled, engine_config.heads, "--score")
    engine_config = replace(engine_config, heads=heads)
    plan = replace(_plan(config), measured=(measure,) if measure else ())
    engine, recorder = _engine(config, engine_config, policy)
    encoder = ReplyEncoder(
        engine.policy.tokenizer,
        config.row_options.rows,
        end_ids=engine.policy.eos_token_ids,
        extra_keys=config.row_options.extra_columns,
    )
    encoded = _encode(engine, encoder, prompts, plan, config, told)
    told += [*encoder.notes.lines(), *_mismatches(engine, plan, encoder.form)]
    size = config.prompts_per_part or _part_size(engine, plan, len(encoded))
    made_by = _made_by(config, engine, engine_config, prompts, plan) | {
        "prompts_per_part": size,
        "rows": encoder.form,
    }
    partial = Partial.open(config.destination, made_by)
    keeper = FeatureKeeper(engine.policy, recorder, partial, encoder) if recorder else None
    schema = rollout_schema(kind, made_by, carried)
    try:
        parts = _sample_parts(engine, encoded, plan, size, partial, schema, keeper)
    except GenerationError as error:
        raise UserError(f"{error}; what was sampled is kept in {partial.folder}") from error
    if keeper is not None and config.keep_features is not None:
        told.append(keeper.write(parts, config.keep_features))
    rows = [row for part in parts for row in part]
    return SampledRollouts(rows, {**made_by, "score": "", "units": ""}, partial.folder, bool(plan.measured))


def _engine(
    config: RolloutsConfig, engine_config: EngineConfig, policy: Policy | None
) -> tuple[Engine, StateRecorder | None]:
    """The engine, and what records its hidden states where they are to be kept."""
    if config.keep_features is not None:
        check_features(config.keep_features, is_begun=Partial.is_begun(config.destination))
    try:
        engine = Engine.from_config(engine_config, policy=policy)
    except ModelError as error:
        raise UserError(str(error)) from error
    if config.keep_features is None:
        return engine, None
    recorder = StateRecorder()
    engine.record(recorder)
    return engine, recorder


def _part_size(engine: Engine, plan: SamplePlan, num_prompts: int) -> int:
    """Prompts of a part, if all replies were as long as they may be; fewer replies than MIN_ROWS side by side
    would take almost as long as those."""
    per_prompt = plan.num_replies * plan.max_tokens
    affordable = tokens_at_once(engine.policy, per_prompt * num_prompts) // per_prompt
    return max(affordable, -(-MIN_ROWS // plan.num_replies))


def _sample_parts(
    engine: Engine,
    prompts: Sequence[EncodedPrompt],
    plan: SamplePlan,
    size: int,
    partial: Partial,
    schema: pa.Schema,
    keeper: FeatureKeeper | None,
) -> list[list[RolloutRow]]:
    """Each part is sampled by an engine with nothing else to do, so that it does not depend on the others."""
    parts: list[list[RolloutRow]] = []
    with tqdm(total=len(prompts) * plan.num_replies, desc="rollouts", unit="reply") as bar:
        for number, start in enumerate(range(0, len(prompts), size)):
            if partial.has(number):
                part = from_table(partial.read(number))
                bar.update(len(part))
            else:
                part = sample_rollouts(engine, prompts[start : start + size], plan, bar)
                if keeper is not None:
                    keeper.keep(number, part)
                partial.write(number, to_table(part, schema))
            parts.append(part)
    return parts


def _plan(config: RolloutsConfig) -> SamplePlan:
    strength = config.strength if config.strength is not None else float(bool(config.steer))
    return SamplePlan(
        num_replies=config.num_replies,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
        heads=tuple(parse_weights(config.steer).items()),
        strength=strength,
    )


def _mismatches(engine: Engine, plan: SamplePlan, form: Form) -> list[str]:
    used = (*dict(plan.heads), *plan.measured)
    return mismatches([manifest for manifest in engine.bank.manifests if manifest.name in used], form)


def _encode(
    engine: Engine,
    encoder: ReplyEncoder,
    prompts: Sequence[PromptRow],
    plan: SamplePlan,
    config: RolloutsConfig,
    told: list[str],
) -> list[EncodedPrompt]:
    """Raises DataError where no prompt, or (on_bad_rows refuse) not every prompt, can be replied to."""
    good, bad = [], []
    for number, row in enumerate(prompts):
        try:
            ids = encoder.prompt_ids(row.prompt)
            encoded = EncodedPrompt(number, row.prompt, ids, encoder.end_id(row.prompt), row.columns)
            request = plan.request(encoded)
        except DataError as error:
            bad.append(f"prompt {number}: {error}")
            continue
        try:
            engine.check(request)
        except InvalidRequestError as error:
            if error.param not in ("prompt", "max_tokens"):
                raise
            bad.append(f"prompt {number}: {error}")
        else:
            good.append(encoded)
    if bad and (config.row_options.on_bad_rows == "refuse" or not good):
        raise DataError(
            f"{config.prompts}: {len(bad)} of {len(prompts)} prompts cannot be replied to, first {bad[0]}: "
            "mend them, or give --on-bad-rows skip"
        )
    if bad:
        told.append(f"{len(bad)} of {len(prompts)} prompts were skipped, first {bad[0]}")
    return good


def _made_by(
    config: RolloutsConfig,
    engine: Engine,
    engine_config: EngineConfig,
    prompts: Sequence[PromptRow],
    plan: SamplePlan,
) -> Metadata:
    """All that the rows depend on, in words and numbers that a user can compare."""
    base = engine.policy.identity.base_model
    text = json.dumps([plain_prompt(row.prompt) for row in prompts])
    carried = (
        json.dumps([row.columns for row in prompts], default=str) if any(r.columns for r in prompts) else ""
    )
    heads = {
        name: _digest(folder)
        for name, folder in zip(engine.bank.names, engine_config.heads, strict=True)
        if name in (*dict(plan.heads), *plan.measured)
    }
    return {
        "model": base.name,
        "fingerprint": base.fingerprint,
        "tokenizer": base.tokenizer_hash,
        "template": base.template_hash,
        "dtype": str(engine.policy.dtype),
        "heads": heads,
        "steer": dict(plan.heads),
        "strength": plan.strength,
        "reward_part": "".join(plan.measured),
        "prompts": hashlib.sha256((text + carried).encode()).hexdigest(),
        "num_prompts": len(prompts),
        **{
            name: getattr(config, name)
            for name in ("num_replies", "max_tokens", "temperature", "top_p", "seed")
        },
        **({} if config.keep_features is None else {"keep_features": True}),
    }


def _digest(folder: Path) -> str:
    contents = b"".join((folder / name).read_bytes() for name in (MANIFEST_FILE, TENSORS_FILE))
    return hashlib.sha256(contents).hexdigest()
