"""What a client of the engine sees: events, aborts, errors, and every sampling parameter."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import EOS, SIZES, save_random_model
from transformers import AutoModelForCausalLM, LlamaConfig

from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import (
    TERMINAL,
    Aborted,
    Completion,
    Delta,
    Event,
    Failed,
    Finished,
    InvalidRequestError,
    Request,
    SamplingParams,
)
from trimtab.server.rollouts.sample import GenerationError, as_they_end, sample

Make = Callable[..., Engine]
PROMPT = tuple(range(40, 60))


POISON = 251  # a token that no self-check reads, and whose embedding is not a number


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_random_model(LlamaConfig(**SIZES), tmp_path_factory.mktemp("poisoned"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[POISON] = torch.nan
    model.save_pretrained(folder)
    return folder


def one(engine: Engine, prompt: tuple[int, ...] = PROMPT, **sampling: object) -> Completion:
    params = SamplingParams(**{"max_tokens": 12, "ignore_eos": True, **sampling})  # type: ignore[arg-type]
    return sample(engine, [Request("one", prompt, params)])[0]


def run(engine: Engine, limit: int = 500) -> list[Event]:
    events: list[Event] = []
    for _ in range(limit):
        if not engine.has_work:
            return events
        events += engine.step()
    raise AssertionError("the engine does not come to an end")


def assert_all_free(engine: Engine) -> None:
    assert engine.scheduler.blocks.num_free == engine.scheduler.blocks.num_usable
    assert not engine.scheduler
    assert not engine.has_work


def test_a_seeded_request_repeats_and_another_seed_or_choice_differs(make_engine: Make):
    engine = make_engine()
    first, again, other = (one(engine, seed=seed).token_ids for seed in (5, 5, 6))
    assert first == again != other
    request = Request("n", PROMPT, SamplingParams(max_tokens=12, seed=5, n=3, ignore_eos=True))
    choices = [completion.token_ids for completion in sample(engine, [request])]
    assert choices[0] == first
    assert len({tuple(choice) for choice in choices}) == 3


def test_batchmates_do_not_change_a_seeded_reply(make_engine: Make):
    engine = make_engine()
    alone = one(engine, seed=5).token_ids
    others = [
        Request(str(i), PROMPT[i:], SamplingParams(max_tokens=20, seed=i, top_k=3 * i, ignore_eos=True))
        for i in range(6)
    ]
    target = Request("target", PROMPT, SamplingParams(max_tokens=12, seed=5, ignore_eos=True))
    assert sample(engine, [*others, target])[-1].token_ids == alone


def test_completions_come_as_they_end_and_requests_are_handed_over_as_room_comes_free(make_engine: Make):
    engine = make_engine(max_num_seqs=2)
    lengths = [9, 2, 3, 2, 5, 2, 2, 2]
    requests = [
        Request(str(i), PROMPT, SamplingParams(max_tokens=length, seed=i, ignore_eos=True))
        for i, length in enumerate(lengths)
    ]
    ended = []
    for completion in as_they_end(engine, requests):
        assert len(completion.tokens) == lengths[int(completion.request.request_id)]
        ended.append(completion.request.request_id)
        assert len(engine._live) <= 4
    assert ended[0] == "1"
    assert sorted(ended) == [request.request_id for request in requests]
    assert [c.request for c in sample(engine, requests)] == requests
    assert_all_free(engine)


def test_unseeded_requests_differ(make_engine: Make):
    engine = make_engine()
    assert one(engine).token_ids != one(engine).token_ids


@pytest.mark.parametrize(
    "narrow", [{"temperature": 0}, {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str
)
def test_every_way_to_keep_only_the_best_token_is_greedy(narrow: dict[str, float], make_engine: Make):
    engine = make_engine()
    assert one(engine, **narrow).token_ids == one(engine, temperature=0).token_ids


def test_top_k_draws_only_from_the_k_best(make_engine: Make):
    reply = one(make_engine(), top_k=3, logprobs=3, max_tokens=40)
    for token in reply.tokens:
        assert token.token_id in [top for top, _ in token.top_logprobs]


def test_logprobs_are_those_of_the_models_own_distribution(make_engine: Make):
    engine = make_engine()
    reply = one(engine, logprobs=4, temperature=0.7, seed=1)
    ids = torch.tensor([[*PROMPT, *reply.token_ids]])
    engine.policy.use_attention("eager")
    expected = engine.policy.model(ids).logits[0].log_softmax(-1)
    for i, token in enumerate(reply.tokens):
        row = expected[len(PROMPT) + i - 1]
        assert token.logprob == pytest.approx(float(row[token.token_id]), abs=1e-4)
        top = row.topk(4)
        assert [t for t, _ in token.top_logprobs] == top.indices.tolist()
        assert [p for _, p in token.top_logprobs] == pytest.approx(top.values.tolist(), abs=1e-4)


def test_logit_bias_bans_and_forces_tokens(make_engine: Make):
    engine = make_engine()
    greedy = one(engine, temperature=0).token_ids
    banned = one(engine, temperature=0, logit_bias=((greedy[0], -100.0),)).token_ids
    assert banned[0] != greedy[0]
    forced = one(engine, logit_bias=((77, 100.0),)).token_ids
    assert forced == [77] * 12


def test_text_held_back_for_a_stop_string_comes_out_when_the_reply_ends(make_engine: Make):
    engine = make_engine()
    reply = one(engine, logit_bias=((ord("a") - 33 + 0, 100.0),), stop=("aaaaab",), max_tokens=9)
    assert (reply.text, reply.finish_reason) == ("a" * 9, "length")


def test_penalties_keep_tokens_from_coming_back(make_engine: Make):
    engine = make_engine()
    bias = tuple((token, 8.0) for token in range(100, 106))
    free = one(engine, temperature=0, logit_bias=bias, max_tokens=6).token_ids
    frequency = one(engine, temperature=0, logit_bias=bias, frequency_penalty=2.0, max_tokens=30).token_ids
    repetition = one(engine, temperature=0, repetition_penalty=50.0, max_tokens=8).token_ids
    assert len(set(free)) < len(set(frequency))
    assert len(set(repetition)) == 8
    assert not set(repetition) & set(PROMPT), "the repetition penalty counts the prompt too"


def test_penalties_do_not_change_with_the_launch_depth(make_engine: Make):
    options = {"temperature": 0, "presence_penalty": 1.5, "frequency_penalty": 1.0, "repetition_penalty": 1.3}
    replies = [one(make_engine(async_depth=depth), **options).token_ids for depth in (0, 1)]
    assert replies[0] == replies[1]


def test_end_of_sequence_ends_a_reply_and_is_not_in_its_text(make_engine: Make):
    engine = make_engine()
    reply = one(engine, ignore_eos=False, logit_bias=((EOS, 100.0),))
    assert (reply.finish_reason, reply.token_ids, reply.text) == ("stop", [EOS], "")
    ignored = one(engine, logit_bias=((EOS, 100.0),))
    assert (ignored.finish_reason, len(ignored.tokens)) == ("length", 12)


def test_a_stop_string_across_tokens_ends_the_reply_and_is_removed(make_engine: Make):
    engine = make_engine()
    letters = tuple((ord("a") - 33 + i, 60.0) for i in range(4))
    whole = one(engine, seed=3, logit_bias=letters, max_tokens=30)
    assert whole.text
    assert set(whole.text) <= set("abcd")
    stop = whole.text[7:10]
    cut = one(engine, seed=3, logit_bias=letters, max_tokens=30, stop=(stop, "never"))
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert len(cut.tokens) == len(cut.text) + 3


@pytest.mark.parametrize("depth", [0, 1])
def test_abort_ends_a_request_within_one_step_and_frees_everything(make_engine: Make, depth: int):
    engine = make_engine(async_depth=depth)
    engine.add(Request("a", PROMPT, SamplingParams(max_tokens=50, n=3)))
    engine.add(Request("b", PROMPT, SamplingParams(max_tokens=5, ignore_eos=True)))
    for _ in range(4):
        engine.step()
    engine.abort("a")
    events = engine.step()
    assert Aborted("a") in events
    assert not any(isinstance(e, Delta) and e.request_id == "a" for e in run(engine))
    assert_all_free(engine)
    engine.abort("a")
    assert not engine.has_work, "an id that is over is ignored"


def test_a_failing_step_ends_only_its_own_requests(
    make_engine: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    engine = make_engine()
    engine.add(Request("bad", PROMPT, SamplingParams(max_tokens=5)))
    native = engine.policy.native
    assert native is not None

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(native, "run", fail)
        events = run(engine)
    assert [type(e) for e in events] == [Failed]
    assert "out of memory" not in events[0].message  # type: ignore[union-attr]
    assert "out of memory" in caplog.text
    assert one(engine).finish_reason == "length"
    assert_all_free(engine)


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_poisoned_reply_fails_and_does_not_poison_those_who_get_its_blocks(
    make_engine: Make, backend: str, poisoned: Path
):
    if backend == "native":
        engine = make_engine(model=poisoned, num_blocks=20, max_num_seqs=2, cpu_backend=backend)
        want = one(engine, temperature=0).token_ids
        with pytest.raises(GenerationError, match="finite logits"):
            one(engine, prompt=(*PROMPT, POISON))
        for start in range(60, 100, 10):
            one(engine, prompt=tuple(range(start, start + 30)), logit_bias=((POISON, -100.0),))
        assert one(engine, temperature=0).token_ids == want
        assert_all_free(engine)
        return
    engine = make_engine(num_blocks=20, max_num_seqs=2, cpu_backend=backend)
    want = one(engine, temperature=0).token_ids
    weight = engine.policy.model.get_input_embeddings().weight
    saved = weight[5].clone()
    with torch.no_grad():
        weight[5] = torch.nan
    with pytest.raises(GenerationError, match="finite logits"):
        one(engine, prompt=(*PROMPT, 5))
    with torch.no_grad():
        weight[5] = saved
    for start in range(60, 100, 10):
        one(engine, prompt=tuple(range(start, start + 30)))
    assert one(engine, temperature=0).token_ids == want
    assert_all_free(engine)


def test_a_short_reply_in_a_poisoned_block_reads_no_leftover(make_engine: Make):
    engine = make_engine(num_blocks=20, cpu_backend="torch")
    weight = engine.policy.model.get_input_embeddings().weight
    saved = weight[5].clone()
    with torch.no_grad():
        weight[5] = torch.nan
    with pytest.raises(GenerationError, match="finite logits"):
        one(engine, prompt=(*range(100, 123), 5))
    with torch.no_grad():
        weight[5] = saved
    short = [Request(str(i), (7 + i,), SamplingParams(max_tokens=3, ignore_eos=True)) for i in range(8)]
    assert len(sample(engine, short)) == 8


@pytest.mark.parametrize(
    ("request_", "param", "words"),
    [
        (Request("r", ()), "prompt", "at least one"),
        (Request("r", tuple(range(128))), "prompt", "128 tokens"),
        (Request("r", PROMPT, SamplingParams(max_tokens=200)), "max_tokens", "at most 108"),
        (Request("r", (1, 999)), "prompt", "0…259"),
        (Request("r", PROMPT, SamplingParams(logit_bias=((999, 1.0),))), "logit_bias", "0…259"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_can_never_fit_is_refused_at_once(make_engine: Make, request_: Request, param: str, words: str):
    engine = make_engine()
    with pytest.raises(InvalidRequestError, match=words) as error:
        engine.add(request_)
    assert error.value.param == param
    assert not engine.has_work


def test_a_follow_up_reuses_the_cached_prefix_and_says_so(make_engine: Make):
    engine = make_engine()
    one(engine)
    engine.add(Request("again", (*PROMPT, 1, 2), SamplingParams(max_tokens=2, ignore_eos=True)))
    finished = run(engine)[-1]
    assert isinstance(finished, Finished)
    assert finished.num_cached_tokens == 16


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), depth=st.integers(0, 1))
def test_any_mix_of_finish_abort_and_error_frees_every_block(make_engine: Make, seed: int, depth: int):
    rng = random.Random(seed)
    engine = make_engine(num_blocks=18, max_num_seqs=4, max_num_batched_tokens=24, async_depth=depth)
    pending = [
        Request(
            str(i),
            tuple(rng.randrange(8) for _ in range(rng.randint(1, 60))),
            SamplingParams(
                max_tokens=rng.randint(1, 30), n=rng.randint(1, 3), seed=i, stop=rng.choice([(), ("a",)])
            ),
        )
        for i in range(8)
    ]
    names = [request.request_id for request in pending]
    events: list[Event] = []
    forward = engine.runner.run

    def flaky(step: object) -> object:
        if rng.random() < 0.02:
            raise RuntimeError("flaky")
        return forward(step)  # type: ignore[arg-type]

    engine.runner.run = flaky  # type: ignore[method-assign, assignment]
    while pending or engine.has_work:
        if pending and rng.random() < 0.4:
            engine.add(pending.pop())
        if rng.random() < 0.05:
            engine.abort(rng.choice(names))
        events += engine.step()
    terminal = [event.request_id for event in events if isinstance(event, TERMINAL)]
    assert sorted(terminal) == sorted(names), "exactly one terminal event each"
    assert_all_free(engine)


def test_two_live_requests_cannot_share_an_id(make_engine: Make):
    engine = make_engine()
    request = Request("same", PROMPT, SamplingParams(max_tokens=2))
    engine.add(request)
    with pytest.raises(InvalidRequestError, match="in use"):
        engine.add(replace(request))
