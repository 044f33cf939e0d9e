"""Start-up self-check: the engine's packed, chunked forward equals the model's own, or the server refuses."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from trimtab.server.engine.block_manager import BlockManager
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.lane import Choice, Lane
from trimtab.server.engine.model_runner import Hidden, ModelRunner
from trimtab.server.engine.policy import ModelError, Policy, forward_with_hidden
from trimtab.server.engine.request import Request
from trimtab.server.engine.scheduler import Purpose, Row, Step

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}
LONGEST_PROBE = 600
CHUNK = 7


@torch.inference_mode()
def self_check(policy: Policy, config: EngineConfig) -> None:
    """Probe three rows of mixed length, prefilled in chunks and then decoded together.

    Raises ModelError that names the model and what differs by how much.
    """
    lengths = _probe_lengths(policy)
    tokens = [_probe_tokens(policy, i, length) for i, length in enumerate(lengths)]
    policy.use_attention("eager")
    expected = [_own_last_logits(policy, row) for row in tokens]
    actual = _engine_last_logits(policy, config, tokens)
    tolerance = TOLERANCE[policy.dtype]
    for length, want, got in zip(lengths, expected, actual, strict=True):
        error = (got - want).abs().max() / want.abs().max().clamp(min=1.0)
        if not error <= tolerance:
            raise ModelError(
                f"{type(policy.model).__name__} '{policy.name}' cannot be served right: over paged attention "
                f"its logits after {length} tokens differ from its own by {float(error):.2g} of their size "
                f"(tolerance {tolerance:g} in {str(policy.dtype).removeprefix('torch.')})"
            )


def _probe_lengths(policy: Policy) -> list[int]:
    """One row reaches past a sliding window where that is cheap to check."""
    window = getattr(policy.model.config.get_text_config(), "sliding_window", None) or 0
    longest = window + 9 if 0 < window <= LONGEST_PROBE - 9 else 40
    return [min(length, policy.max_model_len) for length in (5, 23, longest)]


def _probe_tokens(policy: Policy, seed: int, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(policy.vocab_size, (length,), generator=generator).tolist()


def _own_last_logits(policy: Policy, tokens: list[int]) -> Tensor:
    ids = torch.tensor([tokens], device=policy.device)
    positions = torch.arange(len(tokens), device=policy.device)
    return forward_with_hidden(policy.model, ids, positions[None], positions[-1:])[1][0].float()


def _engine_last_logits(policy: Policy, config: EngineConfig, tokens: list[list[int]]) -> list[Tensor]:
    """All rows advance side by side, a chunk a step, and end together with one token each."""
    small = dataclasses.replace(config, max_num_seqs=4, max_num_batched_tokens=4 * CHUNK)
    num_blocks = sum(-(-len(row) // config.block_size) for row in tokens) + 1
    runner = ModelRunner(policy, small, num_blocks, num_heads=0)
    blocks = BlockManager(num_blocks, config.block_size)
    choices = [Choice(Request(str(i), tuple(row)), 0, (Lane(list(row)),)) for i, row in enumerate(tokens)]
    for slot, choice in enumerate(choices):
        blocks.extend(choice.lane, len(choice.lane.tokens))
        choice.lane.slot = slot
        runner.state.admit(choice, 0, [], 0.0)
    while any(choice.lane.remaining > 1 for choice in choices):
        _advance(runner, [c for c in choices if c.lane.remaining > 1], is_last=False)
    hidden = _advance(runner, choices, is_last=True)
    logits = hidden.logits if hidden.logits is not None else hidden.h @ policy.lm_head.T
    return list(logits[: len(tokens)].float())


def _advance(runner: ModelRunner, choices: list[Choice], is_last: bool) -> Hidden:
    step = Step()
    for choice in choices:
        lane = choice.lane
        num_tokens = 1 if is_last else min(CHUNK, lane.remaining - 1)
        outputs = (0,) if is_last else ()
        step.rows.append(Row(choice, lane, lane.num_computed, num_tokens, Purpose.DRAW, outputs))
    hidden = runner.run(step)
    for row in step.rows:
        row.lane.num_computed = row.end
    return hidden
