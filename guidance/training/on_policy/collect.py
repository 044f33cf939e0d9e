"""Collector of an on-policy iteration: samples replies of the tilt, rewards and credits their tokens."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from trimtab.guidance.data.items import PromptItem, RolloutItem
from trimtab.guidance.data.rows import ReadColumns
from trimtab.guidance.errors import DataError
from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Head, along
from trimtab.guidance.losses.credit import Credit, Scored
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.held_out import score_ends
from trimtab.guidance.training.objectives.base import ReplyFeatures, fetch, lay_out, pad
from trimtab.guidance.training.objectives.on_policy import Experience, Iteration, PolicyObjective
from trimtab.guidance.training.objectives.rollouts import returns_of, start_at
from trimtab.guidance.training.objectives.tilt import TiltTerms, tilt_terms
from trimtab.guidance.training.on_policy.guard import KlGuard
from trimtab.guidance.training.processes import gather_shares, gather_texts, own_share

logger = logging.getLogger(__name__)
_REPLIES_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Draw:
    """A reply to the prompts' prompt-th. problem: why the scorer gave it no reward."""

    prompt: int
    rollout: RolloutItem
    problem: str = ""

    def to_json(self) -> str:
        """One line, from which another process has the same draw, bit for bit."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Draw:
        read: dict[str, Any] = json.loads(text)
        rollout = read["rollout"]
        reply, rewards = rollout["reply"], rollout["token_rewards"]
        encoded = EncodedReply(tuple(reply["prompt_ids"]), tuple(reply["reply_ids"]), reply["is_cut"])
        item = RolloutItem(encoded, rollout["reward"], None if rewards is None else tuple(rewards))
        return cls(read["prompt"], item, read["problem"])


class ReplyWriter(Protocol):
    """What writes the replies that an on-policy loss learns from."""

    @property
    def is_scoring(self) -> bool:
        """Whether draws come with rewards; else the head's own reward part gives them."""
        ...

    @property
    def reads(self) -> ReadColumns:
        """Columns of the prompts' rows that scoring reads."""
        ...

    def write(
        self,
        head: Head,
        strength: float,
        prompts: Sequence[PromptItem],
        num_replies: int,
        seed: int,
        first: int = 0,
    ) -> list[Draw]:
        """Replies of the policy as the head's advantage tilts it at `strength`, at temperature 1; the same
        ones for the same arguments. In the prompts' order, num_replies to each.

        first: the number of the first prompt, from which the others count on. A prompt's replies follow from
        seed and number, so that a share of many prompts gets what it would get among them.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Seen:
    """Replies end to end, N tokens: their features, and the tilt and the value there."""

    replies: list[ReplyFeatures]
    lengths: Tensor
    terms: TiltTerms
    values: Tensor


class Collector:
    """features: computed when asked for and not kept, since replies are learned from once.

    Several processes share the work of an iteration, and each then has all of it: what is decided and what is
    learned from is the same in all, and the same as in one process.
    """

    def __init__(
        self,
        objective: PolicyObjective,
        prompts: Sequence[PromptItem],
        writer: ReplyWriter,
        features: FeatureSource,
        guard: KlGuard,
    ) -> None:
        self.objective, self.prompts, self.writer = objective, prompts, writer
        self.features, self.guard = features, guard
        self.config = objective.config

    def collect(self, iteration: int) -> list[Experience] | None:
        """The replies of an iteration; None where the guard says that training is to end.

        Raises:
            DataError: replies without a reward, with on_bad_rows="refuse" or too many of them.
        """
        settings = self.config.on_policy
        seed = seed_of(self.config.seed, iteration)
        draws = self._draw(1.0, self.chosen(iteration), seed)
        if iteration == 0:
            self._start_value(draws)
        seen = self._look([draw.rollout for draw in draws])
        kl = seen.terms.kl.sum().item() / len(draws)
        tau = self.guard.tau_at(iteration, kl)
        figures = {"iteration": iteration, "tau": tau} | _figures(draws, seen, kl)
        if self.guard.is_passed(kl):
            logger.warning(
                "iteration %d: %.2f nats per reply, more than on_policy.max_kl=%g: training ends, and the "
                "head is what it was before",
                iteration,
                kl,
                settings.max_kl,
            )
            return None
        self.guard.record(figures, self.objective)
        logger.info("%s", "  ".join(f"{name} {figure:.4g}" for name, figure in figures.items()))
        return self._credited(draws, seen, tau, figures)

    def judge(
        self, prompts: Sequence[PromptItem], strength: float
    ) -> tuple[list[RolloutItem], dict[str, float]]:
        """Rewarded replies to prompts that are not learned from, and their figures; the KL is the tilt's."""
        draws = self._draw(strength, prompts, seed_of(self.config.seed, "held out"))
        seen = self._look([draw.rollout for draw in draws])
        kl = seen.terms.kl.sum().item() / len(draws)
        return [draw.rollout for draw in draws], _figures(draws, seen, kl)

    def _draw(self, strength: float, prompts: Sequence[PromptItem], seed: int) -> list[Draw]:
        """Rewarded draws: each process samples and scores its share of the prompts, and all get all."""
        share, num_replies = own_share(len(prompts)), self.config.on_policy.num_replies
        own: list[Draw] = []
        if share.stop > share.start:
            own = self.writer.write(
                self.objective.head[0], strength, prompts[share], num_replies, seed, share.start
            )
        texts = gather_texts("\n".join(draw.to_json() for draw in self._rewarded(own)))
        return self._good([Draw.from_json(line) for text in texts for line in text.splitlines()])

    def chosen(self, iteration: int) -> list[PromptItem]:
        """The next num_prompts of the prompts, which are shuffled each time that all were taken."""
        count, size = len(self.prompts), self.config.on_policy.num_prompts
        places = range(iteration * size, (iteration + 1) * size)
        orders = {lap: self._order(lap) for lap in {place // count for place in places}}
        return [self.prompts[orders[place // count][place % count]] for place in places]

    def _order(self, lap: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed_of(self.config.seed, lap, "prompts"))
        order: list[int] = torch.randperm(len(self.prompts), generator=generator).tolist()
        return order

    def _good(self, draws: list[Draw]) -> list[Draw]:
        """Those with a reward, as many as there were: with others left out, some are learned from twice."""
        problems = [draw.problem for draw in draws if draw.problem]
        if not problems:
            return draws
        told = f"{len(problems)} of {len(draws)} replies have no reward, first: {problems[0]}"
        good = [draw for draw in draws if not draw.problem]
        if self.objective.formula.compares:
            good = _comparable(good)
        if self.config.on_bad_rows == "refuse" or 2 * len(good) < len(draws):
            raise DataError(f"{told}: mend the scorer, or skip bad rows, of which there may be up to half")
        logger.warning("skipped %s", told)
        return good

    def _rewarded(self, draws: list[Draw]) -> list[Draw]:
        if self.writer.is_scoring or not draws:
            return draws
        reward = self.objective.head[0].reward
        assert reward is not None, "a plan without a scorer needs a reward part"
        scores = score_ends(reward, self.features, [draw.rollout.reply for draw in draws]).tolist()
        return [
            replace(draw, rollout=replace(draw.rollout, reward=score))
            for draw, score in zip(draws, scores, strict=True)
        ]

    def _start_value(self, draws: Sequence[Draw]) -> None:
        if self.objective.value is not None:
            returns = [returns_of(draw.rollout, self.config.advantage.discount) for draw in draws]
            start_at(self.objective.value, torch.cat(returns).tolist())

    @torch.no_grad()
    def _look(self, items: Sequence[RolloutItem]) -> _Seen:
        """Each process runs the policy over its share, and all get all."""
        lengths = torch.tensor([item.reply.num_drawn for item in items])
        own = [item.reply for item in items[own_share(len(items))]]
        pieces = [
            self._look_at(own[start : start + _REPLIES_AT_ONCE])
            for start in range(0, max(len(own), 1), _REPLIES_AT_ONCE)
        ]
        h, tokens, values, *terms = (gather_shares(torch.cat(column)) for column in zip(*pieces, strict=True))
        by_reply = zip(h.split(lengths.tolist()), tokens.split(lengths.tolist()), strict=True)
        return _Seen([ReplyFeatures(*row) for row in by_reply], lengths, TiltTerms(*terms), values)

    def _look_at(self, replies: Sequence[EncodedReply]) -> tuple[Tensor, ...]:
        """h [N, d], tokens, values, and the tilt's terms where the drawn tokens are predicted, end to end."""
        device, value = self.features.policy.device, self.objective.value
        if not replies:
            none, h = torch.zeros(0), self.features.policy.lm_head[:0].cpu()
            return h, none.long(), none, none, none, none
        batch = lay_out(fetch(self.features, replies))
        h, tokens = batch["h"].to(device), batch["tokens"].to(device)
        values = torch.zeros(len(h)) if value is None else along(value, h.float(), batch["lengths"])
        terms = tilt_terms(self.objective.tilt, h, tokens)
        return tuple(column.cpu() for column in (h, tokens, values, *terms))

    def _credited(
        self, draws: Sequence[Draw], seen: _Seen, tau: float, figures: dict[str, float]
    ) -> list[Experience]:
        settings, own = self.config.on_policy, self.config.advantage
        is_exact = settings.kl_estimate == "exact"
        mask = pad(seen.values, seen.lengths)[1]
        rewards = torch.tensor([reward for draw in draws for reward in draw.rollout.rewards()])
        scored = Scored(
            rewards=pad(rewards, seen.lengths)[0],
            kl=pad(seen.terms.kl if is_exact else seen.terms.log_ratio, seen.lengths)[0],
            values=pad(seen.values, seen.lengths)[0],
            mask=mask,
            group=torch.tensor([draw.prompt for draw in draws]),
            is_dense=any(draw.rollout.token_rewards is not None for draw in draws),
            is_exact=is_exact,
            tau=tau,
            discount=own.discount,
            lam=settings.lam,
        )
        credit = self.objective.formula.credit(scored)
        spread = credit.returns[mask].std().clamp(min=1e-6).item()
        self.objective.iteration = Iteration(
            tau=0.0 if is_exact else tau,
            kl_weight=credit.kl_weight if is_exact else 0.0,
            spread=spread,
            figures={name: figure for name, figure in figures.items() if name != "iteration"},
        )
        return _experiences(seen, credit, mask)


def seed_of(seed: int, *keys: int | str) -> int:
    """31 bits that follow from the run's seed and what they are for."""
    digest = hashlib.sha256(repr((seed, *keys)).encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


def _comparable(draws: list[Draw]) -> list[Draw]:
    """Those whose prompt has another reply to compare them with."""
    count = Counter(draw.prompt for draw in draws)
    return [draw for draw in draws if count[draw.prompt] > 1]


def _experiences(seen: _Seen, credit: Credit, mask: Tensor) -> list[Experience]:
    by_token = (seen.terms.log_ratio, seen.values, credit.advantages[mask], credit.returns[mask])
    columns = (x.split(seen.lengths.tolist()) for x in by_token)
    return [
        Experience(reply.h[: len(reply.tokens)], reply.tokens, *row)
        for reply, row in zip(seen.replies, zip(*columns, strict=True), strict=True)
    ]


def _figures(draws: Sequence[Draw], seen: _Seen, kl: float) -> dict[str, float]:
    scores = torch.tensor([sum(draw.rollout.rewards()) for draw in draws])
    return {
        "score": scores.mean().item(),
        "score_std": scores.std().item(),
        "kl_per_reply": kl,
        "length": seen.lengths.float().mean().item(),
    }
