"""Prefixes of prompts: the longest that was read somewhere decides."""

from __future__ import annotations

from trimtab.server.cluster.prefixes import PrefixMemory


def tokens(*blocks: int) -> list[int]:
    """Blocks of four."""
    return [block for block in blocks for _ in range(4)]


def memory(most: int = 100) -> PrefixMemory[str]:
    return PrefixMemory(block=4, most=most)


def test_the_place_of_the_longest_prefix_is_found():
    places = memory()
    places.remember(tokens(1, 2, 3), "a")
    places.remember(tokens(1, 2, 4), "b")
    assert places.find(tokens(1, 2, 3, 9), {"a", "b"}) == "a"
    assert places.find(tokens(1, 2, 4, 9), {"a", "b"}) == "b"
    assert places.find(tokens(1, 2, 9), {"a", "b"}) == "b"  # the last one to read it


def test_prompts_of_different_salts_share_nothing():
    places = memory()
    places.remember(tokens(1), "a", salt="mine")
    assert places.find(tokens(1), {"a"}, salt="mine") == "a"
    assert places.find(tokens(1), {"a"}, salt="yours") is None


def test_only_whole_blocks_from_the_beginning_count():
    places = memory()
    places.remember(tokens(1, 2), "a")
    assert places.find(tokens(2), {"a"}) is None
    assert places.find(tokens(1)[:3], {"a"}) is None
    assert places.find([*tokens(1), 5], {"a"}) == "a"


def test_a_place_that_is_gone_gives_way_to_one_that_has_less():
    places = memory()
    places.remember(tokens(1), "a")
    places.remember(tokens(1, 2, 3), "b")
    places.remember(tokens(1), "a")
    assert places.find(tokens(1, 2, 3), {"a"}) == "a"
    assert places.find(tokens(1, 2, 3), {"c"}) is None


def test_memory_is_bounded_and_forgets_what_was_of_no_use_for_longest():
    places = memory(most=3)
    places.remember(tokens(1), "a")
    places.remember(tokens(2), "a")
    places.remember(tokens(1), "a")
    places.remember(tokens(3, 4), "a")
    assert places.find(tokens(2), {"a"}) is None
    assert places.find(tokens(1), {"a"}) == "a"
    assert places.find(tokens(3, 4), {"a"}) == "a"
