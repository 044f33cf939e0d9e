"""Further models beside the policy, against a loop of transformers' forwards."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from preemptions import watch_preemptions
from rule_requests import PROMPT, one, request
from tiny_models import EOS, SIZES, byte_tokenizer, save_random_head, save_random_model
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, PreTrainedModel

from trimtab.guidance.errors import ModelError
from trimtab.guidance.heads.store import load_head
from trimtab.guidance.rules import Expert
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import (
    Delta,
    Failed,
    Finished,
    GrammarSpec,
    Guidance,
    InvalidRequestError,
    Request,
)
from trimtab.server.engine.startup import run_largest_step
from trimtab.server.rollouts.sample import sample

Make = Callable[..., Engine]
LONG = tuple(range(40, 80))


@pytest.fixture(scope="module")
def folders(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The policy; an expert of another depth, width and number of heads; and one with a tail of its own."""
    folder = tmp_path_factory.mktemp("experts")
    good = LlamaConfig(**{**SIZES, "num_hidden_layers": 2, "hidden_size": 48, "num_key_value_heads": 4})
    bad = Gemma2Config(**SIZES, head_dim=12, query_pre_attn_scalar=12, sliding_window=9)
    return {
        "policy": llama_folder,
        "good": save_random_model(good, folder / "good", seed=1),
        "bad": save_random_model(bad, folder / "bad", seed=2),
    }


@pytest.fixture(scope="module")
def head(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_head(tmp_path_factory.mktemp("heads"), llama_folder, "kind", "lowrank")


@pytest.fixture(scope="module")
def make(folders: dict[str, Path]) -> Make:
    given = tuple(f"{name}={folders[name]}" for name in ("good", "bad"))
    common = {"model": folders["policy"], "block_size": 8, "max_num_seqs": 8, "expert": given}
    return lambda **options: Engine.from_config(EngineConfig(**{**common, **options}))


@pytest.fixture(scope="module")
def engine(make: Make, head: Path) -> Engine:
    return make(heads=(head,))


@cache
def model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder)


@torch.no_grad()
def logits_of(folder: Path, tokens: list[int], prompt: tuple[int, ...] = PROMPT) -> torch.Tensor:
    """[T + 1, V] before each token and after the last."""
    return model(folder)(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 :].double()


def advised(
    expert: str = "good", anti: str | None = None, weight: float = 1.0, alpha: float = 0.0, **more: object
) -> Guidance:
    return Guidance(rule=Expert(expert, anti, weight, alpha), **more)  # type: ignore[arg-type]


def mixture(folders: dict[str, Path], tokens: list[int], rule: Expert) -> torch.Tensor:
    z, expert = (logits_of(folders[name], tokens) for name in ("policy", rule.expert))
    other = 0 if rule.anti_expert is None else logits_of(folders[rule.anti_expert], tokens)
    return z + rule.weight * (expert - other)


WAYS = [
    advised("good", "bad", 1.0),
    advised("bad", "good", -0.7),
    advised("good", None, 0.5),
    advised("good", "policy", 0.5),
    advised("bad", "policy", -1.5),
]


