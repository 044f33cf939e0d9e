"""Decode steps replayed from recordings on static buffers give what running the model gives."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import pytest
import torch
from tape import Tape
from tiny_models import SIZES, save_random_model
from transformers import Gemma2Config, LlamaConfig, Phi3Config, PretrainedConfig

from trimtab.guidance.errors import ModelError
from trimtab.server.engine import model_runner
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.lane import Choice, Lane
from trimtab.server.engine.model_runner import ModelRunner
from trimtab.server.engine.policy import load_served
from trimtab.server.engine.request import Request
from trimtab.server.engine.scheduler import Purpose, Row, Step

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 2.5, 3.0, 3.5],
    "original_max_position_embeddings": 16,
    "factor": 8.0,
}
ONE_LAYER, TWO_LAYERS = {**SIZES, "num_hidden_layers": 1}, {**SIZES, "num_hidden_layers": 2}
CONFIGS: dict[str, PretrainedConfig] = {
    "window, softcaps and a tail of its own": Gemma2Config(
        **TWO_LAYERS, head_dim=8, sliding_window=6, query_pre_attn_scalar=8, attn_logit_softcapping=0.5
    ),
    "longrope past its original length": Phi3Config(
        **ONE_LAYER, rope_parameters=LONGROPE, original_max_position_embeddings=16
    ),
}
STEPS = [{0: 5, 2: 20}, {1: 30}, {1: 31, 2: 21, 0: 6}]
"""Of each step: the positions at which the lanes in these slots decode, never before one that was read."""


def new_runner(config: PretrainedConfig, folder: Path) -> ModelRunner:
    """A runner whose cache is full of keys and values, so that nothing needs prefilling."""
    policy = load_served(save_random_model(config, folder), max_model_len=64)
    options = EngineConfig(folder, block_size=8, max_num_seqs=3, attention="triton", padding="buckets")
    runner = ModelRunner(policy, options.resolved("cpu"), num_blocks=33, memory_sizes=())
    torch.manual_seed(0)
    for cache in (*runner.cache.keys, *runner.cache.values):
        cache.normal_()
    return runner


def decode(runner: ModelRunner, positions: dict[int, int]) -> tuple[torch.Tensor, torch.Tensor | None]:
    step = Step()
    for slot, position in positions.items():
        tokens = [(7 * slot + 3 * i) % 250 for i in range(position + 1)]
        blocks = list(range(1 + slot, 33, 3))[: position // 8 + 1]
        lane = Lane(tokens, blocks, num_computed=position, slot=slot)
        choice = Choice(Request(str(slot), tuple(tokens)), 0, (lane,))
        runner.state.admit(choice, 0, [], 0.0)
        step.rows.append(Row(choice, lane, position, 1, Purpose.DRAW, (0,)))
    hidden = runner.run(step)
    return hidden.h.clone(), None if hidden.logits is None else hidden.logits.clone()


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_recorded_decode_steps_are_bitwise_those_that_run(name: str, tmp_path: Path):
    runner = new_runner(CONFIGS[name], tmp_path)
    expected = [decode(runner, positions) for positions in STEPS]
    runner.record_decode(Tape())
    runner.policy.model = None  # type: ignore[assignment]
    for positions, (h, logits) in zip(STEPS, expected, strict=True):
        assert runner._graphs is not None
        runner._graphs._h.fill_(torch.nan)
        replayed_h, replayed_logits = decode(runner, positions)
        assert torch.equal(replayed_h, h)
        assert (logits is None) == (replayed_logits is None)
        assert logits is None or replayed_logits is None or torch.equal(replayed_logits, logits)


def test_a_model_that_asks_the_device_something_runs_unrecorded_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(model_runner, "CudaRecorder", lambda _: Tape())
    policy = load_served(save_random_model(LlamaConfig(**ONE_LAYER), tmp_path))
    options = EngineConfig(tmp_path, block_size=8, max_num_seqs=1, attention="triton", padding="buckets")

    def start(graphs: Literal["auto", "on"]) -> ModelRunner:
        resolved = dataclasses.replace(options.resolved("cpu"), cuda_graphs=graphs)
        return ModelRunner(policy, resolved, num_blocks=9, memory_sizes=())

    assert start("on")._graphs is not None
    norm = policy.model.base_model.norm
    forward = norm.forward
    norm.forward = lambda x: forward(x) if x.abs().max() < 1e9 else x
    assert start("auto")._graphs is None
    assert "is_nonzero" in caplog.text
    with pytest.raises(ModelError, match="leave --cuda-graphs auto"):
        start("on")
    norm.forward = lambda x: forward(x[:, :, :3])
    with pytest.raises(ModelError, match="--cuda-graphs off"):
        start("auto")
