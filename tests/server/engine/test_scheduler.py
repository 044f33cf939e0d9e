import random

import pytest

from trimtab.guidance.rules import Smc
from trimtab.server.engine.block_manager import BlockManager
from trimtab.server.engine.lane import Choice, Lane, Phase
from trimtab.server.engine.request import Guidance, Request, SamplingParams
from trimtab.server.engine.scheduler import Purpose, Scheduler, Step

SIZE = 4


def make(num_blocks: int = 100, max_num_seqs: int = 8, budget: int = 16) -> Scheduler:
    return Scheduler(BlockManager(num_blocks, SIZE), max_num_seqs, budget)


def choice(name: str, num_prompt: int, max_tokens: int = 4, companions: tuple[int, ...] = ()) -> Choice:
    prompt = tuple(hash((name, i)) % 1000 for i in range(num_prompt))
    lanes = (Lane(list(prompt)), *(Lane([7] * n) for n in companions))
    return Choice(Request(name, prompt, SamplingParams(max_tokens=max_tokens)), 0, lanes)


def read(step: Step) -> list[Choice]:
    """What the engine does with a step's draws; returns the choices that reached max_tokens."""
    drawn = {id(row.choice): row.choice for row in step.rows if row.purpose is Purpose.DRAW}
    over = []
    for each in drawn.values():
        for lane in each.lanes:
            lane.tokens.append(0)
            lane.num_inflight -= 1
        if not each.can_draw:
            over.append(each)
    return over


def run(scheduler: Scheduler) -> Step:
    step = scheduler.schedule()
    scheduler.advance(step)
    for over in read(step):
        scheduler.finish(over)
    return step


def shape(step: Step) -> list[tuple[str, int]]:
    return [(row.choice.request.request_id, row.num_tokens) for row in step.rows]


def test_decode_rows_come_first_and_a_long_prompt_fills_the_rest_of_the_budget():
    scheduler = make()
    scheduler.add([choice("short", 3, max_tokens=9)])
    run(scheduler)
    scheduler.add([choice("long", 40)])
    assert shape(run(scheduler)) == [("short", 1), ("long", 15)]
    assert shape(run(scheduler)) == [("short", 1), ("long", 15)]
    step = run(scheduler)
    assert shape(step) == [("short", 1), ("long", 10)]
    assert step.rows[1].output_positions == (9,), "only the end of the prompt is asked for h"


def test_first_come_first_served_even_when_a_later_request_would_fit():
    scheduler = make(num_blocks=11, budget=64)
    for each in (choice("a", 20), choice("big", 30), choice("small", 2)):
        scheduler.add([each])
    assert shape(run(scheduler)) == [("a", 20)]
    order = [name for _ in range(12) for name, _ in shape(run(scheduler))]
    assert order.index("big") < order.index("small")


def test_requests_join_and_leave_at_any_step():
    scheduler = make(budget=64)
    scheduler.add([choice("a", 2, max_tokens=3)])
    names = [shape(run(scheduler))]
    scheduler.add([choice("b", 2, max_tokens=1)])
    names += [shape(run(scheduler)), shape(run(scheduler)), shape(run(scheduler))]
    assert names == [[("a", 2)], [("a", 1), ("b", 2)], [("a", 1)], []]


def test_the_youngest_is_preempted_when_blocks_run_out_and_keeps_its_place_and_tokens():
    scheduler = make(num_blocks=6, budget=32)
    old, young, newest = choice("old", 7, 12), choice("young", 7, 12), choice("newest", 1, 1)
    for each in (old, young, newest):
        scheduler.add([each])
    step = next(step for step in (run(scheduler) for _ in range(10)) if step.preempted)
    assert step.preempted == [young]
    assert scheduler.waiting.first is young
    assert young.phase is Phase.WAITING
    assert not young.lane.blocks
    assert len(young.lane.tokens) > 7
    while scheduler:
        run(scheduler)
    assert len(old.lane.tokens) == len(young.lane.tokens) == 19


def test_lanes_of_a_choice_draw_in_the_same_step_or_not_at_all():
    scheduler = make(budget=10)
    both = choice("both", 6, max_tokens=3, companions=(13,))
    scheduler.add([both])
    drawing_steps = 0
    while scheduler:
        step = run(scheduler)
        drawing = [row.lane for row in step.rows if row.purpose is Purpose.DRAW]
        assert not drawing or drawing == list(both.lanes)
        assert step.num_tokens <= 10
        drawing_steps += bool(drawing)
    assert drawing_steps == 3
    assert both.lanes[0].tokens[-3:] == both.lanes[1].tokens[-3:] == [0, 0, 0]


