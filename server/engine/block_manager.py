"""Paged cache bookkeeping: reference counts, prefix cache, LRU eviction, fork with copy-on-write. No torch.

A block holds the keys and values of `block_size` consecutive tokens for every layer. Block 0 is never
given out: padding rows write there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from trimtab.server.engine.lane import Lane, Root

NULL_BLOCK = 0
ChainKey = tuple[Root, tuple[int, ...]]


class OutOfBlocksError(Exception):
    """The pool cannot give what was asked, for want of `num_missing` blocks; nothing was changed."""

    def __init__(self, num_missing: int) -> None:
        super().__init__(f"{num_missing} more blocks are needed")
        self.num_missing = num_missing


class BlockManager:
    """Hands cache blocks to lanes.

    A full block whose tokens are known is *registered* under the key (uid of the block before it, or the
    lane's root; its own tokens). Uids are never reused and the dict compares the tokens themselves, so a hit
    is the same prefix, of the same root, and never a hash collision. Registered blocks that no lane refers to
    stay until they are evicted, the least recently used first.

    num_freed: blocks that have become free so far. Nothing else makes room for who found too little.
    """

    def __init__(self, num_blocks: int, block_size: int, prefix_caching: bool = True) -> None:
        if num_blocks < 2:
            raise ValueError(f"num_blocks must be at least 2 (one is kept for padding), got {num_blocks}")
        self.block_size = block_size
        self.num_usable = num_blocks - 1
        self._prefix_caching = prefix_caching
        self._ref_counts = [0] * num_blocks
        self._free = list(range(num_blocks - 1, NULL_BLOCK, -1))
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self._by_key: dict[ChainKey, int] = {}
        self._keys: dict[int, ChainKey] = {}
        self._uids: dict[int, int] = {}
        self._next_uid = 1
        self.num_freed = 0

    @property
    def num_free(self) -> int:
        """Blocks that could be handed out now, those kept only by the prefix cache included."""
        return len(self._free) + len(self._evictable)

    def num_needed(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def match_prefix(self, lane: Lane, max_tokens: int | None = None) -> None:
        """Give an empty lane the registered blocks of its prefix; at least one token is left to compute.

        max_tokens: how many leading tokens need not be computed; None for all but the last."""
        assert not lane.blocks and lane.num_computed == 0
        uid: Root = lane.root  # and then that of the block before
        size = self.block_size
        limit = len(lane.tokens) - 1 if max_tokens is None else max_tokens
        for start in range(0, limit - size + 1, size):
            block = self._by_key.get((uid, tuple(lane.tokens[start : start + size])))
            if block is None:
                break
            self._share(block)
            lane.blocks.append(block)
            uid = self._uids[block]
            lane.chain.append(uid)
        lane.num_computed = len(lane.blocks) * size

    def next_key(self, lane: Lane) -> ChainKey:
        """Under what the block would be registered that follows those `match_prefix` gave the lane."""
        start = len(lane.blocks) * self.block_size
        return lane.chain[-1] if lane.chain else lane.root, tuple(
            lane.tokens[start : start + self.block_size]
        )

    def is_registered(self, key: ChainKey) -> bool:
        return key in self._by_key

    def append(self, lane: Lane) -> bool:
        """`extend` by one token where that takes a new block at most, as most decode steps do; else False."""
        last, blocks = lane.num_computed // self.block_size, lane.blocks
        if len(lane.chain) > last:
            return False
        if last == len(blocks) and self.num_free:
            blocks.append(self._take())
            return True
        return last == len(blocks) - 1 and self._ref_counts[blocks[-1]] == 1 and blocks[-1] not in self._keys

    def extend(self, lane: Lane, num_tokens: int) -> list[tuple[int, int]]:
        """Make positions `num_computed … num_tokens − 1` of the lane writable; give it its scratch blocks.

        Returns (source, destination) blocks to copy before they are written, in this order.
        Raises OutOfBlocksError, having changed nothing, when the pool is too small.
        """
        first = lane.num_computed // self.block_size
        shared = [i for i in range(first, len(lane.blocks)) if self._ref_counts[lane.blocks[i]] > 1]
        num_new = self.num_needed(num_tokens) - len(lane.blocks)
        num_scratch = lane.num_probes - len(lane.scratch)
        num_missing = len(shared) + max(num_new, 0) + num_scratch - self.num_free
        if num_missing > 0:
            raise OutOfBlocksError(num_missing)
        for block in lane.blocks[first:]:
            if self._ref_counts[block] == 1:
                self._unregister(block)
        copies = [self._replace(lane, i) for i in shared]
        del lane.chain[first:]
        lane.blocks.extend(self._take() for _ in range(num_new))
        lane.scratch.extend(self._take() for _ in range(num_scratch))
        return copies

    def register(self, lane: Lane) -> None:
        """Enter the lane's full, computed blocks of known tokens into the prefix cache."""
        if not self._prefix_caching:
            return
        size = self.block_size
        num_full = min(lane.num_computed, len(lane.tokens)) // size
        for i in range(len(lane.chain), num_full):
            before = lane.chain[-1] if lane.chain else lane.root
            key = (before, tuple(lane.tokens[i * size : (i + 1) * size]))
            if key not in self._by_key:
                self._enter(key, lane.blocks[i])
            lane.chain.append(self._uids[self._by_key[key]])

    def fork(self, parent: Lane, child: Lane, num_tokens: int) -> None:
        """Let an empty child share the parent's first `num_tokens` computed tokens, copied on write."""
        assert not child.blocks and num_tokens <= parent.num_computed
        assert child.tokens[:num_tokens] == parent.tokens[:num_tokens]
        child.blocks = parent.blocks[: self.num_needed(num_tokens)]
        for block in child.blocks:
            self._share(block)
        child.num_computed = num_tokens
        child.chain = parent.chain[: num_tokens // self.block_size]

    def truncate(self, lane: Lane, num_tokens: int) -> None:
        """Forget the keys and values from position `num_tokens` on."""
        keep = self.num_needed(num_tokens)
        self._release(lane.blocks[keep:])
        del lane.blocks[keep:]
        lane.num_computed = min(lane.num_computed, num_tokens)
        del lane.chain[num_tokens // self.block_size :]
        lane.num_synced_blocks = min(lane.num_synced_blocks, keep)

    def free(self, lane: Lane) -> None:
        self.truncate(lane, 0)
        self._release(lane.scratch)
        lane.scratch.clear()

    def forget(self, lane: Lane) -> list[int]:
        """Free the lane and drop its own blocks from the prefix cache. Returns the blocks it alone held."""
        own = [block for block in (*lane.blocks, *lane.scratch) if self._ref_counts[block] == 1]
        for block in own:
            self._unregister(block)
        self.free(lane)
        return own

    def _share(self, block: int) -> None:
        self._ref_counts[block] += 1
        self._evictable.pop(block, None)

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._evictable.popitem(last=False)
            self._unregister(block)
        assert self._ref_counts[block] == 0
        self._ref_counts[block] = 1
        return block

    def _replace(self, lane: Lane, i: int) -> tuple[int, int]:
        source, target = lane.blocks[i], self._take()
        lane.blocks[i] = target
        lane.num_synced_blocks = min(lane.num_synced_blocks, i)
        self._release([source])
        return source, target

    def _release(self, blocks: Sequence[int]) -> None:
        """Later blocks become the older ones, so that a chain is evicted from its end."""
        for block in reversed(blocks):
            assert self._ref_counts[block] > 0, "block freed twice"
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                self.num_freed += 1
                if block in self._keys:
                    self._evictable[block] = None
                else:
                    self._free.append(block)

    def _enter(self, key: ChainKey, block: int) -> None:
        self._by_key[key] = block
        self._keys[block] = key
        self._uids[block] = self._next_uid
        self._next_uid += 1

    def _unregister(self, block: int) -> None:
        key = self._keys.pop(block, None)
        if key is not None:
            del self._by_key[key]
            del self._uids[block]
