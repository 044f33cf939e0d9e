"""Replies of an evaluation, verbatim: a line for each that a point of a curve was computed from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from trimtab.guidance.evaluation.curve import Curve
from trimtab.guidance.evaluation.replies import MeasuredReply, Scores
from trimtab.guidance.evaluation.report import as_data
from trimtab.guidance.files import write_text
from trimtab.guidance.text.message import Prompt
from trimtab.server.commands.eval.bench import Bench, JudgedPrompts

REPLIES_FILE = "replies.jsonl"
PLAIN = "plain"


def write_replies(bench: Bench, curves: Sequence[Curve]) -> None:
    """{curve, knob, prompt (its row), asked, sample, text, token_ids, finish_reason, kl, base_logprob,
    scores}; plain replies once, as the curve `plain`, all that best-of-n chooses from. Raises OSError."""
    lines = [*_lines(bench.judged, PLAIN, 0.0, bench.replies, bench.scores)]
    for curve in (one for whole in curves for one in (whole.members or (whole,))):
        for point in curve.points:
            if point.samples is not None and point.knob != 0:
                samples = point.samples
                lines += _lines(bench.judged, curve.name, point.knob, samples.replies, samples.by_reply)
    text = "".join(json.dumps(as_data(line), ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    write_text(bench.config.out / REPLIES_FILE, text)


def shown(prompt: Prompt) -> str:
    """What the user says."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message.text for message in prompt if message.role == "user")


def _lines(
    judged: JudgedPrompts, curve: str, knob: float, replies: Sequence[MeasuredReply], scores: Scores
) -> Iterator[dict[str, Any]]:
    for i, reply in enumerate(replies):
        asked = judged.encoded[reply.prompt]
        yield {
            "curve": curve,
            "knob": knob,
            "prompt": asked.number,
            "asked": shown(asked.prompt),
            "sample": reply.sample,
            "text": reply.text,
            "token_ids": reply.token_ids,
            "finish_reason": reply.finish_reason,
            "kl": reply.kl,
            "base_logprob": reply.base_logprob,
            "scores": {name: given[i] for name, given in scores.items()},
        }
