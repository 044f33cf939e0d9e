"""Processes of one run, as torchrun or accelerate started them: shares work, batches and results."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

Collate = Callable[[Sequence[Any]], dict[str, Tensor]]
NUM_ITEMS = "num_items"


def process_index() -> int:
    """0 in a run of one process."""
    return int(os.environ.get("RANK", "0"))


def num_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that writes files and tells the user."""
    return process_index() == 0


def own_device(device: str) -> str:
    """The device of this process: of several GPUs each process takes its own."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


def own_share(num: int) -> slice:
    """Of num things in order, those that this process works on: shares follow one another."""
    index, count = process_index(), num_processes()
    return slice(num * index // count, num * (index + 1) // count)


def gather_shares(own: Tensor) -> Tensor:
    """The processes' tensors [n, …], which differ in n alone, one after the other, [N, …], on the CPU. All
    processes must ask."""
    if num_processes() == 1:
        return own.cpu()
    group = _host_group()
    own = own.cpu().contiguous()
    counts = [torch.zeros((), dtype=torch.long) for _ in range(num_processes())]
    dist.all_gather(counts, torch.tensor(len(own)), group=group)
    longest = max(int(count) for count in counts)
    padded = own.new_zeros(longest, *own.shape[1:])
    padded[: len(own)] = own
    shares = [torch.empty_like(padded) for _ in counts]
    # As bytes: gloo does not know every dtype.
    dist.all_gather([share.view(torch.uint8) for share in shares], padded.view(torch.uint8), group=group)
    return torch.cat([share[:count] for share, count in zip(shares, counts, strict=True)])


def gather_texts(own: str) -> list[str]:
    """What each process has to say, in their order, told to all of them."""
    if num_processes() == 1:
        return [own]
    data = torch.frombuffer(bytearray(own.encode()), dtype=torch.uint8) if own else torch.empty(0).byte()
    lengths = gather_shares(torch.tensor([len(data)])).tolist()
    return [bytes(piece.tolist()).decode() for piece in gather_shares(data).split(lengths)]


def _host_group() -> dist.ProcessGroup | None:
    """The group that moves what lies on the CPU; None is the usual one."""
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return None if "gloo" in dist.get_backend() else dist.new_group(backend="gloo")


def end_processes() -> None:
    """Leaves the group of processes, once, at the end of a run."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def make_loader(
    data: Sequence[Any] | IterableDataset[Any],
    collate: Collate,
    *,
    batch_size: int,
    seed: int,
    process: int,
    num_processes: int,
) -> DataLoader[Any]:
    """Batches of items. An IterableDataset is read as it comes, no batch ahead, by each process its own."""
    if isinstance(data, IterableDataset):
        return DataLoader(data, batch_size=batch_size, collate_fn=CountedCollate(collate))
    sampler = SharedBatches(len(data), batch_size, seed, process, num_processes)
    return EpochLoader(ItemDataset(data), batch_sampler=sampler, collate_fn=CountedCollate(collate, data[0]))


class ItemDataset(Dataset[Any]):
    """Items as a loader takes them."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class SharedBatches(Sampler[list[int]]):
    """Indices of one process's batches. An epoch's order follows from seed and epoch; each run of
    batch_size · num_processes indices in it is split among the processes, one after the other. A process
    for which the last run has none left gets an empty batch."""

    def __init__(self, num_items: int, batch_size: int, seed: int, process: int, num_processes: int) -> None:
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self.process = process
        self.num_processes = num_processes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.num_items / (self.batch_size * self.num_processes))

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        order = torch.randperm(self.num_items, generator=generator).tolist()
        together = self.batch_size * self.num_processes
        for start in range(0, self.num_items, together):
            own = start + self.process * self.batch_size
            yield order[own : min(own + self.batch_size, start + together)]


class EpochLoader(DataLoader[Any]):
    """A loader of SharedBatches that is told the epoch, as transformers' Trainer does where it can."""

    def set_epoch(self, epoch: int) -> None:
        assert isinstance(self.batch_sampler, SharedBatches)
        self.batch_sampler.set_epoch(epoch)


class CountedCollate:
    """Collates, and says in NUM_ITEMS how many items a batch holds: an empty one, which a process without a
    share gets, holds the first item of all, and 0 of them count."""

    def __init__(self, collate: Collate, idle: Any = None) -> None:
        self.collate = collate
        self.idle = idle

    def __call__(self, items: Sequence[Any]) -> dict[str, Tensor]:
        batch = self.collate(items or [self.idle])
        return {**batch, NUM_ITEMS: torch.tensor(len(items))}
