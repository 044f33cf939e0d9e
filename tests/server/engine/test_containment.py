"""An exception in any function of a step ends the requests it concerns, and nothing else."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import torch
from fault_injection import Fault, calls_of, name_of
from safetensors.torch import load_file, save_file
from tiny_models import save_random_head
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

from trimtab.guidance.controllers import read_controllers
from trimtab.server.engine.detokenizer import Detokenizer
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.failure import failed
from trimtab.server.engine.replies import Reply
from trimtab.server.engine.request import (
    TERMINAL,
    Delta,
    Event,
    Failed,
    GrammarSpec,
    Guidance,
    Rejection,
    Request,
    SamplingParams,
    read_rule,
)
from trimtab.server.engine.step_result import StepResult

Make = Callable[..., Engine]
Replies = dict[tuple[str, int], list[int]]
PROMPT = tuple(range(40, 60))
OURS = ("/server/engine/", "/guidance/", "/kernels/")
CONTAINMENT = {
    "step",
    "_step",
    "_schedule",
    "_launch",
    "_postprocess",
    "_process",
    "_end",
    "_release",
    "_finish",
}
"""Functions of the engine that end requests for others: a fault at their own call is none of a row's."""

ERRORS: dict[str, Callable[[], Exception]] = {
    "runtime": lambda: RuntimeError("secret"),
    "memory": lambda: MemoryError("secret"),
    "out of memory": lambda: torch.OutOfMemoryError("secret"),
    "assertion": lambda: AssertionError("secret"),
    "overflow": lambda: OverflowError("secret"),
    "key": lambda: KeyError("secret"),
    "recursion": lambda: RecursionError("secret"),
    "stop iteration": lambda: StopIteration("secret"),
    "triton resources": lambda: OutOfResources(1, 0, "secret"),
    "triton compiler": lambda: CompilationError("secret", None, "secret"),
}


# A fault at the end of a generator that nobody reads on can be told to no one.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def heads(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("heads")
    return (
        save_random_head(folder, llama_folder, "kind", "tied", 1, slope=0.5),
        save_random_head(folder, llama_folder, "brief", "lowrank", 2, parts="a"),
    )


@pytest.fixture(params=[0, 1], ids=["depth 0", "depth 1"])
def engine(
    request: pytest.FixtureRequest, make_engine: Make, heads: tuple[Path, ...], llama_folder: Path
) -> Engine:
    """So small that requests wait for a slot, prompts come in chunks, and choices are preempted."""
    return make_engine(
        heads=heads,
        expert=(f"tuned={llama_folder}",),
        max_num_seqs=4,
        num_blocks=24,
        max_num_batched_tokens=16,
        async_depth=request.param,
    )


def guidance(
    strength: float = 1.5, *heads: str, rule: tuple[str, dict[str, object]] | None = None, **controls
):
    weights = tuple((name, 1.0) for name in heads)
    kind, options = rule or ("tilt", {})
    return Guidance(strength, weights, True, read_controllers(controls), read_rule(kind, options))


