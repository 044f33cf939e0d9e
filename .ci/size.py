"""Size budget: print lines and modules per folder, a few figures, and the difference to a git ref.

    python .ci/size.py [--ref REF]    # main, or origin/main, where no ref is named

Lines are all lines of .py files, blank ones and comments too. Modules are .py files but `__init__.py`. The
figures are of the five folders of ours, without tests. Imports are read from the source, whether
they stand at the top, in a function or under TYPE_CHECKING; names given as strings are not seen.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

ROOT = Path(__file__).parents[1]
PARTS = ("kernels", "guidance", "server", "benchmarks", "examples")
FOLDERS = (*PARTS, "tests")
WITH_ROOMS = ("guidance", "server")
README = "README.md"
EXEMPT = "server/engine"  # flat on purpose: its modules are read together
REQUEST_PATH = ("server/api/app.py", "server/engine/async_engine.py")
SMALL = 70

Tree = Mapping[str, str]  # path from the root → text
Graph = Mapping[str, set[str]]  # file → files that it imports
When = Literal["load", "call", "typing"]


class Import(NamedTuple):
    module: str
    member: str  # "" for `import module`
    lines: range
    when: When
    relative: bool

    @property
    def name(self) -> str:
        return f"{self.module}.{self.member}" if self.member else self.module


def read_folder(root: Path) -> dict[str, str]:
    paths = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    paths += [path for path in [root / README] if path.exists()]
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def read_ref(root: Path, ref: str) -> dict[str, str]:
    packed = subprocess.run(["git", "-C", str(root), "archive", ref], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        return {
            member.name: archive.extractfile(member).read().decode()
            for member in archive
            if member.isfile() and (member.name == README or _is_counted(member.name))
        }


def find_ref(root: Path, refs: Iterable[str]) -> str | None:
    return next((ref for ref in refs if _has_ref(root, ref)), None)


def _has_ref(root: Path, ref: str) -> bool:
    command = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}"]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:  # no git here
        return False


def _is_counted(path: str) -> bool:
    return path.endswith(".py") and path.split("/", 1)[0] in FOLDERS


def own(tree: Tree) -> list[str]:
    """The files of the five folders."""
    return [path for path in tree if path.endswith(".py") and path.split("/", 1)[0] in PARTS]


def is_module(path: str) -> bool:
    return path.endswith(".py") and not path.endswith("__init__.py")


@cache
def imports(text: str) -> tuple[Import, ...]:
    """Every import of a file, wherever it stands; one entry per imported name."""
    return tuple(_imports_below(ast.parse(text), "load"))


def _imports_below(node: ast.AST, when: When) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            lines = range(child.lineno, (child.end_lineno or child.lineno) + 1)
            for alias in child.names:
                if isinstance(child, ast.Import):
                    yield Import(alias.name, "", lines, when, False)
                else:
                    yield Import(child.module or "", alias.name, lines, when, child.level > 0)
        elif isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _imports_below(child, _when_inside(child, when))


def _when_inside(node: ast.AST, when: When) -> When:
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        return "typing"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and when == "load":
        return "call"
    return when


def file_of(found: Import, tree: Tree) -> str | None:
    """The file of ours that an import names: a module, else the module that holds the member."""
    for name in dict.fromkeys((found.name, found.module)):
        stem = name.removeprefix("trimtab.").replace(".", "/")
        for path in (f"{stem}.py", f"{stem}/__init__.py"):
            if path in tree and path.split("/", 1)[0] in PARTS:
                return path
    return None


def import_graph(tree: Tree, when: tuple[When, ...] = ("load", "call", "typing")) -> dict[str, set[str]]:
    """File → files of ours that it imports (not the `__init__.py` of the folders above them)."""
    return {
        path: {f for i in imports(tree[path]) if i.when in when and (f := file_of(i, tree)) and f != path}
        for path in own(tree)
    }


def reachable(graph: Graph, starts: Iterable[str]) -> set[str]:
    """What the starts import, directly or through others; a start only where it is imported again."""
    seen: set[str] = set()
    waiting = [path for start in starts for path in graph.get(start, ())]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting.extend(graph[path])
    return seen


def circles(graph: Graph) -> list[list[str]]:
    """Groups of files each of which reaches every other one by imports."""
    reach = {path: reachable(graph, [path]) for path in graph}
    groups = {frozenset(f for f in reach[path] if path in reach[f]) for path in graph}
    return sorted(sorted(group) for group in groups if group)


def flat_modules(tree: Tree) -> Counter[str]:
    """Folder → modules that lie in it directly."""
    return Counter(path.rpartition("/")[0] for path in own(tree) if is_module(path))


def loaded_for_a_request(tree: Tree) -> set[str]:
    """Modules on a chat request's path, `__init__.py` and imports for types only left out."""
    starts = [path for path in REQUEST_PATH if path in tree]
    found = reachable(import_graph(tree, ("load", "call")), starts)
    return {path for path in found.union(starts) if is_module(path)}


