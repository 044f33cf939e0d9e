import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trimtab.server.engine.block_manager import NULL_BLOCK, BlockManager, OutOfBlocksError
from trimtab.server.engine.lane import Lane

SIZE = 4


def computed(blocks: BlockManager, tokens: list[int]) -> Lane:
    """A lane whose tokens have all been computed and registered."""
    lane = Lane(list(tokens))
    blocks.match_prefix(lane)
    blocks.extend(lane, len(tokens))
    lane.num_computed = len(tokens)
    blocks.register(lane)
    return lane


def test_a_shared_prefix_is_found_by_its_tokens_and_leaves_one_token_to_compute():
    blocks = BlockManager(20, SIZE)
    first = computed(blocks, list(range(8)))
    same, longer, other = Lane(list(range(8))), Lane([*range(8), 9]), Lane([0, 1, 2, 3, 9, 9, 9, 9, 9])
    for lane in (same, longer, other):
        blocks.match_prefix(lane)
    assert (same.num_computed, longer.num_computed, other.num_computed) == (4, 8, 4)
    assert longer.blocks == first.blocks


def test_equal_blocks_after_different_prefixes_are_not_confused():
    blocks = BlockManager(20, SIZE)
    computed(blocks, [1, 1, 1, 1, 7, 7, 7, 7])
    lane = Lane([2, 2, 2, 2, 7, 7, 7, 7, 0])
    blocks.match_prefix(lane)
    assert lane.num_computed == 0


def test_tokens_with_colliding_hashes_are_told_apart():
    blocks = BlockManager(20, SIZE)
    computed(blocks, [-1, 5, 5, 5])
    assert hash((0, (-1, 5, 5, 5))) == hash((0, (-2, 5, 5, 5))), "CPython hashes -1 as -2"
    lane = Lane([-2, 5, 5, 5, 0])
    blocks.match_prefix(lane)
    assert lane.num_computed == 0


def test_a_fork_copies_the_partial_block_before_either_writes():
    blocks = BlockManager(20, SIZE)
    parent = computed(blocks, list(range(6)))
    child = Lane(list(range(6)))
    blocks.fork(parent, child, 5)
    assert child.blocks == parent.blocks
    copies = blocks.extend(child, 6)
    assert copies == [(parent.blocks[1], child.blocks[1])]
    assert child.blocks[0] == parent.blocks[0]
    assert child.blocks[1] != parent.blocks[1]
    assert blocks.extend(parent, 7) == [], "the parent owns its block alone again"


def test_a_registered_block_is_not_overwritten_after_truncation():
    blocks = BlockManager(20, SIZE)
    lane = computed(blocks, list(range(8)))
    blocks.truncate(lane, 6)
    lane.tokens[6:] = [99, 98, 97]
    blocks.extend(lane, 9)
    probe = Lane([*range(8), 0])
    blocks.match_prefix(probe)
    assert probe.num_computed == 4, "the second block no longer holds tokens 4…7"


def test_the_least_recently_used_prefix_is_evicted_first_and_from_its_end():
    blocks = BlockManager(5, SIZE)
    old, new = computed(blocks, [1] * 8), computed(blocks, [2] * 8)
    blocks.free(old)
    blocks.free(new)
    assert blocks.num_free == 4
    computed(blocks, [3] * 4)
    first, second = Lane([1] * 9), Lane([2] * 9)
    blocks.match_prefix(first)
    blocks.match_prefix(second)
    assert (first.num_computed, second.num_computed) == (4, 8)


def test_extend_changes_nothing_when_the_pool_is_too_small():
    blocks = BlockManager(4, SIZE)
    lane = computed(blocks, [1] * 4)
    with pytest.raises(OutOfBlocksError):
        blocks.extend(lane, 17)
    assert len(lane.blocks) == 1
    assert blocks.num_free == 2


def test_forgetting_a_lane_takes_its_blocks_out_of_the_prefix_cache():
    blocks = BlockManager(10, SIZE)
    lane = computed(blocks, [1] * 8)
    own = list(lane.blocks)
    assert sorted(blocks.forget(lane)) == sorted(own)
    probe = Lane([1] * 9)
    blocks.match_prefix(probe)
    assert probe.num_computed == 0
    assert blocks.num_free == 9


class BlockManagerMachine(RuleBasedStateMachine):
    """Any mix of lanes starting, growing, forking, truncating and ending, against what every block of a
    lane must hold: the model is a dict from block to the tokens written there."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(12, SIZE)
        self.lanes: list[Lane] = []
        self.contents: dict[int, list[int | None]] = {}

    def _write(self, lane: Lane, end: int) -> bool:
        try:
            copies = self.blocks.extend(lane, end)
        except OutOfBlocksError:
            return False
        for source, target in copies:
            self.contents[target] = list(self.contents[source])
        for position in range(lane.num_computed, end):
            block = lane.blocks[position // SIZE]
            self.contents.setdefault(block, [None] * SIZE)[position % SIZE] = lane.tokens[position]
        lane.num_computed = end
        self.blocks.register(lane)
        return True

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=14))
    def start(self, tokens: list[int]) -> None:
        lane = Lane(tokens)
        self.blocks.match_prefix(lane)
        if self._write(lane, len(tokens)):
            self.lanes.append(lane)
        else:
            self.blocks.free(lane)

    @precondition(lambda self: self.lanes)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=5))
    def grow(self, data: st.DataObject, tokens: list[int]) -> None:
        lane = data.draw(st.sampled_from(self.lanes))
        before = len(lane.tokens)
        lane.tokens.extend(tokens)
        if not self._write(lane, len(lane.tokens)):
            del lane.tokens[before:]

    @precondition(lambda self: any(lane.num_computed for lane in self.lanes))
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent = data.draw(st.sampled_from([lane for lane in self.lanes if lane.num_computed]))
        num_tokens = data.draw(st.integers(1, parent.num_computed))
        child = Lane(parent.tokens[:num_tokens])
        self.blocks.fork(parent, child, num_tokens)
        self.lanes.append(child)

    @precondition(lambda self: self.lanes)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        lane = data.draw(st.sampled_from(self.lanes))
        num_tokens = data.draw(st.integers(0, lane.num_computed))
        self.blocks.truncate(lane, num_tokens)
        del lane.tokens[num_tokens:]

    @precondition(lambda self: self.lanes)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        lane = data.draw(st.sampled_from(self.lanes))
        self.lanes.remove(lane)
        self.blocks.free(lane)

    @invariant()
    def every_lane_reads_its_own_tokens(self) -> None:
        for lane in self.lanes:
            for position in range(lane.num_computed):
                block = lane.blocks[position // SIZE]
                assert block != NULL_BLOCK
                assert self.contents[block][position % SIZE] == lane.tokens[position]

    @invariant()
    def every_block_is_free_or_referred_to(self) -> None:
        used = {block for lane in self.lanes for block in lane.blocks}
        assert self.blocks.num_free + len(used) == self.blocks.num_usable

    def teardown(self) -> None:
        for lane in self.lanes:
            self.blocks.free(lane)
        assert self.blocks.num_free == self.blocks.num_usable


TestBlockManager = BlockManagerMachine.TestCase
TestBlockManager.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.integers(0, 1), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_without_prefix_caching_nothing_is_shared(tokens: list[int]):
    blocks = BlockManager(40, SIZE, prefix_caching=False)
    first, second = computed(blocks, tokens), computed(blocks, tokens)
    assert not set(first.blocks) & set(second.blocks)