TIGHT = {"max_kl": 0.5, "kl_budget": 3.0, "entropy_gate": 0.1, "schedule": {"kind": "decay", "tokens": 15}}
JSON = GrammarSpec("json_schema", '{"type": "array", "items": {"enum": [1, 22]}, "minItems": 4}')
KINDS: dict[str, tuple[dict[str, Any], Guidance, dict[str, Any]]] = {
    "plain": ({"temperature": 0}, Guidance(), {}),
    "choices with stops": ({"n": 3, "stop": ("never", "a")}, Guidance(1.5, (("brief", 1.0),)), {}),
    "traced": ({"top_p": 0.9, "top_k": 40, "logprobs": 3}, guidance(2.0, "kind"), {}),
    "penalised": ({"presence_penalty": 1.0, "logit_bias": ((50, 4.0),), "min_p": 0.01}, Guidance(), {}),
    "regex": (
        {"repetition_penalty": 1.2, "ignore_eos": False},
        guidance(-1.0, "kind", "brief"),
        {"grammar": GrammarSpec("regex", "[a-z]{30}")},
    ),
    "measured": ({}, Guidance(0.0, (("kind", 1.0),)), {}),
    "schema": ({"n": 2, "ignore_eos": False}, guidance(1.0, "kind"), {"grammar": JSON}),
    "forbidden": (
        {"min_tokens": 9, "bad_words": ((97,), (98, 99)), "ignore_eos": False, "stop_token_ids": (65,)},
        Guidance(),
        {},
    ),
    "controlled": ({}, guidance(3.0, "kind", "brief", **TIGHT), {}),
    "held at a value": ({}, guidance(3.0, "kind", target={"head": "kind", "value": 1.0}, horizon=8), {}),
    "contrast": (
        {},
        guidance(1.0, "kind", rule=("contrast", {"negative_prompt": PROMPT[4:9], "alpha": 0.1}), max_kl=0.5),
        {},
    ),
    "expert": ({}, guidance(0.0, rule=("expert", {"expert": "tuned", "anti_expert": "policy"})), {}),
    "lookahead": ({}, guidance(1.0, "kind", rule=("lookahead", {"k": 3})), {}),
    "blockwise": ({}, guidance(1.0, "kind", rule=("blockwise", {"candidates": 2, "block": 4})), {}),
    "smc": (
        {"n": 2},
        guidance(1.0, "kind", rule=("smc", {"particles": 2, "block": 4, "proposal": "tilt"})),
        {},
    ),
    "best of some": (
        {"n": 3},
        guidance(0.0, "kind"),
        {"rejection": Rejection((("kind", 1.0),), every=4, share=0.5, keep=1)},
    ),
    "given": (
        {"max_tokens": 14, "temperature": 0, "logprobs": 2},
        guidance(1.0, "kind"),
        {"given": PROMPT[6:]},
    ),
}
"""Every kind of row: sampling, guidance, and what else a request may hold."""


RACED = f"request {[*KINDS].index('best of some')}"
"""Who is rejected there, and when, is a matter of who has come how far."""


def workload() -> list[Request]:
    return [
        Request(
            f"request {i}",
            PROMPT[: 12 + i % 6],
            SamplingParams(**{"max_tokens": 14, "seed": i, "ignore_eos": True, **sampling}),
            steered,
            **other,
        )
        for i, (sampling, steered, other) in enumerate(KINDS.values())
    ]


def run(engine: Engine, requests: list[Request]) -> list[Event]:
    """What AsyncEngine does, in this thread: a request that cannot be added has failed."""
    events: list[Event] = []
    for request in requests:
        try:
            engine.add(request)
        except Exception:
            events.append(failed(request.request_id))
    for _ in range(2000):
        if not engine.has_work:
            return events
        events += engine.step()
    raise AssertionError("the engine does not come to an end")


def replies(events: list[Event]) -> Replies:
    tokens: Replies = {}
    for event in events:
        if isinstance(event, Delta):
            tokens.setdefault((event.request_id, event.index), []).extend(t.token_id for t in event.tokens)
    return tokens


def failures(events: list[Event]) -> set[str]:
    return {event.request_id for event in events if isinstance(event, Failed)}


def assert_contained(engine: Engine, events: list[Event], want: Replies) -> set[str]:
    """One terminal event each; the replies of the others are right, and everything is free. Who failed."""
    terminal = [event for event in events if isinstance(event, TERMINAL)]
    assert sorted(event.request_id for event in terminal) == sorted(r.request_id for r in workload())
    ended = failures(events)
    assert not any("secret" in event.message for event in events if isinstance(event, Failed))
    got = replies(events)
    others = want.keys() - {key for key in want if key[0] in ended | {RACED}}
    assert {key: got.get(key) for key in others} == {key: want[key] for key in others}
    scheduler = engine.scheduler
    assert not scheduler
    assert scheduler.blocks.num_free == scheduler.blocks.num_usable
    assert len(scheduler._free_slots) == scheduler.max_num_seqs
    return ended


def functions_of_a_step(engine: Engine) -> dict[CodeType, int]:
    """Those that the workload calls, each with the number of its calls; lambdas and the like included."""
    requests = workload()
    with calls_of(OURS) as calls:
        run(engine, requests)
    return {
        code: count
        for code, count in sorted(calls.items(), key=lambda item: name_of(item[0]))
        if "/tests/" not in code.co_filename
        and not (code.co_filename.endswith("engine/engine.py") and code.co_name in CONTAINMENT)
        and code.co_name not in ("has_work", "failed", "one_torch_thread")  # around or beside a step
    }


