"""Recognises the format of rows, and reads them; errors show a row's columns and what they look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimtab.guidance.data.formats.exchange import KindError, Row, rows_of
from trimtab.guidance.data.formats.hints import hint
from trimtab.guidance.data.formats.read import ReadRow
from trimtab.guidance.data.formats.registry import FORMATS, TRL
from trimtab.guidance.data.rows import ROW_KINDS
from trimtab.guidance.errors import DataError, MixedError, TieError

METADATA = frozenset(
    (
        *(
            "id",
            "idx",
            "index",
            "qid",
            "uid",
            "uuid",
            "prompt_id",
            "question_id",
            "conversation_id",
            "source",
        ),
        *("dataset", "subset", "split", "category", "categories", "task", "domain", "lang", "language"),
        *("model", "models", "chosen_model", "rejected_model", "metadata", "meta", "url", "license", "date"),
        *("timestamp", "turns", "num_turns", "worker", "version", "tags", "__index_level_0__"),
    )
)
"""Columns that tell where a row comes from: nobody expects them to be read, in TRL's rows either."""


def formats_of(row: Mapping[str, Any], kind: str, *, is_mapped: bool = False) -> list[str]:
    """Names of the formats that a row of this kind may have: one where it is clear.

    is_mapped: columns have been given our names by hand, so that others beside them are none of ours.
    """
    if _is_ours(row, kind, is_mapped):
        return [TRL]
    found = [name for name, known in FORMATS.items() if known.looks_like(row)]
    return [TRL] if not found and _is_parsed(row, kind) else found


def _is_ours(row: Mapping[str, Any], kind: str, is_mapped: bool = False) -> bool:
    """Nothing but columns that we read and metadata, and no transcript or published spelling inside them."""
    known = {*ROW_KINDS[kind].columns, *ROW_KINDS[kind].optional, *METADATA}
    strange = [name for name, value in row.items() if value is not None and name not in known]
    if strange and not is_mapped:
        return False
    if FORMATS["hh"].looks_like(row):
        return False
    return _is_parsed(row, kind)


def _is_parsed(row: Mapping[str, Any], kind: str) -> bool:
    try:
        ROW_KINDS[kind].parse(dict(row))
    except TieError:
        return True
    except DataError:
        return False
    return True


@dataclass(slots=True)
class RowReader:
    """Rows of one kind and format, parsed. as_text: transcripts stay text, for a policy without a template.
    unread: columns that held something and were not read."""

    kind: str
    format: str
    as_text: bool = False
    unread: dict[str, None] = field(default_factory=dict)

    def read(self, row: Mapping[str, Any]) -> list[Any]:
        """What rows.ROW_KINDS parses of it: one row or several.

        Raises:
            DataError: it is bad; the message shows its columns where these do not fit.
            TieError: it prefers no reply.
        """
        try:
            rows, unread = self._rows(row)
            parsed = [ROW_KINDS[self.kind].parse(one) for one in rows]
        except TieError:
            raise
        except DataError as error:
            raise DataError(f"{error}{self._hint(row, isinstance(error, KindError))}") from error
        self.unread.update(dict.fromkeys(unread))
        return parsed

    def _rows(self, row: Mapping[str, Any]) -> tuple[list[Row], list[str]]:
        """Rows of our own columns, and the columns that were not read for them."""
        if self.format == TRL:
            known = {*ROW_KINDS[self.kind].columns, *ROW_KINDS[self.kind].optional}
            return [dict(row)], [
                name for name, value in row.items() if value is not None and name not in known
            ]
        seen = ReadRow(row)
        exchange = FORMATS[self.format].read(seen, self.as_text)
        rows = rows_of(exchange, self.kind)
        return rows, [name for name in seen.unread() if row[name] not in ("", [], {})]

    def _hint(self, row: Mapping[str, Any], is_other_kind: bool) -> str:
        """Nothing for a row whose columns are right, and only what they hold is not."""
        others = [name for name in formats_of(row, self.kind) if name != self.format]
        if self.format == TRL:
            known = {*ROW_KINDS[self.kind].columns, *ROW_KINDS[self.kind].optional}
            is_complete = all(row.get(name) is not None for name in ROW_KINDS[self.kind].columns)
            fits = set(row) <= known or (is_complete and not others)
        else:
            fits = FORMATS[self.format].looks_like(row) and not is_other_kind
        if fits:
            return ""
        return hint(row, self.kind, self.format, others, self._kinds(row))

    def _kinds(self, row: Mapping[str, Any]) -> list[str]:
        """Kinds of rows that it does hold in this format."""
        if self.format == TRL:
            return [kind for kind in ROW_KINDS if kind != "prompts" and _is_ours(row, kind)]
        return [kind for kind in ROW_KINDS if self._holds(row, kind)]

    def _holds(self, row: Mapping[str, Any], kind: str) -> bool:
        try:
            rows_of(FORMATS[self.format].read(ReadRow(row), self.as_text), kind)
        except TieError:
            return True
        except DataError:
            return False
        return True


def choose_format(
    rows: Sequence[tuple[str, Mapping[str, Any]]], kind: str, *, is_mapped: bool = False
) -> str:
    """The format of the first rows, given with where they stand; TRL's where none has a known one.

    Raises:
        DataError: a row may have several, or rows differ; --format decides.
    """
    chosen, first, columns = TRL, "", dict[str, Any]()
    for where, row in rows:
        found = formats_of(row, kind, is_mapped=is_mapped)
        if len(found) > 1:
            titles = " or ".join(found)
            raise DataError(f"{where} may be {titles}: the row has {', '.join(row)}: give --format {titles}")
        if found and not first:
            chosen, first, columns = found[0], where, dict(row)
        if found and found[0] != chosen and is_mixed(row, columns):
            raise mixed(first, chosen, where, found[0])
    return chosen


def is_mixed(row: Mapping[str, Any], first: Mapping[str, Any]) -> bool:
    """Whether a row has other columns than the first: with the same ones it is bad, not of another format."""
    return row.keys() != first.keys()


def mixed(first: str, chosen: str, where: str, other: str) -> MixedError:
    """The error of a path whose rows have two formats."""
    return MixedError(
        f"{first} looks like {chosen}, {where} like {other}: split it, or give --format {chosen} to take the "
        "others for bad rows"
    )