def test_lanes_are_admitted_together_or_not_at_all():
    scheduler = make(num_blocks=7, max_num_seqs=4, budget=64)
    scheduler.add([choice("first", 8, max_tokens=2)])
    pair = choice("pair", 8, companions=(12,))
    scheduler.add([pair])
    assert shape(run(scheduler)) == [("first", 8)]
    assert pair.lanes[0].blocks == pair.lanes[1].blocks == [], "five blocks are needed and four are free"
    run(scheduler)
    assert shape(run(scheduler)) == [("pair", 8), ("pair", 12)]


def test_followers_fork_the_leaders_prompt_and_compute_one_token_of_it():
    scheduler = make(budget=64)
    leader = choice("n", 10, max_tokens=3)
    followers = [
        Choice(leader.request, i, (Lane(list(leader.request.prompt_token_ids)),), leader) for i in (1, 2)
    ]
    scheduler.add([leader, *followers])
    assert shape(run(scheduler)) == [("n", 10)]
    step = run(scheduler)
    assert shape(step) == [("n", 1), ("n", 1), ("n", 1)]
    assert [row.start for row in step.rows] == [10, 9, 9]
    assert len(step.copies) >= 2, "the shared partial block is copied before it is written"
    while scheduler:
        run(scheduler)
    assert scheduler.blocks.num_free == scheduler.blocks.num_usable


def test_a_finished_reply_feeds_its_last_token_once_more_to_be_judged():
    scheduler = make()
    one = choice("one", 5, max_tokens=2)
    scheduler.add([one])
    for _ in range(2):
        step = scheduler.schedule()
        scheduler.advance(step)
        read(step)
    scheduler.begin_finishing(one, [*one.lane.tokens, 42])
    step = scheduler.schedule()
    assert [(row.purpose, row.start, row.num_tokens) for row in step.rows] == [(Purpose.REWARD, 6, 2)]
    assert step.rows[0].output_positions == (1,)
    scheduler.advance(step)
    assert not scheduler.schedule().rows, "a judged reply draws no more"


def test_a_token_in_flight_can_be_fed_before_the_host_has_read_it():
    scheduler = make()
    one = choice("one", 5, max_tokens=2)
    scheduler.add([one])
    first = scheduler.schedule()
    scheduler.advance(first)
    second = scheduler.schedule()
    assert shape(second) == [("one", 1)]
    scheduler.advance(second)
    assert not scheduler.schedule().rows, "both tokens it may draw are in flight"
    read(first)
    assert read(second) == [one]
    assert one.num_drawn == 2


@pytest.mark.parametrize("seed", range(20))
def test_any_mix_ends_with_every_block_and_slot_free(seed: int):
    rng = random.Random(seed)
    scheduler = make(
        num_blocks=rng.randint(12, 30), max_num_seqs=rng.randint(1, 6), budget=rng.randint(6, 24)
    )
    live = [choice(str(i), rng.randint(1, 20), rng.randint(1, 20)) for i in range(12)]
    pending = list(live)
    for _ in range(2000):
        if pending and rng.random() < 0.3:
            scheduler.add([pending.pop()])
        if rng.random() < 0.05:
            victim = rng.choice(live)
            if victim not in pending and victim.phase is not Phase.DONE:
                scheduler.finish(victim)
        step = run(scheduler)
        assert step.num_tokens <= scheduler.max_num_batched_tokens
        assert len(scheduler.running) <= scheduler.max_num_seqs
        if not pending and not scheduler:
            break
    assert all(each.phase is Phase.DONE for each in live)
    assert scheduler.blocks.num_free == scheduler.blocks.num_usable
    assert sorted(scheduler._free_slots) == list(range(scheduler.max_num_seqs))


def reader(name: str, num_prompt: int, read_at: range, leader: Choice | None = None) -> Choice:
    """A choice that is read at positions of its lane up to the last token."""
    prompt = tuple(hash((name[0], i)) % 1000 for i in range(num_prompt))
    lane = Lane([*prompt, *(hash((name, i)) % 1000 for i in range(read_at[-1] + 1 - num_prompt))])
    return Choice(Request(name, prompt), 0, (lane,), leader, read_at=read_at)


