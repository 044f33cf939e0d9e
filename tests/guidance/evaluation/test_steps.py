"""Steps of reasoning: where they end, and what a value's movement along traces says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from trimtab.guidance.errors import HeadError
from trimtab.guidance.evaluation.steps import NUM_PLACES, Trace, judge_steps, step_ends
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import BaseModel, Manifest, Parts, ScalarPart
from trimtab.guidance.text.encoding import EncodedReply


@pytest.mark.parametrize(
    ("texts", "ends"),
    [
        (["One", ".", " Two", "\n", "3", ".", "5"], (2, 4, 7)),
        (["a. b! c"], (1,)),
        (["a. b", "! c?", " d"], (1, 2, 3)),
        (["no", " end"], (2,)),
        (["x", ".\n\n", "y"], (2, 3)),
        (["x", ".", "\n", "\n", "y"], (2, 5)),
        (["2.", "5", " is", "."], (4,)),
        (["x", ".", ""], (2, 3)),
        ([], ()),
    ],
)
def test_a_step_ends_with_its_line_or_its_sentence(texts, ends):
    assert step_ends(texts) == ends


class Told:
    """Features whose only number is the value wanted at each state."""

    policy = SimpleNamespace(device=torch.device("cpu"))

    def __init__(self, values: dict[EncodedReply, list[float]]) -> None:
        self.values = values

    def get(self, replies):
        return [torch.tensor(self.values[reply])[:, None] for reply in replies]


def head(parts: Parts) -> tuple[Head, Manifest]:
    made = Head(parts, 1, 2)
    if made.value is not None:
        with torch.no_grad():
            for name, parameter in made.value.named_parameters():
                parameter.fill_(0.0 if "bias" in name else 1.0)
    base = BaseModel("tiny", "0", "0", "0")
    return made, Manifest("v", parts, hidden_size=1, vocab_size=2, base_model=base, reward_std=2.0)


VALUE = Parts(value=ScalarPart())


def trace(question: int, is_right: bool, values: list[float]) -> tuple[Trace, list[float]]:
    """One token a step; values: at each step's end, before the manifest's units."""
    reply = EncodedReply((question,), (int(is_right), *range(len(values) - 1), 99))
    return Trace(reply, is_right, tuple(range(1, len(values) + 1))), [0.0, *values, 50.0]


def report(*given: tuple[Trace, list[float]], heads=None):
    told = Told({trace.reply: values for trace, values in given})
    traces = [trace for trace, _ in given]
    return judge_steps(traces, heads or [head(VALUE)], told, show_progress=False)


def test_figures_by_hand():
    found = report(
        trace(1, True, [1.0, 2.0, 3.0]),
        trace(1, False, [1.0, 0.4, 0.0]),  # falls by 0.3 units at its second step
        trace(2, True, [0.0, -0.2, 1.0]),  # 0.1 units are no fall
        trace(2, False, [2.0, 2.0, 2.0, 1.4]),  # wins, and falls at its fourth step
    )
    [one] = found.heads
    assert (found.num_traces, found.num_right, found.num_questions, found.num_steps) == (4, 2, 2, 3.25)
    assert one.accuracy.mean == 0.5
    assert one.auc == 0.75  # of 3 and 1 against 0 and 1.4
    assert (one.fallen[0].mean, one.fallen[1].mean) == (0.0, 1.0)
    assert one.first_fall[0] is None
    assert one.first_fall[1].mean == pytest.approx((1 / 3 + 3 / 4) / 2)
    assert len(one.by_place[0]) == NUM_PLACES
    assert one.by_place[0][-1] == pytest.approx((1.5 + 0.5) / 2)
    assert one.by_place[1][0] == pytest.approx((0.5 + 1.0) / 2)


def test_length_is_what_a_value_must_beat():
    longer = [trace(q, True, [0.0, 0.0, 1.0]) for q in range(5)]
    shorter = [trace(q, False, [0.0]) for q in range(5)]
    [one] = report(*longer, *shorter).heads
    assert (one.accuracy.mean, one.above_length.mean) == (1.0, 0.0)


def test_without_a_wrong_trace_there_is_no_accuracy():
    [one] = report(trace(1, True, [1.0]), trace(2, True, [0.0])).heads
    assert (one.accuracy, one.above_length, one.auc, one.by_place[1]) == (None, None, None, ())


def test_heads_without_a_value_are_refused():
    with pytest.raises(HeadError, match="no head has a value part"):
        report(trace(1, True, [1.0]), heads=[head(Parts(reward=ScalarPart()))])
