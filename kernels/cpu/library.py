"""Library of the CPU backend: builds it with the C++ compiler of this machine, keeps it, and loads it.

Sources lie beside this file. A build is keyed by what it is made of (sources, flags, the compiler's version),
made once however many processes ask, and appears whole or not at all.

    python -m trimtab.kernels.cpu.library [FOLDER]    # builds every ISA of this machine's architecture
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock

__all__ = ["BuildError", "Library", "available_isas", "begin_build", "best_isa", "build", "load_library"]

SOURCES = Path(__file__).parent
BUILT = SOURCES / "built"  # libraries that came along, in a container say
BASE_FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wall", "-Wno-psabi"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")
ISAS: Mapping[str, Mapping[str, tuple[str, ...]]] = {  # architecture → ISA, best first → flags
    "x86_64": {"avx512": (*_AVX512, "-mprefer-vector-width=512"), "avx2": _AVX2, "portable": ()},
    "aarch64": {"portable": ("-march=armv8.2-a+fp16+dotprod",)},
}
NEEDS = {  # what /proc/cpuinfo must list
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx2", "fma", "f16c"},
    "avx2": {"avx2", "fma", "f16c"},
    "portable": set[str](),
}


class BuildError(RuntimeError):
    """The library cannot be built here; the message is one line."""


class Arena:
    """Memory for weights, cut from large pieces: one after the other they fill huge pages, which are read a
    third faster than small ones. A piece goes when the last tensor of it does."""

    PIECE = 1 << 26

    def __init__(self, cdll: ctypes.CDLL) -> None:
        self._prepare = cdll.trimtab_prepare
        self._prepare.restype, self._prepare.argtypes = None, [ctypes.c_void_p, ctypes.c_int64]
        self._piece, self._used = torch.empty(0, dtype=torch.uint8), 0

    def take(self, nbytes: int) -> torch.Tensor:
        """u8 [nbytes], at the beginning of a cache line."""
        if self._used + nbytes > len(self._piece):
            self._piece = torch.empty(max(nbytes, self.PIECE) + 64, dtype=torch.uint8)
            self._used = -self._piece.data_ptr() % 64
            self._prepare(self._piece.data_ptr(), len(self._piece))
        taken = self._piece[self._used : self._used + nbytes]
        self._used += -(-nbytes // 64) * 64
        return taken


@dataclass(frozen=True)
class Library:
    """The loaded library. cdll: its functions; who calls one declares its types. isa: what it was built for.
    lanes: floats of a vector. multiplies_bfloat16: in pairs, summed in fp32. memory: for packed weights."""

    cdll: ctypes.CDLL
    isa: str
    path: Path
    lanes: int
    multiplies_bfloat16: bool
    memory: Arena

    @property
    def num_threads(self) -> int:
        return int(self.cdll.trimtab_num_threads())

    def set_num_threads(self, count: int) -> None:
        """Resizes the one pool that every call shares; waits for a call that is under way."""
        if count < 1:
            raise ValueError(f"threads must be at least 1, not {count}")
        self.cdll.trimtab_set_num_threads(count)


def load_library(isa: str | None = None) -> Library:
    """The library for `isa`, built if need be.

    isa: "avx512", "avx2" or "portable"; None is $TRIMTAB_CPU_ISA, or the best that this CPU has.
    $TRIMTAB_CPU_FLAGS are more flags for the compiler, `make sanitize`'s say.

    Raises:
        BuildError: no compiler, or it fails.
        ValueError: no such ISA, or this CPU lacks it.
    """
    return _load(_wanted(isa))


@functools.cache
def begin_build() -> None:
    """Start to build what `load_library` loads, in a thread: whoever loads it meanwhile waits for it, and is
    told what goes wrong."""

    def work() -> None:
        with suppress(BuildError, ValueError):
            build(_wanted(None), extra=_extra_flags())

    threading.Thread(target=work, name="build of the CPU library", daemon=True).start()


def _wanted(isa: str | None) -> str:
    return _checked(isa or os.environ.get("TRIMTAB_CPU_ISA") or best_isa())


def _extra_flags() -> list[str]:
    return os.environ.get("TRIMTAB_CPU_FLAGS", "").split()


@functools.cache
def _load(isa: str) -> Library:
    path = build(isa, extra=_extra_flags())
    cdll = ctypes.CDLL(str(path))
    has_pairs = bool(cdll.trimtab_multiplies_bfloat16())
    library = Library(cdll, isa, path, int(cdll.trimtab_lanes()), has_pairs, Arena(cdll))
    library.set_num_threads(default_threads())
    return library


def available_isas() -> tuple[str, ...]:
    """What this CPU can run, best first."""
    has = _cpu_flags()
    return tuple(isa for isa in _table() if has >= NEEDS[isa])


def best_isa() -> str:
    return available_isas()[0]


def _checked(isa: str) -> str:
    if isa not in available_isas():
        known = ", ".join(available_isas())
        raise ValueError(f"CPU instruction set {isa!r} cannot run on this machine: use one of {known}")
    return isa


@functools.cache
def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))


def default_threads() -> int:
    """Torch's count, capped by the cores that this process may use: its affinity and its cgroup's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(torch.get_num_threads(), cores, _quota() or cores))


