"""Draws of padding rows before the first request comes, in whose time kernels would else be compiled."""

from __future__ import annotations

import torch

from trimtab.guidance.bank import HeadBank
from trimtab.server.engine.batch import DrawInputs
from trimtab.server.engine.device_copy import index_tensor
from trimtab.server.engine.model_runner import Hidden
from trimtab.server.engine.policy import Policy
from trimtab.server.engine.request import Guidance, Request, SamplingParams
from trimtab.server.engine.row_needs import RowNeeds
from trimtab.server.engine.sampler import Sampler
from trimtab.server.engine.step_state import StepState

NUM_ROWS = 2
KINDS = {
    "sampled": SamplingParams(),
    "greedy": SamplingParams(temperature=0),
    "truncated": SamplingParams(top_p=0.9, top_k=50),
}


@torch.inference_mode()
def warm_up(sampler: Sampler, policy: Policy, bank: HeadBank, state: StepState) -> int:
    """Draw plain and guided padding rows of every kind; no lane's state changes. Returns how many draws."""
    slot, length = state.padding_slot, state.tokens.shape[1]
    host_slots, host_positions = [slot] * NUM_ROWS, [length - 1] * NUM_ROWS
    slots, positions = (index_tensor(values, state.device) for values in (host_slots, host_positions))
    draws = DrawInputs(slots, positions, slots * length + positions, host_slots, host_positions)
    h = torch.zeros(NUM_ROWS, policy.lm_head.shape[1], dtype=policy.dtype, device=state.device)
    logits = None if policy.has_linear_tail else h.new_zeros(NUM_ROWS, policy.vocab_size)
    steering = tuple((name, 1.0) for name, has in zip(bank.names, bank.has_advantage, strict=True) if has)
    guidances = [Guidance(), *([Guidance(1.0, steering)] if steering else [])]
    for sampling in KINDS.values():
        for guidance in guidances:
            state.version += 1  # other rows than the ones before
            needs = RowNeeds.of(Request("warm-up", (0,), sampling, guidance), bank)
            sampler.draw(Hidden(h, logits, draws), [needs] * NUM_ROWS)
    return len(KINDS) * len(guidances)
