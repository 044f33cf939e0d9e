"""Library of the CPU backend: built once, whole or not at all, and its pool of threads."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import threading

import pytest

from trimtab.kernels.cpu import library as module
from trimtab.kernels.cpu.library import BuildError, available_isas, build, load_library


def test_a_machine_without_a_compiler_says_so_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -x")
    with pytest.raises(BuildError, match="CXX names no-such-compiler, which is not there"):
        build("portable", tmp_path)


def test_a_build_that_fails_leaves_nothing_and_names_the_error(tmp_path):
    with pytest.raises(BuildError, match=r"cannot build the CPU library: .*no-such-flag"):
        build("portable", tmp_path, ["-no-such-flag"])
    assert not list(tmp_path.glob("*.so"))


def test_what_is_built_is_found_again_without_compiling(monkeypatch):
    path = load_library().path
    monkeypatch.setattr(module, "_compile", None)
    assert build(load_library().isa, extra=os.environ.get("TRIMTAB_CPU_FLAGS", "").split()) == path


def test_a_build_that_is_begun_is_what_is_loaded_later_and_fails_in_silence(monkeypatch):
    asked: list[object] = []

    def fail(isa: str, *, extra: list[str]) -> None:
        asked.append((isa, extra))
        raise BuildError("no compiler")

    monkeypatch.setattr(module, "build", fail)
    monkeypatch.setenv("TRIMTAB_CPU_ISA", "portable")
    monkeypatch.setenv("TRIMTAB_CPU_FLAGS", "-g -O1")
    module.begin_build.__wrapped__()
    for thread in threading.enumerate():
        if thread.name == "build of the CPU library":
            thread.join()
    assert asked == [("portable", ["-g", "-O1"])]


def test_an_instruction_set_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("TRIMTAB_CPU_ISA", "mmx")
    with pytest.raises(ValueError, match=r"'mmx' cannot run on this machine: use one of .*portable"):
        load_library()
    assert "portable" in available_isas()


def pool_sum(library, n: int, loops: int) -> int:
    function = library.cdll.trimtab_pool_sum
    function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_int64, ctypes.c_int64]
    return function(n, loops)


def sum_of(n: int, loops: int) -> int:
    return sum(range(n)) * sum(range(1, loops + 1))


def test_threads_that_come_late_or_are_not_needed_leave_a_region_as_it_is(best):
    before = best.num_threads
    best.set_num_threads(12)  # more than there are cores
    for i in range(20_000):  # no region like the one before, which who is late would go on with
        n, loops = i % 7, 3 + i % 5
        assert pool_sum(best, n, loops) == sum_of(n, loops)
    best.set_num_threads(before)


def test_every_item_is_done_once_by_any_number_of_threads(library):
    before = library.num_threads
    for threads in (1, 2, 3):
        library.set_num_threads(threads)
        for n in (0, 1, 2, 97):
            assert pool_sum(library, n, 50) == sum_of(n, 50)
    library.set_num_threads(before)


def test_two_python_threads_share_the_pool(best):
    best.set_num_threads(2)
    sums: list[int] = []
    threads = [threading.Thread(target=lambda: sums.append(pool_sum(best, 50, 200))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [sum_of(50, 200)] * 3


def test_a_forked_process_has_a_pool_of_its_own(best):
    best.set_num_threads(2)
    pool_sum(best, 10, 1)
    process = multiprocessing.get_context("fork").Process(target=pool_sum, args=(best, 10, 10))
    process.start()
    process.join(20)
    assert process.exitcode == 0
