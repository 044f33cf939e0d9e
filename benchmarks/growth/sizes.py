"""What is varied how far, and what stays fixed meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from benchmarks.gpu.engine.subject import LlamaSize


@dataclass(frozen=True, slots=True)
class GrowthSizes:
    """model, dtype, rank: of all sweeps but that over vocabularies, whose model is `small` at each of them.

    rows, contexts, heads, vocabs: what is varied. context_rows, head_rows, vocab_rows: concurrent replies
    while it is. prompt: tokens, where the context is not varied. steps: counted at every point.
    compile: as in EngineConfig; the same at every point, so that none is drawn between two ways.
    bandwidth_bytes, product: sizes of the copy and of the square product that floors are drawn from.
    """

    model: LlamaSize
    small: LlamaSize
    dtype: torch.dtype
    rank: int
    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    heads: tuple[int, ...]
    vocabs: tuple[int, ...]
    context_rows: int
    head_rows: int
    vocab_rows: int
    prompt: int
    steps: int
    compile: Literal["on", "off"]
    bandwidth_bytes: int
    product: int


ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192)
HEADS = (1, 2, 4, 8, 16)
VOCABS = (8000, 16000, 32000, 64000, 128000, 152000)
MAX_LEN = CONTEXTS[-1] + 256

CPU = GrowthSizes(
    model=LlamaSize("Llama 31M", 512, 8, 8, 4, 1376, 8000, MAX_LEN),
    small=LlamaSize("Llama of two layers", 512, 2, 8, 4, 1376, 8000, 256),
    dtype=torch.float32,
    rank=64,
    rows=ROWS,
    contexts=CONTEXTS,
    heads=HEADS,
    vocabs=VOCABS,
    context_rows=4,
    head_rows=16,
    vocab_rows=8,
    prompt=32,
    steps=20,
    compile="on",
    bandwidth_bytes=256 << 20,
    product=1536,
)
CUDA = GrowthSizes(
    model=LlamaSize("a quarter of Llama-3-8B", 4096, 8, 32, 8, 14336, 128256, MAX_LEN),
    small=LlamaSize("Llama of two layers", 4096, 2, 32, 8, 14336, 128256, 256),
    dtype=torch.bfloat16,
    rank=64,
    rows=ROWS,
    contexts=CONTEXTS,
    heads=HEADS,
    vocabs=VOCABS,
    context_rows=16,
    head_rows=64,
    vocab_rows=16,
    prompt=64,
    steps=40,
    compile="off",
    bandwidth_bytes=1 << 30,
    product=8192,
)
TOY = GrowthSizes(
    model=LlamaSize("toy", 32, 2, 4, 2, 48, 300, 128),
    small=LlamaSize("toy", 32, 1, 4, 2, 48, 300, 64),
    dtype=torch.float32,
    rank=4,
    rows=(1, 3),
    contexts=(8, 32),
    heads=(1, 2),
    vocabs=(300, 400),
    context_rows=2,
    head_rows=3,
    vocab_rows=2,
    prompt=6,
    steps=3,
    compile="off",
    bandwidth_bytes=1 << 20,
    product=64,
)
SIZES = {"cpu": CPU, "cuda": CUDA, "toy": TOY}
