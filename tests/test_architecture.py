"""Import rules of the house, held over its five folders, and what the wheel holds."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("size", ROOT / ".ci" / "size.py")
assert _spec and _spec.loader
size = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(size)
HOUSE = size.read_folder(ROOT)

PACKAGED = ("kernels", "guidance", "server")
Tree = Mapping[str, str]  # path → text
HTTP = ("fastapi", "pydantic", "starlette", "uvicorn", "sse_starlette", "tyro", "rich", "openai")
MAX_FLAT = 16

# Room → rooms of its own part that it may import. A room is a folder, or a module beside the folders.
_BASE = ("errors", "files", "text", "config_file", "statistics", "plot_style", "locate", "model_names")
_BASE += ("losses", "json_file")
_UP_TO_FEATURES = (*_BASE, "heads", "policy", "data", "features")
GUIDANCE = {
    "errors": (),
    "ranges": (),
    "files": ("errors",),
    "json_file": ("errors",),
    "text": ("errors",),
    "config_file": ("errors", "files"),
    "statistics": ("errors",),
    "plot_style": ("statistics",),
    "locate": ("errors",),
    "gguf": ("errors", "files"),
    "model_names": ("errors", "gguf"),
    "losses": (),
    "controllers": ("errors", "ranges"),
    "rules": ("errors", "ranges"),
    "heads": _BASE,
    "policy": ("errors", "text", "locate", "model_names", "heads"),
    "data": (*_BASE, "heads", "policy"),
    "features": (*_BASE, "heads", "policy", "data"),
    "training": _UP_TO_FEATURES,
    "evaluation": _UP_TO_FEATURES,
    "publish": (*_UP_TO_FEATURES, "training", "evaluation"),
    "bundled": (),
}
SERVER = {
    "flags": (),
    "engine": (),
    "api": ("engine",),
    "judging": ("engine",),
    "scoring": ("engine", "judging"),
    "rollouts": ("engine", "judging", "scoring"),
    "commands": ("flags", "engine", "api", "judging", "scoring", "rollouts"),
    "cluster": ("engine", "api", "commands"),
    "cli": ("engine", "api", "commands"),
}
ROOMS = {"guidance": GUIDANCE, "server": SERVER}

# Part or room → what it may import of other parts; a room's own line counts, else its part's.
_ALL_BUT_COMMANDS = ("kernels", "guidance", *(f"server/{room}" for room in SERVER if room != "commands"))
OTHER_PARTS = {
    "kernels": (),
    "guidance": ("kernels",),
    "guidance/losses": (),
    "server": ("kernels", "guidance"),
    "server/api": (
        *("guidance/errors", "guidance/ranges", "guidance/text", "guidance/controllers"),
        "guidance/json_file",
    ),
    "benchmarks": _ALL_BUT_COMMANDS,
    "examples": _ALL_BUT_COMMANDS,
}
FOREIGN = {  # folder → packages of others that it must not import
    "kernels": ("transformers", *HTTP),
    "guidance": HTTP,
    "server/engine": HTTP,
    "server/api": ("torch",),
}
TORCH_FREE = ("lane", "block_manager", "scheduler", "waiting_line", "request", "replies", "row_needs")
TORCH_FREE += ("detokenizer", "grammar", "population")
HEAVY = ("torch", "transformers", "trimtab.kernels")
POLICY_TRAINING = tuple(f"examples/toy/{n}" for n in ("corpus.py", "tokenizer.py", "policy.py", "grammar/"))
JUDGE = "examples/toy/judge.py"
NO_NOUNS = {"What", "How", "Which", "Where", "Who", "Whether", "Is", "That", "It", "They", "From", "In"}
NO_NOUNS |= {"Beside", "Everything", "Our", "The", "A", "An"}


def room_of(path: str) -> str:
    part, _, rest = path.partition("/")
    return f"{part}/{rest.partition('/')[0].removesuffix('.py')}" if part in ROOMS else part


def may_import(room: str, other: str) -> bool:
    (part, _, name), (other_part, _, other_name) = room.partition("/"), other.partition("/")
    if part != other_part:
        return not {other, other_part}.isdisjoint(OTHER_PARTS.get(room, OTHER_PARTS[part]))
    rooms = ROOMS.get(part, {})
    return room == other or not {name, other_name} <= rooms.keys() or other_name in rooms[name]


def every_import(tree: Tree) -> Iterator[tuple[str, Any]]:
    return ((path, found) for path in size.own(tree) for found in size.imports(tree[path]))


def without_a_room(tree: Tree) -> Iterator[str]:
    for path in size.own(tree):
        part, _, room = room_of(path).partition("/")
        if part in ROOMS and room not in ROOMS[part]:
            yield f"{path} is in no room of the tables"


def wrong_imports(tree: Tree) -> Iterator[str]:
    """Imports of ours against the tables, or of a file that is not there."""
    for path, found in every_import(tree):
        file = size.file_of(found, tree)
        if file and not may_import(room_of(path), room_of(file)):
            yield f"{path} imports {file}"
        if not file and is_within(found.name, "trimtab"):
            yield f"{path} imports {found.name}, which is not there"


def wrong_spellings(tree: Tree) -> Iterator[str]:
    for path, found in every_import(tree):
        if found.relative:
            yield f"{path} imports {found.member} from .{found.module}: a relative import"
        elif any(is_within(found.name, part) for part in PACKAGED):
            yield f"{path} imports {found.name}: write trimtab.{found.name}"


def wrong_packages(tree: Tree) -> Iterator[str]:
    known = {*sys.stdlib_module_names, "torch", "trimtab"}
    for path, found in every_import(tree):
        package = found.name.partition(".")[0]
        forbidden = any(package in FOREIGN[folder] for folder in FOREIGN if path.startswith(f"{folder}/"))
        if forbidden or (room_of(path) == "guidance/losses" and package not in known):
            yield f"{path} imports {found.name}"


def heavy_imports(tree: Tree) -> Iterator[str]:
    """Computation that is loaded with the modules that decide, by themselves or through others."""
    graph = size.import_graph(tree, ("load",))
    for path in (f"server/engine/{name}.py" for name in TORCH_FREE):
        if path not in tree:
            yield f"{path} is not there"
            continue
        for file in sorted({path, *size.reachable(graph, [path])}):
            for found in size.imports(tree[file]):
                if found.when == "load" and any(is_within(found.name, name) for name in HEAVY):
                    yield f"{path} loads {found.name} (in {file})"


def circular_imports(tree: Tree) -> Iterator[str]:
    graph = size.import_graph(tree)
    for circle in size.circles(graph):
        for path in circle:
            yield from (f"{path} imports {file}: a circle" for file in sorted(graph[path] & set(circle)))


def crowded_folders(tree: Tree) -> Iterator[str]:
    for folder, count in size.flat_modules(tree).items():
        if count > MAX_FLAT and folder != size.EXEMPT:
            yield f"{folder} has more than {MAX_FLAT} modules flat"


def judge_in_training(tree: Tree) -> Iterator[str]:
    """The toy policy is trained without its judge's opinion, and judged without its grammar."""
    graph = size.import_graph(tree)
    training = [path for path in graph if path.startswith(POLICY_TRAINING)]
    if not training or JUDGE not in tree:
        yield f"the training of the toy policy or {JUDGE} is not there"
    yield from (f"{path} reaches {JUDGE}" for path in training if JUDGE in size.reachable(graph, [path]))
    judged_by = size.reachable(graph, [JUDGE])
    yield from (f"{JUDGE} reaches {path}" for path in training if path in judged_by)