def read_all(scheduler: Scheduler) -> dict[str, list[int]]:
    """Positions that each choice was read at, run to the end."""
    found: dict[str, list[int]] = {}
    while scheduler:
        step = run(scheduler)
        assert step.num_tokens <= scheduler.max_num_batched_tokens
        for row in step.rows:
            if row.purpose is Purpose.FEATURES:
                found.setdefault(row.choice.request.request_id, []).extend(
                    row.start + at for at in row.output_positions
                )
                if row.end > row.choice.read_at[-1]:
                    scheduler.finish(row.choice)
    assert scheduler.blocks.num_free == scheduler.blocks.num_usable
    return found


def test_a_choice_that_is_read_gives_its_positions_in_chunks_and_draws_nothing():
    scheduler = make(budget=8)
    scheduler.add([reader("a", 5, range(4, 21))])
    step = run(scheduler)
    assert [(row.purpose, row.num_tokens) for row in step.rows] == [(Purpose.FEATURES, 8)]
    assert step.rows[0].output_positions == (4, 5, 6, 7)
    assert run(scheduler).rows[0].output_positions == tuple(range(8))
    assert read_all(scheduler) == {"a": [16, 17, 18, 19, 20]}


def test_choices_that_are_read_and_that_draw_share_steps():
    scheduler = make(budget=12)
    scheduler.add([choice("draws", 6, max_tokens=3)])
    scheduler.add([reader("reads", 3, range(2, 25))])
    drawing = run(scheduler)
    assert shape(drawing) == [("draws", 6), ("reads", 6)]
    assert [row.purpose for row in drawing.rows] == [Purpose.DRAW, Purpose.FEATURES]
    assert read_all(scheduler) == {"reads": list(range(6, 25))}


def test_a_cached_prefix_never_covers_a_position_that_is_read():
    scheduler = make(budget=64)
    scheduler.add([reader("a", 20, range(19, 24))])
    assert read_all(scheduler) == {"a": list(range(19, 24))}
    scheduler.add([reader("a", 20, range(9, 24))])
    step = run(scheduler)
    assert step.rows[0].start == 8, "position 9 is in the third block of four"
    assert step.rows[0].output_positions == tuple(range(1, 16))


def test_replies_to_one_prompt_wait_for_the_first_and_compute_what_is_theirs():
    scheduler = make(budget=64)
    leader = reader("p0", 17, range(16, 19))
    others = [reader(f"p{i}", 17, range(16, 19), leader) for i in (1, 2)]
    scheduler.add([leader, *others])
    step = run(scheduler)
    assert shape(step) == [("p0", 19)]
    scheduler.finish(leader)
    assert shape(run(scheduler)) == [("p1", 3), ("p2", 3)]


@pytest.mark.parametrize("seed", range(10))
def test_every_position_is_read_though_drawing_choices_preempt(seed: int):
    rng = random.Random(seed)
    scheduler = make(num_blocks=12, max_num_seqs=4, budget=rng.randint(6, 9))
    readers = [
        reader(f"{i}", n := rng.randint(1, 9), range(n - 1, n + rng.randint(20, 25))) for i in range(4)
    ]
    scheduler.add([choice("a", 2, max_tokens=24), choice("b", 3, max_tokens=20), *readers])
    found = read_all(scheduler)
    assert any(each.num_preemptions for each in readers)
    for each in readers:
        assert found[each.request.request_id][-len(each.read_at) :] == list(each.read_at)


def long_prompts(scheduler: Scheduler, count: int, num_tokens: int = 1000) -> None:
    for i in range(count):
        scheduler.add([choice(f"long{i}", num_tokens, max_tokens=50)])