def strike_each(engine: Engine, every: int) -> Iterator[tuple[str, set[str]]]:
    """A fault in every so-many-th function that a step calls, late in the work; who failed of it."""
    want = replies(run(engine, workload()))
    kinds = itertools.cycle(ERRORS)
    for code, count in list(functions_of_a_step(engine).items())[::every]:
        kind = next(kinds)
        requests = workload()
        with Fault(code, count // 2, ERRORS[kind]()) as fault:
            events = run(engine, requests)
        told = f"{kind} in {name_of(code)}"
        assert fault.has_struck, told
        try:
            ended = assert_contained(engine, events, want)
            again = run(engine, workload())
            assert assert_contained(engine, again, want) == set()
        except AssertionError as error:
            raise AssertionError(f"after {told}: {error}") from error
        yield told, ended


def test_a_fault_in_some_functions_of_a_step_ends_the_requests_it_concerns(engine: Engine, caplog):
    caplog.set_level(logging.CRITICAL)
    struck = dict(strike_each(engine, every=80))
    assert len(struck) > 5
    assert any(struck.values())


@pytest.mark.slow
def test_a_fault_in_any_function_of_a_step_ends_the_requests_it_concerns(engine: Engine, caplog):
    caplog.set_level(logging.CRITICAL)
    struck = dict(strike_each(engine, every=1))
    for told, ended in struck.items():
        print(told, sorted(ended))


def test_a_reply_that_cannot_be_decoded_ends_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    want = replies(run(engine, workload()))
    token = want["request 0", 0][3]
    others = {name for name, index in want if token in want[name, index]}
    detokenizer = type(engine.policy.text.detokenizer(PROMPT))
    push = detokenizer.push

    def fail(self: Detokenizer, token_id: int) -> str:
        if token_id == token:
            raise ZeroDivisionError("secret")
        return push(self, token_id)

    monkeypatch.setattr(detokenizer, "push", fail)
    assert assert_contained(engine, run(engine, workload()), want) == others
    assert len(others) < len(workload())


def test_a_fault_that_stays_ends_every_request_and_goes_with_its_cause(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    want = replies(run(engine, workload()))
    for owner, name in (
        (type(engine.scheduler), "schedule"),
        (engine, "_end_overdue"),
        (engine.runner, "run"),
        (engine.runner.state, "admit_lane"),
        (engine.runner.state, "write"),
        (type(engine.sampler), "draw"),
        (type(engine.scheduler.blocks), "extend"),
        (type(engine.scheduler.blocks), "register"),
        (Reply, "push"),
        (StepResult, "read_draws"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, _fail)
            assert failures(run(engine, workload())) == {request.request_id for request in workload()}, name
        assert assert_contained(engine, run(engine, workload()), want) == set(), name


def test_a_fault_before_anyone_is_scheduled_is_not_the_last_ones_of_the_step_before(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    for request in workload():
        engine.add(request)
    engine.step()
    live = set(engine._live)
    assert len(live) > 2
    monkeypatch.setattr(engine, "_end_overdue", _fail)
    assert failures(engine.step()) == live


def _fail(*_: object, **__: object) -> None:
    raise OutOfResources(1, 0, "secret")


@pytest.mark.parametrize("place", ["run", "draw", "push"])
def test_a_fault_of_the_device_is_the_end_of_the_engine(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, place: str
):
    owner = {"run": engine.runner, "draw": engine.sampler, "push": Reply}[place]

    def fail(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("secret")

    monkeypatch.setattr(owner, place, fail)
    with pytest.raises(torch.AcceleratorError):
        run(engine, workload())


@pytest.mark.parametrize("part", ["value", "reward"])
def test_a_head_whose_number_is_not_finite_fails_its_request_alone(
    part: str, llama_folder: Path, tmp_path: Path, make_engine: Make
):
    """Finite weights, as a head's on disk must be, whose sum is not."""
    folder = save_random_head(tmp_path, llama_folder, "loud", "tied", 1)
    tensors = load_file(folder / "head.safetensors")
    for name, tensor in tensors.items():
        if name.startswith(part):
            tensor.fill_(3e38)
    save_file(tensors, folder / "head.safetensors")
    engine = make_engine(heads=(folder,), max_num_seqs=4)
    sampling = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
    asks = Request("asks", PROMPT, sampling, Guidance(0.0, (("loud", 1.0),)))
    events = run(engine, [asks, Request("plain", PROMPT, sampling)])
    ends = [event for event in events if isinstance(event, TERMINAL)]
    assert {event.request_id: type(event).__name__ for event in ends} == {
        "asks": "Failed",
        "plain": "Finished",
    }
    (asked,) = (event for event in ends if isinstance(event, Failed))
    assert "loud" in asked.message
    assert not engine.scheduler.running