@pytest.mark.parametrize("guidance", WAYS, ids=lambda guidance: str(guidance.rule))
def test_greedy_replies_are_those_of_a_loop(engine: Engine, folders: dict[str, Path], guidance: Guidance):
    expected: list[int] = []
    for _ in range(12):
        expected.append(int(mixture(folders, expected, guidance.rule)[-1].argmax()))
    assert one(engine, guidance, temperature=0).token_ids == expected


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_every_number_is_of_the_mixture_and_kl_counts_from_the_policy(
    engine: Engine, folders: dict[str, Path], head: Path, alpha: float
):
    heads = {"strength": -1.5, "heads": (("kind", 1.0),)}
    guidance = advised("good", "bad", 0.3, alpha, trace=True, **heads)
    reply = one(engine, guidance, logprobs=2)
    base = logits_of(folders["policy"], reply.token_ids)[:-1].log_softmax(-1)
    policy = model(folders["policy"])
    with torch.no_grad():
        h = policy.model(torch.tensor([[*PROMPT, *reply.token_ids]]))[0][0, len(PROMPT) - 1 : -1]
        advantage = load_head(head)[0].double().advantage(h.double(), policy.lm_head.weight.double())
    guided = mixture(folders, reply.token_ids, guidance.rule)[:-1] - 1.5 * advantage
    if alpha:
        guided[base.exp() < alpha * base.exp().amax(-1, keepdim=True)] = -torch.inf
    guided = guided.log_softmax(-1)
    kl = (guided.exp() * (guided - base).clamp(min=-1e9)).sum(-1)
    for t, token in enumerate(reply.tokens):
        assert token.trace is not None
        assert token.logprob == pytest.approx(float(guided[t, token.token_id]), abs=1e-3)
        assert token.trace.base_logprob == pytest.approx(float(base[t, token.token_id]), abs=1e-3)
        assert token.trace.kl == pytest.approx(float(kl[t]), rel=1e-3, abs=1e-3)
        assert token.trace.strength == -1.5
        assert token.top_logprobs[0][1] == pytest.approx(float(guided[t].max()), abs=1e-3)
    assert reply.summary.kl == pytest.approx(float(kl.sum()), rel=1e-3)


def test_weight_0_is_bitwise_the_policy_and_runs_no_other_model(make: Make, make_engine: Make):
    engine = make()
    for runner in engine.experts._runners.values():
        runner.run = None  # type: ignore[method-assign, assignment]
    expected, got = one(make_engine(), Guidance(), logprobs=0), one(engine, advised(weight=0.0), logprobs=0)
    assert [(t.token_id, t.logprob) for t in got.tokens] == [(t.token_id, t.logprob) for t in expected.tokens]
    assert got.summary.kl == 0


MIX = [
    Guidance(),
    *WAYS,
    Guidance(2.0, (("kind", 1.0),)),
    advised("good", "bad", 0.4, alpha=0.1, strength=1.0, heads=(("kind", 1.0),)),
    advised("good", weight=0.0, alpha=0.2),
]
ASKED = {"max_tokens": 24, "top_k": 30, "repetition_penalty": 1.2, "logit_bias": ((70, 2.0),)}


def mixed_batch() -> list[Request]:
    plain = [request(str(i), each, **ASKED) for i, each in enumerate(MIX)]
    return [dataclasses.replace(plain[0], request_id="long", prompt_token_ids=LONG), *plain]


@pytest.fixture(scope="module")
def alone(engine: Engine) -> list[list[int]]:
    return [sample(engine, [each])[0].token_ids for each in mixed_batch()]


@pytest.mark.parametrize(
    "options",
    [{"async_depth": 1, "padding": "buckets"}, {"num_blocks": 20}, {"strict": True}],
    ids=str,
)
def test_replies_are_their_own_in_any_batch_and_nothing_is_left(
    make: Make, head: Path, alone: list[list[int]], options: dict[str, object]
):
    engine = make(heads=(head,), **options)
    preempted = watch_preemptions(engine)
    got = sample(engine, mixed_batch())
    assert [completion.token_ids for completion in got] == alone
    assert any(choice.lane.root for choice in preempted) == ("num_blocks" in options)
    assert engine.scheduler.blocks.num_free == engine.scheduler.blocks.num_usable


def test_strict_replies_are_bitwise_the_same_whoever_shares_the_batch(make: Make, head: Path):
    engine = make(heads=(head,), strict=True)
    guidance, short = MIX[-2], {"max_tokens": 6}
    expected = one(engine, guidance, logprobs=0, **short)
    mates = [request(str(i), mate, **short) for i, mate in enumerate(MIX)]
    together = sample(engine, [mates[0], request("one", guidance, logprobs=0, **short), *mates[1:]])[1]
    for ours, theirs in zip(together.tokens, expected.tokens, strict=True):
        assert (ours.token_id, ours.logprob) == (theirs.token_id, theirs.logprob)


