"""Domains of the grammar, one module for each part of life."""

from __future__ import annotations

from examples.toy.grammar.domain import Domain
from examples.toy.grammar.domains import days, home, kitchen, leisure, outdoors, people, talk

ANYTHING = talk.ANYTHING
DOMAINS: tuple[Domain, ...] = (
    *kitchen.DOMAINS,
    *outdoors.DOMAINS,
    *home.DOMAINS,
    *days.DOMAINS,
    *leisure.DOMAINS,
    *people.DOMAINS,
    *talk.DOMAINS,
)
