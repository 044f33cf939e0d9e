"""Features for training by the engine's own runner: packed, chunked, with shared prompts run once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from trimtab.guidance.errors import DataError
from trimtab.guidance.features.source import Positions, check_numbers
from trimtab.guidance.heads.bank import HeadBank
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.server.engine.block_manager import BlockManager
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.lane import Choice, Lane
from trimtab.server.engine.model_runner import ModelRunner
from trimtab.server.engine.policy import ServedPolicy
from trimtab.server.engine.request import Request
from trimtab.server.engine.scheduler import Scheduler, Step
from trimtab.server.engine.startup import load, measure_blocks, resolve_num_blocks


class RunnerExtract:
    """Reads h at positions of replies. An `Extract` of trimtab.guidance.features.source.

    Each call schedules from nothing, so that the same replies give the same bits whatever ran before.
    policy: its attention is this object's from then on. config: resolved.
    """

    def __init__(self, policy: ServedPolicy, bank: HeadBank, config: EngineConfig) -> None:
        self.policy, self.config = policy, config
        self._num_blocks = resolve_num_blocks(config, policy, partial(measure_blocks, policy, bank, config))
        self._runner = ModelRunner(policy, config, self._num_blocks, memory_sizes=())

    @classmethod
    def from_config(cls, config: EngineConfig, policy: Policy | None = None) -> RunnerExtract:
        """Loads the policy and checks that it runs right. config: without heads, cuda_graphs off.
        policy: see `load`.

        Raises ModelError with one line that names the model and the fix.
        """
        return cls(*load(config, policy=policy)[:3])

    def __call__(
        self, replies: Sequence[EncodedReply], positions: Positions | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """(index of a reply, h [len(positions), d] on the CPU) as they are done.

        positions: of each reply ascending, at least one; None for all of s_0 … s_T. Raises DataError for
        replies that are longer than the policy's context.
        """
        self._check(replies)
        choices = self._choices(replies, positions)
        indices = {choice: index for index, choice in enumerate(choices)}
        found: list[list[Tensor]] = [[] for _ in choices]
        scheduler = self._new_scheduler(max((reply.num_tokens for reply in replies), default=0))
        scheduler.add(choices)
        while scheduler:
            step = scheduler.schedule()
            parts = self._run(step)
            scheduler.advance(step)
            for row, h in zip(step.rows, parts, strict=True):
                index, read_at = indices[row.choice], row.choice.read_at
                if row.start <= read_at[0]:
                    found[index].clear()  # begun again after a preemption
                found[index].append(h)
                if row.end > read_at[-1]:
                    scheduler.finish(row.choice)
                    whole = torch.cat(found[index])
                    check_numbers(whole, self.policy.name)
                    yield index, whole
                    found[index].clear()

    def _choices(self, replies: Sequence[EncodedReply], positions: Positions | None) -> list[Choice]:
        """Replies to one prompt follow the first of them where they can share a block of it."""
        leaders: dict[tuple[int, ...], Choice] = {}
        choices = []
        for index, reply in enumerate(replies):
            prompt = reply.prompt_ids
            first = len(prompt) - 1
            wanted = range(len(reply.reply_ids) + 1) if positions is None else positions[index]
            lane = Lane(list(prompt + reply.reply_ids))
            choice = Choice(Request(str(index), prompt), 0, (lane,), read_at=[first + t for t in wanted])
            if first >= self.config.block_size:
                leader = leaders.setdefault(prompt, choice)
                choice.leader = None if leader is choice else leader
            choices.append(choice)
        return choices

    def _new_scheduler(self, longest: int) -> Scheduler:
        """With as many blocks as a step's rows can need: the others are never written to, and take no memory.
        Rows draw nothing, so that no more are begun than a step has tokens for: the budget, what two of them
        hold of steps before, and of each a block that is not full."""
        size, rows = self.config.block_size, self.config.max_num_seqs
        of_rows = rows * (longest // size + 1)
        of_budget = (self.config.token_budget + 2 * longest) // size + rows
        num_blocks = min(self._num_blocks, min(of_rows, of_budget) + 1)
        blocks = BlockManager(num_blocks, size, self.config.prefix_caching)
        return Scheduler(blocks, self.config.max_num_seqs, self.config.token_budget)

    def _run(self, step: Step) -> list[Tensor]:
        """h [k, d] of each row of the step on the CPU."""
        for choice in step.admitted:
            self._runner.state.admit(choice, 0, [], 0.0)
        h = self._runner.run(step).features.to("cpu", copy=True)
        return list(h.split([len(row.output_positions) for row in step.rows]))

    def _check(self, replies: Sequence[EncodedReply]) -> None:
        limit = self.policy.max_model_len
        num_long = sum(reply.num_tokens > limit for reply in replies)
        if num_long:
            raise DataError(
                f"{num_long} of {len(replies)} replies are longer than the {limit} tokens of "
                f"{self.policy.name}'s context: leave them out"
            )
