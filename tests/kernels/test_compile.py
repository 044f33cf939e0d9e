"""What can be said of the compiled kernels without a GPU: of every program that serving can launch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "compile_kernels.py"
ROOT = Path(__file__).parents[2]
CAPABILITIES = (90, 80)
Programs = dict[int, list[dict[str, Any]]]
pytestmark = pytest.mark.timeout(900)  # two minutes of two quiet cores


def environment(cache: Path) -> dict[str, str]:
    """A process's that compiles, and imports benchmarks, which no installation holds."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    return env | {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": path}


def begin(folder: Path, capability: int, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(capability), *flags],
        env=environment(folder / str(capability)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def compile_all(folder: Path, *flags: str) -> Programs:
    """Each capability in a process of its own, side by side."""
    running = {capability: begin(folder, capability, *flags) for capability in CAPABILITIES}
    found: Programs = {}
    for capability, process in running.items():
        out, err = process.communicate()
        assert process.returncode == 0, err
        found[capability] = json.loads(out)
    return found


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return compile_all(tmp_path_factory.mktemp("triton"))


def named(programs: list[dict[str, Any]], *names: str) -> Iterator[dict[str, Any]]:
    return (program for program in programs if program["name"] in names)


def assert_sound(compiled: Programs) -> None:
    for programs in compiled.values():
        wrong = [
            (program["name"], program["constants"], program["stack_bytes"], program["error"])
            for program in programs
            if program["error"] or program["stack_bytes"]
        ]
        assert wrong == []


def test_every_program_compiles_and_none_spills_registers(compiled: Programs):
    assert_sound(compiled)
    kernels = {program["name"] for program in compiled[90]}
    assert {"guided_head._first_advantage", "guided_head._tiles", "tilt._solve_rows"} <= kernels
    assert len(compiled[90]) > 100


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_program_compiles_in_every_type(tmp_path: Path):
    assert_sound(compile_all(tmp_path, "--everything"))


def test_tied_heads_alone_compile_without_low_rank_factors(compiled: Programs):
    tied = [
        p for p in named(compiled[90], "guided_head._first_advantage") if p["constants"]["tied"] == "True"
    ]
    assert {p["constants"]["rank"] for p in tied} == {"0", "64"}


def test_bf16_is_multiplied_by_tensor_cores_and_fp32_is_not(compiled: Programs):
    products = ("paged_attention._decode", "paged_attention._prefill", "guided_head._tiles")
    for capability in CAPABILITIES:
        found = list(named(compiled[capability], *products))
        assert found
        for program in found:
            is_narrow = any("bf16" in kind for kind in program["types"])
            assert program["uses_tensor_cores"] == is_narrow, program["name"]


def test_attention_fits_the_shared_memory_of_small_gpus(compiled: Programs):
    for capability in CAPABILITIES:
        for program in named(compiled[capability], "paged_attention._decode", "paged_attention._prefill"):
            assert program["shared_bytes"] <= 99 * 1024


def test_the_fused_head_divides_a_tile_s_tokens_among_the_warps_alike_for_every_number_of_rows(
    compiled: Programs,
):
    heads = [p for p in named(compiled[90], "guided_head._tiles") if p["uses_tensor_cores"]]
    assert {p["constants"]["block_b"] for p in heads} == {"16", "32", "64"}
    assert {tuple(p["warps"]) for p in heads} == {("[4, 1]",)}


def test_two_programs_of_the_fused_head_fit_into_an_h100_s_processor(compiled: Programs):
    for program in named(compiled[90], "guided_head._tiles"):
        assert 2 * (program["shared_bytes"] + 1024) <= 228 * 1024
        assert 2 * 128 * program["registers"] <= 65536


def test_an_error_of_the_compiler_is_told_by_the_kernel_s_name_and_costs_no_other_kernel(tmp_path: Path):
    module = tmp_path / "trimtab_planted.py"
    module.write_text(
        "import torch, triton, triton.language as tl\n"
        "@triton.jit\ndef wrong(x, y, n: tl.constexpr):\n    for i in range(0, n):\n        tl.load(y + i)\n"
        "@triton.jit\ndef right(x):\n    tl.store(x, 1.0)\n"
        "def run():\n    x = torch.empty(4)\n    wrong[1,](x, None, n=0)\n    right[1,](x)\n"
        "from benchmarks.gpu.stand_in import compile_launches\n"
        "print([(one.name, bool(one.error)) for one in compile_launches([run])])\n"
    )
    run = subprocess.run(
        [sys.executable, str(module)],
        env=environment(tmp_path / "cache"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "[('__main__.wrong', True), ('__main__.right', False)]"
