"""The processes that torchrun or accelerate started for one run."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor


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
