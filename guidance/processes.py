"""The processes that torchrun or accelerate started for one run."""

from __future__ import annotations

import os

import torch


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


def end_processes() -> None:
    """Leaves the group of processes, once, at the end of a run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
