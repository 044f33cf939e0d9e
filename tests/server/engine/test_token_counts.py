"""Token counts kept on the device equal those of the whole history, whatever slots and rows come and go."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.kernels.penalties import apply_penalties
from trimtab.server.engine.token_counts import TokenCounts

VOCAB = 12
CPU = torch.device("cpu")
History = tuple[list[int], int]  # tokens, and how many of them are the prompt's


def expected(logits: torch.Tensor, history: History) -> torch.Tensor:
    """By the definition, from the whole history."""
    tokens, num_prompt = history
    logits, counts = logits.clone(), Counter(tokens[num_prompt:])
    for token in set(tokens):
        old = logits[token]
        logits[token] = old / 1.3 if old > 0 else old * 1.3
        logits[token] -= 0.7 * counts[token] + 0.4 * (counts[token] > 0)
    return logits


class Served:
    """Slots with their histories, on the device and as lists."""

    def __init__(self) -> None:
        self.counts = TokenCounts(CPU)
        self.histories: dict[int, History] = {}

    def admit(self, slot: int, tokens: list[int], num_prompt: int) -> None:
        self.histories[slot] = list(tokens), num_prompt
        self.counts.forget(slot)
        self.counts.admit(slot, tokens, num_prompt)
        self.counts.write()

    def draw(self, slots: list[int], drawn: list[int]) -> None:
        """Check that rows in these slots are penalised as they should, and draw."""
        counted = self.counts.locate(slots)
        lengths = [len(self.histories[slot][0]) for slot in slots]
        entries = self.counts.gather(counted, torch.tensor(lengths), lengths)
        logits = torch.randn(len(slots), VOCAB, generator=torch.Generator().manual_seed(sum(lengths)))
        want = torch.stack([expected(z, self.histories[s]) for z, s in zip(logits, slots, strict=True)])
        repetition, presence, frequency = (torch.full((len(slots),), x) for x in (1.3, 0.4, 0.7))
        apply_penalties(
            logits,
            rows=torch.arange(len(slots)),
            tokens=entries.tokens,
            counts=entries.counts,
            repetition=repetition,
            presence=presence,
            frequency=frequency,
        )
        assert torch.allclose(logits, want, atol=1e-6)
        self.counts.add(counted, entries, torch.tensor(drawn))
        for slot, token in zip(slots, drawn, strict=True):
            self.histories[slot][0].append(token)


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_penalties_are_those_of_the_whole_history(seed: int):
    rng = random.Random(seed)
    served = Served()
    for _ in range(60):
        slot = rng.randrange(6)
        if slot not in served.histories or rng.random() < 0.1:
            tokens = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 30))]
            served.admit(slot, tokens, rng.randint(1, len(tokens)))  # also in the middle of a reply
        elif rng.random() < 0.05:
            del served.histories[slot]
            served.counts.forget(slot)
        if served.histories:
            slots = rng.sample(sorted(served.histories), rng.randint(1, len(served.histories)))
            served.draw(slots, [rng.randrange(VOCAB) for _ in slots])


def test_a_reply_that_outgrows_its_table_is_counted_on():
    served = Served()
    served.admit(0, [1, 2, 3], 2)
    served.admit(4, [5] * 400, 1)
    for i in range(700):
        served.draw([0, 4] if i % 3 else [0], [i % VOCAB, (i * i) % VOCAB][: 2 if i % 3 else 1])


def test_memory_goes_by_distinct_tokens_and_is_given_back_with_the_last_slot():
    counts = TokenCounts(CPU)
    counts.admit(0, [3] * 100_000, 50_000)
    counts.write()
    assert counts._table.numel() < 1000
    counts.forget(0)
    assert counts._table.numel() == 0


@pytest.mark.parametrize("num_prompt", [1, 7])
def test_a_token_of_the_prompt_alone_is_repeated_but_not_present(num_prompt: int):
    served = Served()
    served.admit(2, [4] * num_prompt, num_prompt)
    served.draw([2], [4])
    served.draw([2], [5])
    served.draw([2], [5])
