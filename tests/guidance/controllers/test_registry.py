"""What a controller consists of, how requests spell it, and that it only ever lessens a strength."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from trimtab.guidance.controllers import CONTROLLERS, HORIZON, parse_controllers, read_controllers
from trimtab.guidance.controllers.base import Controller
from trimtab.guidance.controllers.entropy_gate import EntropyGate
from trimtab.guidance.controllers.kl_budget import KLBudget
from trimtab.guidance.controllers.max_kl import MaxKL
from trimtab.guidance.controllers.on import On
from trimtab.guidance.controllers.schedule import Schedule
from trimtab.guidance.controllers.target import Target
from trimtab.guidance.errors import ControllerError
from trimtab.server.api.schemas.guidance import GuidanceFields

EVERY = {
    "max_kl": 0.1,
    "kl_budget": 2,
    "target": {"head": "kind", "value": 1.0},
    "schedule": {"kind": "warmup", "tokens": 3},
    "entropy_gate": 0.5,
    "on": "answer",
}
LINE = "max_kl=0.1,kl_budget=2,target=kind:1.0,schedule=warmup:3,entropy_gate=0.5,on=answer"


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_controller_is_a_file_a_test_and_a_field_of_its_name(name: str):
    module = importlib.import_module(f"trimtab.guidance.controllers.{name}")
    kind = CONTROLLERS[name]
    assert kind.__module__ == module.__name__
    assert set(module.__doc__ or "") & set("=≤"), "its formula"
    assert Path(__file__).with_name(f"test_{name}.py").exists()
    assert name in GuidanceFields.model_fields
    assert name in EVERY


def test_the_api_has_no_field_that_no_controller_reads():
    others = {"strength", "heads", "trace", "rule", HORIZON}
    assert set(GuidanceFields.model_fields) - others == set(CONTROLLERS)


def test_all_of_them_are_read_in_one_order_and_the_horizon_goes_to_those_who_look_ahead():
    found = (
        MaxKL(0.1),
        KLBudget(2),
        Target("kind", 1.0),
        Schedule("warmup", 3),
        EntropyGate(0.5),
        On("answer"),
    )
    assert read_controllers(EVERY) == read_controllers(dict(reversed(EVERY.items()))) == found
    ahead = read_controllers({**EVERY, "horizon": 8})
    assert (ahead[1], ahead[2]) == (KLBudget(2, 8), Target("kind", 1.0, 8))
    assert [type(controller) for controller in ahead] == list(CONTROLLERS.values())
    assert read_controllers({"max_kl": None, "horizon": None}) == ()


def test_the_api_reads_what_it_is_given():
    fields = GuidanceFields.model_validate({**EVERY, "horizon": 8, "strength": 2})
    assert read_controllers(fields.controllers) == read_controllers({**EVERY, "horizon": 8})


def test_a_line_says_the_same():
    assert read_controllers(parse_controllers(LINE)) == read_controllers(EVERY)
    assert parse_controllers(" target = kind:-0.5 , horizon=8,") == {
        "target": {"head": "kind", "value": -0.5},
        "horizon": 8,
    }
    assert parse_controllers("schedule=constant") == {"schedule": {"kind": "constant"}}
    assert parse_controllers("") == {}


@pytest.mark.parametrize(
    ("line", "key", "says"),
    [
        ("max_k=1", "max_k", "no such controller; there are max_kl, kl_budget"),
        ("max_kl", "max_kl", "write max_kl=MAX_KL"),
        ("max_kl=1:2", "max_kl", "write max_kl=MAX_KL"),
        ("max_kl=x", "max_kl", "must be a number"),
        ("max_kl=nan", "max_kl", "must be a number"),
        ("target=kind:1:2", "target", "write target=HEAD:VALUE"),
        ("target=kind", "target.value", "is required"),
        ("max_kl=1,max_kl=2", "max_kl", "twice"),
        ("horizon=8", "horizon", "says nothing without kl_budget or target"),
        ("horizon=8,max_kl=1", "horizon", "says nothing without kl_budget or target"),
        ("horizon=0,kl_budget=1", "horizon", "1…4096"),
        ("horizon=x,kl_budget=1", "horizon", "1…4096"),
    ],
)
def test_a_line_that_cannot_be_read_is_refused_by_the_name_of_its_key(line: str, key: str, says: str):
    with pytest.raises(ControllerError) as error:
        read_controllers(parse_controllers(line))
    assert error.value.key == key
    assert says in error.value.problem


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"target": 5}, "target"),
        ({"target": {"head": "kind", "value": 1, "horizon": 3}}, "target.horizon"),
        ({"target": {"value": 1}}, "target.head"),
        ({"schedule": {}}, "schedule.kind"),
        ({"max_kl": {"max_kl": 1}}, "max_kl"),
        ({"rule": "tilt"}, "rule"),
        ({"on": "thoughts"}, "on"),
        ({"on": 1}, "on"),
    ],
)
def test_an_object_of_another_shape_is_refused_by_the_name_of_its_key(given: dict[str, object], key: str):
    with pytest.raises(ControllerError) as error:
        read_controllers(given)
    assert error.value.key == key


@pytest.mark.parametrize("strength", [3.0, -3.0])
@pytest.mark.parametrize("controller", read_controllers(EVERY), ids=lambda c: type(c).__name__)
def test_no_controller_raises_a_strength_or_asks_for_another_sign(
    limits_of, controller: Controller, strength
):
    for drawn in (0, 2, 50):
        for value, spent in ((-2.0, 0.0), (2.0, 1.9)):
            limits = limits_of(controller, strength, drawn=drawn, value=value, spent=spent)
            found = [x for x in (limits.beta_max, limits.kl_cap, limits.lift) if x is not None]
            assert len(found) == 1
            assert float(found[0]) >= 0
            assert limits.beta_max is None or float(limits.beta_max) <= abs(strength)