@pytest.mark.parametrize("num_decoding", [0, 3])
def test_a_short_prompt_beside_200_long_ones_draws_within_a_bounded_number_of_steps(num_decoding: int):
    budget = 32
    scheduler = make(num_blocks=100_000, max_num_seqs=300, budget=budget)
    scheduler.add([choice(f"old{i}", 2, max_tokens=999) for i in range(num_decoding)])
    run(scheduler)
    long_prompts(scheduler, 200)
    run(scheduler)
    shorts = [choice("a", 5), choice("b", 20), choice("c", 1)]
    for short in shorts:
        scheduler.add([short])
    share = -(-(budget - num_decoding) // 4)
    drawn: list[str] = []
    for num_steps in range(1, 10):
        step = run(scheduler)
        drawn += [row.choice.request.request_id for row in step.rows if row.purpose is Purpose.DRAW]
        assert step.num_tokens == budget, "nothing of the step is wasted"
        for short, num_tokens in zip(shorts, (5, 25, 26), strict=True):
            if num_steps >= -(-num_tokens // share):
                assert short.request.request_id in drawn
    first = [drawn.index(short.request.request_id) for short in shorts]
    assert first == sorted(first), "first come, first served among the short ones"


def test_long_prompts_keep_three_quarters_while_short_ones_keep_coming():
    scheduler = make(num_blocks=100_000, max_num_seqs=300, budget=40)
    long_prompts(scheduler, 3, 300)
    shares = []
    for i in range(40):
        scheduler.add([choice(f"s{i}", 39, max_tokens=1)])
        step = run(scheduler)
        shares.append(sum(n for name, n in shape(step) if name.startswith("long")))
    assert sum(share >= 30 for share in shares[:30]) >= 28, "less where one long prompt follows another"


def test_a_long_prompt_alone_or_beside_long_ones_takes_the_whole_step():
    scheduler = make(num_blocks=100_000, budget=40)
    long_prompts(scheduler, 3, 100)
    assert [shape(run(scheduler)) for _ in range(3)] == [
        [("long0", 40)],
        [("long0", 40)],
        [("long0", 20), ("long1", 20)],
    ]


def test_a_short_prompt_does_not_pass_a_long_one_that_waits_for_blocks():
    scheduler = make(num_blocks=28, budget=16)
    long_prompts(scheduler, 2, 100)
    while not any(name == "long1" for name, _ in shape(run(scheduler))):
        if scheduler._refusal is not None:
            scheduler.add([choice("short", 3)])
            for _ in range(5):
                assert "short" not in dict(shape(run(scheduler)))
            return
    raise AssertionError("long1 found blocks")


def test_a_preempted_choice_that_is_to_be_judged_is_read_again_in_its_turn():
    scheduler = Scheduler(BlockManager(200, SIZE, prefix_caching=False), 8, 16)
    judged = choice("judged", 60, max_tokens=1)
    scheduler.add([judged])
    while judged.can_draw:
        read(run_only(scheduler))
    scheduler.add([choice("earlier", 300)])
    run(scheduler)
    scheduler.begin_finishing(judged, [*judged.lane.tokens, 42])
    scheduler._preempt(Step(), judged)
    begun = Step()
    scheduler._admit(begun, budget=4, spare=0)
    scheduler.advance(begun)
    assert shape(begun) == [("judged", 4)]
    assert shape(run(scheduler)) == [("earlier", 16)]


def test_a_reply_within_a_grammar_waits_for_its_token_and_no_other_waits_with_it():
    scheduler = make()
    held, free = choice("held", 3, max_tokens=3), choice("free", 3, max_tokens=6)
    held.awaits_draws = True
    scheduler.add([held])
    scheduler.add([free])
    launched, shapes = run_only(scheduler), []
    while scheduler:  # as the engine does on a GPU: a step is read once the next one is launched
        step = run_only(scheduler)
        shapes.append([name for name, _ in shape(step)])
        for over in read(launched):
            scheduler.finish(over)
        launched = step
    both = ["held", "free"]
    assert shapes == [["free"], both, ["free"], both, ["free"]]


def run_only(scheduler: Scheduler) -> Step:
    """A launched step of which nothing is read."""
    step = scheduler.schedule()
    scheduler.advance(step)
    return step


def pool(num_prompt: int, max_tokens: int = 12, particles: int = 3, block: int = 4) -> Choice:
    prompt, guidance = (
        tuple(range(num_prompt)),
        Guidance(1.0, (("v", 1.0),), rule=Smc(block, "policy", particles)),
    )
    lanes = tuple(Lane(list(prompt), index=i) for i in range(particles))
    return Choice(Request("pool", prompt, SamplingParams(max_tokens=max_tokens), guidance), 0, lanes)


def draw_block(scheduler: Scheduler, choice: Choice) -> list[Step]:
    """Steps until all lanes stand still, each lane drawing tokens of its own."""
    steps = []
    while choice.can_draw:
        step = scheduler.schedule()
        scheduler.advance(step)
        steps.append(step)
        for row in step.rows:
            if row.purpose is Purpose.DRAW:
                row.lane.tokens.append(100 + row.lane.index)
                row.lane.num_inflight -= 1
    return steps


def test_a_pool_computes_its_prompt_once_and_draws_in_all_lanes_up_to_the_block():
    scheduler, choice = make(), pool(9)
    scheduler.add([choice])
    steps = draw_block(scheduler, choice)
    assert sum(step.num_tokens for step in steps) == 8 + 3 * 4
    assert [len(step.rows) for step in steps] == [1, 3, 3, 3, 3]
    assert not scheduler.schedule().rows, "it stands still"
    choice.is_measuring = True
    step = scheduler.schedule()
    assert [row.purpose for row in step.rows] == [Purpose.MEASURE] * 3
    scheduler.advance(step)
    assert not scheduler.schedule().rows, "its values are awaited"


def test_lanes_go_on_as_their_parents_without_computing_what_those_have():
    scheduler, choice = make(), pool(9)
    scheduler.add([choice])
    draw_block(scheduler, choice)
    choice.is_measuring = True
    scheduler.advance(scheduler.schedule())
    scheduler.refork(choice, [1, 1, 1], 4)
    assert [lane.tokens[9:] for lane in choice.lanes] == [[101] * 4] * 3
    steps = draw_block(scheduler, choice)
    assert [step.num_tokens for step in steps] == [3, 3, 3, 3]
    assert len({lane.blocks[-1] for lane in choice.lanes}) == 3, "no two write to one block"
    assert choice.lanes[0].blocks[0] == choice.lanes[2].blocks[0]
    assert scheduler.settle(choice, [choice.lanes[2]]) == (choice,)
    scheduler.finish(choice)
    assert scheduler.blocks.num_free == scheduler.blocks.num_usable
    assert len(scheduler._free_slots) == scheduler.max_num_seqs


@pytest.mark.parametrize("is_preempted", [False, True])
def test_lanes_of_a_pool_that_has_settled_are_choices_each_by_itself(is_preempted: bool):
    scheduler, choice = make(num_blocks=14), pool(9)
    scheduler.add([choice])
    draw_block(scheduler, choice)
    for lane in choice.lanes[1:]:
        scheduler.end_lane(lane)
        scheduler.close_lane(lane)
    if is_preempted:
        scheduler._preempt(Step(), choice)
    settled = scheduler.settle(choice, choice.lanes)
    assert [each.index for each in settled] == [0, 1, 2]
    assert settled[0] is choice
    for each in settled:
        scheduler.begin_finishing(each, [*each.lane.tokens, 7])
    rewards = []
    while len(rewards) < 3:
        step = scheduler.schedule()
        scheduler.advance(step)
        rewards += [row.choice.index for row in step.rows if row.purpose is Purpose.REWARD]
    assert rewards == [0, 1, 2]
    scheduler.finish(settled[1])
    assert scheduler.blocks.num_free < scheduler.blocks.num_usable
    scheduler.finish(settled[0])
    scheduler.finish(settled[2])
    assert scheduler.blocks.num_free == scheduler.blocks.num_usable
    assert len(scheduler._free_slots) == scheduler.max_num_seqs


def test_a_pool_is_preempted_as_a_whole_and_goes_on_with_its_tokens():
    scheduler, choice = make(num_blocks=14), pool(9)
    scheduler.add([choice])
    draw_block(scheduler, choice)
    scheduler._preempt(Step(), choice)
    assert not any(lane.blocks or lane.slot is not None for lane in choice.lanes)
    assert scheduler.blocks.num_free == scheduler.blocks.num_usable
    choice.is_measuring = True
    while choice.is_measuring:
        scheduler.advance(scheduler.schedule())
    assert all(lane.num_computed == 13 for lane in choice.lanes)


def test_a_probing_lane_holds_its_scratch_blocks_from_admission_to_end():
    scheduler = make(num_blocks=11)
    first, second = choice("first", 5), choice("second", 5)
    for each in (first, second):
        each.lane.num_probes = 5
        scheduler.add([each])
    assert shape(run(scheduler)) == [("first", 5)], "two blocks and five, twice, are more than ten"
    assert len({*first.lane.blocks, *first.lane.scratch}) == 7
    while scheduler:
        run(scheduler)
    assert scheduler.blocks.num_free == scheduler.blocks.num_usable
