"""Table of a report: writes numbers as cells of text, for a terminal, a page, Markdown and a card alike."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.guidance.statistics import Estimate

NOTHING = "-"  # the cell where there is no number


@dataclass(frozen=True, slots=True)
class Table:
    """name: in one word, for links. title, note: for readers. Every row has as many cells as columns."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def to_markdown(self) -> str:
        cells = ([cell(text) for text in line] for line in (self.columns, *self.rows))
        head, *body = ("| " + " | ".join(line) + " |\n" for line in cells)
        return "".join([head, "|" + "---|" * len(self.columns) + "\n", *body])


def number(value: float | None, form: str = ".2f") -> str:
    """A cell of a number."""
    return NOTHING if value is None else format(value, form)


def show(estimate: Estimate | None, *, percent: bool = False, sign: bool = False) -> str:
    """A mean with its interval, as a cell of a table."""
    if estimate is None:
        return NOTHING
    form = ("+" if sign else "") + (".1f" if percent else ".2f")
    factor, unit = (100, " %") if percent else (1, "")
    mean, low, high = (format(factor * x, form) for x in (estimate.mean, estimate.low, estimate.high))
    return f"{mean}{unit} [{low}, {high}]"


def show_difference(difference: Estimate | None) -> str:
    """With the word `above` or `below` where the interval leaves out zero, and only there."""
    if difference is None:
        return NOTHING
    word = " above" if difference.low > 0 else " below" if difference.high < 0 else ""
    return show(difference, sign=True) + word


def cell(text: str) -> str:
    """In one line, without what would end the cell."""
    return " ".join(text.split()).replace("|", "\\|")
