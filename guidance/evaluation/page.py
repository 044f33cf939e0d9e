"""Report as files: report.json, pictures, and one page that needs nothing else."""

from __future__ import annotations

import base64
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from trimtab.guidance.evaluation.plots import Picture, all_pictures
from trimtab.guidance.evaluation.report import EvaluationReport
from trimtab.guidance.evaluation.tables import all_tables
from trimtab.guidance.files import write_bytes
from trimtab.guidance.plot_style import DARK, LIGHT, Theme, as_png

TEMPLATE = "report.html.jinja"


def write_report(report: EvaluationReport, folder: Path) -> list[Path]:
    """Writes report.json, a PNG per picture and report.html; each appears whole or not at all, the page last.

    Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [_write(folder / "report.json", report.to_json().encode())]
    for picture in all_pictures(report):
        written.append(_write(folder / f"{picture.name}.png", as_png(picture.draw(LIGHT))))
    return [*written, _write(folder / "report.html", render_page(report).encode())]


def render_page(report: EvaluationReport) -> str:
    """One HTML page: no scripts, no external resource; pictures are inside, for light and dark."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = (files(__package__) / TEMPLATE).read_text(encoding="utf-8")
    pictures = [_embed(picture) for picture in all_pictures(report)]
    return environment.from_string(source).render(report=report, tables=all_tables(report), pictures=pictures)


def _embed(picture: Picture) -> dict[str, str | bool]:
    def uri(theme: Theme) -> str:
        return "data:image/png;base64," + base64.b64encode(as_png(picture.draw(theme))).decode()

    return {
        "table": picture.table,
        "caption": picture.caption,
        "is_small": picture.is_small,
        "light": uri(LIGHT),
        "dark": uri(DARK),
    }


def _write(path: Path, content: bytes) -> Path:
    write_bytes(path, content)
    return path
