"""Dispatch: decides, in one place, which backend runs an op, and imports Triton in no other.

Triton is optional: where it is absent the kernels' modules still import, and asking for it by name raises.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

__all__ = ["Backend", "HeadPath", "choose_backend", "choose_head_path", "jit", "tl", "triton"]

Backend = Literal["reference", "triton", "cpu"]
HeadPath = Literal["fused", "materialised"]
# Rows up to which `guided_head` beats the vendor's product and `guided_logits`, as measured on an H100: at 64
# rows a plain batch still ties, and a guided one, whose columns are twice as many, takes 1.3 times as long.
MAX_FUSED_ROWS = 64
MAX_FUSED_GUIDED_ROWS = 32


def jit(kernel: Callable[..., Any], unspecialised: Sequence[str] = ()) -> Any:
    """`triton.jit` where Triton is installed; elsewhere the function itself, which is then never launched.

    unspecialised: integers whose value 1 or divisibility by 16 is not worth another compilation.
    """
    return kernel if triton is None else triton.jit(kernel, do_not_specialize=list(unspecialised))


def choose_backend(
    device: torch.device, backend: str | None = None, offered: Collection[str] = ("reference", "triton")
) -> Backend:
    """The backend that runs an op on tensors of `device`: Triton on CUDA, the reference elsewhere.

    backend: overrides that by name. Triton runs off the GPU only in its interpreter, for tests; "cpu" is the
        library of kernels/cpu, which whoever names it has made sure of. offered: those that the op has.

    Raises:
        ValueError: the op has no such backend.
        RuntimeError: the backend named, or the one the device needs, cannot run here.
    """
    if backend is None:
        backend = "triton" if device.type == "cuda" else "reference"
    if backend not in offered:
        raise ValueError(f"backend {backend!r} does not exist: use one of {', '.join(offered)}")
    if backend == "triton":
        if triton is None:
            raise RuntimeError('backend "triton" needs triton: install it, or ask for "reference"')
        if device.type != "cuda" and not triton.knobs.runtime.interpret:
            raise RuntimeError(f'backend "triton" needs a GPU, not {device.type}: ask for "reference"')
    if backend == "cpu" and device.type != "cpu":
        raise RuntimeError(f'backend "cpu" cannot run on {device.type}: leave it out')
    return cast(Backend, backend)


def choose_head_path(
    num_rows: int, *, guided: bool, device_type: str, needs_logits: bool, strict: bool
) -> HeadPath:
    """How rows get from hidden states to tokens: "fused" is `guided_head`, "materialised" `guided_logits`.

    guided: a row is tilted. needs_logits: a row needs more of its logits than a draw and its statistics: a
        mask, penalties, truncation, a solver of strengths, the likeliest tokens. strict: one path for all.
    """
    most = MAX_FUSED_GUIDED_ROWS if guided else MAX_FUSED_ROWS
    fuses = device_type == "cuda" and num_rows <= most and not needs_logits and not strict
    return "fused" if fuses else "materialised"


@dataclass(frozen=True, slots=True)
class Compilation:
    """One program on its first launch in this process. seconds: that it took. is_cached: read from disk."""

    kernel: str
    seconds: float
    is_cached: bool


def listen(listener: Callable[[Compilation], None] | None) -> None:
    """Call the listener for every program from now on, in the thread that launches it; None for nobody.

    Where Triton is not installed there is nothing to hear.
    """
    if triton is None:
        return
    if listener is None:
        triton.knobs.compilation.listener = None
        return

    def hear(*, src: Any, times: Any, cache_hit: bool, **more: Any) -> None:
        listener(Compilation(src.name, times.total / 1e6, cache_hit))

    triton.knobs.compilation.listener = hear
