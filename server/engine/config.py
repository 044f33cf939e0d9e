"""Engine configuration: frozen, validated once; what is open is settled by `resolved`."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from trimtab.guidance.rules.expert import POLICY

TOKEN_BUDGET = {"cuda": 2048, "cpu": 512}
STRICT_TOKEN_BUDGET = 64
CPU_CACHE_GIB = 2.0
Weights = Literal["auto", "float32", "float16", "bfloat16", "q8", "q4"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How one engine serves one policy.

    model: folder, hub id or GGUF file of a causal LM, or `smollm2`.
    heads: head folders to load.
    expert: NAME=MODEL, a further model with the same tokenizer, as a folder, hub id or GGUF file: what the
    rule `expert` of a request names. May be given several times. Each takes its weights and, in every block
    of the key/value cache, room for its own keys and values.
    dtype: of weights and activations; auto is float32 on a CPU and the checkpoint's own on a GPU.
    device: where the model runs: `cpu`, `cuda` or `cuda:1`; auto is cuda where there is one, else cpu.
    max_model_len: tokens of prompt and reply together, at most; by default the model's own limit, or what
    the key/value cache can hold.
    max_num_seqs: sequences (replies) that run at the same time; further ones wait.
    max_num_batched_tokens: tokens that one step computes, at most; longer prompts are prefilled in
    chunks. By default 2048 on a GPU, 512 on a CPU and 64 where strict pads, or max_num_seqs where that
    is more.
    block_size: tokens in one block of the key/value cache.
    kv_cache_gib: memory for keys and values, in GiB; by default 2 on a CPU, of which blocks take what
    they need when they are first used, and what gpu_memory_utilization leaves on a GPU.
    gpu_memory_utilization: share of the GPU's memory, 0 to 1, that weights, activations and the cache may
    take.
    num_blocks: size of the key/value cache in blocks, in place of kv_cache_gib.
    prefix_caching: reuse the keys and values of prompts that begin alike.
    cpu_backend: what runs the policy on a CPU: `native` is the C++ backend, which is compiled when it is
    first used and knows Llama, Mistral, Qwen2 and 3, Granite, Phi-3, Gemma 2 and 3 and what is built like
    them; `torch` runs any. `auto` is native where the policy and the machine allow it.
    weights: what the C++ backend stores matrices in; auto is what the checkpoint's are exact in, a GGUF's 8
    and 4 bits too, and computes in float32. `q8` and `q4` are bits in groups of 32 (of the vocabulary always
    8). They, and `bfloat16` where the CPU multiplies it, round what matrices are multiplied with too, which
    is faster and changes replies, by how much is in the README.
    kv_cache_dtype: of keys and values in the C++ backend's cache; auto is float32, or bfloat16 where
    `weights` rounds what it multiplies and the CPU multiplies bfloat16. 16 bits halve the cache.
    attention: implementation of attention: `triton` runs on a GPU, `sdpa` and `tiled` anywhere; `auto` is
    triton on a GPU, sdpa on a CPU, and tiled on a CPU under strict. The C++ backend has its own.
    padding: `buckets` pads decode steps to fixed batch sizes, as CUDA graphs need it; `none` does not.
    cuda_graphs: replay decode steps as CUDA graphs; `auto` does on a GPU where the model allows it, but
    not under strict; `on` refuses a model that cannot.
    strict: a seeded reply is bitwise the same whoever shares its batch. Where the C++ backend runs the policy
    that costs next to nothing; elsewhere every step is padded to one shape, so that a decode step costs what
    a full one does.
    async_depth: steps launched before the oldest one's result is read; by default 1 on a GPU, else 0.
    speculate: `ngram` drafts the next tokens of greedy replies from where their last ones stand earlier in
    the prompt or the reply, and verifies them in one pass of the C++ backend: the same tokens, several a step
    where a text is edited or quoted. `off` does not.
    served_model_name: the model's name in requests and reports; by default the folder's name.
    num_vacant_heads: how many heads may be put in while it serves.
    """

    model: str | Path
    heads: tuple[Path, ...] = ()
    expert: tuple[str, ...] = field(default=(), metadata={"repeats": True})
    served_model_name: str | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    block_size: int = 16
    kv_cache_gib: float | None = None
    gpu_memory_utilization: float = 0.9
    num_blocks: int | None = None
    prefix_caching: bool = True
    cpu_backend: Literal["auto", "native", "torch"] = "auto"
    weights: Weights = "auto"
    kv_cache_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    attention: Literal["auto", "sdpa", "tiled", "triton"] = "auto"
    padding: Literal["none", "buckets"] = "none"
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    strict: bool = False
    async_depth: Literal[0, 1] | None = None
    speculate: Literal["off", "ngram"] = "off"
    num_vacant_heads: int = field(default=0, metadata={"no_flag": True})

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.max_num_batched_tokens is not None and self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}), so that every running sequence can advance in one step"
            )
        if self.kv_cache_gib is not None and self.kv_cache_gib <= 0:
            raise ValueError(f"kv_cache_gib must be above 0, got {self.kv_cache_gib}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"gpu_memory_utilization must be above 0 and at most 1, got {self.gpu_memory_utilization}"
            )
        self._check_experts()
        if self.strict and self.attention == "sdpa":
            raise ValueError(
                "strict needs attention that is the same in every batch: attention auto, tiled or triton"
            )
        if self.strict and self.cuda_graphs == "on":
            raise ValueError(
                "strict runs every step at one shape, without CUDA graphs: leave cuda_graphs auto"
            )

    def _check_experts(self) -> None:
        for entry in self.expert:
            name, _, model = entry.partition("=")
            if not re.fullmatch(r"[\w.-]{1,64}", name) or not model:
                what = "NAME=MODEL, a name of letters, digits, '.', '_' and '-' and a model's folder"
                raise ValueError(f"expert must be {what}, got '{entry}'")
            if name == POLICY:
                raise ValueError(
                    f"expert cannot be called '{POLICY}', which is the policy itself: got '{entry}'"
                )
        names = [entry.partition("=")[0] for entry in self.expert]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"expert names two models '{twice}'; call one of them otherwise")

    @property
    def experts(self) -> dict[str, str]:
        """Models by name."""
        return {name: model for name, _, model in (entry.partition("=") for entry in self.expert)}

    @property
    def needs_native(self) -> bool:
        """Whether something is asked for that the C++ backend alone can do."""
        if self.speculate != "off":
            return True
        return self.cpu_backend == "native" or (self.weights, self.kv_cache_dtype) != ("auto", "auto")

    @property
    def token_budget(self) -> int:
        """max_num_batched_tokens of a resolved configuration."""
        assert self.max_num_batched_tokens is not None
        return self.max_num_batched_tokens

    def resolved(self, device_type: str) -> EngineConfig:
        """Settle what depends on the device; whether graphs are captured under "auto" is the model's say, and
        so is the backend of a CPU: whoever knows it names it in `cpu_backend`.

        Raises ValueError for what the device cannot do, with the fix.
        """
        is_cuda = device_type == "cuda"
        attention = self.attention
        if attention == "auto":
            attention = "triton" if is_cuda else "tiled" if self.strict else "sdpa"
        backend = self.cpu_backend
        # Attention that is asked for by name is torch's or Triton's, and so is another dtype than ours.
        others = is_cuda or self.attention != "auto" or self.dtype not in ("auto", "float32")
        if backend == "native" and others:
            raise ValueError(
                "cpu_backend native needs a CPU, attention auto and dtype auto or float32: leave cpu_backend "
                "auto"
            )
        if backend == "auto" and others:
            backend = "torch"
        if backend == "torch" and (self.weights, self.kv_cache_dtype) != ("auto", "auto"):
            raise ValueError(
                "weights and kv_cache_dtype are of the C++ backend, which does not run here: leave them "
                "auto; dtype is what torch stores weights in"
            )
        if self.speculate != "off" and (backend == "torch" or self.async_depth):
            raise ValueError(
                "speculate needs the C++ backend of a CPU, without async_depth, where a token of several is "
                "what it would be alone: leave it off"
            )
        graphs = self.cuda_graphs
        if graphs == "auto" and (self.strict or not is_cuda or attention != "triton"):
            graphs = "off"
        if graphs == "on" and not is_cuda:
            raise ValueError(f"cuda_graphs on needs a CUDA device, not {device_type}: leave it auto, or off")
        if graphs == "on" and attention != "triton":
            raise ValueError(f"cuda_graphs on needs attention triton, not {attention}: leave attention auto")
        budget = self.max_num_batched_tokens
        if budget is None:
            pads = self.strict and backend != "native"
            usual = STRICT_TOKEN_BUDGET if pads else TOKEN_BUDGET["cuda" if is_cuda else "cpu"]
            budget = max(usual, self.max_num_seqs)
        return dataclasses.replace(
            self,
            max_num_batched_tokens=budget,
            kv_cache_gib=CPU_CACHE_GIB if self.kv_cache_gib is None and not is_cuda else self.kv_cache_gib,
            attention=attention,
            cpu_backend=backend,
            cuda_graphs=graphs,
            padding=self.padding if graphs == "off" else "buckets",
            async_depth=int(is_cuda) if self.async_depth is None else self.async_depth,  # type: ignore[arg-type]
        )
