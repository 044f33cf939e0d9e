"""Heads that come and go while requests are under way, which go on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import save_random_head

from trimtab.guidance.controllers.target import Target
from trimtab.guidance.errors import HeadError
from trimtab.guidance.heads.manifest import ScalarPart
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import (
    ChoiceDone,
    Delta,
    Event,
    Finished,
    Guidance,
    InvalidRequestError,
    Request,
    SamplingParams,
)

Make = Callable[..., Engine]
Folders = dict[str, Path]
PROMPT = tuple(range(40, 60))
GRU = ScalarPart(form="gru", width=8, units=4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("heads")
    forms = {
        "kind": {"seed": 1, "slope": 0.5},
        "low": {"seed": 2, "form": "lowrank"},
        "more": {"seed": 3, "form": "lowrank", "value": GRU, "slope": 0.5},
        "tied": {"seed": 4},
    }
    return {name: save_random_head(root / name, llama_folder, name, **of) for name, of in forms.items()}


def asked(name: str, *heads: str, **fields: object) -> Request:
    guidance = Guidance(2.0, tuple((head, 1.0) for head in heads), trace=True, **fields)
    return Request(name, PROMPT, SamplingParams(max_tokens=16, seed=7, ignore_eos=True), guidance)


def play(engine: Engine, requests: list[Request], changes: dict[int, Callable[[], None]]) -> list[Event]:
    """changes: before which steps."""
    for request in requests:
        engine.add(request)
    events, num_steps = [], 0
    while engine.has_work:
        changes.get(num_steps, lambda: None)()
        events += engine.step()
        num_steps += 1
    return events


def add(engine: Engine, folders: Folders, file: str, name: str | None = None) -> None:
    engine.add_head(engine.read_head(folders[file], name or file))


@pytest.mark.parametrize("options", [{}, {"strict": True}, {"async_depth": 1}], ids=str)
def test_requests_under_way_do_not_change_by_a_bit(make_engine: Make, folders: Folders, options: dict):
    """Whatever is loaded, unloaded, and loaded under their own heads' names."""

    def make() -> Engine:
        return make_engine(heads=(folders["kind"], folders["low"]), num_vacant_heads=2, **options)

    def requests() -> list[Request]:
        held = (Target("kind", 1.0),)
        return [
            asked("both", "kind", "low"),
            asked("held", "kind", controllers=held),
            Request("plain", PROMPT, SamplingParams(max_tokens=16, seed=3, ignore_eos=True)),
        ]

    engine = make()
    changes = {
        3: lambda: add(engine, folders, "more"),
        5: lambda: engine.drop_head("low"),
        6: lambda: add(engine, folders, "tied", "low"),
        7: lambda: engine.drop_head("kind"),
        9: lambda: engine.drop_head("more"),
    }
    changed = play(engine, requests(), changes)
    assert tuple(engine.bank.offered) == ("low",)
    assert changed == play(make(), requests(), {})
    assert sum(isinstance(event, Finished) for event in changed) == 3


def test_a_head_that_came_later_is_the_same_as_one_that_was_there(make_engine: Make, folders: Folders):
    late = make_engine(heads=(folders["kind"],), num_vacant_heads=1)
    add(late, folders, "more")
    early = make_engine(heads=(folders["kind"], folders["more"]))
    request = asked("r", "more", "kind", controllers=(Target("more", 0.5),))
    replies = []
    for engine in (late, early):
        events = play(engine, [request], {})
        replies.append([e.tokens[0].token_id for e in events if isinstance(e, Delta) and e.tokens])
        done = next(event for event in events if isinstance(event, ChoiceDone))
        assert [name for name, _ in done.summary.value] == ["kind", "more"]
    assert replies[0] == replies[1]


def test_a_head_that_is_gone_cannot_be_asked_for_and_another_takes_its_column(
    make_engine: Make, folders: Folders
):
    engine = make_engine(heads=(folders["kind"],), num_vacant_heads=1)
    before = engine.info
    for file in ("low", "more", "tied", "low"):  # more than there is room for at a time
        add(engine, folders, file)
        assert [head.name for head in engine.info.heads] == ["kind", file]
        assert engine.info.max_model_len == before.max_model_len
        with pytest.raises(HeadError, match="no room"):
            add(engine, folders, "low", "another")
        play(engine, [asked("r", file)], {})
        engine.drop_head(file)
        with pytest.raises(InvalidRequestError, match=f"{file}: no such head; loaded heads: kind"):
            engine.add(asked("r", file))
    for name, says in (("kind", "loaded already"), ("no name", "must be lower-case")):
        with pytest.raises(HeadError, match=says):
            add(engine, folders, "low", name)
    with pytest.raises(HeadError, match="not loaded"):
        engine.drop_head("low")
    assert engine.info.heads == before.heads


def test_a_request_that_a_preemption_begins_anew_still_has_its_head(make_engine: Make, folders: Folders):
    def run(changes: bool) -> list[Event]:
        engine = make_engine(heads=(folders["more"],), num_vacant_heads=1)
        choices = {}

        def preempt() -> None:
            choice = next(iter(engine.scheduler.running))
            choices["it"] = choice
            engine.scheduler._preempt(engine.scheduler.schedule().__class__(), choice)

        def change() -> None:
            engine.drop_head("more")
            add(engine, folders, "tied")
            preempt()

        return play(engine, [asked("r", "more")], {4: change if changes else preempt})

    assert run(changes=True) == run(changes=False)
