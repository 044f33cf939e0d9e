"""Reader: measures tokens that are given as if they had been drawn, a part of few logits at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.guidance.heads.bank import HeadBank
from trimtab.kernels.guided_logits import guided_logits, tilted_logits
from trimtab.server.engine.device_copy import index_tensor
from trimtab.server.engine.policy import ServedPolicy
from trimtab.server.engine.row_needs import RowNeeds
from trimtab.server.engine.sampler import NUM_BASE_TOP, Drawn
from trimtab.server.engine.scheduler import Row
from trimtab.server.engine.step_state import StepState

MAX_LOGITS = 2**22  # of a part, in each of the few tensors f32[C, V] that there are at a time: 16 MiB


@dataclass(frozen=True, slots=True)
class GivenToken:
    """A token of a given reply that a row's state predicts. index: which of the reply's."""

    row: Row
    index: int

    @property
    def token_id(self) -> int:
        return self.row.choice.request.given[self.index]


def given_tokens(row: Row) -> list[GivenToken]:
    """Those that a row's output positions predict."""
    first = row.start - (row.choice.num_prompt_tokens - 1)
    return [GivenToken(row, first + at) for at in row.output_positions]


class Reader:
    """policy: whose tokens they are. bank: what steers and measures. state: of the rows' slots."""

    def __init__(self, policy: ServedPolicy, bank: HeadBank, state: StepState) -> None:
        self._policy, self._bank, self._state = policy, bank, state

    def read(self, h: Tensor, tokens: Sequence[GivenToken], needs: Sequence[RowNeeds]) -> Drawn:
        """What the tokens' rows ask for of states h [N, d], each of the one before its token; N of each."""
        size = max(1, MAX_LOGITS // self._policy.vocab_size)
        num_top = max(need.num_top for need in needs)
        num_base_top = NUM_BASE_TOP if any(need.trace for need in needs) else 0
        parts = [
            self._read_part(
                h[at : at + size], tokens[at : at + size], needs[at : at + size], num_top, num_base_top
            )
            for at in range(0, len(tokens), size)
        ]
        ids, statistics, tilt_logprobs, tilt_ids, base_logprobs, base_ids = map(
            torch.cat, zip(*parts, strict=True)
        )
        everyone = range(len(tokens))
        return Drawn(
            ids,
            statistics.T.contiguous(),
            self._values(h, tokens, needs) if any(need.measuring for need in needs) else None,
            None,
            everyone,
            tilt_ids,
            tilt_logprobs,
            everyone,
            base_ids,
            base_logprobs,
        )

    def _read_part(
        self,
        h: Tensor,
        tokens: Sequence[GivenToken],
        needs: Sequence[RowNeeds],
        num_top: int,
        num_base_top: int,
    ) -> tuple[Tensor, ...]:
        """Tokens [C], statistics [C, 5], and log-probabilities and ids [C, k] of the likeliest tokens of the
        tilt and of the base."""
        device = self._state.device
        given = index_tensor([token.token_id for token in tokens], device)
        z = self._policy.logits_of(h)
        rows = torch.arange(len(h), device=device)
        advantage, beta = self._advantage(h, tokens, needs)
        measured = guided_logits(
            z,
            seeds=rows,
            positions=rows,
            choices=rows,
            temperature=torch.zeros(len(h), device=device),
            advantage=advantage,
            advantage_row=None if advantage is None else rows,
            beta=beta,
            want_entropy=True,
            any_sampled=False,
            backend=self._policy.backend,
        )
        assert measured.entropy is not None
        base = tilt = z.log_softmax(-1)
        if advantage is not None and beta is not None:
            tilt = tilted_logits(z, advantage, rows, beta, self._policy.backend).log_softmax(-1)
        logprob, base_logprob = (of.gather(1, given[:, None])[:, 0] for of in (tilt, base))
        statistics = (logprob, base_logprob, measured.kl, measured.flip, measured.entropy)
        return (
            torch.where(measured.token < 0, -1, given),
            torch.stack([statistic.float() for statistic in statistics], 1),
            *tilt.topk(min(num_top, tilt.shape[1])),
            *base.topk(min(num_base_top, tilt.shape[1])),
        )

    def _advantage(
        self, h: Tensor, tokens: Sequence[GivenToken], needs: Sequence[RowNeeds]
    ) -> tuple[Tensor | None, Tensor | None]:
        """A f32[C, V] and β f32[C], where any row is steered."""
        active = sorted({head for need in needs for head in need.steering})
        if not active:
            return None, None
        settings = self._state.settings(self._slots(tokens))
        weights = settings["head_weights"]
        column = self._bank.tied_column(h, weights, active)
        advantage = self._bank.lowrank_advantage(h, weights, active)
        if column is not None:
            tied = self._policy.project(column.to(h.dtype))
            advantage = tied if advantage is None else advantage + tied
        return advantage, settings["strength"]

    def _values(self, h: Tensor, tokens: Sequence[GivenToken], needs: Sequence[RowNeeds]) -> Tensor:
        """V f32[N, H] before each token. What a value remembers of a reply grows with it."""
        values = self._bank.values(h)
        for at, (token, need) in enumerate(zip(tokens, needs, strict=True)):
            for head in need.remembering:
                slot = token.row.lane.slot
                memory = self._state.memories[head]
                value, after = self._bank.step(head, h[at : at + 1], memory[slot][None])
                values[at, head] = value[0]
                memory[slot].copy_(after[0])
        return values

    def _slots(self, tokens: Sequence[GivenToken]) -> Tensor:
        slots = [token.row.lane.slot for token in tokens]
        return index_tensor([slot for slot in slots if slot is not None], self._state.device)
