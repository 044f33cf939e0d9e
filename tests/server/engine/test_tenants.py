"""Tenants of the engine: none finds in a cache what another has left there, and who waits too long ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from trimtab.guidance.rules import Contrast
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import (
    Delta,
    Failed,
    Finished,
    GrammarSpec,
    Guidance,
    Request,
    SamplingParams,
    reading_of,
)

Make = Callable[..., Engine]
PROMPT = tuple(range(40, 80))
SAMPLING = SamplingParams(max_tokens=2, ignore_eos=True)
PLAIN = Request("plain", PROMPT, SAMPLING)
CASES = {
    "drawn": PLAIN,
    "given": reading_of("given", PROMPT, (3, 4)),
    "contrast": replace(PLAIN, guidance=Guidance(rule=Contrast((*range(40),)))),
}


def cached(engine: Engine, request: Request) -> int:
    engine.add(request)
    events = []
    while engine.has_work:
        events += engine.step()
    assert isinstance(events[-1], Finished)
    return events[-1].num_cached_tokens


@pytest.mark.parametrize("kind", CASES)
def test_a_prefix_is_found_by_requests_of_the_same_salt_alone(make_engine: Make, kind: str):
    engine, request = make_engine(), CASES[kind]
    num_found = [cached(engine, replace(request, salt=salt)) for salt in ("ana", "bo", "ana", "", "bo", "")]
    most = 32
    assert num_found == [0, 0, most, 0, most, most]


def test_a_companions_prefix_is_not_found_either(make_engine: Make):
    engine = make_engine()
    other = tuple(range(100, 140))
    request = replace(PLAIN, guidance=Guidance(rule=Contrast(other)))
    cached(engine, replace(request, salt="ana"))
    hidden = replace(PLAIN, request_id="probe", prompt_token_ids=other)
    assert [cached(engine, replace(hidden, salt=salt)) for salt in ("bo", "ana")] == [0, 32]


def test_a_grammar_is_compiled_anew_for_another_salt(make_engine: Make):
    grammars = make_engine().grammars
    spec = GrammarSpec("regex", "[a-c]+", "guided_regex", "ana")
    grammars.compile(spec)
    assert spec in grammars
    assert replace(spec, salt="bo") not in grammars


def test_a_request_that_waits_too_long_ends_and_one_that_has_begun_goes_on(make_engine: Make):
    engine = make_engine(max_num_seqs=1)
    begun = Request("begun", PROMPT, SamplingParams(max_tokens=8, ignore_eos=True), max_wait=0.0)
    patient, hasty = (
        replace(begun, request_id=name, max_wait=wait) for name, wait in (("p", None), ("h", 0.0))
    )
    engine.add(replace(begun, max_wait=1000.0))
    events = engine.step()
    engine.add(hasty)
    engine.add(patient)
    engine._due = [(0.0, *rest) for _, *rest in engine._due]  # type: ignore[misc]
    while engine.has_work:
        events += engine.step()
    ends = {event.request_id: event for event in events if not isinstance(event, Delta)}
    assert ends["h"] == Failed("h", "the server is too busy to begin with this request now", "queue")
    assert isinstance(ends["begun"], Finished) and isinstance(ends["p"], Finished)
    assert engine.scheduler.blocks.num_free == engine.scheduler.blocks.num_usable


def test_a_short_request_beside_long_ones_of_another_tenant_has_its_token_in_four_steps(make_engine: Make):
    engine = make_engine(max_num_seqs=4)
    long = SamplingParams(max_tokens=60, ignore_eos=True)
    for i in range(30):
        engine.add(Request(f"a{i}", PROMPT, long, tenant="a"))
    for _ in range(20):
        engine.step()
    engine.add(Request("b", PROMPT[:5], SAMPLING, tenant="b"))
    events = [event for _ in range(4) for event in engine.step()]
    assert any(isinstance(event, Delta) and event.request_id == "b" for event in events)
