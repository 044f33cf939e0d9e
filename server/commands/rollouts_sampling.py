"""Rollouts sampled in parts by an engine of our own, on from where an earlier run was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm.auto import tqdm

from trimtab.guidance.data import load_prompts
from trimtab.guidance.encoding import ReplyEncoder
from trimtab.guidance.errors import DataError
from trimtab.guidance.manifest import MANIFEST_FILE, TENSORS_FILE
from trimtab.guidance.message import Prompt
from trimtab.guidance.prompt_form import Form, Rows, mismatches
from trimtab.server.commands.errors import UserError
from trimtab.server.commands.rollouts import RolloutsConfig
from trimtab.server.commands.rollouts_partial import Partial
from trimtab.server.commands.weights import parse_weights
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.offline import GenerationError
from trimtab.server.engine.policy import ModelError
from trimtab.server.engine.request import InvalidRequestError
from trimtab.server.scoring.choose import measured_head
from trimtab.server.scoring.rollout import (
    RolloutRow,
    from_table,
    plain_prompt,
    prompt_type,
    rollout_schema,
    to_table,
)
from trimtab.server.scoring.sample import EncodedPrompt, SamplePlan, sample

Metadata = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sampled:
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


def sample_all(config: RolloutsConfig, engine_config: EngineConfig, told: list[str]) -> Sampled:
    """Replies to the prompts of the file, those of an earlier run among them; told: what a user is to know.

    Raises UserError, HeadError, PolicyError, DataError or InvalidRequestError with one line.
    """
    assert config.prompts is not None
    loaded = load_prompts(config.prompts, config, as_text=config.rows == "text")
    prompts = loaded.rows[: config.num_prompts]
    kind = prompt_type(prompts)
    if loaded.num_bad:
        told.append(f"{loaded.num_bad} bad rows of {config.prompts} were skipped, first {loaded.first_bad}")
    try:
        engine = Engine.from_config(engine_config)
    except ModelError as error:
        raise UserError(str(error)) from error
    plan = _plan(config)
    _check_measured(engine, plan.measure)
    encoder = ReplyEncoder(engine.policy.tokenizer, config.rows, extra_keys=config.extra_columns)
    if encoder.form == "text":
        engine.policy.complete_texts()
    encoded = _encode(engine, encoder, prompts, plan, config, told)
    told += [*encoder.notes.lines(), *_mismatches(engine, plan, encoder.form)]
    made_by = _made_by(config, engine, engine_config, prompts, plan) | {"rows": encoder.form}
    partial = Partial.open(config.destination, made_by)
    schema = rollout_schema(kind, made_by)
    try:
        rows = _sample_parts(engine, encoded, plan, config.prompts_per_part, partial, schema)
    except GenerationError as error:
        raise UserError(f"{error}; what was sampled is kept in {partial.folder}") from error
    return Sampled(rows, {**made_by, "score": "", "units": ""}, partial.folder, bool(plan.measure))


def _sample_parts(
    engine: Engine,
    prompts: Sequence[EncodedPrompt],
    plan: SamplePlan,
    size: int,
    partial: Partial,
    schema: pa.Schema,
) -> list[RolloutRow]:
    """Each part is sampled by an engine with nothing else to do, so that it does not depend on the others."""
    rows: list[RolloutRow] = []
    with tqdm(total=len(prompts) * plan.num_replies, desc="rollouts", unit="reply") as bar:
        for number, start in enumerate(range(0, len(prompts), size)):
            if partial.has(number):
                part = from_table(partial.read(number))
                bar.update(len(part))
            else:
                part = sample(engine, prompts[start : start + size], plan, bar)
                partial.write(number, to_table(part, schema))
            rows += part
    return rows


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
        measure=measured_head(config.score),
    )


def _check_measured(engine: Engine, head: str) -> None:
    has_reward = dict(zip(engine.bank.names, engine.bank.has_reward, strict=True))
    if head and not has_reward.get(head):
        known = ", ".join(name for name, has in has_reward.items() if has) or "none"
        raise UserError(
            f"--score reward:{head}: no loaded head of this name has a reward part; with one: {known}"
        )


def _mismatches(engine: Engine, plan: SamplePlan, form: Form) -> list[str]:
    used = (*dict(plan.heads), plan.measure)
    return mismatches([manifest for manifest in engine.bank.manifests if manifest.name in used], form)


def _encode(
    engine: Engine,
    encoder: ReplyEncoder,
    prompts: Sequence[Prompt],
    plan: SamplePlan,
    config: RolloutsConfig,
    told: list[str],
) -> list[EncodedPrompt]:
    """Raises DataError where no prompt, or (on_bad_rows refuse) not every prompt, can be replied to."""
    good, bad = [], []
    for number, prompt in enumerate(prompts):
        try:
            encoded = EncodedPrompt(number, prompt, encoder.prompt_ids(prompt))
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
    if bad and (config.on_bad_rows == "refuse" or not good):
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
    prompts: Sequence[Prompt],
    plan: SamplePlan,
) -> Metadata:
    """All that the rows depend on, in words and numbers that a user can compare."""
    base = engine.policy.identity.base_model
    text = json.dumps([plain_prompt(prompt) for prompt in prompts])
    heads = {
        name: _digest(folder)
        for name, folder in zip(engine.bank.names, engine_config.heads, strict=True)
        if name in (*dict(plan.heads), plan.measure)
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
        "reward_part": plan.measure,
        "prompts": hashlib.sha256(text.encode()).hexdigest(),
        "num_prompts": len(prompts),
        **{
            name: getattr(config, name)
            for name in ("num_replies", "max_tokens", "temperature", "top_p", "seed", "prompts_per_part")
        },
    }


def _digest(folder: Path) -> str:
    contents = b"".join((folder / name).read_bytes() for name in (MANIFEST_FILE, TENSORS_FILE))
    return hashlib.sha256(contents).hexdigest()