def riddles(tree: Tree) -> Iterator[str]:
    """Modules whose first line does not begin with the noun that a reader searches for."""
    for path in size.own(tree):
        docstring = ast.get_docstring(ast.parse(tree[path]))
        first = (docstring or "").partition(" ")[0]
        is_empty = path.endswith("__init__.py") and not tree[path]
        if not is_empty and (not first or first.removesuffix(":") in NO_NOUNS):
            yield f"{path} begins with {first or 'no docstring'}"


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


IMPORT_RULES = (without_a_room, wrong_imports, wrong_spellings, wrong_packages)
RULES = (*IMPORT_RULES, heavy_imports, circular_imports, crowded_folders, judge_in_training, riddles)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_file_breaks(rule):
    found = sorted(set(rule(HOUSE)))
    assert not found, "\n" + "\n".join(found)


BROKEN = [  # a rule, a file that breaks it, what that imports, and the file which that is
    (wrong_imports, "kernels/a.py", "import trimtab.guidance.errors", "guidance/errors.py"),
    (wrong_imports, "server/scoring/a.py", "import trimtab.server.cli", "server/cli.py"),
    (without_a_room, "guidance/new/a.py", "", ""),
    (wrong_imports, "guidance/text/a.py", "def f():\n import trimtab.guidance.policy", "guidance/policy.py"),
    (wrong_imports, "guidance/training/a.py", "import trimtab.guidance.evaluation", "guidance/evaluation.py"),
    (wrong_imports, "guidance/losses/a.py", "import trimtab.kernels.b", "kernels/b.py"),
    (wrong_imports, "guidance/data/a.py", "from trimtab.guidance.bundled import a", "guidance/bundled/a.py"),
    (wrong_imports, "server/api/a.py", "import trimtab.guidance.policy", "guidance/policy.py"),
    (wrong_imports, "server/engine/a.py", "import trimtab.server.api.b", "server/api/b.py"),
    (wrong_imports, "examples/a.py", "import trimtab.server.commands.b", "server/commands/b.py"),
    (wrong_imports, "examples/a.py", "import benchmarks.b", "benchmarks/b.py"),
    (wrong_imports, "server/cli.py", "from trimtab import examples", "examples/__init__.py"),
    (wrong_imports, "server/cli.py", "import trimtab.server.gone", "server/__init__.py"),
    (wrong_spellings, "server/cli.py", "import guidance.errors", "guidance/errors.py"),
    (wrong_spellings, "server/cli.py", "from . import errors", "server/errors.py"),
    (wrong_packages, "server/engine/a.py", "if TYPE_CHECKING:\n import fastapi", ""),
    (wrong_packages, "server/api/a.py", "from torch import nn", ""),
    (wrong_packages, "guidance/losses/a.py", "import numpy", ""),
    (heavy_imports, "server/engine/lane.py", "from trimtab.guidance import x", "guidance/x.py"),
    (circular_imports, "kernels/a.py", "def f():\n import trimtab.guidance.x", "guidance/x.py"),
    (riddles, "server/api/a.py", '"""What a test is made of."""', ""),
    (riddles, "server/api/a.py", "import os", ""),
    (judge_in_training, "examples/toy/grammar/a.py", "from examples.toy import judge", JUDGE),
    (judge_in_training, JUDGE, "import examples.toy.grammar.a", "examples/toy/grammar/a.py"),
]


