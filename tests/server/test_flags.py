from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import pytest
import tyro

from trimtab.server.flags import FLAGS, describe, parse


@dataclass(frozen=True)
class Inner:
    """Of the inside.

    depth: how deep.
    """

    depth: int = 3


@dataclass(frozen=True)
class Outer:
    """Prose over
    two lines: with a colon.

    size: in tokens; it goes
    on here. name: of the thing.
    """

    size: int
    name: str = "x"
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True)
class Wider(Outer):
    """Wider still.

    name: of another thing.
    """

    width: float = 0.5


@dataclass(frozen=True)
class Holder:
    """Holds it.

    depth: how deep it is held.
    """

    inner: tyro.conf.OmitArgPrefixes[Inner] = field(default=Inner(5), metadata={FLAGS: ("depth",)})


def test_a_contained_configuration_has_plain_flags_and_the_defaults_and_help_of_who_contains_it():
    assert parse(Holder, "t", []) == Holder(Inner(5))
    assert parse(Holder, "t", ["--depth", "1"]) == Holder(Inner(1))
    assert describe(Holder)[1] == {"depth": "how deep it is held."}


def test_a_contained_field_without_a_flag_keeps_what_it_was_given():
    hidden = dataclasses.make_dataclass(
        "Hidden",
        [("inner", tyro.conf.OmitArgPrefixes[Inner], field(default=Inner(6), metadata={FLAGS: ()}))],
        frozen=True,
    )
    assert parse(hidden, "t", []).inner == Inner(6)
    with pytest.raises(SystemExit):
        parse(hidden, "t", ["--depth", "1"])


def test_a_docstring_is_prose_and_help_by_field():
    assert describe(Outer) == (
        "Prose over two lines: with a colon.",
        {"size": "in tokens; it goes on here.", "name": "of the thing."},
    )


def test_a_subclass_adds_to_its_bases_help():
    prose, help_of = describe(Wider)
    assert prose == "Wider still."
    assert help_of == {"size": "in tokens; it goes on here.", "name": "of another thing."}


def test_flags_take_their_defaults_from_the_fields():
    assert parse(Wider, "t", ["--size", "2"]) == Wider(2)
    asked = ["--size", "2", "--width", "1", "--inner.depth", "4"]
    assert parse(Wider, "t", asked) == Wider(2, "x", Inner(4), 1.0)


def test_help_shows_each_fields_text(capsys):
    with pytest.raises(SystemExit):
        parse(Wider, "t", ["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in ("Wider still.", "in tokens; it goes on here.", "of another thing.", "how deep."):
        assert text in shown


def test_given_defaults_stand_in_for_the_fields_own_and_flags_count_more():
    given = {"size": 7, "inner": Inner(9)}
    assert parse(Wider, "t", [], given) == Wider(7, "x", Inner(9))
    assert parse(Wider, "t", ["--size", "2", "--inner.depth", "1"], given) == Wider(2, "x", Inner(1))


def test_an_indented_paragraph_keeps_its_lines():
    @dataclass(frozen=True)
    class Example:
        """Says this
        in prose:

          run --it
            --so
        """

        size: int = 1

    assert describe(Example)[0] == "Says this in prose:\n\n  run --it\n    --so"