def test_a_prefix_is_shared_by_replies_of_the_same_models_alone(make: Make):
    engine, fresh, cached = make(), make(prefix_caching=False), {}
    for name, guidance in {
        "plain": Guidance(),
        "good": advised("good"),
        "again": advised("good", "policy", 2.0),
        "both": advised("good", "bad"),
        "swapped": advised("bad", "good"),
        "plain again": Guidance(),
    }.items():
        engine.add(request(name, guidance, LONG, temperature=0))
        events = []
        while engine.has_work:
            events += engine.step()
        tokens = [token.token_id for event in events for token in getattr(event, "tokens", ())]
        (done,) = [event for event in events if isinstance(event, Finished)]
        cached[name] = done.num_cached_tokens
        expected = sample(fresh, [request(name, guidance, LONG, temperature=0)])[0]
        assert tokens == expected.token_ids, name
    assert cached == {"plain": 0, "good": 0, "again": 32, "both": 0, "swapped": 32, "plain again": 32}


def test_choices_share_their_prompt_and_usage_counts_every_model(make: Make, folders: dict[str, Path]):
    engine = make(prefix_caching=False)
    guidance = advised("good", "bad")
    for completion in sample(engine, [request("n", guidance, n=2, logprobs=0)]):
        expected = mixture(folders, completion.token_ids, guidance.rule).log_softmax(-1)
        for t, token in enumerate(completion.tokens):
            assert token.logprob == pytest.approx(float(expected[t, token.token_id]), abs=1e-3)
    engine.add(request("n", guidance, n=2))
    engine.add(request("one", advised("good", "policy")))
    events = []
    while engine.has_work:
        events += engine.step()
    done = {event.request_id: event for event in events if isinstance(event, Finished)}
    assert done["n"].num_completion_tokens == 24
    assert done["n"].num_computed_tokens == 3 * (len(PROMPT) + 1 + 2 * 11)
    assert done["one"].num_computed_tokens == 2 * (len(PROMPT) + 11)


def test_experts_keep_to_a_grammar(engine: Engine):
    spec = GrammarSpec("regex", "[a-z]{3}-[0-9]{2,4}")
    guidances = [*WAYS, advised("bad", "good", 10.0), advised("good", "bad", 3.0, alpha=0.5)]
    asked = [
        dataclasses.replace(request(str(i), each, ignore_eos=False), grammar=spec)
        for i, each in enumerate(guidances)
    ]
    for reply in sample(engine, asked):
        assert re.fullmatch("[a-z]{3}-[0-9]{2,4}", reply.text), reply.text
        assert math.isfinite(reply.summary.kl)


def test_an_aborted_or_failed_reply_leaves_nothing_to_others(make: Make):
    engine = make(num_blocks=20)
    expected = one(engine, advised()).token_ids
    engine.add(request("aborted", advised("good", "bad"), LONG))
    engine.step()
    engine.abort("aborted")
    cache = engine.experts._runners["good"].cache
    engine.add(request("failed", advised(), LONG))
    engine.step()
    (choice,) = engine.scheduler.running
    cache.keys[0][choice.lane.blocks] = torch.nan
    events = []
    while engine.has_work:
        events += engine.step()
    assert isinstance(events[-1], Failed) and not cache.keys[0].isnan().any()
    assert one(engine, advised()).token_ids == expected


def test_a_judged_reply_is_read_by_its_experts_to_the_end(llama_folder: Path, make: Make, tmp_path: Path):
    judge = save_random_head(tmp_path, llama_folder, "judge", "tied")
    engine, fresh = (make(heads=(judge,), prefix_caching=cached) for cached in (True, False))
    guidance = advised(weight=2.0, heads=(("judge", 0.0),))
    reply = one(engine, guidance, prompt=LONG, max_tokens=7)
    assert dict(reply.summary.reward).keys() == {"judge"}
    # With the token that ended it, it fills a block of the next prompt's prefix.
    more = request("more", guidance, (*LONG, *reply.token_ids, EOS, 5), temperature=0)
    engine.add(more)
    events = []
    while engine.has_work:
        events += engine.step()
    assert isinstance(events[-1], Finished) and events[-1].num_cached_tokens == 48
    drawn = [token.token_id for event in events if isinstance(event, Delta) for token in event.tokens]
    assert drawn == sample(fresh, [more])[0].token_ids


