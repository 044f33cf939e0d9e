"""Replies for an on-policy loss: written by our own engine, scored as `trimtab rollouts` scores them."""

from __future__ import annotations

from collections.abc import Sequence

from tqdm.auto import tqdm

from trimtab.guidance.data.items import PromptItem, RolloutItem, RowEncoder
from trimtab.guidance.data.rollouts import RolloutRow
from trimtab.guidance.data.rows import ReadColumns
from trimtab.guidance.errors import DataError
from trimtab.guidance.heads.bank import HeadBank
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import Manifest, Parts
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import Sampled
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.examples import rows_of
from trimtab.guidance.training.on_policy.collect import Draw
from trimtab.guidance.training.processes import is_first, process_index
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import InvalidRequestError
from trimtab.server.engine.startup import load
from trimtab.server.judging.config import JudgeConfig
from trimtab.server.rollouts.sample import EncodedPrompt, GenerationError, SamplePlan, sample_rollouts
from trimtab.server.scoring.choose import ScorerContext, check_scorer, make_scorer
from trimtab.server.scoring.scorer import Score, Scorer

FLAG = "--on-policy.score"
_NAME = "learner"


class EngineWriter:
    """A ReplyWriter of guidance/training/on_policy: an engine whose only head is the one that learns, whose
    weights are put in anew before every sampling."""

    def __init__(
        self, engine: Engine, encoder: RowEncoder, scorer: Scorer | None, config: TrainConfig
    ) -> None:
        self.engine, self.scorer, self.config = engine, scorer, config
        self._encoder = encoder

    @classmethod
    def load(cls, config: TrainConfig, policy: Policy) -> EngineWriter:
        """An engine over the same weights as `policy`, what the head is trained on.

        Raises ModelError, UserError, HeadError or PolicyError, one line, for a model or a scorer that cannot
        be had.
        """
        scorer = _scorer(config, policy) if config.on_policy.score else None
        served, _, engine_config, _ = load(_engine_config(config, policy), policy=policy)
        identity, parts = policy.identity, Parts(advantage=config.advantage.part())
        head = Head(parts, identity.hidden_size, identity.vocab_size).requires_grad_(False)
        head.to(served.device, served.dtype)
        manifest = Manifest(
            name=_NAME,
            parts=parts,
            hidden_size=identity.hidden_size,
            vocab_size=identity.vocab_size,
            base_model=identity.base_model,
        )
        bank = HeadBank(
            [(head, manifest)],
            identity.hidden_size,
            device=served.device,
            vocab_size=served.vocab_size,
            vocabulary=None if served.native is None else served.native.vocabulary(),
        )
        encoder = RowEncoder(policy, rows_of(config, policy), extra_keys=config.extra_columns)
        return cls(Engine(served, bank, engine_config), encoder, scorer, config)

    @property
    def is_scoring(self) -> bool:
        """See ReplyWriter."""
        return self.scorer is not None

    @property
    def reads(self) -> ReadColumns:
        """See ReplyWriter."""
        return check_scorer(self.config.on_policy.score, FLAG)

    def write(
        self,
        head: Head,
        strength: float,
        prompts: Sequence[PromptItem],
        num_replies: int,
        seed: int,
        first: int = 0,
    ) -> list[Draw]:
        """See ReplyWriter. Raises DataError where the engine cannot go on."""
        assert head.advantage is not None
        self.engine.bank.put_advantage(_NAME, head.advantage)
        plan = SamplePlan(
            num_replies=num_replies,
            max_tokens=self.config.on_policy.max_tokens,
            seed=seed,
            heads=((_NAME, 1.0),),
            strength=strength,
        )
        encoded = [
            EncodedPrompt(i, item.prompt, item.prompt_ids, columns=item.columns)
            for i, item in enumerate(prompts, first)
        ]
        total, shown = len(prompts) * num_replies, self.config.show_progress and is_first()
        with tqdm(total=total, desc="replies", unit="reply", leave=False, disable=not shown) as bar:
            try:
                rows = sample_rollouts(self.engine, encoded, plan, bar)
            except (GenerationError, InvalidRequestError) as error:
                raise DataError(f"sampling failed: {error}") from error
        scores = [Score(None)] * len(rows) if self.scorer is None else self.scorer.score(rows)
        return [self._draw(row, score) for row, score in zip(rows, scores, strict=True)]

    def _draw(self, row: RolloutRow, score: Score) -> Draw:
        reply = self._encoder.reply(row.prompt, row.completion, Sampled(row.token_ids, row.is_cut))
        told = score.problem or (
            "it was left without a reward" if self.is_scoring and score.reward is None else ""
        )
        problem = f"prompt {row.prompt_id} sample {row.sample}: {told}" if told else ""
        return Draw(row.prompt_id, RolloutItem(reply, score.reward, score.token_rewards), problem)


def _engine_config(config: TrainConfig, policy: Policy) -> EngineConfig:
    return EngineConfig(
        config.model,
        device=str(policy.device),
        max_num_seqs=config.on_policy.max_num_seqs,
        # What an iteration draws must not depend on the ones before: a resumed run has not had them.
        prefix_caching=False,
    )


def _own_name(stem: str, suffix: str) -> str:
    """Of a file that each process has its own of."""
    return stem + suffix if is_first() else f"{stem}-{process_index()}{suffix}"


def _scorer(config: TrainConfig, policy: Policy) -> Scorer:
    context = ScorerContext(
        model=config.model,
        heads=() if config.start_from is None else (config.start_from,),
        judge=JudgeConfig(),
        answers=config.run_folder / _own_name("judge_answers", ".jsonl"),
        device=config.device,
        rows=rows_of(config, policy),
        flag=FLAG,
        policy=policy,
    )
    return make_scorer(config.on_policy.score, context)
