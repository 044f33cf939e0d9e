"""Data rows of a path: read, recognised, turned into our own, checked, and accounted for."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from trimtab.guidance.data.account import Accountant, RowAccount
from trimtab.guidance.data.formats.mapping import check_mapping, map_columns
from trimtab.guidance.data.formats.recognise import (
    METADATA,
    RowReader,
    choose_format,
    formats_of,
    is_mixed,
    mixed,
)
from trimtab.guidance.data.formats.registry import AUTO, TRL
from trimtab.guidance.data.options import RowOptions, columns_for, format_for
from trimtab.guidance.data.plain_rollouts import stated_sampling
from trimtab.guidance.data.row_files.json_text import BadRow
from trimtab.guidance.data.row_files.source import raw_rows
from trimtab.guidance.data.rows import ROW_KINDS, Preference, Ranking, ReadColumns, Rollout
from trimtab.guidance.errors import DataError, MixedError, TieError
from trimtab.guidance.text.message import Prompt

logger = logging.getLogger(__name__)
Row = TypeVar("Row")
_LOOKED_AT = 64  # rows that decide the format; later ones must agree
_AS_GIVEN = RowOptions()


@dataclass(frozen=True, slots=True)
class LoadedRows(Generic[Row]):
    """num_bad: rows that were skipped; first_bad says where the first one is and what is wrong with it.
    account: what else is to be known of them. carried: of each row, the other columns that were asked for."""

    rows: tuple[Row, ...]
    account: RowAccount
    num_bad: int = 0
    first_bad: str = ""
    carried: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt with the other columns of its row, which some rewards are told by."""

    prompt: Prompt
    columns: Mapping[str, Any] = field(default_factory=dict)


def load_preferences(
    path: Path, options: RowOptions = _AS_GIVEN, *, as_text: bool = False
) -> LoadedRows[Preference]:
    """Rows {prompt?, chosen, rejected}, strings or lists of messages, and what rows.ROW_KINDS lists; or of a
    published format, see formats/registry.py.

    Without a prompt, what chosen and rejected begin with alike is the prompt.
    as_text: transcripts stay text, for a policy without a chat template.

    Raises:
        DataError: the path cannot be read, holds no good row, rows of several formats, or (on_bad_rows
            refuse) a bad one, or (extra_columns refuse) has a column that is not read.
    """
    return load_rows("preferences", path, options, as_text=as_text)


def load_rankings(
    path: Path, options: RowOptions = _AS_GIVEN, *, as_text: bool = False
) -> LoadedRows[Ranking]:
    """Rows {prompt, responses, ranks}. Raises as load_preferences."""
    return load_rows("rankings", path, options, as_text=as_text)


def load_rollouts(
    path: Path, options: RowOptions = _AS_GIVEN, *, as_text: bool = False
) -> LoadedRows[Rollout]:
    """Rows {prompt, completion} with tokens and rewards where they are known. Raises as load_preferences."""
    return load_rows("rollouts", path, options, as_text=as_text)


def load_prompts(path: Path, options: RowOptions = _AS_GIVEN, *, as_text: bool = False) -> LoadedRows[Prompt]:
    """Rows {prompt}. Raises as load_preferences."""
    return load_rows("prompts", path, options, as_text=as_text)


def load_prompt_rows(
    path: Path,
    options: RowOptions,
    read: ReadColumns | None = None,
    *,
    as_text: bool = False,
    keep_all: bool = False,
) -> LoadedRows[PromptRow]:
    """Rows {prompt} with the columns that `read` asks for, or (keep_all) all of them.

    Raises DataError as load_prompts does, but takes no column for extra that is read; and where one is
    missing that is needed.
    """
    read = read or ReadColumns()
    asked = replace(read, takes_all=read.takes_all or keep_all)
    loaded = load_rows("prompts", path, options, as_text=as_text, read=asked)
    rows = tuple(PromptRow(*pair) for pair in zip(loaded.rows, loaded.carried, strict=True))
    read.check(path, {name for row in rows for name in row.columns})
    return replace(loaded, rows=rows)


def load_rows(
    kind: str,
    path: Path,
    options: RowOptions = _AS_GIVEN,
    *,
    as_text: bool = False,
    read: ReadColumns | None = None,
) -> LoadedRows[Any]:
    """Rows of the kind that rows.ROW_KINDS names. read: columns that are carried along beside them.

    Raises as load_preferences.
    """
    try:
        loading = _Loading(kind, options, as_text, read or ReadColumns())
        loaded = loading.run(_objects(kind, raw_rows(path)))
    except (DataError, MixedError) as error:
        raise error if _names(error, path) else DataError(f"{path}: {error}") from error
    log = logger.warning if loaded.account.findings() else logger.info
    log("%s: %s", path, loaded.account)
    if loaded.num_bad:
        logger.warning("%s: skipped %d bad rows, first %s", path, loaded.num_bad, loaded.first_bad)
    if kind == "rollouts" and (stated := stated_sampling(path)):
        return replace(loaded, rows=tuple(replace(row, **stated) for row in loaded.rows))
    return loaded


def _names(error: Exception, path: Path) -> bool:
    """Errors of files begin with the file that they are about, which may be one of a folder's."""
    return isinstance(error, DataError) and str(error).startswith(str(path))


