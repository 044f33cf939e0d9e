"""A recorder of what a computation does to memory, and its replay: what a CUDA graph is, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction

Call = Callable[[], None]
_run_kernel = InterpretedFunction.run


class Tape(TorchDispatchMode):
    """Called with some work, runs it once and returns what does the same torch operations and the same kernel
    launches again, on the very tensors of the first run. Python does not run again: numbers that it had read
    from the device, or looked up on the host, stay what they were."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[Call] = []

    def __call__(self, work: Call) -> Call:
        self._calls = calls = []
        InterpretedFunction.run = self._record_launch()
        try:
            with self:
                work()
        finally:
            InterpretedFunction.run = _run_kernel
        self._calls = []

        def replay() -> None:
            for call in calls:
                call()

        return replay

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))

        def again() -> None:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **(kwargs or {}))), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

        self._calls.append(again)
        return out

    def _record_launch(self) -> Callable[..., None]:
        calls = self._calls

        def run(kernel: Any, *args: Any, **kwargs: Any) -> None:
            with _disable_current_modes():
                _run_kernel(kernel, *args, **kwargs)
            calls.append(lambda: _run_kernel(kernel, *args, **kwargs))

        return run