def small_with_one_importer(tree: Tree) -> list[str]:
    importers = Counter(file for files in import_graph(tree).values() for file in files)
    return [
        path for path in own(tree) if is_module(path) and importers[path] == 1 and lines(tree, path) < SMALL
    ]


def lines(tree: Tree, *paths: str) -> int:
    return sum(len(tree[path].splitlines()) for path in paths)


def folder_sizes(tree: Tree) -> dict[str, tuple[int, int]]:
    """Row of the table → modules, lines."""
    rows: dict[str, list[str]] = {}
    for path in filter(_is_counted, tree):
        part, *rest = path.split("/")
        room = [f"{part}/{rest[0] if len(rest) > 1 else '*.py'}"] if part in WITH_ROOMS else []
        for row in (part, *room, "all"):
            rows.setdefault(row, []).append(path)
    return {row: (sum(map(is_module, paths)), lines(tree, *paths)) for row, paths in rows.items()}


def figures(tree: Tree) -> dict[str, str]:
    paths = own(tree)
    num_lines = lines(tree, *paths)
    import_lines = sum(len({n for i in imports(tree[path]) for n in i.lines}) for path in paths)
    flat = [(count, folder) for folder, count in flat_modules(tree).items() if folder != EXEMPT]
    widest, where = max(flat, default=(0, "none"))
    return {
        "files": str(len(paths)),
        "lines": str(num_lines),
        "import lines": f"{import_lines / max(num_lines, 1):.1%}",
        f"widest flat folder but {EXEMPT}": f"{widest} modules ({where})",
        "circles of files": str(len(circles(import_graph(tree)))),
        f"modules reached from {' and '.join(REQUEST_PATH)}": str(len(loaded_for_a_request(tree))),
        f"modules under {SMALL} lines with one importer": str(len(small_with_one_importer(tree))),
        README: f"{len(tree.get(README, '').encode()) / 1000:.1f} kB",
    }


def table(now: Tree, before: Tree | None) -> Iterator[str]:
    sizes, old = folder_sizes(now), folder_sizes(now if before is None else before)
    yield _row("", "modules", "", "lines", "")
    for row in sorted({*sizes, *old}, key=lambda row: ((*FOLDERS, "all").index(row.split("/")[0]), row)):
        cells = zip(sizes.get(row, (0, 0)), old.get(row, (0, 0)), strict=True)
        yield _row(f"  {row}" if "/" in row else row, *(c for new, was in cells for c in _cells(new, was)))


def _cells(new: int, old: int) -> tuple[str, str]:
    return str(new), f"{new - old:+d}" if new != old else ""


def _row(name: str, *cells: str) -> str:
    return (f"{name:<24}" + "".join(f"{cell:>8}" for cell in cells)).rstrip()


def report(now: Tree, before: Tree | None) -> Iterator[str]:
    yield from table(now, before)
    yield ""
    old = {} if before is None else figures(before)
    for name, value in figures(now).items():
        yield f"{name}: {value}" if old.get(name, value) == value else f"{name}: {old[name]} → {value}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--ref", help="compare with this git ref (default: main, else origin/main)")
    asked = parser.parse_args().ref
    refs = [asked] if asked else ["main", "origin/main"]
    ref = find_ref(ROOT, refs)
    print(f"since {ref}" if ref else f"no git ref {' or '.join(refs)} here: sizes without differences")
    print("\n".join(report(read_folder(ROOT), read_ref(ROOT, ref) if ref else None)))


if __name__ == "__main__":
    main()
