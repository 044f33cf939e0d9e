"""Frame of a benchmark: flags, hardware line, turns, spreads, table, and the JSON document that ends it.

A benchmark is one module: a frozen dataclass of flags, a function that measures, one that makes a table of
what it found, and `main(Config, measure, table)`. Imports nothing that a bare checkout with torch lacks.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

from trimtab.guidance.errors import told_in_one_line
from trimtab.guidance.files import write_text

CPU = torch.device("cpu")
T = TypeVar("T")
Document = dict[str, Any]


class Flags(Protocol):
    """A frozen dataclass whose fields all have a default; by convention `seed`, `repeats` and `out`."""

    @property
    def out(self) -> Path | None: ...


F = TypeVar("F", bound=Flags)
Config = TypeVar("Config")


def main(
    config_type: type[F],
    measure: Callable[[F], Document],
    table: Callable[[Document], str],
    args: Sequence[str] | None = None,
) -> None:
    """Measures and tells: hardware line, table, and as the last line the document, which --out keeps.

    A run whose document is there already is told again, not repeated.
    """
    config = parse(config_type, sys.modules[measure.__module__].__doc__, args)
    document = done(config)
    if document is None:
        with told_in_one_line("error"):
            document = measure(config)
        document = {"machine": hardware(), "config": settings(config)} | document
        if config.out is not None:
            write_document(config.out, document)
    else:
        print(f"{config.out} is of this very run: remove it to measure again\n")
    print(f"{hardware_line(document['machine'])}\n\n{table(document)}\n")
    print(json.dumps(document))


def parse(config_type: type[Config], doc: str | None, args: Sequence[str] | None = None) -> Config:
    """A flag for every field, of its type and with its default; the class's docstring says what they are.

    Not the commands' parser: that one needs an installation.
    """
    parser = argparse.ArgumentParser(
        prog=_prog(),
        description=f"{doc}\n{inspect.getdoc(config_type)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    hints = get_type_hints(config_type)
    for field in dataclasses.fields(config_type):  # type: ignore[arg-type]
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(
            flag, default=field.default, help="default: %(default)s", **_argument(hints[field.name])
        )
    try:
        return config_type(**{name: _frozen(value) for name, value in vars(parser.parse_args(args)).items()})
    except ValueError as error:
        parser.error(str(error))


def _prog() -> str:
    spec = sys.modules["__main__"].__spec__
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else sys.argv[0]


def _argument(hint: Any) -> dict[str, Any]:
    """What argparse wants to know of a type: X, X | None, Literal[…], bool or tuple[X, …]."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is bool:
        return {"action": "store_true"}
    if origin is tuple:
        return {"nargs": "+", **_argument(inner[0])}
    if origin is Literal:
        return {"choices": inner}
    if origin in (Union, UnionType):
        return _argument(next(kind for kind in inner if kind is not NoneType))
    return {"type": hint, "metavar": hint.__name__.upper()}


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def done(config: Flags) -> Document | None:
    """The document that --out holds of a run with the same settings, if it does."""
    if config.out is None or not config.out.is_file():
        return None
    document: Document = json.loads(config.out.read_text(encoding="utf-8"))
    return document if document.get("config") == settings(config) else None


def settings(config: Any) -> Document:
    """The flags as JSON has them, without paths: documents are committed."""
    flags = {name: value for name, value in dataclasses.asdict(config).items() if not _holds_paths(value)}
    found: Document = json.loads(json.dumps(flags))
    return {name: value for name, value in found.items() if value is not None}


def _holds_paths(value: object) -> bool:
    return isinstance(value, Path) or (isinstance(value, tuple) and any(map(_holds_paths, value)))


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Whole or not at all; a failure leaves an older one as it was."""
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def hardware(device: torch.device = CPU, *packages: str) -> dict[str, str]:
    """The device's name, of a CPU its cores and torch's threads; and versions, "" where one is missing."""
    found = {"device": device_name(device)}
    if device.type == "cpu":
        found |= {"cores": str(os.cpu_count()), "threads": str(torch.get_num_threads())}
    found |= {"python": platform.python_version(), "torch": torch.__version__}
    return found | {package: _version(package) for package in ("transformers", *packages)}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def hardware_line(machine: Mapping[str, Any]) -> str:
    named = [f"{name} {value}" for name, value in machine.items() if name != "device"]
    return ", ".join([str(machine["device"]), *named])


@dataclass(frozen=True, slots=True)
class Spread:
    """Of repeated values, in their unit."""

    median: float
    p10: float
    p90: float

    def as_dict(self) -> dict[str, float]:
        """Four significant digits."""
        return {name: float(f"{getattr(self, name):.4g}") for name in ("median", "p10", "p90")}


def spread_of(values: Sequence[float]) -> Spread:
    p10, median, p90 = np.percentile(values, [10, 50, 90])
    return Spread(float(median), float(p10), float(p90))


def ratio_of(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Of ratios within a turn: on a machine whose speed drifts, only those mean something."""
    return spread_of([a / b for a, b in zip(above, below, strict=True)])


def take_turns(
    contestants: Mapping[str, Callable[[int], T]], repeats: int, *, warm_up: int = 0, progress: str = ""
) -> dict[str, list[T]]:
    """What every contestant returns in each turn; who begins one comes last in the next.

    contestants: told the number of the turn, from 0. warm_up: turns before, which do not count.
    progress: the name of a bar.
    """
    found: dict[str, list[T]] = {name: [] for name in contestants}
    names = list(contestants)
    for turn in _shown(range(-warm_up, repeats), progress):
        first = turn % len(names)
        for name in (*names[first:], *names[:first]):
            value = contestants[name](max(turn, 0))
            if turn >= 0:
                found[name].append(value)
    return found


def _shown(turns: range, progress: str) -> Any:
    if not progress:
        return turns
    from tqdm.auto import tqdm  # noqa: PLC0415  a bare checkout may lack it

    return tqdm(turns, desc=progress, unit="turn")


def as_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown. Spreads are written as cells."""
    lines = [columns, *([_cell(value) for value in row] for row in rows)]
    table = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([table[0], "|---" * len(columns) + "|", *table[1:]])


def replace_between_markers(page: str, begin: str, end: str, tables: str) -> str:
    """Raises ValueError where the page does not hold both markers once, in order."""
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"the page must hold {begin!r} and {end!r}, once each and in this order")
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{tables}\n\n{end}{rest.split(end)[1]}"


def write_tables(
    doc: str | None, folder: Path, markers: tuple[str, str], tables_of: Callable[[Path], str]
) -> None:
    """Flags --results and --page of a module that writes what reports in a folder say between the markers
    of a page beside it. doc: the module's."""

    @dataclass(frozen=True, slots=True)
    class TableConfig:
        """results: folder of the reports. page: holds the markers."""

        results: Path = folder / "results"
        page: Path = folder / "README.md"

    options = parse(TableConfig, doc)
    text = options.page.read_text(encoding="utf-8")
    write_text(options.page, replace_between_markers(text, *markers, tables_of(options.results)))


def _cell(value: object) -> str:
    if isinstance(value, Mapping):  # a spread as the document has it
        return "{median:.3g} ({p10:.3g}…{p90:.3g})".format(**value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)
