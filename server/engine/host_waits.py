"""Finds where a computation makes the host wait for the device, which no CUDA graph can record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
WAITING = frozenset(
    {
        aten._local_scalar_dense.default,
        aten._unique2.default,
        aten.bincount.default,
        aten.equal.default,
        aten.is_nonzero.default,
        aten.masked_select.default,
        aten.nonzero.default,
        aten.repeat_interleave.Tensor,
        aten.unique_consecutive.default,
        aten.unique_dim.default,
    }
)
INDEXING = frozenset({aten.index.Tensor, aten.index_put.default, aten.index_put_.default})


class HostWaitError(RuntimeError):
    """An operation's result, or its shape, has to be known on the host before it can go on."""


class NoHostWaits(TorchDispatchMode):
    """Within, an operation for which the host would wait on a GPU raises HostWaitError, on a CPU too."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in WAITING or _indexes_by_mask(func, args) or _copies_to_host(func, args, kwargs):
            raise HostWaitError(f"{func} makes the host wait for the device")
        return func(*args, **kwargs)


def _indexes_by_mask(func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    if func not in INDEXING:
        return False
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def _copies_to_host(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if func is aten._to_copy.default:
        target = kwargs.get("device")
        goes_to_host = target is not None and torch.device(target).type == "cpu"
        return goes_to_host and args[0].is_cuda and not kwargs.get("non_blocking", False)
    if func is aten.copy_.default:
        is_non_blocking = len(args) > 2 and args[2]
        return args[0].device.type == "cpu" and args[1].is_cuda and not is_non_blocking
    return False
