from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.server.engine.attention.sdpa import SMALL_GROUP_KEYS, group_rows
from trimtab.server.engine.batch import Batch, BatchBuilder, TokenInputs, decode_buckets
from trimtab.server.engine.block_manager import NULL_BLOCK
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.lane import Choice, Lane
from trimtab.server.engine.request import ROW_FLOATS, ROW_INTS, Guidance, Request, SamplingParams
from trimtab.server.engine.scheduler import Purpose, Row, Step
from trimtab.server.engine.step_state import StepState

SIZE = 4
BUDGET = 32
Spec = tuple[int, int] | tuple[int, int, Purpose]


def new_state() -> StepState:
    return StepState(
        max_num_seqs=8, max_model_len=63, block_size=SIZE, memory_sizes=(), device=torch.device("cpu")
    )


def new_builder(state: StepState, has_one_shape: bool = False, **options: object) -> BatchBuilder:
    config = EngineConfig("", max_num_seqs=8, max_num_batched_tokens=BUDGET, **options)  # type: ignore[arg-type]
    return BatchBuilder(state, config.resolved("cpu"), has_one_shape)


def new_step(state: StepState, specs: list[Spec]) -> Step:
    """Rows of (tokens already computed, tokens of this step), each in its own slot and blocks."""
    step, next_block = Step(), 1
    for slot, (start, n, *purpose) in enumerate(specs):
        tokens = [100 * slot + i for i in range(start + n)]
        num_blocks = -(-len(tokens) // SIZE)
        lane = Lane(tokens, list(range(next_block, next_block + num_blocks)), num_computed=start, slot=slot)
        next_block += num_blocks
        choice = Choice(Request(str(slot), tuple(tokens)), 0, (lane,))
        state.admit(choice, slot, [0.5] * state.num_heads, 0.0)
        step.rows.append(Row(choice, lane, start, n, *(purpose or [Purpose.DRAW]), (n - 1,)))  # type: ignore[arg-type]
    state.write(row.lane for row in step.rows)
    return step


def build(specs: list[Spec], **options: object) -> tuple[StepState, Batch]:
    state = new_state()
    return state, new_builder(state, **options).build(new_step(state, specs))


def of_tokens(tokens: TokenInputs) -> list[torch.Tensor]:
    return [tokens.slots, tokens.positions, tokens.ids, tokens.cache_slots]


def views(batch: Batch) -> list[torch.Tensor]:
    """All that a kernel may be given of a batch."""
    return [*of_tokens(batch.tokens), batch.outputs, batch.draws.slots, batch.draws.positions]


def ids(state: StepState, batch: Batch) -> list[int]:
    return state.input_ids(batch.tokens.slots, batch.tokens.ids).tolist()


def test_rows_are_packed_with_their_tokens_positions_and_cache_slots():
    state, batch = build([(5, 1), (0, 3), (9, 1)])
    assert ids(state, batch) == [5, 100, 101, 102, 209]
    assert batch.tokens.slots.tolist() == [0, 1, 1, 1, 2]
    assert batch.tokens.positions.tolist() == [5, 0, 1, 2, 9]
    assert batch.tokens.cache_slots.tolist() == [2 * SIZE + 1, 12, 13, 14, 6 * SIZE + 1]
    assert batch.outputs.tolist() == [0, 3, 4]
    assert batch.rows.ends == [6, 3, 10]


def test_tokens_that_are_only_read_come_last_behind_padding_and_draw_nothing():
    rows = [(5, 2, Purpose.FEATURES), (5, 1), (0, 3, Purpose.REWARD)]
    _, batch = build(rows)
    assert batch.outputs.tolist() == [2, 5, 1]
    assert batch.num_read == 1
    assert batch.draws.host_slots == [1]
    _, padded = build(rows, has_one_shape=True)
    assert padded.outputs.tolist() == [2, 5, *[BUDGET] * 7, 1], "the others keep their one shape"


def test_drawing_rows_come_before_judged_ones_and_know_where_their_token_goes():
    state, batch = build([(5, 1), (0, 3, Purpose.REWARD), (9, 1)])
    assert batch.outputs.tolist() == [0, 4, 3]
    assert batch.draws.slots.tolist() == batch.draws.host_slots == [0, 2]
    assert batch.draws.positions.tolist() == batch.draws.host_positions == [6, 10]
    assert ids(state, batch) == [5, 100, 101, 102, 209]


def test_a_token_that_only_the_device_knows_is_the_one_drawn_last_in_its_slot():
    state = new_state()
    step = new_step(state, [(5, 1), (9, 1), (3, 2, Purpose.FEATURES)])
    state.last_tokens.copy_(torch.arange(9) + 70)
    for row in (step.rows[1], step.rows[2]):
        row.lane.tokens.pop()
        row.lane.num_inflight = 1
    for is_plain in (False, True):
        step.rows[0].is_plain = step.rows[1].is_plain = is_plain
        assert ids(state, new_builder(state).build(step)) == [5, 71, 203, 72]


@pytest.mark.parametrize("padding", ["none", "buckets"])
@pytest.mark.parametrize("num_rows", range(1, 9))
def test_plain_rows_are_laid_out_by_columns_as_by_rows(num_rows: int, padding: str):
    state = new_state()
    step = new_step(state, [(7 * i % 11, 1) for i in range(num_rows)])
    found = []
    for num_plain in (0, num_rows // 2, num_rows):
        for row in step.rows[:num_plain]:
            row.is_plain = True
        batch = new_builder(state, padding=padding).build(step)
        found.append([view.tolist() for view in views(batch)] + [batch.rows, batch.draws.host_slots])
    assert found[0] == found[1] == found[2]


def test_decode_steps_are_padded_to_a_bucket_and_padding_writes_to_the_null_block():
    state, batch = build([(5, 1), (2, 1), (9, 1)], padding="buckets")
    assert batch.tokens.slots.tolist() == [0, 1, 2, state.padding_slot]
    assert batch.tokens.cache_slots[3] // SIZE == NULL_BLOCK
    assert batch.outputs.tolist() == [0, 1, 2]
    assert len(batch.draws.slots) == 3
    _, prefill = build([(5, 1), (0, 4)], padding="buckets")
    assert len(prefill.tokens.slots) == 5


@pytest.mark.parametrize("specs", [[(5, 1)], [(5, 1), (0, 7), (3, 2)], [(0, BUDGET)]], ids=str)
def test_every_step_has_one_shape_where_it_must(specs: list[Spec]):
    state, batch = build(specs, has_one_shape=True)
    assert len(batch.tokens.slots) == BUDGET + 1
    assert len(batch.outputs) == len(batch.draws.slots) == 9
    real = sum(n for _, n, *_ in specs)
    assert batch.tokens.slots[real:].tolist() == [state.padding_slot] * (BUDGET + 1 - real)
    assert batch.outputs[len(specs) :].tolist() == [BUDGET] * (9 - len(specs)), "a padding token's"
    assert set(batch.draws.slots[len(specs) :].tolist()) == {state.padding_slot}


def test_the_buffers_keep_their_addresses_from_step_to_step():
    state = new_state()
    builder = new_builder(state, padding="buckets")
    pointers = set()
    for specs in ([(5, 1), (0, 1), (3, 1)], [(0, 7)], [(7, 1), (9, 1), (1, 1)], [(2, 1)] * 4):
        batch = builder.build(new_step(state, specs))  # type: ignore[arg-type]
        if len(batch.tokens.slots) == 4:
            pointers.add(tuple(view.data_ptr() for view in views(batch)[:4]))
    static = builder.decode_inputs(4)
    assert pointers == {tuple(view.data_ptr() for view in of_tokens(static))}


@pytest.mark.parametrize("has_one_shape", [False, True])
@pytest.mark.parametrize("num_rows", range(1, 18))
def test_every_pointer_that_a_kernel_is_given_is_a_multiple_of_16_bytes(num_rows: int, has_one_shape: bool):
    state = StepState(17, 63, SIZE, memory_sizes=(0, 0, 0), device=torch.device("cpu"))
    options = EngineConfig("", max_num_seqs=17, max_num_batched_tokens=64)
    builder = BatchBuilder(state, options.resolved("cpu"), has_one_shape)
    for extra in range(4):  # tokens of a prompt beside the decoding rows
        rows: list[Spec] = [(5, 1)] * (num_rows - 1) + [(0, 1 + extra)]
        batch = builder.build(new_step(state, rows))
        settings = state.settings(batch.draws.slots)
        asked = list(settings.values())
        assert all(len(values) == len(batch.draws.slots) for values in asked)
        misplaced = [t for t in (*asked, *views(batch), state.spent_kl) if t.data_ptr() % 16]
        assert not misplaced


def test_what_the_host_notes_reaches_its_own_slots_in_one_write():
    state = new_state()
    step = new_step(state, [(5, 1), (0, 3), (9, 1)])
    before = state.version
    settings = state.settings(torch.tensor([2, 0]))
    assert settings["seeds"].tolist() == [2, 0]
    lane = step.rows[1].lane
    lane.blocks.append(30)
    state.write([lane])
    assert state.block_tables[1, :3].tolist() == [3, 30, NULL_BLOCK]
    assert state.version == before, "no row's settings have changed"


def test_every_setting_of_a_row_arrives_under_its_own_name():
    state = StepState(2, 63, SIZE, memory_sizes=(0, 0), device=torch.device("cpu"))
    asked = {name: value for value, name in enumerate(ROW_FLOATS, 1)} | dict.fromkeys(ROW_INTS, 9)
    asked |= {
        "temperature": 0.5,
        "top_p": 0.25,
        "min_p": 0.125,
        "presence_penalty": -1,
        "frequency_penalty": -2,
    }
    request = Request("r", (1,), SamplingParams(**asked), Guidance(3.0))
    state.admit(Choice(request, 7, (Lane([1], [1], slot=1),)), 5, [0.75, 0.625], 0.5)
    state.write([])
    got = {name: values.tolist() for name, values in state.settings(torch.tensor([1])).items()}
    others = {"seeds": 5, "choices": 7, "strength": 3.0, "head_weights": [0.75, 0.625]}
    assert got == {name: [value] for name, value in (asked | others).items()}


def test_the_last_admission_to_a_slot_counts():
    state = new_state()
    for seed in (5, 6):
        lane = Lane([seed], [1], slot=3)
        state.admit(Choice(Request(str(seed), (seed,)), 0, (lane,)), seed, [], 0.5)
    state.write([])
    assert state.settings(torch.tensor([3]))["seeds"].tolist() == [6]
    assert state.spent_kl[3] == 0.5


@pytest.mark.parametrize("max_num_seqs", [1, 3, 8, 20, 64])
def test_every_batch_size_has_a_bucket(max_num_seqs: int):
    buckets = decode_buckets(max_num_seqs)
    assert buckets[-1] == max_num_seqs
    assert list(buckets) == sorted(set(buckets))


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 2000)), min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_no_row_pays_for_more_than_twice_its_own_keys(rows: list[tuple[int, int]]):
    num_tokens = [n for n, _ in rows]
    ends = [max(n, end) for n, end in rows]
    groups = group_rows(num_tokens, ends, 16)
    assert sorted(row for group in groups for row in group) == list(range(len(rows)))
    for group in groups:
        assert len(group) == 1 or all(num_tokens[row] == 1 for row in group)
        longest = -(-max(ends[row] for row in group) // 16) * 16
        for row in group:
            assert longest <= max(SMALL_GROUP_KEYS, 2 * ends[row] + 16)
