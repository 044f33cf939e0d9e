"""Rollout rows: hold replies sampled from the policy, as `trimtab rollouts` writes and reads them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from trimtab.guidance.data.columns import as_messages
from trimtab.guidance.errors import DataError, first_line
from trimtab.guidance.files import read_parquet
from trimtab.guidance.text.message import EXTRA_JSON, Prompt
from trimtab.guidance.text.prompt_form import METADATA_KEY, made_by_of

_MESSAGE = [("role", pa.string()), ("content", pa.string())]
COLUMNS: Mapping[str, pa.DataType] = {
    "completion": pa.string(),
    "token_ids": pa.list_(pa.int32()),
    "is_cut": pa.bool_(),
    "prompt_id": pa.int64(),
    "sample": pa.int32(),
    "seed": pa.int64(),
    "kl": pa.float64(),
    "strength": pa.float64(),
    "temperature": pa.float64(),
    "top_p": pa.float64(),
    "reward": pa.float64(),
    "token_rewards": pa.list_(pa.float64()),
}
_LATER = ("temperature", "top_p")  # older files say these in their metadata alone
CARRIED = "columns"
"""A struct of the prompt file's other columns, where any are carried along."""


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """One sampled reply.

    token_ids: as drawn, with the end token if it was drawn. is_cut: the length ran out before one was.
    prompt_id: row of the prompt file. sample: which of the prompt's replies. seed: of the request.
    kl: nats over the reply. strength, temperature, top_p: that it was drawn at. reward: of the whole reply;
    token_rewards: one per token of token_ids, then reward is their sum. Both None where nothing has scored
    the reply. columns: of the prompt's row, what is carried along for a reward.
    """

    prompt: Prompt
    completion: str
    token_ids: tuple[int, ...]
    is_cut: bool
    prompt_id: int
    sample: int
    seed: int
    kl: float
    strength: float
    reward: float | None = None
    token_rewards: tuple[float, ...] | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    columns: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**row, "prompt": stored_prompt(self.prompt), CARRIED: dict(self.columns)}


def plain_prompt(prompt: Prompt) -> str | list[dict[str, Any]]:
    """A string, or messages as dicts."""
    return prompt if isinstance(prompt, str) else [message.to_dict() for message in prompt]


def stored_prompt(prompt: Prompt) -> str | list[dict[str, Any]]:
    """As it stands in a Parquet file, whose columns have one type: further keys of a message are one JSON."""
    if isinstance(prompt, str):
        return prompt
    return [
        {"role": m.role, "content": m.content, EXTRA_JSON: json.dumps(m.keys()) if m.extras else None}
        for m in prompt
    ]


def prompt_type(prompts: Iterable[Prompt]) -> pa.DataType:
    """Of a Parquet column that holds these prompts. Raises DataError where strings and messages are mixed."""
    kinds = {_type_of(prompt) for prompt in prompts}
    if len({pa.types.is_string(kind) for kind in kinds}) > 1:
        raise DataError("prompts are strings in some rows and messages in others: use files of one kind each")
    return max(kinds, key=lambda kind: 0 if pa.types.is_string(kind) else kind.value_type.num_fields)


def _type_of(prompt: Prompt) -> pa.DataType:
    if isinstance(prompt, str):
        return pa.string()
    has_extras = any(message.extras for message in prompt)
    return pa.list_(pa.struct([*_MESSAGE, (EXTRA_JSON, pa.string())] if has_extras else _MESSAGE))


def carried_type(rows: Sequence[Mapping[str, Any]]) -> pa.DataType | None:
    """Of the column that holds these other columns of prompts; None where there are none.

    Raises DataError that names a column whose values are of several types.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.struct([(name, _column_type(name, rows)) for name in names]) if names else None


def _column_type(name: str, rows: Sequence[Mapping[str, Any]]) -> pa.DataType:
    try:
        return pa.array([row.get(name) for row in rows]).type
    except (pa.ArrowException, TypeError, OverflowError) as error:
        reason = first_line(error)
        raise DataError(
            f"the column {name} holds values of several types ({reason}): make them one"
        ) from error


def rollout_schema(
    prompt: pa.DataType, metadata: Mapping[str, Any], carried: pa.DataType | None = None
) -> pa.Schema:
    """metadata: what made the rows; stands in the file as JSON under METADATA_KEY. carried: see
    carried_type."""
    text = json.dumps(metadata, sort_keys=True)
    last = [] if carried is None else [(CARRIED, carried)]
    return pa.schema([("prompt", prompt), *COLUMNS.items(), *last], metadata={METADATA_KEY: text.encode()})


def to_table(rows: Iterable[RolloutRow], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([row.to_dict() for row in rows], schema=schema)


def from_table(table: pa.Table) -> list[RolloutRow]:
    names = [field.name for field in dataclasses.fields(RolloutRow)]
    made_by = dict(made_by_of(table.schema))
    older = {name: float(made_by.get(name, 1.0)) for name in _LATER if name not in table.column_names}
    kept = table.select([name for name in names if name in table.column_names])
    return [_row({**row, **older}) for row in kept.to_pylist()]


def read_rollouts(path: Path) -> tuple[list[RolloutRow], dict[str, Any]]:
    """The rows of a file that `trimtab rollouts` wrote, and what made them.

    Raises DataError that names the file and the column where it is another one.
    """
    table = read_parquet(path)
    schema = rollout_schema(pa.null(), {})
    for name in schema.names:
        if name not in (*table.column_names, *_LATER):
            raise DataError(f"{path}: column {name} is missing; name a file that `trimtab rollouts` wrote")
    extra = [name for name in table.column_names if name not in (*schema.names, CARRIED)]
    if extra:
        raise DataError(f"{path}: unknown column {extra[0]}; known are {', '.join(schema.names)}")
    try:
        rows, made_by = from_table(table), dict(made_by_of(table.schema))
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise DataError(f"{path}: a row is not as `trimtab rollouts` writes it ({error})") from error
    if not rows:
        raise DataError(f"{path}: holds no row")
    return rows, made_by


def _row(row: dict[str, Any]) -> RolloutRow:
    if not isinstance(row["prompt"], str):
        row["prompt"] = as_messages(row["prompt"], "prompt")
    row["token_ids"] = tuple(row["token_ids"])
    if row["token_rewards"] is not None:
        row["token_rewards"] = tuple(row["token_rewards"])
    row[CARRIED] = row.get(CARRIED) or {}
    return RolloutRow(**row)
