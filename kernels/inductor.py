"""torch.compile for functions whose every caller is known: one graph each, and no guards."""

from __future__ import annotations

import contextlib
import itertools
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch._inductor.config as inductor_config

MIN_SIZE = 2  # torch.compile gives sizes of 0 and 1 graphs of their own
_numbers = itertools.count()


def compile_unguarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as one graph, made by the first call under `compiler_settings` and used by all others.

    Nothing is checked from then on: later calls may differ in sizes marked as dynamic alone. Sizes that vary
    independently must differ in the first call, since equal ones are taken for one; and none may be below
    MIN_SIZE, ever. The first call raises RuntimeError where there is no C++ compiler, or no such graph.
    """
    # By its code object alone torch.compile finds graphs without guards, so every one needs its own.
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
    own = types.FunctionType(code, function.__globals__, code.co_name)
    bound = types.MethodType(own, function.__self__) if isinstance(function, types.MethodType) else own
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    compiled: Callable[..., Any] = torch.compile(bound, fullgraph=True, options=options)
    return compiled


@contextlib.contextmanager
def compiler_settings(**settings: object) -> Iterator[None]:
    """Inference mode, and settings of TorchInductor with dots written as `__`."""
    # Named, the number of threads is part of what the compiler's cache goes by.
    named: dict[str, Any] = {"cpp.threads": torch.get_num_threads()} | {
        k.replace("__", "."): v for k, v in settings.items()
    }
    with torch.inference_mode(), inductor_config.patch(named):
        yield
