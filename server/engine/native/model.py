"""Native model: runs steps of packed tokens by the C++ backend, and takes h to logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.guidance.heads.bank import Vocabulary
from trimtab.kernels.cpu.adapter import Adapter
from trimtab.kernels.cpu.decoder import Decoder
from trimtab.kernels.cpu.library import Library
from trimtab.kernels.cpu.weights import HALF_MAX, PackedWeight, WeightFormat, is_exact, may_round
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.kv_cache import KVCache
from trimtab.server.engine.native.recognise import UnrecognisedError, read_decoder
from trimtab.server.engine.policy import ServedPolicy

SMALLEST_FIRST: tuple[WeightFormat, ...] = ("q4", "q8", "bfloat16", "float16")
"""Formats that a matrix may be exact in, as those of a checkpoint in it are."""
HALVES: tuple[WeightFormat, ...] = ("bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Tail:
    """What becomes of h·Wᵀ: + bias f32[V], · scale, and softcapped."""

    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, products: Tensor) -> Tensor:
        """Logits [N, V] of products [N, V], which are overwritten."""
        if self.bias is not None:
            products += self.bias
        if self.scale != 1:
            products *= self.scale
        if self.softcap is not None:
            products.div_(self.softcap).tanh_().mul_(self.softcap)
        return products


class NativeModel:
    """Of a policy on a CPU. formats: what its matrices are stored in. roundings: the formats that weights,
    inputs of products, keys and values are rounded to, and lose bits in.

    Raises UnrecognisedError.
    """

    def __init__(self, policy: ServedPolicy, config: EngineConfig, library: Library) -> None:
        self.library = library
        self._asked, self._num_tokens = config.weights, policy.vocab_size
        self._rounds_inputs = config.weights != "auto" and may_round(config.weights, library)
        kept: str = config.kv_cache_dtype
        if kept == "auto":
            kept = "bfloat16" if self._rounds_inputs and library.multiplies_bfloat16 else "float32"
        self.cache_dtype: torch.dtype = getattr(torch, kept)
        self._stored: set[WeightFormat] = set()
        self._lossy: set[str] = {kept} - {"float32"}
        spec, self.lm_head = read_decoder(policy, config.block_size, self._pack)
        self.tail = _read_tail(policy)
        self._decoder = Decoder(spec, self.library)

    def run(
        self,
        ids: Tensor,
        positions: Tensor,
        cache_slots: Tensor,
        firsts: Sequence[int],
        block_tables: Tensor,
        cache: KVCache,
        outputs: Tensor,
    ) -> Tensor:
        """h f32[K, d] of the packed tokens at `outputs` i64[K]. ids, positions, cache_slots: i64[T]. firsts:
        where each row's tokens begin, and T. block_tables: i64[R, N]."""
        starts = torch.tensor(firsts)
        return self._decoder.run(
            ids, positions, cache_slots, starts, block_tables, cache.keys, cache.values, outputs
        )

    def project(self, columns: Tensor) -> Tensor:
        """columns f32[N, d] times the output embedding, f32[N, V]."""
        return self.lm_head.product(columns)

    def vocabulary(self) -> Vocabulary:
        """What a bank of heads multiplies by: stored exactly in half the bytes where they can be, else as was
        asked for."""

        def pack(matrix: Tensor) -> PackedWeight:
            format = self._first_exact(matrix, HALVES)
            if format == "float32" and self._asked != "auto":
                # float16 may not hold what is summed over a tied head
                is_beyond = self._asked == "float16" and matrix.abs().max() > HALF_MAX
                format = "float32" if is_beyond else self._of_vocabulary
            rounds_inputs = self._rounds_inputs and may_round(format, self.library)
            return PackedWeight(matrix, format, self.library, rounds_inputs)

        def advantage(down: Tensor, up: Tensor, activation: str) -> Adapter:
            inner = PackedWeight(down.float(), "float32", self.library)
            return Adapter(inner, pack(up), silu=activation == "silu")

        return Vocabulary(self.project, advantage)

    def logits(self, h: Tensor) -> Tensor:
        """Logits f32[N, V] of h f32[N, d], by a tail that is not linear as well."""
        return self.tail(self.project(h))

    @property
    def num_bytes(self) -> int:
        """What the stored matrices take."""
        layers = self._decoder.spec.layers
        packed = [weight for each in layers for weight in (each.qkv, each.o, each.gate_up, each.down)]
        embedding = self._decoder.spec.embedding
        ends = {id(each): each for each in (self.lm_head, embedding)}
        return sum(weight.nbytes for weight in (*packed, *ends.values()))

    @property
    def vocab_size(self) -> int:
        return self.lm_head.shape[0]

    @property
    def formats(self) -> tuple[WeightFormat, ...]:
        return tuple(sorted(self._stored))

    @property
    def roundings(self) -> tuple[str, ...]:
        return tuple(sorted(self._lossy))

    @property
    def _of_vocabulary(self) -> WeightFormat:
        """What was asked for, but for matrices of all tokens, which four bits would cost most."""
        return "q8" if self._asked == "q4" else self._asked  # type: ignore[return-value]

    def _first_exact(self, matrix: Tensor, formats: Sequence[WeightFormat]) -> WeightFormat:
        return next((each for each in formats if is_exact(matrix, each, self.library)), "float32")

    def _pack(self, weight: Tensor) -> PackedWeight:
        format: WeightFormat
        if self._asked == "auto":
            format = self._first_exact(weight, SMALLEST_FIRST)
        else:
            format = self._of_vocabulary if len(weight) == self._num_tokens else self._asked
            if self._rounds_inputs or not is_exact(weight, format, self.library):
                self._lossy.add(format)
        self._stored.add(format)
        try:
            return PackedWeight(weight, format, self.library, self._rounds_inputs)
        except ValueError as error:  # beyond what the format holds
            raise UnrecognisedError(str(error)) from error


@torch.inference_mode()
def _read_tail(policy: ServedPolicy) -> Tail:
    if policy.has_linear_tail:
        return Tail()
    lm_head, config = policy.model.get_output_embeddings(), policy.model.config.get_text_config()
    bias = getattr(lm_head, "bias", None)
    tail = Tail(
        None if bias is None else bias.detach().float(),
        1 / float(getattr(config, "logits_scaling", None) or 1),
        getattr(config, "final_logit_softcapping", None),
    )
    h = torch.randn(4, lm_head.weight.shape[1], generator=torch.Generator().manual_seed(0))
    if not torch.allclose(tail(F.linear(h, lm_head.weight)), policy.frozen.logits(h), rtol=1e-5, atol=1e-5):
        raise UnrecognisedError("what becomes of its logits is not known")
    return tail