def _quota() -> int | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        return None


def build(isa: str, folder: Path | None = None, extra: Sequence[str] = ()) -> Path:
    """Path of the library for `isa`, compiled unless it is there.

    folder: where it is kept; None is what came along, else $XDG_CACHE_HOME/trimtab/cpu or its default.
    extra: more flags for the compiler, a sanitizer say.
    """
    flags = (*BASE_FLAGS, *_table()[isa], *extra)
    name = f"{isa}-{_hash(*flags, *(path.read_text() for path in _sources()))}"
    for found in sorted(BUILT.glob(f"{name}-*.so")) if folder is None else ():
        return found
    compiler = _compiler()
    path = (folder or _cache_folder()) / f"{name}-{_hash(_version(compiler))}.so"
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                _compile(compiler, flags, path)
    except OSError as error:
        fix = "set XDG_CACHE_HOME to a folder that you may write to"
        raise BuildError(f"the CPU library cannot be kept at {path}: {error.strerror}; {fix}") from error
    return path


def _table() -> Mapping[str, tuple[str, ...]]:
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())
    return ISAS.get(machine, {"portable": ()})


def _sources() -> list[Path]:
    return sorted((*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")))


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab" / "cpu"


def _compiler() -> list[str]:
    asked = os.environ.get("CXX", "").split()
    for command in [asked] if asked else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    named = f"CXX names {asked[0]}, which is not there" if asked else "there is no c++, g++ or clang++"
    raise BuildError(f"the CPU library needs a C++ compiler, and {named}: install one, or set CXX")


def _version(compiler: Sequence[str]) -> str:
    asked = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False)
    return " ".join(compiler) + asked.stdout


def _compile(compiler: Sequence[str], flags: Sequence[str], path: Path) -> None:
    """One process a source, side by side, then the link; the library takes its name when it is whole."""
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        sources = sorted(SOURCES.glob("*.cpp"))
        objects = [f"{work}/{source.stem}.o" for source in sources]
        commands = [
            [*compiler, *flags, "-c", str(source), "-o", target]
            for source, target in zip(sources, objects, strict=True)
        ]
        _run_all(commands)
        _run_all([[*compiler, *flags, "-shared", *objects, "-o", f"{work}/library.so"]])
        os.replace(f"{work}/library.so", path)


def _run_all(commands: Sequence[Sequence[str]]) -> None:
    # what a sanitizer preloads into this process is not for the compiler
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    running = [subprocess.Popen(command, **pipes) for command in commands]  # type: ignore[call-overload]
    said = [process.communicate()[0] for process in running]
    for command, process, text in zip(commands, running, said, strict=True):
        if process.returncode:
            lines = text.splitlines()
            line = next((line for line in lines if "error" in line), "it said nothing of it")
            raise BuildError(f"{command[0]} cannot build the CPU library: {line.strip()}")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else BUILT
    for isa in _table():
        print(build(isa, folder))


if __name__ == "__main__":
    main()
