"""Lookahead in one batched pass, against a loop over transformers' own forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rule_requests import PROMPT, one, request, save_valued_heads
from tiny_models import save_random_head
from torch import Tensor
from transformers import AutoModelForCausalLM

from trimtab.guidance.controllers.kl_budget import KLBudget
from trimtab.guidance.controllers.max_kl import MaxKL
from trimtab.guidance.controllers.target import Target
from trimtab.guidance.heads.forms import along
from trimtab.guidance.heads.manifest import ScalarPart
from trimtab.guidance.heads.store import load_head
from trimtab.guidance.rules import Contrast, Lookahead
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import (
    Finished,
    Guidance,
    InvalidRequestError,
)
from trimtab.server.rollouts.sample import sample

Make = Callable[..., Engine]
PARTS = {
    "kind": ScalarPart("linear"),
    "mean": ScalarPart("mean", 8, units=5),
    "gru": ScalarPart("gru", 8, units=6),
}


@pytest.fixture(scope="module")
def folders(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("heads")
    made = save_valued_heads(folder, llama_folder, PARTS)
    return made | {"mute": save_random_head(folder, llama_folder, "mute", parts="a")}


def ahead(strength: float, heads: str = "kind", k: int = 10, **options: object) -> Guidance:
    weights = tuple((name, 1.0 - i / 4) for i, name in enumerate(heads.split()))
    return Guidance(strength, weights, trace=True, rule=Lookahead(k, **options))  # type: ignore[arg-type]


@torch.inference_mode()
def oracle(engine: Engine, folders: dict[str, Path], guidance: Guidance, tokens: Sequence[int]) -> Tensor:
    """z + β(V − mean) [V] after these tokens; every candidate is run from the prompt on."""
    model, rule = AutoModelForCausalLM.from_pretrained(engine.config.model), guidance.rule
    assert isinstance(rule, Lookahead)
    prefix = torch.tensor([*PROMPT, *tokens])
    z = model(prefix[None]).logits[0, -1].double()
    top, ids = z.topk(rule.k)
    h = model.model(torch.cat([prefix.expand(rule.k, -1), ids[:, None]], 1))[0][:, len(PROMPT) - 1 :]
    values = torch.zeros(rule.k, dtype=torch.double)
    for name, weight in guidance.heads:
        head, manifest = load_head(folders[name])
        assert head.value is not None
        for i, states in enumerate(h):
            value = along(head.value, states, torch.tensor([len(states)]))[-1]
            values[i] += weight * (float(value) - manifest.reward_mean) / manifest.reward_std
    centred = values - (top.softmax(0) * values).sum()
    out = z.clone() if rule.others == "keep" else torch.full_like(z, -torch.inf)
    out[ids] = top + guidance.strength * centred
    return out


@pytest.mark.parametrize(
    "guidance",
    [
        ahead(2.0),
        ahead(-2.0, k=64),
        ahead(3.0, "kind gru mean", k=5),
        ahead(4.0, "mean", others="keep", k=3),
        ahead(1.0, k=1),
    ],
    ids=lambda g: f"{g.strength} {g.rule.k} {g.rule.others}",
)
@pytest.mark.parametrize("options", [{}, {"strict": True}, {"max_num_batched_tokens": 8}], ids=str)
def test_greedy_replies_are_those_of_a_loop_one_by_one(
    make_engine: Make, folders: dict[str, Path], guidance: Guidance, options: dict[str, object]
):
    engine = make_engine(heads=tuple(folders.values()), **options)
    reply = one(engine, guidance, temperature=0, max_tokens=5)
    for t, token in enumerate(reply.tokens):
        guided = oracle(engine, folders, guidance, reply.token_ids[:t])
        assert token.token_id == int(guided.argmax())
        assert token.logprob == pytest.approx(float(guided.log_softmax(0).max()), abs=1e-3)


def test_every_number_counts_from_the_whole_base(make_engine: Make, folders: dict[str, Path]):
    engine = make_engine(heads=tuple(folders.values()))
    for guidance in (ahead(2.0, k=4), ahead(2.0, k=4, others="keep")):
        reply = one(engine, guidance, max_tokens=4)
        model = AutoModelForCausalLM.from_pretrained(engine.config.model)
        with torch.no_grad():
            z = model(torch.tensor([[*PROMPT, *reply.token_ids]])).logits[0, len(PROMPT) - 1 :].double()
        for t, token in enumerate(reply.tokens):
            base = z[t].log_softmax(0)
            guided = oracle(engine, folders, guidance, reply.token_ids[:t]).log_softmax(0)
            kl = float((guided.exp() * (guided - base).clamp(min=-1e9)).sum())
            assert token.trace is not None
            assert token.trace.kl == pytest.approx(kl, abs=1e-3)
            assert token.trace.base_logprob == pytest.approx(float(base[token.token_id]), abs=1e-3)
            assert token.trace.strength == 2.0


@pytest.mark.parametrize("weight", [1.0, -2.0])
def test_a_target_reads_what_is_added_as_values(make_engine: Make, folders: dict[str, Path], weight: float):
    engine = make_engine(heads=tuple(folders.values()))
    target, sign = Target("kind", 3.0 if weight > 0 else -3.0, horizon=30), 1 if weight > 0 else -1
    rule = Lookahead(32, "keep")
    reply = one(engine, Guidance(9.0, (("kind", weight),), True, (target,), rule), max_tokens=40)
    for t, token in enumerate(reply.tokens[:5]):
        assert token.trace is not None and 0 < token.trace.strength < 9
        asked = Guidance(token.trace.strength, (("kind", weight),), rule=rule)
        guided = oracle(engine, folders, asked, reply.token_ids[:t])
        plain = oracle(engine, folders, replace(asked, strength=1e-3), reply.token_ids[:t])
        values = (guided - plain) / (token.trace.strength - 1e-3) / weight
        missing = sign * (target.value - dict(token.trace.value)["kind"])
        gain = sign * float((guided.softmax(0) * values).sum())
        assert missing / 30 <= gain * 1.002 <= 1.02 * missing / 30


def test_strength_0_is_bitwise_the_policy(make_engine: Make, folders: dict[str, Path]):
    engine = make_engine(heads=tuple(folders.values()))
    plain, off = one(engine, Guidance(), logprobs=0), one(engine, ahead(0.0), logprobs=0)
    assert [(t.token_id, t.logprob) for t in off.tokens] == [(t.token_id, t.logprob) for t in plain.tokens]


MIX = [
    Guidance(),
    ahead(2.0),
    Guidance(2.0, (("kind", 1.0),)),
    ahead(3.0, "gru kind", k=4, others="keep"),
    Guidance(rule=Contrast((3, 4, 5), gamma=2.0)),
    ahead(-1.0, "mean", k=16),
    ahead(2.0),
    replace(ahead(4.0, "gru", k=8, others="keep"), controllers=(KLBudget(0.5),)),
]
WAYS: list[dict[str, object]] = [
    {"async_depth": 1},
    {"padding": "buckets"},
    {"num_blocks": 56},
    {"max_num_seqs": 3, "max_num_batched_tokens": 9},
    {"strict": True, "num_blocks": 56},
]


@pytest.fixture(scope="module")
def alone(llama_folder: Path, folders: dict[str, Path]) -> list[list[int]]:
    config = EngineConfig(llama_folder, heads=tuple(folders.values()), block_size=8, max_num_seqs=8)
    engine = Engine.from_config(config)
    return [one(engine, guidance, max_tokens=16).token_ids for guidance in MIX]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_replies_are_their_own_in_any_batch_and_nothing_is_left(
    make_engine: Make, folders: dict[str, Path], alone: list[list[int]], way: dict[str, object]
):
    engine = make_engine(heads=tuple(folders.values()), **way)
    got = sample(engine, [request(str(i), guidance, max_tokens=16) for i, guidance in enumerate(MIX)])
    assert [completion.token_ids for completion in got] == alone
    assert engine.scheduler.blocks.num_free == engine.scheduler.blocks.num_usable


def test_strict_replies_are_bitwise_the_same_whoever_shares_the_batch(
    make_engine: Make, folders: dict[str, Path]
):
    engine = make_engine(heads=tuple(folders.values()), strict=True, max_num_batched_tokens=16)
    guidance = replace(ahead(5.0, "gru kind", k=60), controllers=(MaxKL(1.3),))
    alone = one(engine, guidance)
    mates = [request(str(i), mate) for i, mate in enumerate(MIX)]
    together = sample(engine, [mates[0], request("one", guidance), *mates[1:]])[1]
    for ours, theirs in zip(together.tokens, alone.tokens, strict=True):
        assert (ours.token_id, ours.logprob) == (theirs.token_id, theirs.logprob)


def test_usage_counts_every_token_tried(make_engine: Make, folders: dict[str, Path]):
    engine = make_engine(heads=tuple(folders.values()))
    engine.add(request("one", ahead(1.0, k=7)))
    events = []
    while engine.has_work:
        events += engine.step()
    (done,) = [event for event in events if isinstance(event, Finished)]
    judged = 2  # the last token, and the end that is put behind it
    assert done.num_computed_tokens == len(PROMPT) + 11 + 12 * 7 + judged


@pytest.mark.parametrize(
    ("guidance", "options", "param", "words"),
    [
        (ahead(1.0, "mute"), {}, "guidance.heads.mute", "no value"),
        (Guidance(1.0, (("kind", 0.0),), rule=Lookahead()), {}, "guidance.heads", "weight"),
        (Guidance(1.0, rule=Lookahead()), {}, "guidance.heads", "at least one"),
        (ahead(1.0, k=40), {"num_blocks": 60, "max_model_len": 60}, "guidance.rule.k", "at most 29"),
    ],
)
def test_what_can_never_run_is_refused(
    make_engine: Make,
    folders: dict[str, Path],
    guidance: Guidance,
    options: dict[str, object],
    param: str,
    words: str,
):
    with pytest.raises(InvalidRequestError, match=words) as error:
        make_engine(heads=tuple(folders.values()), **options).add(request("bad", guidance))
    assert error.value.param == param