def _objects(kind: str, rows: Iterator[tuple[str, object]]) -> Iterator[tuple[str, object]]:
    """A string alone is a prompt where prompts are asked for; a list of objects is one of judged replies."""
    for where, row in rows:
        if isinstance(row, str) and kind == "prompts":
            yield where, {"prompt": row}
        elif isinstance(row, list) and len(row) > 1 and all(isinstance(one, dict) for one in row):
            yield where, _gathered(row)
        else:
            yield where, row


def _gathered(replies: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the replies, and of what they say alike: their prompt."""
    first = replies[0]
    shared = {name: first[name] for name in first if all(one.get(name) == first[name] for one in replies)}
    own = [{name: value for name, value in one.items() if name not in shared} for one in replies]
    return {**shared, "answers": own}


class _Loading:
    """One pass over the rows of a path."""

    def __init__(self, kind: str, options: RowOptions, as_text: bool, read: ReadColumns) -> None:
        self.kind, self.options, self.as_text, self.read = kind, options, as_text, read
        self.carried = list[dict[str, Any]]()
        self.mapping = columns_for(options.columns, kind)
        self.accountant = Accountant()
        self.rows = list[Any]()
        self.ties, self.bad = list[str](), list[str]()

    def run(self, raw: Iterator[tuple[str, object]]) -> LoadedRows[Any]:
        """Raises DataError."""
        first = list(itertools.islice(raw, _LOOKED_AT))
        reader = self._reader(first)
        for where, row in itertools.chain(first, raw):
            try:
                self._take(where, row, reader)
            except TieError as error:
                self.ties.append(f"{where}: {error}")
            except DataError as error:
                self.bad.append(f"{where}: {error}")
        self._check(reader)
        bad, unread = self.bad, tuple(reader.unread)
        account = self.accountant.account(
            self.kind, reader.format, self.rows, bad=bad, ties=self.ties, unread=unread
        )
        return LoadedRows(tuple(self.rows), account, len(bad), bad[0] if bad else "", tuple(self.carried))

    def _reader(self, first: list[tuple[str, object]]) -> RowReader:
        """In the format that is asked for, or that the first rows have."""
        rows = [(where, row) for where, row in first if isinstance(row, dict)]
        check_mapping(self.mapping, self.kind, [row for _, row in rows])
        mapped = [(where, map_columns(row, self.mapping)) for where, row in rows]
        name = format_for(self.options.format, self.kind)
        self.is_found = name == AUTO
        if self.is_found:
            name = choose_format(mapped, self.kind, is_mapped=bool(self.mapping))
        self.first = next(((where, row) for where, row in mapped), ("", {}))
        return RowReader(self.kind, name, self.as_text)

    def _take(self, where: str, raw: object, reader: RowReader) -> None:
        if isinstance(raw, BadRow):
            raise DataError(raw.problem)
        if not isinstance(raw, dict):
            raise DataError("is not a JSON object")
        _check_text(raw)
        row = map_columns(raw, self.mapping) if self.mapping else raw
        try:
            parsed = reader.read(row)
        except TieError:
            raise
        except DataError:
            self._check_agreement(where, row, reader.format)
            raise
        beside = self.read.of({name: value for name, value in row.items() if name != "prompt"})
        for name in beside:
            reader.unread.pop(name, None)
        for one in parsed:
            self.rows.append(one)
            self.carried.append(beside)
            self.accountant.take(one, row)

    def _check_agreement(self, where: str, row: Mapping[str, Any], name: str) -> None:
        """Raises MixedError for a bad row that would be good in another format than the file's."""
        if self.is_found and is_mixed(row, self.first[1]):
            others = formats_of(row, self.kind, is_mapped=bool(self.mapping))
            if others and name not in others:
                raise mixed(self.first[0], name, where, others[0])

    def _check(self, reader: RowReader) -> None:
        bad = self.bad
        if bad and self.options.on_bad_rows == "refuse":
            raise DataError(
                f"{len(bad)} bad rows, first {bad[0]}: mend them or skip bad rows (--on-bad-rows skip)"
            )
        if not self.rows:
            raise DataError(f"no usable row, {self._why_none()}")
        self._check_unread(reader)

    def _why_none(self) -> str:
        if self.bad:
            return f"all {len(self.bad)} are bad, first {self.bad[0]}"
        return f"all {len(self.ties)} are ties, first {self.ties[0]}" if self.ties else "it is empty"

    def _check_unread(self, reader: RowReader) -> None:
        """In our own rows a column that nothing reads may be one of ours, misspelt."""
        strange = [name for name in reader.unread if name not in METADATA]
        if reader.format == TRL and not self.mapping and strange and self.options.extra_columns == "refuse":
            known = sorted({*ROW_KINDS[self.kind].columns, *ROW_KINDS[self.kind].optional})
            raise DataError(
                f"{self.kind} have no column {', '.join(sorted(strange))}, known are {', '.join(known)}: "
                "remove it, or ignore extra columns (--extra-columns ignore)"
            )


def _check_text(value: object, where: str = "") -> None:
    """Raises DataError for half of a surrogate pair, which is no text: no tokenizer or file takes it."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{where or 'a name'} holds half a surrogate pair, which is no character"
            ) from None
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check_text(name)
            _check_text(inner, where or str(name))
    elif isinstance(value, list):
        for inner in value:
            _check_text(inner, where)
