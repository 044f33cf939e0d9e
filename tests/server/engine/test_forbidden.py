"""What a request forbids is never drawn, and what it names ends the reply and is told."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from trimtab.server.engine.engine import Engine
from trimtab.server.engine.forbidden import Forbidden
from trimtab.server.engine.replies import StopMatcher
from trimtab.server.engine.request import (
    ChoiceDone,
    Completion,
    Delta,
    InvalidRequestError,
    Request,
    SamplingParams,
)

Make = Callable[..., Engine]
PROMPT = tuple(range(40, 60))


def reply_of(engine: Engine, **sampling: object) -> Completion:
    options = {"max_tokens": 12, "temperature": 0, **sampling}
    request = Request("r", PROMPT, SamplingParams(**options))  # type: ignore[arg-type]
    reply = Completion(request, 0)
    engine.add(request)
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, Delta | ChoiceDone):
                reply.take(event)
    return reply


@pytest.mark.parametrize("options", [{}, {"async_depth": 1}, {"strict": True}])
def test_no_end_is_drawn_before_so_many_tokens(make_engine: Make, options):
    engine = make_engine(**options)
    (eos,) = engine.policy.eos_token_ids
    wants_to_end = ((eos, 100.0), (65, 90.0))
    for num in (0, 1, 5):
        reply = reply_of(engine, logit_bias=wants_to_end, min_tokens=num)
        assert reply.token_ids == [65] * num + [eos]
        assert (reply.finish_reason, reply.stop_reason) == ("stop", None)
        reply = reply_of(
            engine, logit_bias=wants_to_end, min_tokens=num, ignore_eos=True, stop_token_ids=(eos,)
        )
        assert reply.token_ids == [65] * num + [eos]
        assert reply.stop_reason == eos


@pytest.mark.parametrize("options", [{}, {"async_depth": 1}])
def test_a_bad_word_is_never_said(make_engine: Make, options):
    engine = make_engine(**options)
    free = reply_of(engine, ignore_eos=True).token_ids
    first, pair = free[0], tuple(free[4:6])
    held = reply_of(engine, ignore_eos=True, bad_words=((first,), pair)).token_ids
    assert first not in held
    assert pair not in set(pairwise(held))
    assert len(held) == 12
    only_pair = reply_of(engine, ignore_eos=True, bad_words=(pair,)).token_ids
    assert only_pair[:5] == free[:5]
    assert only_pair[5] != pair[1]


def test_a_token_that_is_named_ends_the_reply_and_is_told(make_engine: Make):
    engine = make_engine()
    free = reply_of(engine, ignore_eos=True)
    token = free.token_ids[3]
    assert token not in free.token_ids[:3]
    cut = reply_of(engine, ignore_eos=True, stop_token_ids=(token,))
    assert (cut.token_ids, cut.finish_reason, cut.stop_reason) == (free.token_ids[:4], "stop", token)
    shown = reply_of(engine, ignore_eos=True, stop_token_ids=(token,), include_stop_str_in_output=True)
    assert len(shown.text) > len(cut.text)
    assert shown.text.startswith(cut.text)


def test_a_stop_string_is_told_kept_where_asked_and_not_looked_for_too_early(make_engine: Make):
    engine = make_engine()
    say = {"logit_bias": ((66, 100.0),), "stop": ("XX", engine.policy.tokenizer.decode([66]) * 2)}
    cut, kept, late = (
        reply_of(engine, **say, **more)
        for more in ({}, {"include_stop_str_in_output": True}, {"min_tokens": 4})
    )
    letter = engine.policy.tokenizer.decode([66])
    assert (cut.text, cut.stop_reason, len(cut.tokens)) == ("", letter * 2, 2)
    assert (kept.text, kept.stop_reason, len(kept.tokens)) == (letter * 2, letter * 2, 2)
    assert (late.text, len(late.tokens)) == (letter * 4, 6)


def test_a_matcher_that_keeps_its_stop_ends_behind_it():
    matcher = StopMatcher(("END",), keeps=True)
    assert [matcher.push(part) for part in ("ab E", "NDs")] == [("ab ", False), ("END", True)]
    assert matcher.met == "END"


def test_masks_name_tokens_in_any_word_of_bits():
    mask = Forbidden(SamplingParams(bad_words=((31,), (7, 64))), (0, 33), 70)
    assert [int(word) & 0xFFFFFFFF for word in mask.mask(5, (1, 7))] == [0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE]
    early = Forbidden(SamplingParams(min_tokens=2), (0, 33), 70).mask(1, (1,))
    assert [int(word) & 0xFFFFFFFF for word in early] == [0xFFFFFFFE, 0xFFFFFFFD, 0xFFFFFFFF]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"min_tokens": 13, "max_tokens": 12}, "min_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"stop_token_ids": tuple(range(65))}, "stop_token_ids"),
        ({"bad_words": ((),)}, "bad_words"),
        ({"bad_words": ((1,),) * 129}, "bad_words"),
        ({"bad_words": (tuple(range(257)),)}, "bad_words"),
    ],
)
def test_what_is_out_of_range_is_refused(options, param):
    with pytest.raises(InvalidRequestError) as error:
        SamplingParams(**options)
    assert error.value.param == param
