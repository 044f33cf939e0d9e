"""Tables of server/README.md's load, written from server/results: python -m benchmarks.serving.table"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

from benchmarks.common import as_table, hardware_line, ratio_of, spread_of, write_tables

SERVER = Path(__file__).resolve().parents[2] / "server"
BEGIN, END = "<!-- load tables: begin -->", "<!-- load tables: end -->"
NAMES = {
    "llama-31m": "random Llama of 31 M parameters",
    "smollm2": "SmolLM2-135M-Instruct",
    "plain": "plain",
    "guided": "guided",
    "vllm": "vLLM, plain",
    "guidellm": "guided, by guidellm",
}
COLUMNS = {  # of a load: heading, figure
    "tokens/s": "tokens_per_second",
    "first token, ms: p50": "first_token_ms_p50",
    "p99": "first_token_ms_p99",
    "between tokens, ms: p50": "between_tokens_ms_p50",
    "p99 ": "between_tokens_ms_p99",
}
NOTHING = "No report is committed: every figure of a load is open. `python -m benchmarks.serving` writes one."
AIM = 0.9  # of the throughput of the engine alone, through HTTP
Document = Mapping[str, Any]
Record = Mapping[str, Any]


def read_reports(folder: Path) -> list[Document]:
    """Those of loads, by their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("load-*.json"))]


def as_markdown(reports: Iterable[Document]) -> str:
    sections = ["\n\n".join(_section(report)) for report in reports]
    return "\n\n".join(sections) if sections else NOTHING


def _section(report: Document) -> Iterator[str]:
    records: list[Record] = report["records"]
    if "machine" in report:
        yield f"{hardware_line(report['machine'])}; medians (p10…p90) over turns, p50 and p99 of a load."
    for model in dict.fromkeys(record["load"]["model"] for record in records):
        of_model = [record for record in records if record["load"]["model"] == model]
        yield f"**{NAMES[model]}**"
        yield _loads(of_model)
        shares = [record["client_cpu_share"] for record in of_model if "client_cpu_share" in record]
        yield f"The load client took {max(shares, default=0):.0%} of a core at most."
        costs = [*_costs(of_model)]
        if costs:
            yield "µs of CPU that the event loop of HTTP took for a token, its requests' share in it: " + (
                "; ".join(costs) + "."
            )
        ratios = [*_ratios(of_model)]
        if ratios:
            yield as_table(["tokens/s, ratio within turns", "streams", "ratio", "aim"], ratios)
    yield from (f"Absent: {what}" for what in report.get("absent", ()))


def _loads(records: list[Record]) -> str:
    """A line for each contestant at each number of streams."""
    rows: list[list[Any]] = []
    for (contestant, streams), turns in _grouped(records).items():
        if contestant in NAMES:
            figures = [_spread(turns, figure) for figure in COLUMNS.values()]
            errors = f"{sum(turn['errors'] for turn in turns)} of {sum(turn['replies'] for turn in turns)}"
            rows.append([streams, NAMES[contestant], *figures, errors])
    return as_table(["streams", "", *COLUMNS, "errors"], sorted(rows, key=itemgetter(0)))


def _costs(records: list[Record]) -> Iterator[str]:
    """Of each contestant, by streams."""
    found: dict[str, list[str]] = {}
    for (contestant, streams), turns in _grouped(records).items():
        values = [turn["loop_us_per_token"] for turn in turns if "loop_us_per_token" in turn]
        if values:
            cost = f"{_shown(spread_of(values).median)} at {streams}"
            found.setdefault(NAMES[contestant], []).append(cost)
    yield from (f"{name}: {', '.join(costs)}" for name, costs in found.items())


def _grouped(records: Iterable[Record]) -> dict[tuple[str, int], list[Record]]:
    """By contestant and streams, in the order of the turns."""
    found: dict[tuple[str, int], list[Record]] = {}
    for record in sorted(records, key=lambda record: int(record["load"]["turn"])):
        found.setdefault((record["load"]["contestant"], record["load"]["streams"]), []).append(record)
    return dict(sorted(found.items(), key=lambda item: _place(item[0][0])))


def _place(contestant: str) -> int:
    return [*NAMES].index(contestant) if contestant in NAMES else len(NAMES)


def _spread(turns: Iterable[Record], figure: str) -> str:
    values = [turn[figure] for turn in turns if turn.get(figure) is not None]
    if not values:
        return ""
    spread = spread_of(values)
    return f"{_shown(spread.median)} ({_shown(spread.p10)}…{_shown(spread.p90)})"


def _shown(value: float) -> str:
    """Three digits, and all that stand before the point."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _ratios(records: list[Record]) -> Iterator[list[object]]:
    """Of contestants who had the same turns."""
    rates = {
        key: [float(turn["tokens_per_second"]) for turn in turns] for key, turns in _grouped(records).items()
    }
    for streams in dict.fromkeys(streams for _, streams in rates):
        for above, below, name, aim in PAIRS:
            first, second = rates.get((above, streams), []), rates.get((below, streams), [])
            if first and len(first) == len(second):
                yield [name, streams, ratio_of(first, second).as_dict(), aim]


PAIRS = (
    ("guided", "plain", "guided ÷ plain", ""),
    ("plain", "vllm", "plain ÷ vLLM, plain", ""),
    ("guided", "vllm", "guided ÷ vLLM, plain", ""),
    ("plain", "engine", "plain through HTTP ÷ the engine alone", f"≥ {AIM}"),
    ("async engine", "engine", "its asynchronous side, without HTTP ÷ the engine alone", ""),
)


def main() -> None:
    write_tables(__doc__, SERVER, (BEGIN, END), lambda results: as_markdown(read_reports(results)))


if __name__ == "__main__":
    main()
