"""Models that think between tags: parts, steps, and guidance that addresses one part alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import SIZES, byte_tokenizer, save_random_head, save_random_model
from tokenizers import AddedToken
from transformers import LlamaConfig

from trimtab.guidance.controllers.on import On
from trimtab.guidance.rules import Smc
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.reasoning import ReasoningFollower, Tags, find_tags
from trimtab.server.engine.request import (
    Completion,
    Guidance,
    InvalidRequestError,
    Request,
    SamplingParams,
)

TAGS = Tags(opening=1, closing=2)


def test_tags_are_found_where_both_are_tokens():
    assert find_tags({7: "<think>", 8: "</think>", 0: "<s>"}) == Tags(7, 8)
    assert find_tags({7: "[THINK]", 8: "[/THINK]"}) == Tags(7, 8)
    assert find_tags({7: "<think>"}) is None


def test_the_last_tag_says_what_follows():
    assert [TAGS.reasons_after(ids) for ids in ([], [5], [1, 5], [1, 5, 2, 5], [2, 1], [1, 2, 1])] == [
        *(False, False, True, False, True, True)
    ]


def follow(*tokens: tuple[int, str], reasons: bool = True) -> tuple[list[str], list[int]]:
    """Parts of the tokens, and after how many a step ended. The value says how many tokens lie before."""
    follower = ReasoningFollower(TAGS, reasons)
    parts = [follower.take(token, text, (("kind", float(at)),)) for at, (token, text) in enumerate(tokens)]
    assert all(step.value == (("kind", float(step.num_tokens)),) for step in follower.steps)
    return parts, [step.num_tokens for step in follower.steps]


@pytest.mark.parametrize(
    ("texts", "ends"),
    [
        (["One", ".", " Two", ".", "\n", "Three"], [2, 4]),
        (["3", ".", "5", " is", " it", "!"], []),
        (["a. b", " c"], [1]),
        (["a\n", "\n", "\n", "b", "\n", "c"], [1, 5]),
        (["", "a", "", ".", "", " b"], [5]),
    ],
)
def test_steps_end_with_lines_and_sentences(texts, ends):
    assert follow(*((9, text) for text in texts))[1] == ends


def test_the_closing_tag_ends_a_step_and_belongs_to_the_reasoning():
    tokens = [
        (9, "hm"),
        (1, "<think>"),
        (9, "so"),
        (9, "."),
        (2, "</think>"),
        (9, "\n\n"),
        (9, "4.\n"),
        (9, "x"),
    ]
    parts, ends = follow(*tokens, reasons=False)
    assert parts == ["answer", "answer", *["reasoning"] * 3, *["answer"] * 3]
    assert ends == [4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    sizes = {**SIZES, "vocab_size": len(tokenizer)}
    folder = save_random_model(LlamaConfig(**sizes), tmp_path_factory.mktemp("policy"))
    tokenizer.save_pretrained(folder)
    save_random_head(folder / "heads", folder, "kind", form="lowrank")
    return folder


def engine_of(folder: Path, **settings: object) -> Engine:
    return Engine.from_config(EngineConfig(folder, (folder / "heads/kind",), kv_cache_gib=0.01, **settings))


def run(engine: Engine, *requests: Request) -> list[Completion]:
    found = {r.request_id: Completion(r, 0) for r in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for event in engine.step():
            if hasattr(event, "index"):
                found[event.request_id].take(event)
    return list(found.values())


def thinking(engine: Engine, name: str, part: str, strength: float = 5.0, begun: bool = False) -> Request:
    """Tags come often, and the prompt may open one."""
    tags = engine.policy.tags
    assert tags is not None
    bias = ((tags.opening, 6.0), (tags.closing, 6.0))
    sampling = SamplingParams(max_tokens=48, seed=3, ignore_eos=True, logit_bias=bias)
    guidance = Guidance(strength, (("kind", 1.0),), True, (On(part),))
    return Request(name, (65, tags.opening, 66) if begun else (65, 66), sampling, guidance)


@pytest.mark.parametrize("settings", [{}, {"strict": True}, {"async_depth": 1}], ids=str)
def test_guidance_acts_in_its_part_alone(folder, settings):
    engine = engine_of(folder, **settings)
    tags, parts = engine.policy.tags, ("all", "reasoning", "answer")
    replies = run(engine, *(thinking(engine, part, part, begun=part != "all") for part in parts))
    for part, reply in zip(parts, replies, strict=True):
        reasons = part != "all"
        seen = set()
        for token in reply.tokens:
            now = "reasoning" if reasons else "answer"
            seen.add(now)
            assert token.trace.part == now
            assert token.trace.strength == (5.0 if part in ("all", now) else 0.0)
            assert (token.trace.kl > 0) == (part in ("all", now))
            reasons = tags.after(token.token_id, reasons)
        assert seen == {"reasoning", "answer"}, "the test wants both"
        assert 0 < reply.summary.mean_strength <= 5


def test_a_preempted_reply_goes_on_in_its_part(folder):
    roomy = engine_of(folder, block_size=4)
    tight = engine_of(folder, block_size=4)
    free = tight.scheduler.blocks.num_free
    held = [tight.scheduler.blocks._take() for _ in range(free - 20)]  # 80 tokens for three replies of 51
    names = ("a", "b", "c")
    alone = [run(roomy, thinking(roomy, name, "reasoning", begun=True))[0] for name in names]
    together = run(tight, *(thinking(tight, name, "reasoning", begun=True) for name in names))
    assert held
    assert [r.token_ids for r in together] == [r.token_ids for r in alone]
    assert [[t.trace.strength for t in r.tokens] for r in together] == [
        [t.trace.strength for t in r.tokens] for r in alone
    ]


def test_steps_are_told_with_the_values_of_the_trace(folder):
    engine = engine_of(folder)
    [reply] = run(engine, thinking(engine, "a", "all", begun=True))
    assert reply.summary.steps
    for step in reply.summary.steps:
        assert step.value == reply.tokens[step.num_tokens].trace.value


def test_particles_of_a_pool_are_followed_each_by_itself(folder):
    engine = engine_of(folder)
    plain = thinking(engine, "a", "all", begun=True)
    rule = Smc(particles=4, block=6, resample=1.0, proposal="tilt")
    guidance = Guidance(1.0, (("kind", 1.0),), True, (On("reasoning"),), rule)
    [reply] = run(engine, replace(plain, guidance=guidance))
    reasons = True
    for token in reply.tokens:
        assert token.trace.part == ("reasoning" if reasons else "answer")
        assert token.trace.strength == reasons, "and steered each by itself"
        reasons = engine.policy.tags.after(token.token_id, reasons)
    assert reply.summary.steps
    for step in reply.summary.steps:
        assert step.value == reply.tokens[step.num_tokens].trace.value


def test_a_model_without_tags_refuses_parts(tmp_path_factory):
    folder = save_random_model(LlamaConfig(**SIZES), tmp_path_factory.mktemp("plain"))
    save_random_head(folder / "heads", folder, "kind")
    engine = engine_of(folder)
    for part in ("reasoning", "answer"):
        with pytest.raises(InvalidRequestError, match=r"guidance\.on: .*tags"):
            engine.add(
                Request("r", (1,), SamplingParams(), Guidance(1.0, (("kind", 1.0),), False, (On(part),)))
            )
    engine.add(Request("r", (1,), SamplingParams(), Guidance(1.0, (("kind", 1.0),), False, (On("all"),))))
