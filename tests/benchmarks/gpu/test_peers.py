"""A stand-in with FlashInfer's signatures shows that the case beside it works."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.inputs import TOY_KERNEL_SIZES
from benchmarks.gpu.kernels.peers import bench_beside_flashinfer
from benchmarks.gpu.machine import open_rehearsal


class Wrapper:
    def __init__(self, float_workspace_buffer: Tensor, kv_layout: str = "NHD") -> None:
        assert kv_layout == "NHD"

    def plan(
        self, indptr: Tensor, indices: Tensor, last_page_len: Tensor, num_qo_heads: int, num_kv_heads: int,
        head_dim: int, page_size: int, *, q_data_type: torch.dtype, kv_data_type: torch.dtype,
    ) -> None:  # fmt: skip
        assert indptr.dtype == indices.dtype == last_page_len.dtype == torch.int32
        assert len(indices) == indptr[-1]
        assert ((last_page_len > 0) & (last_page_len <= page_size)).all()

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
        return torch.empty_like(q)


def sampling_from_logits(logits: Tensor) -> Tensor:
    return logits.argmax(1)


def top_k_top_p_sampling_from_logits(
    logits: Tensor, top_k: Tensor, top_p: Tensor, filter_apply_order: str
) -> Tensor:
    assert top_k.dtype == torch.int32
    return logits.argmax(1)


def test_every_peer_is_timed_beside_ours(monkeypatch: pytest.MonkeyPatch):
    stand_in: Any = ModuleType("flashinfer")
    stand_in.__version__ = "0"
    stand_in.BatchDecodeWithPagedKVCacheWrapper = Wrapper
    stand_in.sampling = SimpleNamespace(
        sampling_from_logits=sampling_from_logits,
        top_k_top_p_sampling_from_logits=top_k_top_p_sampling_from_logits,
    )
    monkeypatch.setitem(sys.modules, "flashinfer", stand_in)
    findings = Findings()
    bench_beside_flashinfer(open_rehearsal(), TOY_KERNEL_SIZES, findings)
    assert len(findings.measurements) == 3
    assert all(list(found.against) == ["FlashInfer"] for found in findings.measurements)
