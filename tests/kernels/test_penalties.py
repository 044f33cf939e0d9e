from __future__ import annotations

import math
from typing import Any

import torch
from host_waits import no_host_wait
from torch.utils._python_dispatch import TorchDispatchMode

from trimtab.kernels.penalties import add_bias, apply_penalties, count_drawn


class LargestTensor(TorchDispatchMode):
    """Counts the elements of the largest tensor that ops inside make anew."""

    num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {tensor.data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.data_ptr() not in given:
                self.num_elements = max(self.num_elements, tensor.numel())
        return out


OFF = {"repetition": 1.0, "presence": 0.0, "frequency": 0.0}


def entries(prompt: list[int], reply: list[int]) -> tuple[list[int], list[int]]:
    """The distinct tokens of a history, and how often each is in the reply."""
    tokens = list(dict.fromkeys(prompt + reply))
    return tokens, [reply.count(token) for token in tokens]


def penalised(
    logits: list[float],
    prompt: list[int],
    reply: list[int],
    bias: list[tuple[int, float]] | None = None,
    **settings: float,
) -> list[float]:
    row = torch.tensor([logits])
    if bias:
        add_bias(row, torch.tensor([token for token, _ in bias]), torch.tensor([value for _, value in bias]))
    tokens, counts = entries(prompt, reply)
    values = {name: torch.tensor([value]) for name, value in {**OFF, **settings}.items()}
    apply_penalties(
        row, rows=torch.tensor([0]), tokens=torch.tensor([tokens]), counts=torch.tensor([counts]), **values
    )
    return row[0].tolist()


def test_repetition_divides_positive_and_multiplies_other_logits_of_prompt_and_reply():
    assert penalised([4.0, -4.0, 0.0, 2.0], [0], [1, 1, 2], repetition=2.0) == [2.0, -8.0, 0.0, 2.0]


def test_presence_counts_a_token_of_the_reply_once_and_frequency_every_time():
    assert penalised([1.0, 1.0, 1.0], [0], [1, 1, 2], presence=0.5) == [1.0, 0.5, 0.5]
    assert penalised([1.0, 1.0, 1.0], [0], [1, 1, 2], frequency=0.25) == [1.0, 0.5, 0.75]


def test_a_token_of_prompt_and_reply_is_repeated_once_and_counted_in_the_reply_alone():
    # 6 / 2 − 3 · 0.5 − 1
    assert penalised([6.0], [0, 0], [0, 0, 0], repetition=2.0, presence=1.0, frequency=0.5) == [0.5]


def test_the_bias_comes_first():
    # (1 + 3) / 2 − 0.5
    assert penalised([1.0, 1.0], [], [0], [(0, 3.0), (1, -100.0)], repetition=2.0, presence=0.5) == [
        1.5,
        -99.0,
    ]


def test_masked_tokens_stay_masked():
    out = penalised([-math.inf, 1.0], [0], [0], [(0, 100.0)], repetition=2.0, presence=-2.0, frequency=-2.0)
    assert out == [-math.inf, 1.0]


def test_negative_penalties_encourage():
    assert penalised([0.0, 0.0], [], [1], presence=-0.5, frequency=-0.25) == [0.0, 0.75]


def test_rows_are_penalised_by_their_own_history_and_an_entry_may_be_repeated():
    logits = torch.ones(4, 5)
    apply_penalties(
        logits,
        rows=torch.tensor([3, 1]),
        tokens=torch.tensor([[0, 1, 4, 1], [2, 3, 2, 2]]),
        counts=torch.tensor([[0, 2, 1, 2], [0, 1, 0, 0]]),
        repetition=torch.tensor([1.0, 2.0]),
        presence=torch.tensor([0.0, 0.25]),
        frequency=torch.tensor([0.5, 0.0]),
    )
    assert logits.tolist() == [
        [1.0, 1.0, 1.0, 1.0, 1.0],
        [1.0, 1.0, 0.5, 0.25, 1.0],
        [1.0, 1.0, 1.0, 1.0, 1.0],
        [1.0, 0.0, 1.0, 1.0, 0.5],
    ]


def test_settings_that_are_off_leave_a_row_bitwise_as_it_was():
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    assert penalised(logits[0].tolist(), list(range(20)), list(range(10, 40))) == logits[0].tolist()


def test_a_long_reply_is_counted_exactly():
    assert (
        penalised([0.0, 0.0], [], [1] * 3000 + [0], frequency=0.1)[1] == torch.tensor(0.1).mul(-3000).item()
    )


def test_a_drawn_token_is_counted_wherever_it_is_and_added_where_it_is_new():
    tokens, counts = torch.tensor([[7, 8, 7], [5, 5, 5]]), torch.tensor([[1, 0, 1], [2, 2, 2]])
    table = torch.full((4, 2, 4), -9)
    table[[3, 1], 0, :3], table[[3, 1], 1, :3] = tokens, counts
    count_drawn(table, torch.tensor([3, 1]), tokens, counts, torch.tensor([3, 1]), torch.tensor([7, 6]))
    assert table[3].tolist() == [[7, 8, 7, 7], [2, 0, 2, 2]], "an old token repeats the first entry"
    assert table[1].tolist() == [[5, 6, 5, -9], [2, 1, 2, -9]]
    assert (table[[0, 2]] == -9).all()


def test_the_host_waits_for_nothing_and_no_table_is_as_wide_as_the_vocabulary():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    num_rows, width, vocab_size = 3, 20, 50_000
    rows, one = torch.arange(num_rows, device=device), torch.ones(num_rows, device=device)
    logits = torch.zeros(num_rows, vocab_size, device=device)
    tokens = torch.randint(vocab_size, (num_rows, width), device=device)
    table = torch.zeros(num_rows, 2, width + 1, dtype=torch.long, device=device)
    with no_host_wait(), LargestTensor() as largest:
        add_bias(logits, rows * vocab_size, one)
        apply_penalties(
            logits, rows=rows, tokens=tokens, counts=tokens, repetition=one, presence=one, frequency=one
        )
        count_drawn(table, rows, tokens, tokens, width + 0 * rows, rows)
    assert largest.num_elements <= 2 * num_rows * (width + 1)
