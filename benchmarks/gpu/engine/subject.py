"""Subject of the engine's cases: a policy of random weights with heads that do steer, made on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from trimtab.guidance.heads.bank import HeadBank
from trimtab.guidance.heads.fingerprint import identify
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import AdvantagePart, BaseModel, Manifest, Parts, ScalarPart
from trimtab.guidance.policy import Policy, has_linear_tail
from trimtab.kernels.cpu.library import load_library
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.kv_cache import LayerShape
from trimtab.server.engine.native.model import NativeModel
from trimtab.server.engine.policy import ServedPolicy

FORMS = ("lowrank", "tied")
ONE_OF_EACH = {form: form for form in FORMS}


@dataclass(frozen=True, slots=True)
class LlamaSize:
    """Of a Llama. spread: what its random matrices are multiplied by; logits of 1 are nearly flat."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    max_len: int
    spread: float = 1.0


class Subject:
    """The model and its heads on one device, and the engines that serve them, one at a time.

    weight_bytes: what a decode step reads: every weight but the input embeddings, of which it reads rows.
    has_linear_tail: as the engine finds it; without, no step takes the fused head.
    forms: by the heads' names.
    """

    def __init__(
        self,
        size: LlamaSize,
        device: torch.device,
        dtype: torch.dtype,
        rank: int,
        forms: Mapping[str, str] = ONE_OF_EACH,
    ) -> None:
        self.size = size
        self.model = _random_model(size, device, dtype)
        self.heads = {
            name: _random_head(name, form, size, rank, device, dtype, seed)
            for seed, (name, form) in enumerate(forms.items())
        }
        self._tokenizer = _word_tokenizer(size.vocab)
        embedded = self.model.get_input_embeddings().weight
        self.weight_bytes = sum(
            weight.numel() * weight.itemsize for weight in self.model.parameters() if weight is not embedded
        )
        self.has_linear_tail = has_linear_tail(self.model)

    def policy(self) -> ServedPolicy:
        size = self.size
        dim = size.hidden // size.heads
        identity = identify(self.model, self._tokenizer, size.name)
        return ServedPolicy(
            frozen=Policy(self.model, self._tokenizer, identity, self.has_linear_tail),
            name=size.name,
            model=self.model,
            layers=(LayerShape(size.kv_heads, dim, dim),) * size.layers,
            max_model_len=size.max_len,
            eos_token_ids=(),
            has_linear_tail=self.has_linear_tail,
        )

    def engine(self, **options: Any) -> Engine:
        """As `Engine.from_config` makes one. Takes over the model's attention: an earlier engine is of no use
        any more."""
        policy = self.policy()
        config = EngineConfig(model=self.size.name, **options).resolved(policy.device.type)
        if config.cpu_backend != "torch":
            policy.native = NativeModel(policy, config, load_library())
        bank = HeadBank(
            list(self.heads.values()),
            self.size.hidden,
            device=policy.device,
            vocabulary=None if policy.native is None else policy.native.vocabulary(),
        )
        return Engine(policy, bank, config)

    def head_bytes(self, name: str) -> int:
        advantage = self.heads[name][0].advantage
        assert advantage is not None
        return sum(weight.numel() * weight.itemsize for weight in advantage.parameters())

    def cache_bytes(self, num_rows: int, context: int) -> int:
        """Keys and values that a decode step reads."""
        size = self.size
        per_token = 2 * size.layers * size.kv_heads * (size.hidden // size.heads)
        return num_rows * context * per_token * self.model.dtype.itemsize


def _random_model(size: LlamaSize, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        intermediate_size=size.intermediate,
        max_position_embeddings=size.max_len,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    model.requires_grad_(False).eval()
    for weight in model.parameters() if size.spread != 1 else ():
        if weight.dim() > 1:
            weight.mul_(size.spread)
    return model


def _random_head(
    name: str,
    form: str,
    size: LlamaSize,
    rank: int,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
) -> tuple[Head, Manifest]:
    """Advantages with a standard deviation of about 1: h has components of about 1, W of 0.02 · spread."""
    parts = Parts(advantage=AdvantagePart(form=form, rank=rank), value=ScalarPart())
    head = Head(parts, size.hidden, size.vocab).to(device)
    generator = torch.Generator(device).manual_seed(seed)
    for parameter, weight in head.named_parameters():
        fan_in = weight.shape[-1] if weight.dim() else 1
        weight.data.normal_(std=fan_in**-0.5, generator=generator)
        if form == "tied" and parameter == "advantage.up":
            weight.data.mul_(1 / (0.02 * size.spread * size.hidden**0.5))
    if head.advantage is not None:
        head.advantage.to(dtype)
    trained_on = BaseModel(size.name, "", "", "")
    return head.requires_grad_(False).eval(), Manifest(name, parts, size.hidden, size.vocab, trained_on)


def _word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    words: dict[str, int] = {f"t{i}": i for i in range(vocab_size)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "t2")), eos_token="t1")


def random_prompts(size: LlamaSize, lengths: Sequence[int], seed: int = 0) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        tuple(torch.randint(2, size.vocab, (length,), generator=generator).tolist()) for length in lengths
    ]


SMALL = LlamaSize("small", 512, 6, 8, 4, 1376, 8000, 512, spread=3.0)
LLAMA_3_8B = LlamaSize("Llama-3-8B", 4096, 32, 32, 8, 14336, 128256, 1024)


@dataclass(frozen=True, slots=True)
class EngineSizes:
    """small: of the checks. large, dtype: of the benchmarks. rank: of the heads.

    check_prompts: lengths of prompts, one request each; check_tokens: of each reply.
    tied_rows, lowrank_rows: concurrent replies of the throughput benchmarks; peer_rows: beside others.
    prompt: tokens of each prompt. steps: decode steps of a turn; turns: of every contestant.
    """

    small: LlamaSize = SMALL
    large: LlamaSize = LLAMA_3_8B
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16, torch.float32)
    dtype: torch.dtype = torch.bfloat16
    rank: int = 64
    check_prompts: tuple[int, ...] = tuple(5 + 37 * i % 200 for i in range(20))
    check_tokens: int = 24
    tied_rows: int = 64
    lowrank_rows: int = 288
    peer_rows: int = 64
    prompt: int = 64
    steps: int = 32
    turns: int = 4
    profiled_steps: int = 10


TOY_ENGINE_SIZES = EngineSizes(
    small=LlamaSize("small", 32, 2, 4, 2, 48, 300, 128, spread=3.0),
    large=LlamaSize("large", 48, 2, 4, 2, 64, 300, 128),
    dtypes=(torch.float32,),
    dtype=torch.float32,
    rank=4,
    check_prompts=(5, 23, 14),
    check_tokens=6,
    tied_rows=2,
    lowrank_rows=3,
    peer_rows=2,
    prompt=8,
    steps=4,
    turns=2,
    profiled_steps=2,
)
