import importlib.util
import subprocess
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("size", Path(__file__).parents[1] / ".ci" / "size.py")
assert _spec and _spec.loader
size = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(size)

A = """import os
from typing import (
    TYPE_CHECKING,
    Any,
)
from trimtab.kernels import b, missing
if TYPE_CHECKING:
    from trimtab.kernels.c import C
def f():
    try:
        import trimtab.guidance.heads
    finally:
        pass
"""
TREE = {
    "kernels/a.py": A,
    "kernels/b.py": "x = 'trimtab.kernels.a'\n",
    "kernels/c.py": "import trimtab.kernels.a\n",
    "guidance/heads/__init__.py": "from trimtab.guidance.heads.bank import Bank\n",
    "guidance/heads/bank.py": "\n" * 80,
    "tests/test_a.py": "import trimtab.kernels.b\n",
    "README.md": "x" * 1500,
}


def test_an_import_is_found_wherever_it_stands_and_knows_when_it_runs():
    found = {(i.name, i.when, len(i.lines)) for i in size.imports(A)}
    assert found >= {
        ("os", "load", 1),
        ("typing.Any", "load", 4),
        ("trimtab.kernels.c.C", "typing", 1),
        ("trimtab.guidance.heads", "call", 1),
    }


def test_the_graph_joins_files_of_ours_and_finds_the_circle_that_types_close():
    graph = size.import_graph(TREE)
    assert graph["kernels/a.py"] == {"kernels/b.py", "kernels/c.py", "guidance/heads/__init__.py"}
    assert size.circles(graph) == [["kernels/a.py", "kernels/c.py"]]
    assert size.circles(size.import_graph(TREE, ("load", "call"))) == []
    assert "guidance/heads/bank.py" in size.reachable(graph, ["kernels/c.py"])


def test_figures_count_by_hand():
    assert size.folder_sizes(TREE)["guidance/heads"] == (1, 81)
    assert size.folder_sizes(TREE)["all"] == (5, 97)
    # six statements of imports on nine lines of 96; b has one importer, a and c as well, the bank is long
    found = size.figures(TREE)
    assert (found["files"], found["lines"], found["import lines"]) == ("5", "96", "10.4%")
    assert size.small_with_one_importer(TREE) == ["kernels/a.py", "kernels/b.py", "kernels/c.py"]
    assert found["README.md"] == "1.5 kB"


def test_a_ref_is_read_as_the_folder_was_when_it_was_committed(tmp_path: Path):
    for path, text in TREE.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    (tmp_path / "kernels" / "b.py").unlink()
    assert size.find_ref(tmp_path, ["nowhere", "main"]) == "main"
    assert size.find_ref(tmp_path, ["nowhere"]) is None
    assert size.read_ref(tmp_path, "main") == TREE
    lines = list(size.report(size.read_folder(tmp_path), size.read_ref(tmp_path, "main")))
    assert "files: 5 → 4" in lines
    assert any(line.split() == ["kernels", "2", "-1", "14", "-1"] for line in lines)


@pytest.mark.parametrize("before", [None, {}])
def test_nothing_to_compare_with_is_no_error(before: dict[str, str] | None):
    assert len(list(size.report(TREE, before))) > 10
