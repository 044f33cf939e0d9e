"""Options of reading rows: their format, their columns, and what bad ones do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from trimtab.guidance.data.formats.registry import AUTO, FORMATS, TRL
from trimtab.guidance.data.rows import ROW_KINDS
from trimtab.guidance.text.prompt_form import Rows

OnBadRows = Literal["refuse", "skip"]
ExtraColumns = Literal["refuse", "ignore"]


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """How the rows of data files are read.

    format: format of the rows: `trl` (prompt, chosen, rejected, …), a published one (sharegpt, messages,
    hh, ultrafeedback, replies, comparison, alpaca, question), or `auto`, which looks at the rows and says
    what it found. `preferences:sharegpt` is for one of several files; several such go with commas
    between.
    columns: names that the file has for our columns, as in prompt=question,chosen=good,rejected=bad; a
    dot goes into an object, prompt=question.text; `preferences:prompt=question` is for one of several
    files.
    on_bad_rows: what happens where a row cannot be read or used: `refuse` the file, or `skip` such rows
    and count them.
    extra_columns: what happens where a file has columns beside TRL's that nothing reads: `refuse` it, or
    `ignore` them; those of published formats are always ignored, and named.
    """

    format: str = AUTO
    columns: str = ""
    on_bad_rows: OnBadRows = "refuse"
    extra_columns: ExtraColumns = "refuse"

    def __post_init__(self) -> None:
        for kind in ROW_KINDS:
            format_for(self.format, kind)
            columns_for(self.columns, kind)


@dataclass(frozen=True, kw_only=True)
class EncodedRows(RowOptions):
    """Rows that a policy is to read.

    rows: how a prompt that is a string is read: `chat`, as a message of the user through the chat
    template, like /v1/chat/completions; `text`, completed as it is, like /v1/completions; `auto`, as the
    file's rollouts were sampled, else chat where the tokenizer has a template. Heads and rollouts
    remember which.
    """

    rows: Rows = "auto"


@dataclass(frozen=True, kw_only=True)
class RowLimits(EncodedRows):
    """Which rows of a file are used.

    max_tokens: tokens of prompt and reply together; longer rows (or longer ones than the policy's
    context) are left out, and counted.
    """

    max_tokens: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")


def format_for(text: str, kind: str) -> str:
    """What --format says for files of one kind of rows. Raises ValueError."""
    found = AUTO
    for entry in _entries(text):
        wanted, name = _kind_of(entry)
        if name not in (AUTO, TRL, *FORMATS):
            raise ValueError(f"format must be {AUTO}, {TRL}, {', '.join(FORMATS)}, got {name!r}")
        found = name if wanted in ("", kind) else found
    return found


def columns_for(text: str, kind: str) -> Mapping[str, str]:
    """What --columns says for files of one kind of rows: our name -> the rows'. Raises ValueError."""
    mapping: dict[str, str] = {}
    for entry in _entries(text):
        wanted, pair = _kind_of(entry)
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if not (ours and equals and theirs):
            raise ValueError(f"columns must be such as prompt=question,chosen=good, got {entry!r}")
        if ours in mapping and wanted in ("", kind):
            raise ValueError(f"columns names {ours} twice")
        if wanted in ("", kind):
            mapping[ours] = theirs
    return mapping


def _entries(text: str) -> list[str]:
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def _kind_of(entry: str) -> tuple[str, str]:
    """The kind of rows that an entry is for, "" for all, and the rest of it."""
    kind, colon, rest = entry.partition(":")
    return (kind.strip(), rest.strip()) if colon and kind.strip() in ROW_KINDS else ("", entry)
