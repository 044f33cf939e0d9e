from __future__ import annotations

import math

import torch

from trimtab.kernels.penalties import apply_penalties

OFF = {"repetition": 1.0, "presence": 0.0, "frequency": 0.0}


def penalised(
    logits: list[float],
    prompt: list[int],
    reply: list[int],
    bias: list[tuple[int, float]] | None = None,
    **settings: float,
) -> list[float]:
    history = prompt + reply
    row = torch.tensor([logits])
    values = {name: torch.tensor([value]) for name, value in {**OFF, **settings}.items()}
    apply_penalties(
        row,
        rows=torch.tensor([0]),
        tokens=torch.tensor([history]),
        prompt_lengths=torch.tensor([len(prompt)]),
        lengths=torch.tensor([len(history)]),
        logit_bias=[bias or []],
        **values,
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


def test_rows_are_penalised_by_their_own_history_and_padding_counts_for_nothing():
    logits = torch.ones(4, 5)
    apply_penalties(
        logits,
        rows=torch.tensor([3, 1, 0]),
        tokens=torch.tensor([[0, 1, 1, 4], [2, 3, 99, -7], [1, 1, 1, 1]]),
        prompt_lengths=torch.tensor([1, 1, 0]),
        lengths=torch.tensor([4, 2, 0]),
        repetition=torch.tensor([1.0, 2.0, 9.0]),
        presence=torch.tensor([0.0, 0.25, 9.0]),
        frequency=torch.tensor([0.5, 0.0, 9.0]),
        logit_bias=[[], [(4, 2.0)], [(0, -1.0)]],
    )
    assert logits.tolist() == [
        [0.0, 1.0, 1.0, 1.0, 1.0],
        [1.0, 1.0, 0.5, 0.25, 3.0],
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
