"""Tenants share the engine fairly: who asks for little waits for a few steps, whatever the others ask for."""

from __future__ import annotations

import random
from collections import Counter
from itertools import count

import pytest
from engine_steps import take_step

from trimtab.server.engine.block_manager import BlockManager
from trimtab.server.engine.lane import Choice, Lane, Phase
from trimtab.server.engine.request import Request, SamplingParams
from trimtab.server.engine.scheduler import Scheduler

SIZE, BUDGET, SLOTS = 4, 32, 8
_numbers = count()


def choice(tenant: str, num_prompt: int, max_tokens: int = 4) -> Choice:
    number = next(_numbers)
    prompt = tuple(hash((number, i)) % 1000 for i in range(num_prompt))
    request = Request(f"{tenant}{number}", prompt, SamplingParams(max_tokens=max_tokens), tenant=tenant)
    return Choice(request, 0, (Lane(list(prompt)),))


def make(num_blocks: int = 100_000) -> Scheduler:
    return Scheduler(BlockManager(num_blocks, SIZE), SLOTS, BUDGET)


def steps_until_drawn(scheduler: Scheduler, asked: Choice, most: int = 1000) -> int:
    scheduler.add([asked])
    for num_steps in range(1, most):
        take_step(scheduler)
        if asked.num_drawn:
            return num_steps
    raise AssertionError(f"nothing is drawn within {most} steps")


@pytest.mark.parametrize("num_prompt", [3, 200])
def test_a_short_request_beside_200_long_ones_of_another_tenant_draws_within_three_steps(num_prompt: int):
    scheduler = make()
    scheduler.add([choice("a", num_prompt, max_tokens=500) for _ in range(200)])
    for _ in range(60):
        take_step(scheduler)
    waits = []
    for _ in range(20):  # one after another, as of somebody who waits for each reply
        short = choice("b", 5, max_tokens=3)
        waits.append(steps_until_drawn(scheduler, short))
        while short.phase is not Phase.DONE:
            take_step(scheduler)
    assert max(waits) <= 3, waits


def test_a_short_request_finds_blocks_where_another_tenant_holds_all():
    scheduler = make(num_blocks=50)
    scheduler.add([choice("a", 20, max_tokens=100) for _ in range(200)])
    for _ in range(40):
        take_step(scheduler)
    assert scheduler.blocks.num_free < 6
    for _ in range(10):
        assert steps_until_drawn(scheduler, choice("b", 21, max_tokens=2)) <= 4
        for _ in range(20):  # or it would ask for more than the other gets
            take_step(scheduler)


def test_a_long_prompt_waits_for_one_prompt_of_another_tenant_and_not_for_all():
    scheduler = make()
    scheduler.add([choice("a", 10 * BUDGET, max_tokens=1) for _ in range(200)])
    for _ in range(5):
        take_step(scheduler)
    assert steps_until_drawn(scheduler, choice("b", 3 * BUDGET)) <= 10 + 3 + 2


def test_tenants_that_ask_for_more_than_there_is_get_equal_lanes_and_tokens():
    scheduler = make()
    for tenant, num in (("a", 300), ("b", 100), ("c", 100)):
        scheduler.add([choice(tenant, 10, max_tokens=30) for _ in range(num)])
    held, computed = Counter[str](), Counter[str]()
    for _ in range(200):
        for row in take_step(scheduler).rows:
            held[row.choice.tenant] += 1
            computed[row.choice.tenant] += row.num_tokens
    for of in (held, computed):
        assert max(of.values()) < 1.2 * min(of.values()), of


def test_whoever_was_served_alone_is_not_made_to_wait_for_it():
    scheduler = make()
    for _ in range(100):
        steps_until_drawn(scheduler, choice("b", 30, max_tokens=1))
    scheduler.add([choice("a", 10, max_tokens=100) for _ in range(200)])
    for _ in range(5):
        take_step(scheduler)
    assert steps_until_drawn(scheduler, choice("b", 5)) <= 3


def test_a_flood_of_short_requests_starves_nobody():
    """Those who give way are the youngest again and again, but go on between."""
    scheduler = make(num_blocks=60)
    long = [choice("a", 30, max_tokens=40) for _ in range(12)]
    scheduler.add(long)
    for _ in range(2000):
        if sum(each.tenant == "b" for each in scheduler.waiting) < 5:
            scheduler.add([choice("b", 9, max_tokens=2)])
        take_step(scheduler)
        if all(each.phase is Phase.DONE for each in long):
            return
    raise AssertionError([(each.phase, each.num_drawn, each.num_preemptions) for each in long])


def test_where_blocks_run_out_the_tenant_with_the_most_lanes_gives_way():
    scheduler = make(num_blocks=33)
    scheduler.add([choice("a", 4, max_tokens=60) for _ in range(4)])
    take_step(scheduler)
    youngest = choice("b", 4, max_tokens=60)
    scheduler.add([youngest])
    while youngest.phase is not Phase.DONE:
        take_step(scheduler)
    assert youngest.num_preemptions == 0


def test_a_tenants_only_choice_never_gives_way_to_make_room():
    scheduler = make(num_blocks=30)
    large = choice("a", 80, max_tokens=20)
    scheduler.add([large])
    for _ in range(4):
        take_step(scheduler)
    scheduler.add([choice("b", 40, max_tokens=3) for _ in range(10)])
    while large.phase is not Phase.DONE:
        assert large not in take_step(scheduler).preempted


@pytest.mark.parametrize("seed", range(8))
def test_whatever_tenants_ask_for_all_of_it_ends_and_all_blocks_and_slots_are_free(seed: int):
    rng = random.Random(seed)
    scheduler = make(num_blocks=rng.randint(25, 60))
    pending = [choice(rng.choice("abcd"), rng.randint(1, 50), rng.randint(1, 40)) for _ in range(60)]
    asked = list(pending)
    for _ in range(5000):
        while pending and rng.random() < 0.3:
            scheduler.add([pending.pop()])
        take_step(scheduler)
        if not pending and not scheduler:
            break
    assert all(each.phase is Phase.DONE and not each.can_draw for each in asked)
    assert scheduler.blocks.num_free == scheduler.blocks.num_usable
    assert len(scheduler._free_slots) == SLOTS
