"""Classifier-free guidance by a companion lane, against transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rule_requests import PROMPT, one, request
from tiny_models import save_random_head
from transformers import AutoModelForCausalLM

from trimtab.guidance.controllers.kl_budget import KLBudget
from trimtab.guidance.controllers.max_kl import MaxKL
from trimtab.guidance.heads.store import load_head
from trimtab.guidance.rules import Contrast
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import (
    Finished,
    Guidance,
    InvalidRequestError,
)
from trimtab.server.rollouts.sample import sample

OTHER = (9, 8, 7, 6, 5, 4, 3)
Make = Callable[..., Engine]


@pytest.fixture(scope="module")
def head(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_head(tmp_path_factory.mktemp("heads"), llama_folder, "kind", "lowrank")


def contrasted(gamma: float = 2.0, alpha: float = 0.0, strength: float = 0.0, **more: object) -> Guidance:
    rule = Contrast(OTHER, gamma=gamma, alpha=alpha)
    return Guidance(strength, (("kind", 1.0),) if strength else (), rule=rule, **more)  # type: ignore[arg-type]


def logits_of(engine: Engine, prompt: tuple[int, ...], tokens: list[int]) -> torch.Tensor:
    """[T, V] before each token."""
    model = AutoModelForCausalLM.from_pretrained(engine.config.model)
    ids = torch.tensor([[*prompt, *tokens]])
    with torch.no_grad():
        return model(ids).logits[0, len(prompt) - 1 : -1].double()


@pytest.mark.parametrize("gamma", [0.0, 1.5, 3.0, -2.0])
def test_greedy_replies_are_those_of_transformers(make_engine: Make, llama_folder: Path, gamma: float):
    model = AutoModelForCausalLM.from_pretrained(llama_folder)
    out = model.generate(
        torch.tensor([PROMPT]), negative_prompt_ids=torch.tensor([OTHER]), guidance_scale=gamma,
        max_new_tokens=12, min_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=258,
    )  # fmt: skip
    reply = one(make_engine(), contrasted(gamma), temperature=0)
    assert reply.token_ids == out[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_every_number_is_of_the_contrast_and_kl_counts_from_the_policy(make_engine: Make, alpha: float):
    engine = make_engine()
    reply = one(engine, contrasted(2.5, alpha, trace=True), logprobs=2)
    z, other = (logits_of(engine, prompt, reply.token_ids) for prompt in (PROMPT, OTHER))
    base = z.log_softmax(-1)
    guided = other.log_softmax(-1) + 2.5 * (base - other.log_softmax(-1))
    if alpha:
        guided[base.exp() < alpha * base.exp().amax(-1, keepdim=True)] = -torch.inf
    guided = guided.log_softmax(-1)
    kl = (guided.exp() * (guided - base).clamp(min=-1e9)).sum(-1)
    for t, token in enumerate(reply.tokens):
        assert token.trace is not None
        assert token.logprob == pytest.approx(float(guided[t, token.token_id]), abs=1e-3)
        assert token.trace.base_logprob == pytest.approx(float(base[t, token.token_id]), abs=1e-3)
        assert token.trace.kl == pytest.approx(float(kl[t]), rel=1e-3, abs=1e-3)
        assert token.top_logprobs[0][1] == pytest.approx(float(guided[t].max()), abs=1e-3)
        assert token.trace.base_top[0][1] == pytest.approx(float(base[t].max()), abs=1e-3)
        assert token.trace.flip == bool(guided[t].argmax() != base[t].argmax())
    assert reply.summary.kl == pytest.approx(float(kl.sum()), rel=1e-3)


def test_gamma_1_is_bitwise_the_policy_and_runs_no_second_lane(make_engine: Make):
    plain, off = make_engine(), make_engine()
    expected, got = one(plain, Guidance(), logprobs=0), one(off, contrasted(1.0), logprobs=0)
    assert [(t.token_id, t.logprob) for t in got.tokens] == [(t.token_id, t.logprob) for t in expected.tokens]
    assert got.summary.kl == 0


def test_a_head_tilts_the_contrast(make_engine: Make, head: Path):
    engine = make_engine(heads=(head,))
    reply = one(engine, contrasted(2.0, strength=-1.5, trace=True))
    z, other = (logits_of(engine, prompt, reply.token_ids) for prompt in (PROMPT, OTHER))
    h = AutoModelForCausalLM.from_pretrained(engine.config.model).model(
        torch.tensor([[*PROMPT, *reply.token_ids]])
    )[0][0, len(PROMPT) - 1 : -1]
    advantage = load_head(head)[0].double().advantage(h.double(), engine.policy.lm_head.double())
    guided = (z + (z - other) - 1.5 * advantage).log_softmax(-1).detach()
    for t, token in enumerate(reply.tokens):
        assert token.logprob == pytest.approx(float(guided[t, token.token_id]), abs=1e-3)
        assert token.trace is not None and token.trace.strength == -1.5


MIX = [
    Guidance(),
    contrasted(2.0),
    Guidance(2.0, (("kind", 1.0),)),
    contrasted(3.0, alpha=0.1),
    contrasted(0.5, strength=-2.0),
    contrasted(1.0, alpha=0.2),
    contrasted(3.0, alpha=0.3, strength=1.0, controllers=(KLBudget(3.0), MaxKL(0.5))),
]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"async_depth": 1},
        {"padding": "buckets"},
        {"num_blocks": 30},
        {"strict": True},
        {"max_num_seqs": 3},
    ],
    ids=str,
)
def test_replies_are_their_own_in_any_batch_and_nothing_is_left(
    make_engine: Make, head: Path, options: dict[str, object]
):
    reference = make_engine(heads=(head,))
    alone = [one(reference, guidance, max_tokens=40).token_ids for guidance in MIX]
    engine = make_engine(heads=(head,), **options)
    got = sample(engine, [request(str(i), guidance, max_tokens=40) for i, guidance in enumerate(MIX)])
    assert [completion.token_ids for completion in got] == alone
    assert engine.scheduler.blocks.num_free == engine.scheduler.blocks.num_usable
    assert len(engine.scheduler._free_slots) == engine.config.max_num_seqs


def test_strict_replies_are_bitwise_the_same_whoever_shares_the_batch(make_engine: Make, head: Path):
    engine = make_engine(heads=(head,), strict=True)
    guidance = contrasted(2.0, alpha=0.3, strength=1.0, controllers=(MaxKL(0.3),))
    alone = one(engine, guidance, logprobs=0)
    mates = [request(str(i), mate) for i, mate in enumerate(MIX)]
    together = sample(engine, [mates[0], request("one", guidance, logprobs=0), *mates[1:]])[1]
    for ours, theirs in zip(together.tokens, alone.tokens, strict=True):
        assert (ours.token_id, ours.logprob) == (theirs.token_id, theirs.logprob)


def test_choices_share_both_prompts_and_usage_counts_every_token(make_engine: Make):
    engine = make_engine()
    engine.add(request("n", contrasted(), n=2))
    events = []
    while engine.has_work:
        events += engine.step()
    (done,) = [event for event in events if isinstance(event, Finished)]
    assert done.num_completion_tokens == 24
    assert done.num_computed_tokens == len(PROMPT) + len(OTHER) + 2 * 1 + 2 * 2 * 11


@pytest.mark.parametrize(
    ("guidance", "options", "param", "words"),
    [
        (contrasted(), {"max_num_seqs": 1}, "guidance.rule.negative_prompt", "--max-num-seqs"),
        (contrasted(), {"num_blocks": 9, "max_model_len": 60}, "guidance.rule.negative_prompt", "blocks"),
        (Guidance(rule=Contrast((999,))), {}, "guidance.rule.negative_prompt", "0…259"),
        (Guidance(rule=Contrast((1,) * 120)), {}, "guidance.rule.negative_prompt", "at most 116"),
    ],
)
def test_what_can_never_run_is_refused(
    make_engine: Make, guidance: Guidance, options: dict[str, object], param: str, words: str
):
    with pytest.raises(InvalidRequestError, match=words) as error:
        make_engine(**options).add(request("bad", guidance))
    assert error.value.param == param


def test_a_judged_reply_drops_its_companion(llama_folder: Path, tmp_path: Path):
    head = save_random_head(tmp_path, llama_folder, "kind", "tied")
    engine = Engine.from_config(EngineConfig(llama_folder, heads=(head,), block_size=8, max_num_seqs=2))
    reply = one(engine, contrasted(2.0, strength=1.0))
    assert dict(reply.summary.reward).keys() == {"kind"}
    assert engine.scheduler.blocks.num_free == engine.scheduler.blocks.num_usable
