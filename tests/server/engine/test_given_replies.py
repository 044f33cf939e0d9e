"""A reply that is given is told of as if it had been drawn, however it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from preemptions import watch_preemptions
from tiny_models import save_random_head
from transformers import AutoModelForCausalLM

from trimtab.guidance.controllers import read_controllers
from trimtab.guidance.heads.manifest import ScalarPart
from trimtab.guidance.rules import read_rule
from trimtab.server.engine import reading
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import (
    ChoiceDone,
    Completion,
    Delta,
    Failed,
    Finished,
    Guidance,
    InvalidRequestError,
    Request,
    SamplingParams,
    reading_of,
)

Make = Callable[..., Engine]
PROMPT = tuple(range(40, 60))
WAYS: dict[str, dict[str, object]] = {
    "at once": {"async_depth": 0},
    "in parts, two launched steps": {"async_depth": 1, "max_num_batched_tokens": 8, "num_blocks": 40},
    "preempted": {"async_depth": 1, "num_blocks": 12, "max_num_batched_tokens": 12},
    "strict": {"strict": True},
}


@pytest.fixture(scope="module")
def heads(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("heads")
    memory = ScalarPart("gru", 8, units=3)
    return (
        save_random_head(folder, llama_folder, "kind", seed=1),
        save_random_head(folder, llama_folder, "brief", form="lowrank", seed=2, value=memory),
    )


def run(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    replies = {request.request_id: Completion(request, 0) for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for event in engine.step():
            assert not isinstance(event, Failed), event
            if isinstance(event, Delta | ChoiceDone):
                replies[event.request_id].take(event)
            elif isinstance(event, Finished):
                reply = replies[event.request_id]
                num_given, num_prompt = len(reply.request.given), len(reply.request.prompt_token_ids)
                num_drawn = 0 if num_given else len(reply.tokens)
                assert event.num_prompt_tokens == num_prompt + num_given
                assert event.num_completion_tokens == num_drawn
    return list(replies.values())


def assert_same_top(mine: Sequence[tuple[int, float]], theirs: Sequence[tuple[int, float]]) -> None:
    assert [token for token, _ in mine] == [token for token, _ in theirs]
    assert [number for _, number in mine] == pytest.approx([number for _, number in theirs], abs=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_what_was_drawn_is_told_of_alike_when_it_is_given(make_engine: Make, heads, way, monkeypatch):
    monkeypatch.setattr(reading, "MAX_LOGITS", 5 * 260)
    engine = make_engine(heads=heads, **WAYS[way])
    guidances = [
        Guidance(2.0, (("kind", 1.0), ("brief", -0.5)), trace=True),
        Guidance(-1.0, (("brief", 1.0),)),
        Guidance(0.0, (("kind", 1.0),), trace=True),
    ]
    options = SamplingParams(max_tokens=25, seed=3, logprobs=2, ignore_eos=True)
    drawn = run(engine, [Request(f"d{i}", PROMPT[i:], options, g) for i, g in enumerate(guidances)])
    preempted = watch_preemptions(engine, lambda choice: choice.is_reading)
    asked = [
        reading_of(f"g{i}", reply.request.prompt_token_ids, reply.token_ids, logprobs=2, guidance=g)
        for i, (reply, g) in enumerate(zip(drawn, guidances, strict=True))
    ]
    others = [Request(f"o{i}", PROMPT, options) for i in range(2)] if way == "preempted" else []
    given = run(engine, [*others, *asked])[len(others) :]
    assert bool(preempted) == (way == "preempted")
    for was, reply in zip(drawn, given, strict=True):
        assert (reply.text, reply.offsets, reply.token_ids) == (was.text, was.offsets, was.token_ids)
        assert reply.finish_reason == "length"
        for mine, theirs in zip(reply.tokens, was.tokens, strict=True):
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)
            assert_same_top(mine.top_logprobs, theirs.top_logprobs)
            if theirs.trace is None:
                assert mine.trace is None
                continue
            assert dict(mine.trace.value) == pytest.approx(dict(theirs.trace.value), abs=1e-4)
            for name in ("kl", "strength", "entropy", "base_logprob", "flip"):
                assert getattr(mine.trace, name) == pytest.approx(getattr(theirs.trace, name), abs=1e-4)
            assert_same_top(mine.trace.base_top, theirs.trace.base_top)
        assert dict(reply.summary.reward) == pytest.approx(dict(was.summary.reward), abs=1e-4)
        assert reply.summary.kl == pytest.approx(was.summary.kl, abs=1e-4)
    assert engine.scheduler.blocks.num_free == engine.runner.cache.num_blocks - 1


def test_log_probabilities_are_those_of_transformers(make_engine: Make, llama_folder: Path):
    engine = make_engine()
    (reply,) = run(engine, [reading_of("a", PROMPT[:1], PROMPT[1:])])
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(llama_folder)
        logprobs = model(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    expected = [logprobs[i, token].item() for i, token in enumerate(PROMPT[1:])]
    assert [token.logprob for token in reply.tokens] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("guidance", "field"),
    [
        ({"controllers": read_controllers({"max_kl": 0.1})}, "guidance.max_kl"),
        ({"rule": read_rule("contrast", {"negative_prompt": (5,)})}, "guidance.rule"),
    ],
)
def test_what_changes_from_draw_to_draw_is_refused(make_engine: Make, heads, guidance, field):
    engine = make_engine(heads=heads)
    request = reading_of("a", PROMPT[:1], PROMPT[1:], guidance=Guidance(1.0, (("kind", 1.0),), **guidance))
    with pytest.raises(InvalidRequestError) as error:
        engine.add(request)
    assert error.value.param == field
