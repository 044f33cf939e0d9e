from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.server.engine.attention import SMALL_GROUP_KEYS, group_rows
from trimtab.server.engine.batch import Batch, BatchBuilder, decode_buckets
from trimtab.server.engine.block_manager import NULL_BLOCK
from trimtab.server.engine.lane import Choice, Lane
from trimtab.server.engine.request import Request
from trimtab.server.engine.scheduler import Purpose, Row, Step
from trimtab.server.engine.step_state import StepState

SIZE = 4


def build(lengths: list[tuple[int, int]], buckets: tuple[int, ...] = ()) -> tuple[StepState, Batch]:
    """A batch of rows (tokens already computed, tokens of this step), each in its own slot and blocks."""
    state = StepState(
        max_num_seqs=8, max_model_len=64, block_size=SIZE, num_heads=0, device=torch.device("cpu")
    )
    step, next_block = Step(), 1
    for slot, (start, n) in enumerate(lengths):
        tokens = [100 * slot + i for i in range(start + n)]
        num_blocks = -(-len(tokens) // SIZE)
        lane = Lane(tokens, list(range(next_block, next_block + num_blocks)), num_computed=start, slot=slot)
        next_block += num_blocks
        choice = Choice(Request(str(slot), tuple(tokens)), 0, (lane,))
        state.admit(choice, 0, [], 0.0)
        state.sync_blocks([lane])
        step.rows.append(Row(choice, lane, start, n, Purpose.DRAW, (n - 1,)))
    return state, BatchBuilder(state, 64, buckets, torch.float32).build(step)


def test_rows_are_packed_with_their_tokens_positions_and_cache_slots():
    _, batch = build([(5, 1), (0, 3), (9, 1)])
    assert batch.input_ids.tolist() == [[5, 100, 101, 102, 209]]
    assert batch.positions.tolist() == [[5, 0, 1, 2, 9]]
    assert batch.plan.slots.tolist() == [2 * SIZE + 1, 12, 13, 14, 6 * SIZE + 1]
    assert batch.output_indices.tolist() == [0, 3, 4]


def test_decode_steps_are_padded_to_a_bucket_and_padding_writes_to_the_null_block():
    _, batch = build([(5, 1), (2, 1), (9, 1)], decode_buckets(8))
    assert batch.input_ids.shape == (1, 4)
    assert batch.plan.slots[3] // SIZE == NULL_BLOCK
    assert batch.output_indices.tolist() == [0, 1, 2]
    _, prefill = build([(5, 1), (0, 4)], decode_buckets(8))
    assert prefill.input_ids.shape == (1, 5)


def test_the_buffers_keep_their_addresses_from_step_to_step():
    state = StepState(8, 64, SIZE, 0, torch.device("cpu"))
    builder = BatchBuilder(state, 64, (), torch.float32)
    pointers = set()
    for start in (1, 2):
        lane = Lane([7] * (start + 1), [1], num_computed=start, slot=0)
        choice = Choice(Request("a", (7,)), 0, (lane,))
        state.admit(choice, 0, [], 0.0)
        state.sync_blocks([lane])
        batch = builder.build(Step([Row(choice, lane, start, 1, Purpose.DRAW, (0,))]))
        pointers.add((batch.input_ids.data_ptr(), batch.positions.data_ptr(), batch.plan.slots.data_ptr()))
    assert len(pointers) == 1


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
