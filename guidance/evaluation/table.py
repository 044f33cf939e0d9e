"""A table of a report: cells of text, for a terminal, a page or Markdown alike."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.guidance.evaluation.report import NOTHING


@dataclass(frozen=True, slots=True)
class Table:
    """name: in one word, for links. title, note: for readers. Every row has as many cells as columns."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def to_markdown(self) -> str:
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(value: float | None, form: str = ".2f") -> str:
    return NOTHING if value is None else format(value, form)
