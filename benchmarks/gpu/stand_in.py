"""Stand-in for a GPU's driver: compiles exactly what launchers would launch, and runs nothing."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from trimtab.kernels.dispatch import triton

MAX_SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # of one program, by compute capability
NUM_PROCESSORS = {80: 108, 90: 132}


@dataclass(frozen=True, slots=True)
class Compiled:
    """One program as it was compiled. name: file and function. constants: its constexpr arguments.

    stack_bytes: of local memory for each thread, more than 0 where registers spill. error: why it could not
    be compiled, else "". folder: of Triton's cache that holds it.
    """

    name: str
    constants: dict[str, Any]
    types: tuple[str, ...]
    aligned: tuple[str, ...]
    seconds: float
    shared_bytes: int = 0
    registers: int = 0
    stack_bytes: int = 0
    uses_tensor_cores: bool = False
    ttgir: str = field(default="", repr=False)
    error: str = ""
    folder: str = ""


class _Utilities:
    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": MAX_SHARED_BYTES[self._capability],
            "multiprocessor_count": NUM_PROCESSORS[self._capability],
        }


class _Driver:
    """What Triton asks of a driver until a program is compiled."""

    def __init__(self, capability: int) -> None:
        self.utils, self._capability = _Utilities(capability), capability

    def is_active(self) -> bool:
        return True

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget  # noqa: PLC0415 - Triton is optional

        return GPUTarget("cuda", self._capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def compile_launches(
    runs: Sequence[Callable[[], object]], capability: int = 90, inspect: bool = True
) -> list[Compiled]:
    """Every program that the calls would launch on a GPU of this compute capability, each once.

    runs: call kernels on CPU tensors with `backend="triton"`; what they return must not be read.
    inspect: look into the programs for registers and spills, which takes time.
    """
    from triton.runtime.driver import driver  # noqa: PLC0415

    found: list[Compiled] = []
    jit_function = triton.runtime.jit.JITFunction
    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced_driver(driver, _Driver(capability)))
        for module in _dispatching_modules():
            stack.enter_context(mock.patch.object(module, "choose_backend", _triton_anywhere))
        run, compile_one = jit_function.run, jit_function._do_compile

        def compile_alone(self: Any, *args: Any, grid: Any, warmup: bool, **more: Any) -> Any:
            return run(self, *args, grid=grid, warmup=True, **more)

        def note(self: Any, key: Any, signature: Any, device: Any, constants: Any, *more: Any) -> Any:
            start, kernel, error = time.perf_counter(), None, ""
            try:
                kernel = compile_one(self, key, signature, device, constants, *more)
            except Exception as raised:  # every program is tried; the error is the finding
                error = f"{type(raised).__name__}: {raised}"
            names = [parameter.name for parameter in self.params]
            found.append(
                _describe(
                    f"{self.fn.__module__.rpartition('.')[2]}.{self.fn.__name__}",
                    {names[path[0]]: value for path, value in constants.items() if len(path) == 1},
                    tuple(f"{name}: {kind}" for name, kind in signature.items() if kind != "constexpr"),
                    tuple(names[path[0]] for path, value in more[1].items() if value),
                    time.perf_counter() - start,
                    kernel,
                    error,
                    inspect,
                )
            )
            return kernel if kernel is not None else _Nothing()

        stack.enter_context(mock.patch.object(jit_function, "run", compile_alone))
        stack.enter_context(mock.patch.object(jit_function, "_do_compile", note))
        for call in runs:
            call()
    return found


def _dispatching_modules() -> list[ModuleType]:
    return [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("trimtab.kernels.") and hasattr(module, "choose_backend")
    ]


def _triton_anywhere(device: torch.device, backend: str | None = None, offered: object = None) -> str:
    """For `choose_backend`, which would refuse tensors that are not on a GPU."""
    return "triton" if backend is None else backend


class _Nothing:
    """A program that could not be compiled, for launchers to go on with."""


@contextlib.contextmanager
def _replaced_driver(driver: Any, stand_in: _Driver) -> Iterator[None]:
    before = driver._active
    driver.set_active(stand_in)
    try:
        yield
    finally:
        driver._active = before


def _describe(
    name: str,
    constants: dict[str, Any],
    types: tuple[str, ...],
    aligned: tuple[str, ...],
    seconds: float,
    kernel: Any,
    error: str,
    inspect: bool,
) -> Compiled:
    if kernel is None:
        return Compiled(name, constants, types, aligned, seconds, error=error)
    folder = triton.runtime.cache._base32(kernel.hash)
    if not inspect:
        return Compiled(name, constants, types, aligned, seconds, folder=folder)
    ptx = kernel.asm.get("ptx", "")
    usage = resource_usage(kernel.asm["cubin"])
    return Compiled(
        name, constants, types, aligned, seconds, int(kernel.metadata.shared), usage["REG"], usage["STACK"],
        "mma" in ptx, kernel.asm.get("ttgir", ""), folder=folder,
    )  # fmt: skip


def resource_usage(cubin: bytes) -> dict[str, int]:
    """What cuobjdump says of a program: REG, STACK, LOCAL… for each thread."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    return {word: int(number) for word, number in re.findall(r"(\w+)(?:\[\d+\])?:(\d+)", said)}
