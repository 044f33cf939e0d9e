"""Batches of a step, shared among processes: what is trained on does not depend on how many there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

Collate = Callable[[Sequence[Any]], dict[str, Tensor]]
NUM_ITEMS = "num_items"


class Items(Dataset[Any]):
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
    return EpochLoader(Items(data), batch_sampler=sampler, collate_fn=CountedCollate(collate, data[0]))
