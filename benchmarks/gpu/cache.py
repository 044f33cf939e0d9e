"""Triton's cache, filled for a GPU that is not here: python -m benchmarks.gpu.cache

Compiles what the suite will launch and strips what only people read, so that the folder is small enough to
travel. Triton files what it compiled under its own binary's hash, so a cache serves one wheel: to fill
it for another Python's, name that wheel.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.common import parse
from benchmarks.gpu.registry import suite_launches
from benchmarks.gpu.stand_in import Compiled, compile_launches
from trimtab.guidance.files import write_text
from trimtab.kernels.dispatch import Compilation, listen, triton

FOLDER = Path("runs/triton-cache")  # carried to the GPU's machine; the suite looks here
KEPT = (".json", ".cubin", ".so")  # what a launch reads
GROUP = "__grp__"


@dataclass(frozen=True, slots=True)
class Filled:
    """programs: that the launches take. mib: size of the folder, stripped."""

    programs: tuple[Compiled, ...]
    mib: float

    @property
    def errors(self) -> list[str]:
        return [f"{one.name}: {one.error}" for one in self.programs if one.error]


def fill(folder: Path, jobs: int, capability: int = 90, key: str | None = None) -> Filled:
    """Compile every launch of the suite into the folder, in so many processes.

    key: under which Triton files what it compiles; None for that of the Triton installed here.
    """
    from tqdm.auto import tqdm  # noqa: PLC0415  the suite itself shows no bar

    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TRITON_CACHE_DIR"] = str(folder.resolve())
    shards = [(shard, jobs) for shard in range(jobs)]
    work = partial(_compile_shard, capability=capability, key=key)
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        done = tqdm(pool.imap_unordered(work, shards), total=jobs, desc="compiling kernels", unit="shard")
        programs = [one for shard in done for one in shard]
    return Filled(tuple(programs), strip(folder, {one.folder for one in programs}))


def _compile_shard(shard: tuple[int, int], capability: int, key: str | None) -> list[Compiled]:
    if key is not None:
        triton.runtime.cache.triton_key = lambda: key
    place, jobs = shard
    runs = [launch.run for i, launch in enumerate(suite_launches()) if i % jobs == place]
    return compile_launches(runs, capability, inspect=False)


def strip(folder: Path, used: Collection[str]) -> float:
    """Remove what no launch reads, and programs that are not used any more; returns the MiB that stay."""
    size = 0
    for program in {path.parent for path in folder.glob("*/*.cubin")}:
        if program.name not in used:
            shutil.rmtree(program)
    for path in sorted(folder.glob("*/*")):
        if path.suffix not in KEPT:
            path.unlink()
        else:
            size += path.stat().st_size
    return size / 2**20


def adopt(folder: Path) -> int:
    """Make a cache that was filled elsewhere this machine's, and let Triton use it. Returns its programs."""
    folder = folder.resolve()
    os.environ["TRITON_CACHE_DIR"] = str(folder)
    groups = list(folder.glob(f"*/{GROUP}*.json"))
    for group in groups:  # of each program's files, by absolute path
        children = json.loads(group.read_text(encoding="utf-8"))["child_paths"]
        here = {name: str(group.parent / name) for name in children}
        write_text(group, json.dumps({"child_paths": here}))
    return len(groups)


def serves_here(capability: int = 90) -> bool:
    """Whether the cache that Triton uses now holds the suite's first program under this Triton's key."""
    heard: list[Compilation] = []
    listen(heard.append)
    compile_launches([next(suite_launches()).run], capability, inspect=False)
    listen(None)
    return bool(heard) and all(one.is_cached for one in heard)


def key_of_wheel(wheel: Path) -> str:
    """The key under which the Triton of another wheel files what it compiles.

    It differs from this Python's in one thing, the hash of its binary.

    Raises ValueError where the wheel holds another version.
    """
    package = Path(triton.__file__).parent
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("triton/") and name.endswith(".py")]
        others = [name for name in names if archive.read(name) != (package.parent / name).read_bytes()]
        if others:
            raise ValueError(
                f"{wheel.name} is another version than the installed triton {triton.__version__} "
                f"({others[0]} differs): install that version here"
            )
        theirs = hashlib.sha256(archive.read("triton/_C/libtriton.so")).hexdigest()
    ours = hashlib.sha256((package / "_C" / "libtriton.so").read_bytes()).hexdigest()
    return str(triton.runtime.cache.triton_key()).replace(ours, theirs)


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """out: the cache's folder. jobs: processes; one for each core where it is not named.
    capability: of the GPU; 90 is Hopper. wheel: triton's on the GPU's machine, if another Python's.
    """

    out: Path = FOLDER
    jobs: int | None = None
    capability: int = 90
    wheel: Path | None = None


def main() -> int:
    options = parse(CacheConfig, __doc__)
    if triton is None:
        raise SystemExit("error: triton is not installed here")
    start = time.perf_counter()
    try:
        key = None if options.wheel is None else key_of_wheel(options.wheel)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise SystemExit(f"error: {error}") from None
    filled = fill(options.out, options.jobs or os.cpu_count() or 1, options.capability, key)
    work, took = sum(one.seconds for one in filled.programs), time.perf_counter() - start
    print(f"{len(filled.programs)} programs, {work:.0f} s of work in {took:.0f} s; {filled.mib:.1f} MiB")
    for line in filled.errors:
        print(line, file=sys.stderr)
    return 1 if filled.errors else 0


if __name__ == "__main__":
    sys.exit(main())
