"""Start-up self-check: the engine's packed, chunked forward equals the model's own, or the server refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.guidance.errors import ModelError
from trimtab.server.engine.block_manager import BlockManager
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.lane import Choice, Lane
from trimtab.server.engine.model_runner import Hidden, ModelRunner
from trimtab.server.engine.policy import ServedPolicy, refusing
from trimtab.server.engine.request import Request
from trimtab.server.engine.scheduler import Purpose, Row, Step

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}
STORED = {"float16": 2e-2, "bfloat16": 1e-1, "q8": 3e-1, "q4": 6e-1}  # of a wrong model it is above 1
ALONE_TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}  # of batches of one shape
LONGEST_PROBE = 600
CHUNK = 7
NEAR = (0, 1, 2, 3, 5, 8, 13)


@torch.inference_mode()
def self_check(policy: ServedPolicy, config: EngineConfig) -> None:
    """Check how the model numbers positions and that only attention mixes tokens; then hold three rows of
    mixed length, prefilled in chunks and decoded together, against the model's own forward.

    Raises ModelError that names the model and what differs by how much.
    """
    name = f"{type(policy.model).__name__} '{policy.name}'"
    with refusing(name):
        _check_positions(policy, name)
        _check_independence(policy, name)
        _check_rows(policy, config, name)


def _check_positions(policy: ServedPolicy, name: str) -> None:
    """A model must take its positions as it is told them, and count from 0 when it is not."""
    policy.use_attention("eager")
    tokens = _probe_tokens(policy, 0, 5)
    ids, positions = _row(policy, tokens), _row(policy, range(len(tokens)))
    told = policy.model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
    if not torch.isfinite(told).all():
        raise ModelError(
            f"{name} cannot be served: it computes what is no number (NaN or infinity), so a weight or a "
            "number of its configuration is damaged"
        )
    if not _error(told, policy.model(input_ids=ids, use_cache=False).logits[0]) <= TOLERANCE[policy.dtype]:
        raise ModelError(f"{name} cannot be served: left to itself, it does not number its tokens 0, 1, 2, …")


def _check_independence(policy: ServedPolicy, name: str) -> None:
    """With attention to itself alone, a token is the same whatever stands before it and at the end."""
    last = policy.max_model_len - 1
    near = [min(position, last) for position in NEAR]
    policy.use_attention(_attend_alone)
    tokens = _probe_tokens(policy, 1, 2 * len(near))
    others = _probe_tokens(policy, 2, len(near))
    own, changed = _interleave(tokens[::2], tokens[1::2]), _interleave(tokens[::2], others)
    among_near = _hidden(policy, own, _interleave(near, near))[1::2]
    among_far = _hidden(policy, changed, _interleave(near, [last] * len(near)))[1::2]
    errors = (among_near - among_far).abs().amax(-1) / among_near.abs().max().clamp(min=1.0)
    # The median: a near tie between experts may turn for one of them.
    if not errors.median() <= ALONE_TOLERANCE[policy.dtype]:
        raise ModelError(
            f"{name} cannot be served: besides attention, a token depends on others in its batch, by "
            f"{float(errors.median()):.2g} of its size, as in state-space layers or where rotary is scaled "
            f"by the longest position, here {last}; if it is that, a lower --max-model-len may do"
        )


def _interleave(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """Second, first, second, first, …"""
    return [number for pair in zip(second, first, strict=True) for number in pair]


def _attend_alone(_: nn.Module, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any) -> Any:
    """Each token's own value, scaled by its query and key as rotated: [1, T, heads, value_dim]."""
    repeats = query.shape[1] // key.shape[1]
    keys, values = (x.repeat_interleave(repeats, 1) for x in (key, value))
    gate = torch.sigmoid(query.sum(-1, keepdim=True) + keys.sum(-1, keepdim=True))
    return (gate * values).transpose(1, 2).contiguous(), None


def _hidden(policy: ServedPolicy, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
    """[T, d]"""
    every = torch.arange(len(tokens), device=policy.device)
    return policy.forward(_row(policy, tokens), _row(policy, positions), every)[0].float()


def _check_rows(policy: ServedPolicy, config: EngineConfig, name: str) -> None:
    lengths = _probe_lengths(policy)
    tokens = [_probe_tokens(policy, i, length) for i, length in enumerate(lengths)]
    policy.use_attention("eager")
    expected = [_own_last_logits(policy, row) for row in tokens]
    actual = _engine_last_logits(policy, config, tokens)
    tolerance = _tolerance(policy)
    for length, want, got in zip(lengths, expected, actual, strict=True):
        error = _error(got, want)
        if not error <= tolerance:
            raise ModelError(
                f"{name} cannot be served right: over paged attention its logits after {length} tokens "
                f"differ from its own by {error:.2g} of their size (tolerance {tolerance:g} in "
                f"{str(policy.dtype).removeprefix('torch.')})"
            )


def _tolerance(policy: ServedPolicy) -> float:
    """Of what is stored in fewer bits than the model's own forward reads, more."""
    roundings = () if policy.native is None else policy.native.roundings
    return max(TOLERANCE[policy.dtype], *(STORED[each] for each in roundings), 0.0)


def _error(got: Tensor, want: Tensor) -> float:
    want = want.float()
    return float((got.float() - want).abs().max() / want.abs().max().clamp(min=1.0))


def _row(policy: ServedPolicy, numbers: Iterable[int]) -> Tensor:
    return torch.tensor([list(numbers)], device=policy.device)


def _probe_lengths(policy: ServedPolicy) -> list[int]:
    """One row reaches past the sliding windows where that is cheap to check."""
    windows = [layer.window or 0 for layer in policy.layers]
    longest = max([40, *(window + 9 for window in windows if window <= LONGEST_PROBE - 9)])
    return [min(length, policy.max_model_len) for length in (5, 23, longest)]


def _probe_tokens(policy: ServedPolicy, seed: int, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(policy.vocab_size, (length,), generator=generator).tolist()


def _own_last_logits(policy: ServedPolicy, tokens: list[int]) -> Tensor:
    """[V], of nothing but the tokens: a model may number them its own way."""
    logits: Tensor = policy.model(input_ids=_row(policy, tokens), use_cache=False).logits
    return logits[0, -1].float()


def _engine_last_logits(policy: ServedPolicy, config: EngineConfig, tokens: list[list[int]]) -> list[Tensor]:
    """All rows advance side by side, a chunk a step, and end together with one token each."""
    small = dataclasses.replace(config, max_num_seqs=4, max_num_batched_tokens=4 * CHUNK)
    num_blocks = sum(-(-len(row) // config.block_size) for row in tokens) + 1
    runner = ModelRunner(policy, small, num_blocks, memory_sizes=())
    blocks = BlockManager(num_blocks, config.block_size)
    choices = [Choice(Request(str(i), tuple(row)), 0, (Lane(list(row)),)) for i, row in enumerate(tokens)]
    for slot, choice in enumerate(choices):
        blocks.extend(choice.lane, len(choice.lane.tokens))
        choice.lane.slot = slot
        runner.state.admit(choice, 0, [], 0.0)
    while any(choice.lane.remaining > 1 for choice in choices):
        _advance(runner, [c for c in choices if c.lane.remaining > 1], is_last=False)
    hidden = _advance(runner, choices, is_last=True)
    logits = policy.logits(hidden.h, hidden.logits)
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