def test_a_block_takes_room_for_every_model(make: Make):
    engine = make(kv_cache_gib=280_000 / 2**30, max_model_len=40)
    sizes = [
        sum(t.numel() * t.element_size() for t in (*cache.keys, *cache.values)) // cache.num_blocks
        for cache in (r.cache for r in (engine.runner, *engine.experts._runners.values()))
    ]
    assert engine.info.num_blocks + 1 == 280_000 // sum(sizes)
    drawn = run_largest_step(engine.policy, engine.bank, engine.config, engine.experts.models)
    assert drawn.statistics.isfinite().all()


@pytest.mark.parametrize(
    ("guidance", "param", "words"),
    [
        (advised("kind"), "guidance.rule.expert", "loaded experts: good, bad$"),
        (advised("kind", weight=0.0), "guidance.rule.expert", "no such expert"),
        (advised("good", "kind"), "guidance.rule.anti_expert", "loaded experts: good, bad$"),
    ],
)
def test_a_model_that_is_not_loaded_is_refused(engine: Engine, guidance: Guidance, param: str, words: str):
    with pytest.raises(InvalidRequestError, match=words) as error:
        engine.add(request("bad", guidance))
    assert error.value.param == param


def test_an_expert_with_a_shorter_context_limits_its_own_requests(make_engine: Make, tmp_path: Path):
    short = save_random_model(LlamaConfig(**{**SIZES, "max_position_embeddings": 30}), tmp_path / "short")
    engine = make_engine(expert=(f"short={short}",))
    assert len(one(engine, advised("short"), max_tokens=9).token_ids) == 9
    with pytest.raises(InvalidRequestError, match="context of 30 tokens, and prompt and max_tokens have 31"):
        engine.add(request("long", advised("short"), max_tokens=10))
    assert len(one(engine, Guidance(), max_tokens=40).token_ids) == 40


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("good",), "NAME=MODEL"),
        (("=folder",), "NAME=MODEL"),
        (("a b=folder",), "NAME=MODEL"),
        (("good=",), "NAME=MODEL"),
        (("policy=folder",), "cannot be called 'policy'"),
        (("good=a", "bad=b", "good=a"), "names two models 'good'"),
    ],
)
def test_misspelled_experts_are_refused_before_anything_is_loaded(given: tuple[str, ...], words: str):
    with pytest.raises(ValueError, match=words):
        EngineConfig("model", expert=given)


def test_a_model_that_cannot_be_an_expert_is_refused_in_one_line(make_engine: Make, tmp_path: Path):
    larger = save_random_model(LlamaConfig(**{**SIZES, "vocab_size": 270}), tmp_path / "padded", seed=1)
    tokenizer = byte_tokenizer()
    assert make_engine(expert=(f"padded={larger}",)).info.experts[0].name == "padded"
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(larger)
    other = save_random_model(LlamaConfig(**SIZES), tmp_path / "other", seed=1)
    spelled = (other / "tokenizer.json").read_text().replace("<spare>", "<other>")
    (other / "tokenizer.json").write_text(spelled)
    (other / "tokenizer_config.json").write_text(
        (other / "tokenizer_config.json").read_text().replace("<spare>", "<other>")
    )
    for given, words in (
        ("no=no/such/folder", "^--expert no: model 'no/such/folder' is not a folder here"),
        (f"larger={larger}", "^--expert larger: it has 261 tokens, and .* 260"),
        (f"other={other}", "^--expert other: its token 259 is '<other>', and .* '<spare>'"),
    ):
        with pytest.raises(ModelError, match=words) as error:
            make_engine(expert=(given,))
        assert "\n" not in str(error.value)
