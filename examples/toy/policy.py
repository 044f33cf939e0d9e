"""Toy policy: a small Llama trained on the grammar's conversations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.toy.corpus import Batch, batches, encode
from examples.toy.grammar.conversation import conversations
from examples.toy.grammar.domain import Split
from examples.toy.tokenizer import train_tokenizer
from trimtab.guidance.files import whole_folder


@dataclass(frozen=True)
class PolicyConfig:
    """Sizes and schedule; the defaults are the committed policy's.

    peak_lr: of embeddings and norms. matrix_lr: of the matrices inside the layers.
    """

    num_conversations: int = 50_000
    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 576
    num_layers: int = 4
    num_heads: int = 8
    num_kv_heads: int = 4
    max_length: int = 512
    tokens_per_batch: int = 2048
    peak_lr: float = 3e-3
    matrix_lr: float = 6e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    clip_norm: float = 1.0


@dataclass(frozen=True)
class PolicyReport:
    """num_tokens seen in training; held-out cross-entropy of replies in nats per token, on topics of the
    training and on topics never seen."""

    num_parameters: int
    num_tokens: int
    loss_seen_topics: float
    loss_unseen_topics: float


def train_policy(config: PolicyConfig, folder: Path, seed: int) -> PolicyReport:
    """Generates the conversations, trains tokenizer and model, writes both to `folder`. The same seed
    gives the same policy on the same machine and number of threads."""
    torch.manual_seed(seed)
    corpus = list(itertools.islice(conversations("lm", seed), config.num_conversations))
    texts = [m["content"] for c in corpus[:20_000] for m in c.messages()]
    tokenizer = train_tokenizer(texts, config.vocab_size, config.max_length)
    model = LlamaForCausalLM(_llama_config(config, tokenizer))
    examples = encode(corpus, tokenizer, config.max_length)
    _fit(model, batches(examples, config.tokens_per_batch, tokenizer.pad_token_id, seed), config)

    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    with whole_folder(folder) as new:
        tokenizer.save_pretrained(new)
        model.save_pretrained(new)
    return PolicyReport(
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_tokens=sum(len(e.token_ids) for e in examples),
        loss_seen_topics=_held_out_loss(model, tokenizer, "lm", config, seed),
        loss_unseen_topics=_held_out_loss(model, tokenizer, "test", config, seed),
    )


def _llama_config(config: PolicyConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.max_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def reply_loss(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Weighted mean cross-entropy of the next token, nats."""
    logits = model(input_ids=batch.token_ids[:, :-1]).logits.float()
    losses = F.cross_entropy(logits.flatten(0, 1), batch.token_ids[:, 1:].flatten(), reduction="none")
    weights = batch.weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def _fit(model: LlamaForCausalLM, plan: Sequence[Batch], config: PolicyConfig) -> None:
    optimizers = _optimizers(model, config)
    schedulers = [LambdaLR(optimizer, partial(_lr_scale, len(plan), config)) for optimizer in optimizers]
    model.train()
    smoothed = math.nan
    with tqdm(plan, desc="policy", unit="step") as bar:
        for batch in bar:
            loss = reply_loss(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                optimizer.step()
                scheduler.step()
            model.zero_grad(set_to_none=True)
            smoothed = loss.item() if math.isnan(smoothed) else 0.98 * smoothed + 0.02 * loss.item()
            bar.set_postfix(loss=f"{smoothed:.3f}")
    model.eval()


def _optimizers(model: LlamaForCausalLM, config: PolicyConfig) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices inside the layers, which saves steps; AdamW for the rest."""
    inside = [p for p in model.model.layers.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if all(p is not q for q in inside)]
    return (
        torch.optim.Muon(
            inside, lr=config.matrix_lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=config.peak_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    )


def _lr_scale(num_steps: int, config: PolicyConfig, step: int) -> float:
    cosine = (1 + math.cos(math.pi * step / max(1, num_steps))) / 2
    return min(1.0, (step + 1) / config.warmup_steps) * (0.05 + 0.95 * cosine)


@torch.inference_mode()
def _held_out_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, split: Split, config: PolicyConfig, seed: int
) -> float:
    fresh = itertools.islice(conversations(split, seed + 1), 400)
    plan = batches(encode(fresh, tokenizer, config.max_length), 4 * config.tokens_per_batch, 0, 0)
    replies_only = [Batch(b.token_ids, (b.weights == 1).float()) for b in plan]
    counts = [int(b.weights[:, 1:].sum()) for b in replies_only]
    sums = [reply_loss(model, b).item() * count for b, count in zip(replies_only, counts, strict=True)]
    return sum(sums) / sum(counts)
