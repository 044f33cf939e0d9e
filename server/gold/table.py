"""The tables of guidance/README.md from evaluations: python -m trimtab.server.gold.table FILE …"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_NEAR = 2.0  # nats at which variety is shown
Row = Mapping[str, Any]


def table(report: Row) -> str:
    """A row per curve: gold at equal KL, and by how much that is above the static bias, with its 95 %
    interval; then perplexity under the policy and distinct-2 within prompts, of the point nearest to two
    nats."""
    frontier = report["frontier"]
    found = {(row["curve"], row["kl"]): row for row in frontier["at_kl"]}
    kls = sorted({kl for _, kl in found})
    names = ["curve", *(f"gold at {kl:g} nats" for kl in kls), "perplexity", "distinct-2"]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for curve in frontier["curves"]:
        cells = [_gold(found.get((curve["name"], kl))) for kl in kls]
        if any(cells):
            lines.append(_line([curve["name"], *cells, *_fluency(curve)]))
    return "\n".join(lines) + "\n"


def _gold(row: Row | None) -> str:
    if row is None:
        return ""
    estimate, above = row["estimate"], row["above_baseline"]
    if above is None:
        return f"{estimate['mean']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"
    return f"{estimate['mean']:.2f} ({above['mean']:+.2f} [{above['low']:+.2f}, {above['high']:+.2f}])"


def _fluency(curve: Row) -> tuple[str, str]:
    point = min(curve["points"], key=lambda point: abs(point["kl"]["mean"] - _NEAR))
    perplexity, distinct = point["perplexity"], point["variety"]["within"]["distinct_2"]
    return "" if perplexity is None else f"{perplexity:.1f}", "" if distinct is None else f"{distinct:.3f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(table(json.loads(Path(name).read_text(encoding="utf-8"))))
