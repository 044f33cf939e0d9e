"""What "auto" becomes on each device, and which combinations are refused with a fix."""

from __future__ import annotations

import pytest

from trimtab.server.engine.config import EngineConfig


def resolved(device: str, **options: object) -> dict[str, object]:
    config = EngineConfig("m", **options).resolved(device)  # type: ignore[arg-type]
    names = (
        "attention",
        "cuda_graphs",
        "padding",
        "async_depth",
        "max_num_batched_tokens",
        "kv_cache_gib",
    )
    return {name: getattr(config, name) for name in names}


def test_a_gpu_gets_our_kernels_graphs_and_a_step_in_flight_and_measures_its_memory():
    assert resolved("cuda") == {
        "attention": "triton",
        "cuda_graphs": "auto",
        "padding": "buckets",
        "async_depth": 1,
        "max_num_batched_tokens": 2048,
        "kv_cache_gib": None,
    }


def test_a_cpu_gets_sdpa_and_reads_each_step_at_once():
    assert resolved("cpu") == {
        "attention": "sdpa",
        "cuda_graphs": "off",
        "padding": "none",
        "async_depth": 0,
        "max_num_batched_tokens": 512,
        "kv_cache_gib": 2.0,
    }


def test_strict_takes_attention_whose_bits_no_batch_changes_and_no_graphs():
    for device, attention in (("cpu", "tiled"), ("cuda", "triton")):
        found = resolved(device, strict=True, max_num_seqs=100)
        assert (found["attention"], found["cuda_graphs"], found["padding"]) == (attention, "off", "none")
        assert found["max_num_batched_tokens"] == 100
    for backend, budget in (("torch", 64), ("native", 512)):
        assert resolved("cpu", strict=True, cpu_backend=backend)["max_num_batched_tokens"] == budget


def test_what_is_asked_for_stays_and_resolving_twice_changes_nothing():
    asked = {"attention": "sdpa", "async_depth": 0, "max_num_batched_tokens": 99, "kv_cache_gib": 0.5}
    assert asked.items() <= resolved("cuda", **asked).items()
    assert resolved("cuda", **asked)["cuda_graphs"] == "off"
    once = EngineConfig("m", attention="triton").resolved("cuda")
    assert once.resolved("cuda") == once


@pytest.mark.parametrize(
    ("device", "options", "words"),
    [
        ("cpu", {"cuda_graphs": "on"}, "CUDA device, not cpu: leave it auto"),
        ("cuda", {"cuda_graphs": "on", "attention": "sdpa"}, "leave attention auto"),
        ("cuda", {"cuda_graphs": "on", "strict": True}, "leave cuda_graphs auto"),
        ("cpu", {"attention": "sdpa", "strict": True}, "attention auto, tiled or triton"),
        ("cpu", {"gpu_memory_utilization": 1.5}, "at most 1"),
        ("cpu", {"max_num_batched_tokens": 3, "max_num_seqs": 4}, "at least max_num_seqs"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_the_fix(device: str, options: dict[str, object], words: str):
    with pytest.raises(ValueError, match=words):
        resolved(device, **options)
