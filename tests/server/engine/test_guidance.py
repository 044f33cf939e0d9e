"""Steering and measuring, against the formulas of the tilt in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import SIZES, save_random_head, save_random_model
from transformers import Gemma2Config

from trimtab.guidance.heads.store import load_head
from trimtab.kernels.guided_head import guided_head
from trimtab.server.engine import sampler
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.policy import forward_with_hidden
from trimtab.server.engine.request import Completion, Guidance, InvalidRequestError, Request, SamplingParams
from trimtab.server.rollouts.sample import sample

PROMPT = tuple(range(40, 60))
HEADS = {"kind": "tied", "concise": "lowrank", "calm": "tied"}


@pytest.fixture(scope="module")
def head_folders(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("heads")
    made = [
        save_random_head(folder, llama_folder, name, form, seed, scale=1.0 + seed / 2)
        for seed, (name, form) in enumerate(HEADS.items())
    ]
    made.append(save_random_head(folder, llama_folder, "gauge", parts="v", seed=9))
    return tuple(made)


@pytest.fixture
def engine(make_engine: Callable[..., Engine], head_folders: tuple[Path, ...]) -> Engine:
    return make_engine(heads=head_folders)


def request(name: str, guidance: Guidance, **sampling: object) -> Request:
    options = {"max_tokens": 10, "seed": 3, "ignore_eos": True, **sampling}
    return Request(name, PROMPT, SamplingParams(**options), guidance)  # type: ignore[arg-type]


def one(engine: Engine, guidance: Guidance, **sampling: object) -> Completion:
    return sample(engine, [request("one", guidance, **sampling)])[0]


def oracle(
    engine: Engine, tokens: list[int], heads: dict[str, float], folders: tuple[Path, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """h [T + 1, d], log π₀ [T + 1, V] and Ā [T + 1, V] at the end of the prompt and after each token."""
    ids = torch.tensor([[*PROMPT, *tokens]])
    at = torch.arange(len(PROMPT) - 1, ids.shape[1])
    engine.policy.use_attention("eager")
    h, logits = forward_with_hidden(engine.policy.model, ids, torch.arange(ids.shape[1])[None], at)
    base = logits.double().log_softmax(-1)
    advantage = torch.zeros_like(base)
    for folder in folders:
        head, manifest = load_head(folder)
        if manifest.name in heads and head.advantage is not None:
            assert manifest.parts.advantage is not None
            weight = heads[manifest.name] * manifest.parts.advantage.scale
            advantage += weight * head.double().advantage(h.double(), engine.policy.lm_head.double())
    return h, base, advantage - (base.exp() * advantage).sum(-1, keepdim=True)


@pytest.mark.parametrize("strength", [1.0, -2.5])
@pytest.mark.parametrize(
    "heads", [{"kind": 1.0}, {"concise": 0.5}, {"kind": 1.0, "concise": -0.7, "calm": 2.0}], ids=str
)
def test_every_number_of_the_trace_follows_from_the_tilt(
    engine: Engine, head_folders: tuple[Path, ...], heads: dict[str, float], strength: float
):
    reply = one(engine, Guidance(strength, tuple(heads.items()), trace=True), logprobs=5)
    h, base, centred = oracle(engine, reply.token_ids, heads, head_folders)
    tilt = (base + strength * centred).log_softmax(-1)
    kl = (tilt.exp() * (tilt - base)).sum(-1)
    for t, token in enumerate(reply.tokens):
        trace = token.trace
        assert trace is not None
        assert token.logprob == pytest.approx(float(tilt[t, token.token_id]), abs=1e-4)
        assert trace.base_logprob == pytest.approx(float(base[t, token.token_id]), abs=1e-4)
        assert trace.kl == pytest.approx(float(kl[t]), rel=1e-4, abs=1e-5)
        assert trace.entropy == pytest.approx(float(-(base[t].exp() * base[t]).sum()), abs=1e-4)
        assert trace.flip == bool(tilt[t].argmax() != base[t].argmax())
        assert trace.strength == strength
        assert [i for i, _ in trace.base_top] == base[t].topk(3).indices.tolist()
        assert [p for _, p in token.top_logprobs] == pytest.approx(tilt[t].topk(5).values.tolist(), abs=1e-4)
        for name, value in trace.value:
            head, manifest = load_head(head_folders[list(HEADS).index(name)])
            assert head.value is not None
            expected = (float(head.value(h[t])) - manifest.reward_mean) / manifest.reward_std
            assert value == pytest.approx(expected, abs=1e-4)
    summary = reply.summary
    assert summary is not None
    assert summary.kl == pytest.approx(float(kl[:-1].sum()), rel=1e-4)
    assert summary.flips == sum(token.trace.flip for token in reply.tokens if token.trace)
    assert summary.mean_strength == pytest.approx(strength)
    assert dict(summary.value) == dict(reply.tokens[-1].trace.value)  # type: ignore[union-attr]


@pytest.mark.parametrize("ends_by_itself", [False, True])
def test_the_finishing_step_rewards_the_reply_with_its_end_token(
    engine: Engine, head_folders: tuple[Path, ...], ends_by_itself: bool
):
    eos = engine.policy.eos_token_ids[0]
    options = {"ignore_eos": False, "logit_bias": ((eos, 6.0),), "max_tokens": 60} if ends_by_itself else {}
    reply = one(engine, Guidance(1.0, (("kind", 1.0), ("gauge", 0.0))), **options)
    assert reply.finish_reason == ("stop" if ends_by_itself else "length")
    h, _, _ = oracle(engine, reply.token_ids if ends_by_itself else [*reply.token_ids, eos], {}, head_folders)
    head, manifest = load_head(head_folders[0])
    assert head.reward is not None
    expected = (float(head.reward(h[-1])) - manifest.reward_mean) / manifest.reward_std
    assert reply.summary is not None
    assert dict(reply.summary.reward) == {"kind": pytest.approx(expected, abs=5e-6)}, "gauge has no reward"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("strict", [False, True])
def test_half_precision_policies_are_steered_by_heads_trained_in_fp32(
    make_engine: Callable[..., Engine], head_folders: tuple[Path, ...], dtype: str, strict: bool
):
    heads = {"kind": 0.5, "concise": 0.3}
    guidance = Guidance(1.0, tuple(heads.items()), trace=True)
    engine = make_engine(heads=head_folders, dtype=dtype, strict=strict)
    assert str(engine.policy.dtype) == f"torch.{dtype}"
    reply = one(engine, guidance)
    _, base, centred = oracle(make_engine(heads=head_folders), reply.token_ids, heads, head_folders)
    tilt = (base + centred).log_softmax(-1)
    for t, token in enumerate(reply.tokens):
        assert token.logprob == pytest.approx(float(tilt[t, token.token_id]), abs=0.1)


def test_strength_0_is_bitwise_the_plain_policy_and_still_measures(engine: Engine):
    plain = one(engine, Guidance(), logprobs=0)
    off = one(engine, Guidance(0.0, (("kind", 1.0), ("gauge", 1.0))), logprobs=0)
    assert [(t.token_id, t.logprob) for t in off.tokens] == [(t.token_id, t.logprob) for t in plain.tokens]
    assert off.summary is not None
    assert [name for name, _ in off.summary.value] == ["kind", "gauge"]
    assert (off.summary.kl, off.summary.mean_strength, off.summary.flips) == (0.0, 0.0, 0)


def test_a_weight_of_0_is_no_steering(engine: Engine):
    assert one(engine, Guidance(3.0, (("kind", 0.0),))).token_ids == one(engine, Guidance()).token_ids


def test_different_heads_and_strengths_in_one_batch_each_get_their_own_reply(engine: Engine):
    mixes = [
        Guidance(),
        Guidance(2.0, (("kind", 1.0),)),
        Guidance(-2.0, (("concise", 1.0),)),
        Guidance(0.0, (("calm", 1.0),)),
        Guidance(4.0, (("kind", 0.5), ("concise", 1.0), ("calm", -1.0))),
        Guidance(1.0, (("calm", 1.0), ("kind", -1.0)), trace=True),
    ]
    alone = [one(engine, guidance, max_tokens=20).token_ids for guidance in mixes]
    together = sample(engine, [request(str(i), g, max_tokens=20) for i, g in enumerate(mixes)])
    assert [completion.token_ids for completion in together] == alone
    assert len({tuple(tokens) for tokens in alone}) == 5, (
        "strength 0 repeats the plain reply, the others differ"
    )


def test_greedy_under_guidance_is_the_argmax_of_the_tilt(engine: Engine, head_folders: tuple[Path, ...]):
    reply = one(engine, Guidance(3.0, (("kind", 1.0),)), temperature=0)
    _, base, centred = oracle(engine, reply.token_ids, {"kind": 1.0}, head_folders)
    assert reply.token_ids == (base + 3.0 * centred).argmax(-1)[:-1].tolist()


def test_bias_and_penalties_are_part_of_the_base(engine: Engine):
    reply = one(engine, Guidance(2.0, (("kind", 1.0),), trace=True), logit_bias=((77, 100.0),))
    assert reply.token_ids == [77] * 10
    assert all(
        t.trace is not None and t.trace.base_logprob > -1e-3 and t.trace.kl < 1e-3 for t in reply.tokens
    )


@pytest.mark.parametrize("options", [{"async_depth": 1}, {"padding": "buckets"}, {"num_blocks": 20}], ids=str)
def test_guided_replies_do_not_depend_on_engine_options(
    make_engine: Callable[..., Engine], head_folders: tuple[Path, ...], options: dict[str, object]
):
    def replies(**extra: object) -> tuple[list[list[int]], list[float]]:
        engine = make_engine(heads=head_folders, **extra)
        made = [
            request(str(i), Guidance(i - 2.0, (("kind", 1.0), ("concise", 0.3))), max_tokens=30, n=1 + i % 2)
            for i in range(6)
        ]
        done = sample(engine, made)
        assert engine.scheduler.blocks.num_free == engine.scheduler.blocks.num_usable
        rewards = [reward for c in done if c.summary for _, reward in c.summary.reward]
        return [c.token_ids for c in done], rewards

    tokens, rewards = replies()
    other_tokens, other_rewards = replies(**options)
    assert other_tokens == tokens
    assert other_rewards == pytest.approx(rewards, abs=1e-4)


def test_a_model_with_its_own_logits_tail_is_steered_the_same_way(tmp_path: Path):
    folder = save_random_model(
        Gemma2Config(**SIZES, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=5.0),
        tmp_path / "gemma",
    )
    heads = (
        save_random_head(tmp_path, folder, "kind"),
        save_random_head(tmp_path, folder, "concise", "lowrank"),
    )
    engine = Engine.from_config(EngineConfig(folder, heads=heads, block_size=8, max_num_seqs=4))
    assert not engine.policy.has_linear_tail
    mix = {"kind": 0.3, "concise": 0.5}
    reply = one(engine, Guidance(1.0, tuple(mix.items()), trace=True))
    _, base, centred = oracle(engine, reply.token_ids, mix, heads)
    tilt = (base + centred).log_softmax(-1)
    for t, token in enumerate(reply.tokens):
        assert token.logprob == pytest.approx(float(tilt[t, token.token_id]), abs=1e-4)


@pytest.mark.parametrize(
    ("guidance", "words"),
    [
        (Guidance(1.0, (("unkind", 1.0),)), "unkind.*kind, concise, calm, gauge"),
        (Guidance(1.0), "name at least one head"),
        (Guidance(1.0, (("gauge", 1.0),)), "gauge.*no advantage"),
    ],
    ids=["unknown", "none named", "cannot steer"],
)
def test_guidance_that_cannot_be_honoured_is_refused(engine: Engine, guidance: Guidance, words: str):
    with pytest.raises(InvalidRequestError, match=words):
        engine.add(request("bad", guidance))


def test_the_fused_head_draws_what_materialised_logits_do(
    make_engine: Callable[..., Engine], head_folders: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
):
    engine = make_engine(heads=head_folders, cpu_backend="torch")
    made = [
        request("plain", Guidance()),
        request("kind", Guidance(2.0, (("kind", 1.0), ("concise", 0.5)))),
        request("off", Guidance(0.0, (("kind", 1.0),))),
        request("greedy", Guidance(-2.0, (("concise", 1.0),)), temperature=0),
    ]
    expected = sample(engine, made)
    fused = guided_head
    num_fused = 0

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal num_fused
        num_fused += 1
        return fused(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(sampler, "choose_head_path", lambda *_, needs_logits, **__: _path(needs_logits))
    monkeypatch.setattr(sampler, "guided_head", counted)
    got = sample(engine, made)
    assert num_fused
    assert [choice.token_ids for choice in got] == [choice.token_ids for choice in expected]
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.summary is not None and theirs.summary is not None
        assert ours.summary.kl == pytest.approx(theirs.summary.kl, rel=1e-4, abs=1e-6)
        assert dict(ours.summary.value) == pytest.approx(dict(theirs.summary.value))
    before = num_fused
    assert one(engine, Guidance(2.0, (("kind", 1.0),), trace=True), logprobs=2).tokens[0].top_logprobs
    assert num_fused == before, "what needs logits has them"


def _path(needs_logits: bool) -> str:
    return "materialised" if needs_logits else "fused"
