"""Columns renamed as `--columns` says: ours from the rows' own, also from inside an object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.guidance.data.formats import comparison, conversation, names
from trimtab.guidance.data.rows import ROW_KINDS
from trimtab.guidance.errors import DataError

_PUBLISHED = frozenset(
    (
        *(*names.PROMPTS, *names.SYSTEMS, *names.REPLIES, *names.LABELS, *names.SCORES),
        *(name for pair in (*names.PAIRS, *names.PAIR_SCORES) for name in pair),
        *(*conversation.COLUMNS, *comparison.VERDICTS, *comparison.reply_names()),
        *(f"score{suffix}" for suffix in ("_0", "_1", "_2", "_a", "_b")),
    )
)


def check_mapping(mapping: Mapping[str, str], kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises DataError for a name of ours that nothing reads, and for a column that no row has."""
    known = {*ROW_KINDS[kind].columns, *ROW_KINDS[kind].optional}
    for ours, theirs in mapping.items():
        if ours not in known | _PUBLISHED:
            raise DataError(f"--columns {ours}={theirs}: {kind} read {', '.join(sorted(known))}, not {ours}")
        if rows and all(_value(row, theirs) is None for row in rows):
            columns = ", ".join(dict.fromkeys(str(name) for row in rows for name in row))
            raise DataError(f"--columns {ours}={theirs}: no column {theirs}, there are {columns}")


def map_columns(row: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
    """The row with its columns under our names; a column that is named so already gives way."""
    taken = {theirs for theirs in mapping.values() if theirs in row}
    others = {name: value for name, value in row.items() if name not in taken and name not in mapping}
    return {**{ours: _value(row, theirs) for ours, theirs in mapping.items()}, **others}


def _value(row: Mapping[str, Any], name: str) -> Any:
    """What stands under a name, or under the parts of it one inside another."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
