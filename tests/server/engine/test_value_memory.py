"""Values that remember, measured along served replies, are those of the whole reply read at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from preemptions import watch_preemptions
from tiny_models import save_random_head

from trimtab.guidance.heads.forms import along
from trimtab.guidance.heads.manifest import ScalarPart
from trimtab.guidance.heads.store import load_head
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.policy import forward_with_hidden
from trimtab.server.engine.request import (
    ChoiceDone,
    Completion,
    Delta,
    Event,
    Guidance,
    Request,
    SamplingParams,
)
from trimtab.server.engine.scheduler import Purpose, Step
from trimtab.server.rollouts.sample import sample

Make = Callable[..., Engine]
PARTS = {
    "plain": ScalarPart("mlp", 8),
    "mean": ScalarPart("mean", 8, units=5),
    "gru": ScalarPart("gru", 8, units=6),
    "bins": ScalarPart("gru", 8, bins=5, low=-2.0, high=3.0, units=3),
}
PROMPT = tuple(range(40, 60))
WAYS: dict[str, dict[str, object]] = {
    "one launched step": {"async_depth": 0},
    "two launched steps": {"async_depth": 1},
    "few slots": {"async_depth": 1, "max_num_seqs": 3},
    "preempted": {"async_depth": 1, "num_blocks": 13, "max_num_batched_tokens": 16},
    "strict": {"strict": True, "pack_weights": False, "num_blocks": 13, "max_num_batched_tokens": 16},
}


@pytest.fixture(scope="module")
def folders(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("heads")
    return {
        name: save_random_head(folder, llama_folder, name, seed=seed, value=part)
        for seed, (name, part) in enumerate(PARTS.items())
    }


def request(name: str, heads: str, first: int = 0, strength: float = 1.0, **sampling: object) -> Request:
    options = {"max_tokens": 16, "seed": 7, "ignore_eos": True, **sampling}
    weights = tuple((head, 0.5) for head in heads.split())
    return Request(name, PROMPT[first:], SamplingParams(**options), Guidance(strength, weights, trace=True))  # type: ignore[arg-type]


def mixed() -> list[Request]:
    """More than run at once, of several lengths, so that some join while others are under way."""
    return [
        request("all", "plain mean gru bins", n=3),
        request("short", "gru", first=18, max_tokens=2),
        request("unmeasured", "plain", first=3, max_tokens=20),
        request("off", "mean bins", first=1, strength=0.0, max_tokens=9),
        request("one token prompt", "gru mean", first=19, max_tokens=22),
        request("late", "bins", first=5, max_tokens=12, n=2),
        request("greedy", "gru", max_tokens=18, temperature=0),
    ]


@torch.inference_mode()
def check(engine: Engine, folders: dict[str, Path], reply: Completion) -> None:
    """The trace against the head's forward over h of s_0 … s_{T−1}, from the model's own forward."""
    prompt = reply.request.prompt_token_ids
    ids = torch.tensor([[*prompt, *reply.token_ids]])[:, :-1]
    at = torch.arange(len(prompt) - 1, ids.shape[1])
    h, _ = forward_with_hidden(engine.policy.model, ids, torch.arange(ids.shape[1])[None], at)
    for name, _ in reply.request.guidance.heads:
        head, manifest = load_head(folders[name])
        assert head.value is not None
        want = (along(head.value, h, torch.tensor([len(h)])) - manifest.reward_mean) / manifest.reward_std
        measured = [dict(token.trace.value)[name] for token in reply.tokens if token.trace]
        torch.testing.assert_close(torch.tensor(measured), want, rtol=1e-3, atol=1e-3)
        assert want.std() > 0.02, "it says something"


@pytest.mark.parametrize("way", WAYS)
def test_every_value_is_that_of_the_reply_read_at_once(way: str, make_engine: Make, folders: dict[str, Path]):
    engine = make_engine(heads=tuple(folders.values()), **WAYS[way])
    preempted = watch_preemptions(engine, lambda choice: choice.remembers and choice.num_drawn)
    replies = sample(engine, mixed())
    assert bool(preempted) == ("num_blocks" in WAYS[way])
    engine.policy.use_attention("eager")
    for reply in replies:
        check(engine, folders, reply)


def finish(engine: Engine, reply: Completion, events: Sequence[Event] = ()) -> Completion:
    """Runs to the end; events: of the reply so far."""
    seen = list(events)
    while engine.has_work:
        seen += engine.step()
    for event in seen:
        if isinstance(event, Delta | ChoiceDone) and event.request_id == reply.request.request_id:
            reply.take(event)
    engine.policy.use_attention("eager")
    return reply


def test_a_slot_that_an_abort_frees_remembers_nothing(make_engine: Make, folders: dict[str, Path]):
    """While a step that was launched for the aborted one is still under way."""
    engine = make_engine(heads=tuple(folders.values()), max_num_seqs=1, async_depth=1)
    reply = Completion(request("second", "gru mean", first=4, max_tokens=9), 0)
    for each in (request("first", "gru mean"), reply.request):
        engine.add(each)
    for _ in range(8):
        engine.step()
    engine.abort("first")
    check(engine, folders, finish(engine, reply))


def test_a_reply_begun_anew_after_a_failure_is_remembered(make_engine: Make, folders: dict[str, Path]):
    engine = make_engine(heads=tuple(folders.values()), async_depth=1)
    reply = Completion(request("survivor", "gru mean bins", max_tokens=14), 0)
    engine.add(reply.request)
    events = [event for _ in range(7) for event in engine.step()]
    engine.add(request("other", "mean", first=2))
    scheduler = engine.scheduler

    def fail() -> Step:
        scheduler.considered = scheduler.waiting.first
        raise ValueError("once")

    scheduler.schedule = fail  # type: ignore[method-assign]
    finish(engine, reply, events)
    assert engine.scheduler is not scheduler
    assert len(reply.tokens) == 14
    check(engine, folders, reply)


def test_rows_without_a_memory_cost_nothing(
    make_engine: Make, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    """Neither at their draws, nor after a preemption, nor do they wait for anything."""
    engine = make_engine(heads=tuple(folders.values()), num_blocks=15)
    monkeypatch.setattr(engine.bank, "step", None)
    monkeypatch.setattr(engine.bank, "remember", None)
    rows = []
    schedule = engine.scheduler.schedule
    engine.scheduler.schedule = lambda: (step := schedule(), rows.extend(step.rows))[0]  # type: ignore[method-assign]
    replies = sample(engine, [request(str(i), "plain", first=i, max_tokens=30) for i in range(6)])
    assert any(row.choice.num_preemptions for row in rows)
    assert all(row.output_positions == () for row in rows if row.purpose is Purpose.PREFILL)
    assert len(replies) == 6