@pytest.mark.parametrize(("rule", "path", "text", "imported"), BROKEN)
def test_a_rule_names_the_file_that_breaks_it(rule, path: str, text: str, imported: str):
    back = {"guidance/x.py": "import torch\nimport trimtab.kernels.a"}
    tree = {path: text} | ({imported: back.get(imported, "")} if imported else {})
    assert [line for line in rule(tree) if line.startswith(f"{path} ")]


def test_a_crowded_folder_is_named():
    tree = {f"server/{folder}/a{i}.py": "" for folder in ("api", "engine") for i in range(MAX_FLAT + 1)}
    assert list(crowded_folders(tree)) == ["server/api has more than 16 modules flat"]


def test_the_parts_have_no_init_and_their_packages_have_one():
    for path in size.own(HOUSE):
        folder = path.rpartition("/")[0]
        assert (f"{folder}/__init__.py" in HOUSE) != (folder in PACKAGED), path
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_the_engine_imports_on_a_bare_checkout_without_the_http_stack():
    program = (
        "import sys\n"
        f"for name in {HTTP!r}: sys.modules[name] = None\n"
        "import trimtab.kernels.guided_logits, trimtab.guidance.heads.bank, trimtab.server.engine.engine\n"
    )
    env = {"PYTHONPATH": str(ROOT / "src"), "PATH": ""}
    subprocess.run([sys.executable, "-c", program], check=True, cwd="/", env=env)


def test_the_wheel_holds_every_module_and_the_bundled_heads_and_no_example(tmp_path: Path):
    checkout = tmp_path / "checkout"
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in (*filter(lambda part: (ROOT / part).exists(), size.PARTS), "src"):
        shutil.copytree(ROOT / folder, checkout / folder, symlinks=True, ignore=skip)
    head = "guidance/bundled/heads/calm/head.json"
    (checkout / head).parent.mkdir(parents=True)
    (checkout / head).write_text("{}")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(checkout)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = [path for path in size.own(HOUSE) if path.split("/")[0] in PACKAGED]
    heads = [path for path in (ROOT / "guidance/bundled/heads").rglob("*") if path.is_file()]
    bundled = [head, *(path.relative_to(ROOT).as_posix() for path in heads)]
    assert not {f"trimtab/{path}" for path in (*modules, *bundled)} - names
    packed = {"/".join(name.split("/")[:2]) for name in names if not name.startswith("trimtab-")}
    assert packed == {f"trimtab/{part}" for part in PACKAGED}
