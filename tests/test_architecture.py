"""Who may import whom (kernels ← guidance ← server), and that everything is packaged."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("kernels", "guidance", "server")
HTTP = ("fastapi", "pydantic", "starlette", "uvicorn", "sse_starlette", "tyro", "rich", "openai")
FORBIDDEN = {
    "kernels": ("trimtab.guidance", "trimtab.server", "transformers", *HTTP),
    "guidance": ("trimtab.server", *HTTP),
    "server/engine": ("trimtab.server.api", "trimtab.server.cli", "trimtab.server.commands", *HTTP),
    "server/api": ("trimtab.kernels", "trimtab.server.commands", "torch"),
}
TORCH_FREE = (
    *("lane", "block_manager", "scheduler", "waiting_line", "request", "info", "replies", "detokenizer"),
    *("row_needs", "stop_strings", "text_decoder"),
)
POLICY_TRAINING = ("corpus", "tokenizer", "policy")


def modules(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, and every name it imports from one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_point_only_downwards(folder: str):
    found = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(folder)
        for name in imports(path)
        for forbidden in FORBIDDEN[folder]
        if is_within(name, forbidden)
    ]
    assert not found


@pytest.mark.parametrize("name", TORCH_FREE)
def test_what_decides_does_not_compute(name: str):
    heavy = ("torch", "transformers", "trimtab.kernels")
    tree = ast.parse((ROOT / "server" / "engine" / f"{name}.py").read_text(encoding="utf-8"))
    checked = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in checked:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [str(node.module)]
        assert not [n for n in names for h in heavy if is_within(n, h)]


def test_the_training_of_the_bundled_policy_never_sees_the_judge():
    bundled = ROOT / "guidance" / "bundled"
    example = ROOT / "examples" / "bundled"
    training = [example / f"{name}.py" for name in POLICY_TRAINING] + modules("examples/bundled/grammar")
    assert not [
        f"{path.name} imports {name}"
        for path in training
        for name in imports(path)
        if "trimtab.guidance.bundled.judge" in name
    ]
    judging = list(bundled.glob("judge*.py"))
    assert judging
    assert not [name for path in judging for name in imports(path) if "bundled.grammar" in name]


def test_every_import_of_ours_goes_through_trimtab():
    for folder in PARTS:
        for path in modules(folder):
            assert not [name for name in imports(path) for part in PARTS if is_within(name, part)], path


def test_the_three_parts_have_no_init_and_their_packages_have_one():
    for part in PARTS:
        assert not (ROOT / part / "__init__.py").exists()
        for path in modules(part):
            if path.parent != ROOT / part:
                assert (path.parent / "__init__.py").exists(), path
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_the_engine_imports_on_a_bare_checkout_without_the_http_stack():
    program = (
        "import sys\n"
        f"for name in {HTTP!r}: sys.modules[name] = None\n"
        "import trimtab.kernels.guided_logits, trimtab.guidance.heads.bank, trimtab.server.engine.engine\n"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        cwd="/",
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": ""},
    )


def test_every_module_and_the_bundled_files_are_in_the_wheel(tmp_path: Path):
    checkout = tmp_path / "checkout"
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in (*PARTS, "src"):
        shutil.copytree(ROOT / folder, checkout / folder, symlinks=True, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(checkout)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"trimtab/{path.relative_to(ROOT)}" for part in PARTS for path in modules(part)}
    bundled = ROOT / "guidance" / "bundled"
    expected |= {
        f"trimtab/{path.relative_to(ROOT)}"
        for folder in ("model", "heads")
        for path in (bundled / folder).rglob("*")
        if path.is_file()
    }
    assert any(name.endswith("model.safetensors") for name in expected)
    assert not expected - names
    top_level = {name.split("/")[0] for name in names if not name.startswith("trimtab-")}
    assert top_level == {"trimtab"}
