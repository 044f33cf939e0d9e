"""Prompt lookup: what is drafted, and that replies are those that there would be without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import save_random_head

from trimtab.server.engine.engine import Engine
from trimtab.server.engine.prompt_lookup import MAX_DRAFTS, PromptLookup, num_drafts
from trimtab.server.engine.request import Completion, Guidance, Request, SamplingParams
from trimtab.server.rollouts.sample import sample


def test_the_longest_match_is_gone_on_with_where_it_stood_last() -> None:
    lookup = PromptLookup()
    text = [1, 2, 3, 9, 8, 2, 3, 7, 6]
    assert lookup.draft(text, 4) == ()
    assert lookup.draft([*text, 2, 3], 4) == (7, 6, 2), "two tokens tell little"
    assert lookup.draft([*text, 2, 3, 7, 6], 2) == (2, 3)
    fresh = PromptLookup()
    assert fresh.draft([*text, 1, 2, 3], 2) == (9, 8), "three tokens tell more than the later two"
    assert PromptLookup().draft([*text, 9], 7) == (8, 2)


def test_what_has_only_just_been_said_is_no_source() -> None:
    assert PromptLookup().draft([4, 5], 3) == ()
    assert PromptLookup().draft([], 3) == ()


def test_full_batches_draft_nothing() -> None:
    assert num_drafts(1) == MAX_DRAFTS
    assert [num_drafts(rows) for rows in (4, 8, 16, 64)] == [3, 1, 0, 0]


PROMPTS = ([5, 9, 200, 31] * 6, [7] * 20, list(range(40, 70)), [1, 2, 3] * 9)


def greedy(engine: Engine, guidance: Guidance, **sampling: object) -> list[Completion]:
    asked = SamplingParams(
        **{"max_tokens": 40, "temperature": 0, "logprobs": 2, "ignore_eos": True} | sampling
    )  # type: ignore[arg-type]
    requests = [Request(str(i), tuple(prompt), asked, guidance) for i, prompt in enumerate(PROMPTS)]
    return sample(engine, requests)


@pytest.mark.parametrize("strength", [0.0, 2.0])
@pytest.mark.parametrize("options", [{}, {"num_blocks": 16}, {"max_num_seqs": 1, "strict": True}], ids=str)
def test_replies_are_those_without_it(
    strength: float,
    options: dict[str, int],
    make_engine: Callable[..., Engine],
    llama_folder: Path,
    tmp_path: Path,
) -> None:
    head = save_random_head(tmp_path / "steer", llama_folder, "steer")
    guidance = Guidance(strength, (("steer", 1.0),))
    plain = greedy(make_engine(heads=(head,), cpu_backend="native"), guidance)
    engine = make_engine(heads=(head,), speculate="ngram", **options)
    for ours, theirs in zip(greedy(engine, guidance), plain, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.text == theirs.text
        assert ours.finish_reason == theirs.finish_reason
        expected = [token.logprob for token in theirs.tokens]
        assert [token.logprob for token in ours.tokens] == pytest.approx(expected, abs=1e-5)
        assert ours.summary.kl == pytest.approx(theirs.summary.kl, abs=1e-4)
    stats = engine.stats
    assert stats.num_drafted > stats.num_accepted > 0, "random models repeat themselves"
    assert engine.scheduler.blocks.num_free == engine.scheduler.blocks.num_usable


def test_a_reply_ends_within_its_drafts(make_engine: Callable[..., Engine]) -> None:
    whole = greedy(make_engine(cpu_backend="native"), Guidance())[1]
    stop = whole.token_ids[9]
    ends = {"stop_token_ids": (stop,), "logprobs": None}
    theirs = greedy(make_engine(cpu_backend="native"), Guidance(), **ends)
    ours = greedy(make_engine(speculate="ngram"), Guidance(), **ends)
    assert [reply.token_ids for reply in ours] == [reply.token_ids for reply in theirs]
    assert [reply.stop_reason for reply in ours] == [reply.stop_reason for reply in theirs]


@pytest.mark.parametrize("sampling", [{"temperature": 1.0, "seed": 1}, {"repetition_penalty": 1.3}], ids=str)
def test_what_is_drawn_or_depends_on_its_past_is_not_drafted(
    sampling: dict[str, object], make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(speculate="ngram")
    greedy(engine, Guidance(), **sampling)
    assert engine.stats.num_drafted == 0
