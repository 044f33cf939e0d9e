"""CUDA graphs of decode steps: capture the policy's forward once per bucket, replay it on static buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm.auto import tqdm

NUM_WARM_UPS = 2  # before capture: kernels compile, and libraries allocate what they keep
Forward = Callable[[int], tuple[Tensor, Tensor | None]]
Replay = Callable[[], None]
Recorder = Callable[[Callable[[], None]], Replay]
"""Runs work that touches nothing but memory at fixed addresses, and returns what does the same again."""


class DecodeGraphs:
    """One recording of the decode forward for each bucket.

    forward: h [size, d] and logits [size, V], or None, of a decode step of that many rows, from static
        buffers alone.
    fill_padding: makes those buffers a step of padding rows, so that recording changes no lane's cache.
    sizes: the buckets. record: see Recorder.

    Raises HostWaitError where the forward cannot be recorded, since it asks the device something.
    """

    def __init__(
        self,
        forward: Forward,
        fill_padding: Callable[[int], None],
        sizes: Sequence[int],
        record: Recorder,
    ) -> None:
        fill_padding(sizes[-1])
        with NoHostWaits():  # type: ignore[no-untyped-call]
            h, logits = forward(sizes[-1])
        # Every recording leaves its results here, so that all can share one pool of memory for the rest.
        self._h = torch.empty_like(h)
        self._logits = None if logits is None else torch.empty_like(logits)
        del h, logits
        self._replays: dict[int, Replay] = {}
        for size in tqdm(sorted(sizes, reverse=True), desc="recording decode steps", unit="size"):
            fill_padding(size)
            self._replays[size] = record(partial(self._run, forward, size))

    def __contains__(self, size: int) -> bool:
        return size in self._replays

    def replay(self, size: int) -> tuple[Tensor, Tensor | None]:
        """h [size, d] and logits [size, V], or None, of what the static buffers hold, until the next."""
        self._replays[size]()
        return self._h[:size], None if self._logits is None else self._logits[:size]

    def _run(self, forward: Forward, size: int) -> None:
        h, logits = forward(size)
        self._h[:size].copy_(h)
        if logits is not None:
            assert self._logits is not None
            self._logits[:size].copy_(logits)


class CudaRecorder:
    """Captures CUDA graphs, all in one memory pool: the largest first, whose memory the others then share."""

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, work: Callable[[], None]) -> Replay:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(NUM_WARM_UPS):
                work()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        replay: Replay = graph.replay
        return replay


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
    """Within, an operation for which the host would wait on a GPU raises HostWaitError, on a CPU too: no CUDA
    graph can record a wait."""

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
