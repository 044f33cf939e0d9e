"""From hidden states to tokens: the policy's logits, the heads' tilt, the draw, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.guidance.bank import HeadBank
from trimtab.kernels.guided_logits import GuidedDraw, guided_logits, tilted_logits
from trimtab.kernels.penalties import apply_penalties
from trimtab.server.engine.policy import Policy
from trimtab.server.engine.row_needs import RowNeeds
from trimtab.server.engine.scheduler import Row
from trimtab.server.engine.step_state import StepState

NUM_BASE_TOP = 3


@dataclass(frozen=True, slots=True)
class Drawn:
    """One step's draws as tensors on the device; B drawing rows in order. What was not asked for is None.

    top_ids, top_logprobs: [T, k] of the tilt for `top_rows`; base_top_*: [M, 3] of the base for `traced`.
    values: [B, H] in standard units, before the drawn token.
    """

    draw: GuidedDraw
    values: Tensor | None
    top_rows: Sequence[int]
    top_ids: Tensor | None
    top_logprobs: Tensor | None
    traced: Sequence[int]
    base_top_ids: Tensor | None
    base_top_logprobs: Tensor | None


class Sampler:
    def __init__(self, policy: Policy, bank: HeadBank, state: StepState) -> None:
        self._policy, self._bank, self._state = policy, bank, state

    def draw(self, rows: Sequence[Row], needs: Sequence[RowNeeds], h: Tensor, logits: Tensor | None) -> Drawn:
        """Draw a token for each row and write it to the step state.

        h: [B, d]. logits: [B, V] where the model's own tail made them, else None.
        """
        state = self._state
        slots = torch.tensor([row.lane.slot for row in rows], device=h.device)
        positions = torch.tensor([row.end for row in rows], device=h.device)
        guided = [i for i, need in enumerate(needs) if need.steering]
        z, advantage, advantage_row = self._score(h, logits, slots, guided, needs)
        self._penalise(z, slots, positions, needs)
        truncates = any(need.truncates for need in needs)
        draw = guided_logits(
            z,
            seeds=state.seed[slots],
            positions=positions,
            choices=state.choice[slots],
            temperature=state.temperature[slots],
            advantage=advantage,
            advantage_row=advantage_row,
            beta=state.strength[slots] if guided else None,
            min_p=state.min_p[slots] if truncates else None,
            top_k=state.top_k[slots] if truncates else None,
            top_p=state.top_p[slots] if truncates else None,
            want_entropy=any(need.trace for need in needs),
            any_greedy=any(need.is_greedy for need in needs),
            any_sampled=not all(need.is_greedy for need in needs),
        )
        state.tokens[slots, positions] = draw.token.clamp(min=0)
        if guided:
            state.spent_kl[slots] += draw.kl
        return self._measure(draw, z, advantage, advantage_row, state.strength[slots], h, needs)

    def _score(
        self, h: Tensor, logits: Tensor | None, slots: Tensor, guided: list[int], needs: Sequence[RowNeeds]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """z [B, V] fp32, and A [G, V] fp32 of the guided rows with each row's place in it."""
        if not guided:
            return self._policy_logits(h, logits), None, None
        active = tuple(sorted({i for row in guided for i in needs[row].steering}))
        h_guided = h if len(guided) == len(h) else h[guided]
        weights = self._state.head_weights[slots[guided]]
        column = self._bank.tied_column(h_guided, weights, active)
        if column is None:
            z, tied = self._policy_logits(h, logits), None
        elif logits is None:  # both columns in one reading of lm_head
            both = self._policy.project(torch.cat([h, column.to(h.dtype)])).float()
            z, tied = both[: len(h)], both[len(h) :]
        else:
            z, tied = logits.float(), self._policy.project(column.to(h.dtype)).float()
        lowrank = self._bank.lowrank_advantage(h_guided, weights, active)
        advantage = tied if lowrank is None else lowrank if tied is None else tied + lowrank
        advantage_row = torch.full((len(h),), -1, device=h.device)
        advantage_row[guided] = torch.arange(len(guided), device=h.device)
        return z, advantage, advantage_row

    def _policy_logits(self, h: Tensor, logits: Tensor | None) -> Tensor:
        return (self._policy.project(h) if logits is None else logits).float()

    def _penalise(self, z: Tensor, slots: Tensor, positions: Tensor, needs: Sequence[RowNeeds]) -> None:
        rows = [i for i, need in enumerate(needs) if need.has_penalties or need.logit_bias]
        if not rows:
            return
        state, at = self._state, slots[rows]
        ends = positions[rows]
        apply_penalties(
            z,
            rows=torch.tensor(rows, device=z.device),
            tokens=state.tokens[at, : int(ends.max())],
            prompt_lengths=state.prompt_len[at],
            lengths=ends,
            repetition=state.repetition[at],
            presence=state.presence[at],
            frequency=state.frequency[at],
            logit_bias=[needs[row].logit_bias for row in rows],
        )

    def _measure(
        self,
        draw: GuidedDraw,
        z: Tensor,
        advantage: Tensor | None,
        advantage_row: Tensor | None,
        beta: Tensor,
        h: Tensor,
        needs: Sequence[RowNeeds],
    ) -> Drawn:
        num_top = max(need.num_top for need in needs)
        top_rows = [i for i, need in enumerate(needs) if need.num_top]
        traced = [i for i, need in enumerate(needs) if need.trace]
        top_ids = top_logprobs = base_ids = base_logprobs = None
        if top_rows:
            tilted = z[top_rows]
            if advantage is not None and advantage_row is not None:
                tilted = tilted_logits(tilted, advantage, advantage_row[top_rows], beta[top_rows])
            top_logprobs, top_ids = tilted.log_softmax(-1).topk(min(num_top, tilted.shape[1]))
        if traced:
            base_logprobs, base_ids = z[traced].log_softmax(-1).topk(min(NUM_BASE_TOP, z.shape[1]))
        return Drawn(
            draw,
            self._bank.values(h) if any(need.measuring for need in needs) else None,
            top_rows,
            top_ids,
            top_logprobs,
            traced,
            base_ids,
            base_logprobs,
        )
