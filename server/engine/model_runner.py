"""Model runner: runs the policy over one packed step and returns h at the asked positions."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.guidance.errors import ModelError
from trimtab.server.engine.attention.choose import make_attention
from trimtab.server.engine.attention.triton import TritonAttention
from trimtab.server.engine.batch import Batch, BatchBuilder, DrawInputs, RowSpans, TokenInputs
from trimtab.server.engine.block_manager import NULL_BLOCK
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.decode_graphs import CudaRecorder, DecodeGraphs, HostWaitError, Recorder
from trimtab.server.engine.device_copy import index_tensor, to_device
from trimtab.server.engine.fused_layers import fuse_layers
from trimtab.server.engine.fused_norms import fuse_norms
from trimtab.server.engine.host_memory import keep_freed_memory
from trimtab.server.engine.kv_cache import KVCache
from trimtab.server.engine.policy import Native, ServedPolicy
from trimtab.server.engine.scheduler import Row, Step
from trimtab.server.engine.step_state import StepState

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hidden:
    """What the step's outputs are drawn and judged from: h [K, d], and logits [K − num_read, V] or None (see
    ServedPolicy).

    First the drawing rows, then the judged ones, each in the order of the step; then padding, if any; last
    the num_read tokens that are only read. draws: where the drawn tokens go, [B].
    """

    h: Tensor
    logits: Tensor | None
    draws: DrawInputs
    num_read: int = 0

    @property
    def features(self) -> Tensor:
        """h [num_read, d] of the tokens that are only read, in the order of the step."""
        return self.h[len(self.h) - self.num_read :]


class ModelRunner:
    """config: resolved. The policy's attention is this runner's from then on. memory_sizes: of the heads, see
    HeadBank. state: another runner's, whose lanes this one runs as well."""

    def __init__(
        self,
        policy: ServedPolicy,
        config: EngineConfig,
        num_blocks: int,
        memory_sizes: Sequence[int],
        state: StepState | None = None,
    ) -> None:
        self.policy = policy
        self._budget, self._has_one_shape = config.token_budget, policy.needs_one_shape(config.strict)
        self.state = state or StepState(
            config.max_num_seqs, policy.max_model_len, config.block_size, memory_sizes, policy.device
        )
        self.cache = KVCache(
            policy.layers,
            num_blocks,
            config.block_size,
            policy.cache_dtype,
            policy.device,
            for_native=policy.native is not None,
        )
        self._attention = make_attention(config, self.cache, self.state)
        policy.use_attention(self._attention)
        if policy.device.type == "cuda":
            fuse_norms(policy.model)
            if isinstance(self._attention, TritonAttention):
                fuse_layers(policy.model, self._attention.rotate_and_attend)
        else:
            keep_freed_memory()
        self._all_rows = torch.arange(config.max_num_seqs, device=policy.device)
        self._batches = BatchBuilder(self.state, config, self._has_one_shape)
        self._graphs: DecodeGraphs | None = None
        if config.cuda_graphs != "off":
            self._capture(is_required=config.cuda_graphs == "on")

    @torch.inference_mode()
    def record_decode(self, record: Recorder) -> None:
        """Replay decode steps from now on, one recording per bucket; needs `padding: buckets` and attention
        triton. Raises HostWaitError for a model that cannot be recorded."""
        self._graphs = DecodeGraphs(self._decode, self._batches.fill_padding, self._batches.buckets, record)

    @torch.inference_mode()
    def run(self, step: Step) -> Hidden:
        """Run all rows of a step whose admitted choices the step state knows of."""
        self.cache.copy_blocks(step.copies)
        self.state.write([row.lane for row in step.rows])
        batch = self._batches.build(step)
        h, logits = self._forward(batch)
        return Hidden(h, logits, batch.draws, batch.num_read)

    @torch.inference_mode()
    def probe(self, rows: Sequence[Row], ids: Tensor) -> Iterator[tuple[Tensor, int]]:
        """h [≥ n, d] of the next n of ids i64[P] and n, until all are run: as many ids for each drawing row
        as its lane has scratch blocks, each as the token behind the row. Their keys and values go to those
        blocks; the step's own rows have been run.

        Where steps have one shape every pass has it, else all is one pass where the token budget allows.
        """
        tokens, ends, copies = self._probes(rows, ids)
        self.cache.copy_blocks(copies)
        size = self._budget + self._has_one_shape
        for start in range(0, len(ids), self._budget):
            some = slice(start, start + self._budget)
            num = len(ends[some])
            part = TokenInputs(
                torch.arange(num, device=self.state.device),
                tokens.positions[some],
                tokens.ids[some],
                tokens.cache_slots[some],
                None if tokens.block_tables is None else tokens.block_tables[some],
            )
            yield self._run_probes(part, ends[some], size - num if self._has_one_shape else 0), num

    def _probes(
        self, rows: Sequence[Row], ids: Tensor
    ) -> tuple[TokenInputs, list[int], list[tuple[int, int]]]:
        """Tokens of the probes, with a block table for each; how many keys each has; and blocks to copy."""
        size, device = self.state.block_size, self.state.device
        counts = [len(row.lane.scratch) for row in rows]
        ends = np.repeat([row.end for row in rows], counts)
        scratch = np.array([block for row in rows for block in row.lane.scratch])
        lane_slots = np.repeat([row.lane.slot for row in rows], counts)
        places = [ends, ends // size, scratch, scratch * size + ends % size, lane_slots]
        positions, columns, blocks, cache_slots, slots = to_device(np.stack(places), device).unbind()
        tables = self.state.block_tables.index_select(0, slots)
        tables.scatter_(1, columns[:, None], blocks[:, None])
        copies = [
            (row.lane.blocks[row.end // size], block)
            for row in rows
            if row.end % size
            for block in row.lane.scratch
        ]
        return TokenInputs(slots, positions, ids, cache_slots, tables), (ends + 1).tolist(), copies

    def _run_probes(self, tokens: TokenInputs, ends: list[int], num_padding: int) -> Tensor:
        """h of tokens that are each a row of their own; padding tokens are in the null block, behind them."""
        num = len(ends)
        assert tokens.block_tables is not None
        if self.policy.native is not None:
            spans, every = RowSpans(range(num), [1] * num, ends), torch.arange(num)
            return self._run_native(self.policy.native, tokens, spans, tokens.ids, every)
        spans = RowSpans(range(num), [1] * num, ends)
        if num_padding:
            slots = F.pad(tokens.slots, (0, num_padding), value=num)
            own = (tokens.positions, tokens.ids, tokens.cache_slots)
            positions, ids, cache_slots = (F.pad(each, (0, num_padding)) for each in own)
            tables = F.pad(tokens.block_tables, (0, 0, 0, 1), value=NULL_BLOCK)
            tokens = TokenInputs(slots, positions, ids, cache_slots, tables)
            spans = RowSpans([*range(num), num], [*spans.num_tokens, num_padding], [*ends, 0])
        self._attention.prepare(tokens, spans)
        outputs = torch.arange(len(tokens.ids), device=self.state.device)
        return self.policy.forward(tokens.ids[None], tokens.positions[None], outputs, len(outputs))[0]

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """One of three ways: a recorded decode step, the C++ backend, or the model's own modules."""
        rows, native = batch.rows, self.policy.native
        if self._graphs is not None and rows.are_single and len(rows.slots) in self._graphs:
            h, logits = self._graphs.replay(len(rows.slots))
            h = h.index_select(0, batch.outputs)
            return h, None if logits is None else logits.index_select(0, batch.outputs)
        if native is not None:
            tokens = batch.tokens
            ids = self.state.input_ids(tokens.slots, tokens.ids)
            h = self._run_native(native, tokens, rows, ids, batch.outputs)
            return h, None if self.policy.has_linear_tail else native.logits(h[: len(h) - batch.num_read])
        self._attention.prepare(batch.tokens, rows)
        return self._run_policy(batch.tokens, batch.outputs, batch.num_read)

    def _capture(self, is_required: bool) -> None:
        name = f"{type(self.policy.model).__name__} '{self.policy.name}'"
        try:
            self.record_decode(CudaRecorder(self.policy.device))
        except HostWaitError as error:
            if is_required:
                raise ModelError(
                    f"{name} cannot run in CUDA graphs ({error}); leave --cuda-graphs auto"
                ) from error
            logger.warning("%s runs without CUDA graphs: %s", name, error)
        except RuntimeError as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise ModelError(
                f"{name} fails while it is recorded in CUDA graphs ({reason}); start with --cuda-graphs off"
            ) from error

    def _decode(self, size: int) -> tuple[Tensor, Tensor | None]:
        """The forward of a decode step of so many rows, from what the static buffers hold alone."""
        assert isinstance(self._attention, TritonAttention)
        tokens = self._batches.decode_inputs(size)
        self._attention.prepare_decode(tokens)
        return self._run_policy(tokens, self._all_rows[:size])

    def _run_native(
        self, native: Native, tokens: TokenInputs, rows: RowSpans, ids: Tensor, outputs: Tensor
    ) -> Tensor:
        """h of the tokens at `outputs`. ids: of all tokens, known by now."""
        firsts = [0, *itertools.accumulate(rows.num_tokens)]
        num_blocks = max(-(-max(rows.ends) // self.state.block_size), 1)
        slots = index_tensor(rows.slots, self.state.device)
        tables = self.state.block_tables if tokens.block_tables is None else tokens.block_tables
        return native.run(
            ids,
            tokens.positions,
            tokens.cache_slots,
            firsts,
            tables[:, :num_blocks].index_select(0, slots),
            self.cache,
            outputs,
        )

    def _run_policy(
        self, tokens: TokenInputs, outputs: Tensor, num_read: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        input_ids = self.state.input_ids(tokens.slots, tokens.ids)
        return self.policy.forward(input_ids[None], tokens.positions[None], outputs, num_read)
