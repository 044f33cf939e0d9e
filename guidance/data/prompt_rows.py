"""Prompts with the other columns of their rows, which some rewards are told by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trimtab.guidance.data.load import LoadedRows, load_rows
from trimtab.guidance.data.options import RowOptions
from trimtab.guidance.data.rows import ReadColumns
from trimtab.guidance.text.message import Prompt


@dataclass(frozen=True, slots=True)
class PromptRow:
    prompt: Prompt
    columns: Mapping[str, Any] = field(default_factory=dict)


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
