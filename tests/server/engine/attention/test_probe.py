"""The window of a mask rule is read off its positions, and every other rule is told apart."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trimtab.server.engine.attention.base import UnsupportedAttentionError
from trimtab.server.engine.attention.probe import window_of

LONGEST = 5000
Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def causal(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return key <= query


def sliding(window: int) -> Rule:
    return lambda b, h, query, key: causal(b, h, query, key) & (key > query - window)


def chunked(size: int) -> Rule:
    return lambda b, h, query, key: causal(b, h, query, key) & (key // size == query // size)


def listed(kinds: Tensor) -> Rule:
    return lambda b, h, query, key: causal(b, h, query, key) & (kinds[key] == 0)


@pytest.mark.parametrize("window", [1, 2, 511, 600, 4095, 4999])
def test_a_sliding_window_is_read_off_at_any_length(window: int) -> None:
    assert window_of(sliding(window), LONGEST, "it") == window


@pytest.mark.parametrize("rule", [causal, sliding(LONGEST), sliding(10**6), chunked(LONGEST)])
def test_a_mask_that_hides_no_past_position_has_no_window(rule: Rule) -> None:
    assert window_of(rule, LONGEST, "it") is None


@pytest.mark.parametrize("longest", [1, 2, 3, 131_072])
def test_the_shortest_and_longest_contexts_are_probed_too(longest: int) -> None:
    assert window_of(causal, longest, "it") is None
    assert window_of(sliding(1), longest, "it") in (None, 1)


OTHERS: dict[str, Rule] = {
    "chunks": chunked(4096),
    "chunks that divide the length": chunked(2500),
    "small chunks": chunked(3),
    "all positions": lambda b, h, query, key: (key >= 0) & (query >= 0),
    "a prefix seen by all": lambda b, h, query, key: causal(b, h, query, key) | (key < 7),
    "a window and first tokens": lambda b, h, query, key: (
        sliding(64)(b, h, query, key) | (key < 4) & (key <= query)
    ),
    "a window that looks ahead": lambda b, h, query, key: (query - key).abs() < 64,
    "every other position": lambda b, h, query, key: causal(b, h, query, key) & ((query - key) % 2 == 0),
    "a window from a late position on": lambda b, h, query, key: torch.where(
        query < 4500, causal(b, h, query, key), sliding(64)(b, h, query, key)
    ),
    "one token masked": lambda b, h, query, key: causal(b, h, query, key) & (key != 3333),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_mask_is_refused_with_two_positions_where_it_differs(name: str) -> None:
    with pytest.raises(UnsupportedAttentionError, match="the mask of Odd is neither causal") as error:
        window_of(OTHERS[name], LONGEST, "Odd")
    verb, key, query = re.findall(r"(shows|hides) position (\d+) .* at (\d+)", str(error.value))[0]
    seen = OTHERS[name](*(torch.tensor(int(i)) for i in (0, 0, query, key)))
    assert bool(seen) == (verb == "shows")


def test_a_mask_by_what_the_tokens_are_is_refused_unless_it_covers_every_position() -> None:
    assert window_of(listed(torch.zeros(LONGEST)), LONGEST, "it") is None
    with pytest.raises(UnsupportedAttentionError, match="more than positions"):
        window_of(listed(torch.zeros(2)), LONGEST, "it")
