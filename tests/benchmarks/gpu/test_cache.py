"""What is compiled without a GPU, to be carried to one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, os, sys
from pathlib import Path
from benchmarks.gpu import cache, registry
from benchmarks.gpu.launches import LaunchShape
from benchmarks.gpu.inputs import AttentionShape
few = [one for one in registry.serving_launches(LaunchShape(64, 300, AttentionShape(4, 2, 16), 16))
       if one.name.startswith(("store_kv", "base_statistics"))]
registry.suite_launches = cache.suite_launches = lambda: iter(few)
before = dict(os.environ)
folder = Path(sys.argv[1])
said = {}
if sys.argv[2] == "fill":
    from benchmarks.gpu.cache import _compile_shard, strip
    os.environ["TRITON_CACHE_DIR"] = str(folder)
    programs = _compile_shard((0, 1), 90, None)
    said["programs"], said["errors"] = len(programs), [one.error for one in programs if one.error]
    said["mib"] = strip(folder, {one.folder for one in programs})
else:
    said["carried"] = cache.adopt(folder)
    said["serves"] = cache.serves_here()
    changed = {k: v for k, v in os.environ.items() if before.get(k) != v}
    said["changed"] = sorted(changed)
from trimtab.kernels import store_kv
said["kernel"] = type(store_kv._store).__name__
print(json.dumps(said))
"""


def run(folder: Path, mode: str) -> dict[str, object]:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), mode],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("cache")
    return folder, run(folder, "fill")


def test_a_cache_filled_here_and_moved_is_used_there_and_changes_nothing_else(
    cache: tuple[Path, dict[str, object]], tmp_path: Path
):
    folder, filled = cache
    shutil.copytree(folder, tmp_path / "here")
    assert filled["programs"]
    assert filled["errors"] == []
    assert {path.suffix for path in (tmp_path / "here").glob("*/*")} <= {".json", ".cubin", ".so"}
    (tmp_path / "here").rename(tmp_path / "there")
    adopted = run(tmp_path / "there", "adopt")
    assert adopted["carried"] == filled["programs"]
    assert adopted["serves"] is True
    assert adopted["changed"] == ["TRITON_CACHE_DIR"], "workers inherit the environment"
    assert adopted["kernel"] == "JITFunction"


def test_a_cache_of_another_triton_serves_nothing(cache: tuple[Path, dict[str, object]], tmp_path: Path):
    shutil.copytree(cache[0], tmp_path / "cache")
    for folder in (tmp_path / "cache").iterdir():
        folder.rename(folder.with_name(folder.name[::-1]))
    assert run(tmp_path / "cache", "adopt")["serves"] is False
