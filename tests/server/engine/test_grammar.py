"""Replies within a grammar: each is a text of it, however it is steered, batched, cut off and resumed."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import text_tokenizers
import torch
import trained_tokenizers
from preemptions import watch_preemptions
from tiny_models import EOS, byte_tokenizer, save_random_head

from trimtab.guidance.heads.store import load_head
from trimtab.guidance.rules import Blockwise, Contrast, Lookahead, Rule, Smc
from trimtab.server.engine import grammar as grammar_module
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.detokenizer import TextDecoder
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.grammar import Grammars
from trimtab.server.engine.policy import forward_with_hidden
from trimtab.server.engine.request import (
    TERMINAL,
    Completion,
    Event,
    Failed,
    Finished,
    GrammarSpec,
    Guidance,
    InvalidRequestError,
    Request,
    SamplingParams,
)
from trimtab.server.rollouts.sample import sample

Make = Callable[..., Engine]
PROMPT = tuple(range(40, 60))
BYTES = byte_tokenizer()
NO_SPACE = tuple((token, -100.0) for token in BYTES("\t\n ").input_ids)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{1,4}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["naïve", "x"]}, "maxItems": 2},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
CHOICES = ["yes", "no", "naïve 🙂"]


def is_person(text: str) -> bool:
    found = json.loads(text)
    assert set(found) <= {"name", "age", "tags"}
    assert set(found.get("tags", [])) <= {"naïve", "x"}
    return bool(re.fullmatch("[a-z]{1,4}", found["name"])) and 0 <= found["age"] <= 150


DIGIT = {"$ref": "#/$defs/a", "$defs": {"a": {"type": "string", "pattern": "^[0-9]$"}}}


def over_schemas(lark: str, **schemas: object) -> GrammarSpec:
    named = [[name, f"schemas.{name}", schema] for name, schema in schemas.items()]
    return GrammarSpec("lark_over_schemas", json.dumps({"lark": lark, "schemas": named}))


SPECS: dict[str, tuple[GrammarSpec, Callable[[str], object]]] = {
    "schema": (GrammarSpec("json_schema", json.dumps(SCHEMA)), is_person),
    "regex": (
        GrammarSpec("regex", r"[a-c]{2}(-\d{2}){1,3}"),
        re.compile(r"[a-c]{2}(-[0-9]{2}){1,3}").fullmatch,
    ),
    "choice": (GrammarSpec("choice", json.dumps(CHOICES)), CHOICES.__contains__),
    "ebnf": (
        GrammarSpec("grammar", 'root ::= item ("," item)? "."\nitem ::= "(" item? ")" | [0-9]'),
        re.compile(r"[()0-9]+(,[()0-9]+)?\.").fullmatch,
    ),
    "lark": (GrammarSpec("grammar", 'start: "<" /[ab]{1,3}/ ">"'), re.compile("<[ab]{1,3}>").fullmatch),
    "lark over schemas": (
        over_schemas(
            'start: "<" (@x | @y) ">"', x={"$ref": "#/$defs/a", "$defs": {"a": {"const": 7}}}, y=DIGIT
        ),
        re.compile('<(7|"[0-9]")>').fullmatch,
    ),
}
PERSON, REGEX = SPECS["schema"][0], SPECS["regex"][0]


@pytest.fixture(scope="module")
def heads(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("heads")
    return (
        save_random_head(folder, llama_folder, "kind"),
        save_random_head(folder, llama_folder, "brief", "lowrank", 1),
    )


@pytest.fixture(scope="module")
def engine(llama_folder: Path, heads: tuple[Path, ...]) -> Engine:
    return Engine.from_config(EngineConfig(llama_folder, heads=heads, block_size=8, max_num_seqs=8))


def request(name: str, spec: GrammarSpec | None, strength: float = 0.0, **sampling: object) -> Request:
    options = {"max_tokens": 100, "seed": 3, "logit_bias": NO_SPACE, **sampling}
    guidance = Guidance(strength, (("kind", 1.0), ("brief", 0.5)), trace=True)
    return Request(name, PROMPT, SamplingParams(**options), guidance, grammar=spec)  # type: ignore[arg-type]


def by_rule(request: Request, rule: Rule) -> Request:
    name = f"{request.request_id} {rule.kind}"
    return replace(request, request_id=name, guidance=replace(request.guidance, rule=rule))


def run(engine: Engine) -> list[Event]:
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    return events


def bits(completion: Completion) -> list[object]:
    return [completion.text, completion.summary, [(t.token_id, t.logprob) for t in completion.tokens]]


@pytest.mark.parametrize("name", SPECS)
def test_every_reply_is_a_text_of_the_grammar_and_ends_by_itself(engine: Engine, name: str):
    spec, is_right = SPECS[name]
    cuts: list[dict[str, float]] = [
        {},
        {"frequency_penalty": 1.0, "n": 2},
        {"top_k": 3, "top_p": 0.9, "min_p": 0.01},
    ]
    asked = [
        request(f"{strength} {seed}", spec, strength, seed=seed, **cut)
        for strength in (0.0, 3.0, -3.0)
        for seed, cut in enumerate(cuts)
    ]
    replies = sample(engine, asked)
    assert len({reply.text for reply in replies}) > 1
    for reply in replies:
        assert reply.finish_reason == "stop", reply.text
        assert is_right(reply.text), reply.text
    greedy = sample(engine, [request("greedy", spec, 3.0, temperature=0.0, top_p=0.5, frequency_penalty=1.0)])
    assert is_right(greedy[0].text)


@pytest.mark.parametrize("name", SPECS)
def test_every_rule_keeps_to_the_grammar(engine: Engine, name: str):
    spec, is_right = SPECS[name]
    rules = {
        "towards": (Contrast(PROMPT[:7], gamma=3.0), 2),
        "away": (Contrast(PROMPT[:7], gamma=-2.0, alpha=0.05), 2),
        "ahead": (Lookahead(5), 2),
        "kept": (Lookahead(3, others="keep"), 2),
        "blocks": (Blockwise(candidates=3, block=3), 1),
        "beam": (Blockwise(candidates=4, block=2, keep=2, proposal="tilt"), 1),
        "particles": (Smc(particles=3, block=2, resample=1.0), 1),
        "tilted": (Smc(particles=4, block=3, resample=0.9, proposal="tilt"), 1),
    }
    asked = [request(f"{seed}", spec, 2.0, seed=seed) for seed in range(2)]
    asked += [by_rule(request(kind, spec, 2.0, n=n), rule) for kind, (rule, n) in rules.items()]
    for reply in sample(engine, asked):
        assert reply.finish_reason == "stop", reply.text
        assert is_right(reply.text), reply.text
        assert all(math.isfinite(t.logprob) and math.isfinite(t.trace.kl) for t in reply.tokens if t.trace)
    assert engine.scheduler.blocks.num_free == engine.scheduler.blocks.num_usable


def test_particles_share_their_grammar_up_to_where_they_part(engine: Engine):
    """Whatever a particle went on from, it goes on in that one's grammar: what follows mirrors the letter."""
    spec = GrammarSpec("regex", "(aa|bb|cc|dd){6}")
    asked = [
        by_rule(request(str(seed), spec, 5.0, seed=seed, max_tokens=16), rule)
        for rule in (Smc(particles=6, block=1, resample=1.0), Blockwise(candidates=6, block=1))
        for seed in range(3)
    ]
    for reply in sample(engine, asked):
        assert re.fullmatch("(aa|bb|cc|dd){6}", reply.text), reply.text
        assert reply.finish_reason == "stop"


def allowed_tokens(engine: Engine, spec: GrammarSpec, token_ids: list[int]) -> torch.Tensor:
    """bool [T, V]: what the grammar allowed where each token was drawn."""
    grammar, rows = engine.grammars.compile(spec).copy(), []
    for token_id in token_ids:
        words = np.unpackbits(grammar.mask().view(np.uint8), bitorder="little")
        rows.append(torch.from_numpy(words[: engine.policy.vocab_size]).bool())
        grammar.take(token_id)
    return torch.stack(rows)


@pytest.mark.parametrize("strength", [2.0, -4.0])
def test_kl_entropy_and_logprobs_are_of_what_the_grammar_leaves(
    make_engine: Make, heads: tuple[Path, ...], strength: float
):
    engine = make_engine(heads=heads)
    reply = sample(engine, [request("one", PERSON, strength, logit_bias=(), logprobs=2)])[0]
    ids = torch.tensor([[*PROMPT, *reply.token_ids]])
    at = torch.arange(len(PROMPT) - 1, ids.shape[1] - 1)
    engine.policy.use_attention("eager")
    h, logits = forward_with_hidden(engine.policy.model, ids, torch.arange(ids.shape[1])[None], at)
    allowed = allowed_tokens(engine, PERSON, reply.token_ids)
    base = logits.double().masked_fill(~allowed, -torch.inf).log_softmax(-1)
    advantage = torch.zeros_like(base)
    for folder, weight in zip(heads, (1.0, 0.5), strict=True):
        head, _ = load_head(folder)
        advantage += weight * head.double().advantage(h.double(), engine.policy.lm_head.double())
    centred = advantage - (base.exp() * advantage).sum(-1, keepdim=True)
    tilt = (base + strength * centred).log_softmax(-1)
    kl = (tilt.exp() * torch.where(allowed, tilt - base, 0)).sum(-1)
    assert (allowed.sum(-1) == 1).any(), "somewhere one token is left"
    for t, token in enumerate(reply.tokens):
        trace = token.trace
        assert trace is not None
        assert trace.kl == pytest.approx(float(kl[t]), rel=1e-4, abs=1e-5)
        assert token.logprob == pytest.approx(float(tilt[t, token.token_id]), abs=1e-4)
        assert trace.base_logprob == pytest.approx(float(base[t, token.token_id]), abs=1e-4)
        entropy = -(base[t].exp() * base[t].masked_fill(~allowed[t], 0)).sum()
        assert trace.entropy == pytest.approx(float(entropy), abs=1e-4)
    assert reply.summary.kl == pytest.approx(float(kl.sum()), rel=1e-4)


def test_end_tokens_are_drawn_exactly_where_the_text_may_end(engine: Engine):
    grammar = engine.grammars.compile(GrammarSpec("regex", "ab?")).copy()

    def can_end() -> bool:
        return bool(grammar.mask()[EOS // 32] >> EOS % 32 & 1)

    assert not can_end()
    grammar.take(BYTES("a").input_ids[0])
    assert can_end()
    assert not grammar.is_over
    grammar.take(BYTES("b").input_ids[0])
    assert grammar.is_over
    asked = [request(str(i), GrammarSpec("regex", "ab?"), seed=i, logit_bias=()) for i in range(20)]
    ends = {(reply.text, reply.token_ids[-1] == EOS) for reply in sample(engine, asked)}
    assert ends == {("a", True), ("ab", False)}, "where only an end can follow, none is drawn"


def test_a_limit_within_the_grammar_cuts_the_reply_and_one_at_its_very_end_does_not(engine: Engine):
    spec = GrammarSpec("regex", "abcdef")
    cut, whole = sample(engine, [request(str(n), spec, max_tokens=n) for n in (5, 6)])
    assert (cut.text, cut.finish_reason) == ("abcde", "length")
    assert (whole.text, whole.finish_reason) == ("abcdef", "stop")


def test_a_stop_string_ends_a_reply_within_its_grammar(engine: Engine):
    (reply,) = sample(engine, [request("one", GrammarSpec("regex", "abcdef"), stop=("d",))])
    assert (reply.text, reply.finish_reason) == ("abc", "stop")


def mixed() -> list[Request]:
    specs = [spec for spec, _ in SPECS.values()]
    asked = [request(str(i), specs[i % 5], i - 3.0, seed=i, n=1 + i % 2) for i in range(6)]
    free = [request(f"free {i}", None, 1.0, max_tokens=60, ignore_eos=True) for i in range(2)]
    pools = [
        by_rule(request("a", REGEX, 1.0, max_tokens=12), Smc(particles=3, block=4, resample=1.0)),
        by_rule(request("b", REGEX, -1.0, max_tokens=12), Blockwise(candidates=3, block=2, proposal="tilt")),
    ]
    return [*free, *pools, *asked]


@pytest.mark.parametrize(
    "options", [{"async_depth": 1}, {"num_blocks": 22}, {"num_blocks": 22, "async_depth": 1}], ids=str
)
def test_replies_do_not_depend_on_pipelining_and_preemption(
    make_engine: Make, heads: tuple[Path, ...], engine: Engine, options: dict[str, object]
):
    expected = [(reply.text, reply.token_ids) for reply in sample(engine, mixed())]
    other = make_engine(heads=heads, **options)
    preempted = watch_preemptions(other, lambda choice: choice.request.grammar is not None)
    assert [(reply.text, reply.token_ids) for reply in sample(other, mixed())] == expected
    assert bool(preempted) == ("num_blocks" in options)
    assert any(choice.request.guidance.rule.is_pool for choice in preempted) == ("num_blocks" in options)


def test_replies_go_on_after_the_engine_starts_over(engine: Engine):
    (expected,) = sample(engine, [request("one", PERSON, 2.0)])
    engine.add(request("one", PERSON, 2.0))
    whole = Completion(request("one", PERSON, 2.0), 0)
    for number in range(200):
        engine._is_suspect = number in (3, 7)
        for event in engine.step():
            if not isinstance(event, TERMINAL):
                whole.take(event)
        if not engine.has_work:
            break
    assert (whole.text, whole.token_ids) == (expected.text, expected.token_ids)


@pytest.mark.parametrize("strength", [0.0, 2.0])
def test_under_strict_a_reply_is_bitwise_the_same_whoever_shares_its_batch(
    make_engine: Make, heads: tuple[Path, ...], strength: float
):
    engine = make_engine(heads=heads, strict=True, max_num_batched_tokens=24, num_blocks=40)
    target = request("target", PERSON, strength)
    alone = bits(sample(engine, [target])[0])
    together = sample(engine, [*mixed()[:4], target, *mixed()[4:]])
    (mine,) = (reply for reply in together if reply.request.request_id == "target")
    assert bits(mine) == alone


def failures(events: list[Event]) -> dict[str, str]:
    return {event.request_id: event.message for event in events if isinstance(event, Failed)}


def test_a_dead_end_fails_its_own_request_and_no_other(engine: Engine):
    # What ends the reply is asked for where the text may not end.
    dead = GrammarSpec("grammar", f'start: "ab" <[{EOS}]> "c"')
    engine.add(request("dead", dead))
    engine.add(by_rule(request("dead", dead, 1.0), Smc(particles=3, block=1)))
    engine.add(request("well", REGEX))
    events = run(engine)
    assert set(failures(events)) == {"dead", "dead smc"}
    for message in failures(events).values():
        assert "cannot go on within its grammar: no token can come next" in message
    assert sum(isinstance(event, Finished) for event in events) == 1
    assert engine.scheduler.blocks.num_free == engine.scheduler.blocks.num_usable


def test_masks_that_take_too_long_fail_their_own_request(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    engine.add(request("slow", REGEX))
    engine.step()
    monkeypatch.setattr(grammar_module, "FREE_SECONDS", 0.0)
    monkeypatch.setattr(grammar_module, "SECONDS_PER_TOKEN", 0.0)
    assert "take too long" in failures(run(engine))["slow"]


def test_a_fork_goes_its_own_way(engine: Engine):
    first = engine.grammars.compile(GrammarSpec("regex", "a(b|c)d")).copy()
    first.take(BYTES("a").input_ids[0])
    second = first.copy()
    first.take(BYTES("b").input_ids[0])
    assert not np.array_equal(first.mask(), second.mask())
    second.take(BYTES("c").input_ids[0])
    assert np.array_equal(first.mask(), second.mask())


BAD = {
    "no JSON": ("json_schema", '{"type":', "EOF"),
    "no schema": ("json_schema", '"string"', "object"),
    "no type": ("json_schema", '{"type": "strin"}', "strin"),
    "not supported": ("json_schema", '{"not": {"type": "string"}}', "not"),
    "beside others": ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
    "no number": ("json_schema", '{"type": "integer", "minimum": 3, "maximum": 2}', "minimum"),
    "required and never": (
        "json_schema",
        '{"type": "object", "properties": {"a": false}, "required": ["a"]}',
        "unsatisfiable",
    ),
    "itself": ("json_schema", '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}', "no token"),
    "deep": ("json_schema", '{"items": ' * 200 + "{}" + "}" * 200, "recursion"),
    "exponential": (
        "json_schema",
        json.dumps(
            {"allOf": [{"anyOf": [{"properties": {f"{i} {j}": {}}} for j in range(6)]} for i in range(8)]}
        ),
        "too large",
    ),
    "open": ("regex", "(a", "unclosed"),
    "look ahead": ("regex", "(?=a)b", "look-around"),
    "no character": ("regex", r"[^\s\S]", "no token"),
    "empty text": ("regex", "(|)", "empty reply"),
    "unknown rule": ("grammar", "root ::= foo", "foo"),
    "unknown name": ("grammar", "start: foo", "foo"),
    "endless": ("grammar", "start: start", "no token"),
    "half a pair": ("regex", "\ud800", "surrogates"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_grammar_is_refused_by_the_field_it_came_from(engine: Engine, name: str):
    kind, text, says = BAD[name]
    spec = GrammarSpec(kind, text, "structured_outputs.x")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match=says) as refused:
        engine.add(request("bad", spec))
    assert refused.value.param == "structured_outputs.x"
    assert "\n" not in str(refused.value)
    assert not engine.has_work


def test_of_several_schemas_the_one_that_is_none_is_named(engine: Engine):
    for bad, says in (({"not": {}}, "not"), (3, "object")):
        with pytest.raises(InvalidRequestError, match=says) as refused:
            engine.add(request("bad", over_schemas("start: @x | @y", x=DIGIT, y=bad)))
        assert refused.value.param == "schemas.y"
    with pytest.raises(InvalidRequestError, match="unknown") as refused:
        engine.add(request("bad", over_schemas("start: @z", x=DIGIT)))
    assert refused.value.param == "grammar"


def test_sizes_are_limited_and_endless_replies_refused(engine: Engine):
    for text, says in (("", "empty"), ("a" * 65537, "65537")):
        with pytest.raises(InvalidRequestError, match=says):
            GrammarSpec("regex", text)
    with pytest.raises(InvalidRequestError, match="grammar ends") as refused:
        engine.add(request("endless", REGEX, ignore_eos=True))
    assert refused.value.param == "ignore_eos"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json_schema", '{"type": "string", "minLength": 1000000000}'),
        ("json_schema", '{"type": "array", "items": {}, "maxItems": 1000000000}'),
        ("regex", "(a+)+b"),
        ("regex", "(a|b)*a(a|b){30}"),
        ("regex", "((a{1,1000}){1,1000}){1,1000}"),
        ("grammar", 'start: e\ne: e e e | e e | "x"'),
    ],
)
def test_what_hangs_others_is_compiled_and_stepped_in_no_time(engine: Engine, kind: str, text: str):
    start = time.thread_time()
    grammar = engine.grammars.compile(GrammarSpec(kind, text)).copy()  # type: ignore[arg-type]
    for _ in range(30):
        open_bits = np.flatnonzero(np.unpackbits(grammar.mask().view(np.uint8), bitorder="little"))
        if grammar.problem or not len(open_bits):
            break
        grammar.take(int(open_bits[0]))
    assert time.thread_time() - start < 2


def test_a_compilation_that_does_not_end_is_killed(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grammar_module, "COMPILE_SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(InvalidRequestError, match="too long"):
        engine.grammars.compile(GrammarSpec("json_schema", '{"type": "integer", "multipleOf": 99999999}'))
    assert time.monotonic() - start < 5


def test_a_grammar_is_compiled_once_and_the_last_ones_are_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grammar_module, "MAX_KEPT", 2)
    grammars = Grammars(BYTES, 260, (EOS,))
    specs = [GrammarSpec("regex", text) for text in "abc"]
    first = grammars.compile(specs[0])
    assert grammars.compile(replace(specs[0], param="another")) is first
    for spec in specs[1:]:
        grammars.compile(spec)
    assert [spec in grammars for spec in specs] == [False, True, True]


TOKENIZERS = {
    "cut bytes": text_tokenizers.cut_bytes,  # reads é as the byte E9
    "byte fallback": text_tokenizers.byte_fallback,
    "merges": trained_tokenizers.byte_level,
    "merges, a space before": lambda: trained_tokenizers.byte_level(prefix_space=True),
}
LITERAL = {"a": ["日本 é!", "😀"], "b": "<eos> \n"}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_texts_are_within_the_grammar_whatever_bytes_the_tokens_are(name: str):
    tokenizer = TOKENIZERS[name]()
    grammars = Grammars(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
    start, rng = (
        grammars.compile(GrammarSpec("json_schema", json.dumps({"const": LITERAL}))),
        random.Random(0),
    )
    for _ in range(5):
        grammar, detokenizer, text = start.copy(), TextDecoder(tokenizer).detokenizer([]), ""
        while not grammar.is_over:
            bits = np.unpackbits(grammar.mask().view(np.uint8), bitorder="little")
            assert not bits[tokenizer.eos_token_id]
            token_id = rng.choice(np.flatnonzero(bits).tolist())
            grammar.take(token_id)
            text += detokenizer.push(token_id)
        assert json.loads(text + detokenizer.flush()) == LITERAL


def test_what_the_grammar_leaves_no_choice_of_is_cut_as_the_tokenizer_cuts_it():
    tokenizer = trained_tokenizers.byte_level()
    said = next(text for text in trained_tokenizers.TEXT if len(text) > 20)
    grammar = Grammars(tokenizer, len(tokenizer), [tokenizer.eos_token_id]).compile(
        GrammarSpec("choice", json.dumps([said]))
    )
    ids, grammar = [], grammar.copy()
    while not grammar.is_over:
        (token_id,) = np.flatnonzero(np.unpackbits(grammar.mask().view(np.uint8), bitorder="little"))
        grammar.take(int(token_id))
        ids.append(int(token_id))
    assert ids == tokenizer.encode(said, add_special_tokens=False)


def test_a_vocabulary_that_cannot_write_a_grammar_is_told_of():
    tokenizer = trained_tokenizers.unigram()  # it has no braces
    grammars = Grammars(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
    with pytest.raises(InvalidRequestError, match="vocabulary can write"):
        grammars.compile(PERSON)
    assert not grammars.compile(GrammarSpec("regex", "[a-z ]+")).problem


def test_a_tokenizer_that_cannot_be_read_and_a_missing_package_are_told(monkeypatch: pytest.MonkeyPatch):
    words = text_tokenizers.word_pieces()
    with pytest.raises(InvalidRequestError, match=r"cannot be held to a grammar.*WordPiece"):
        Grammars(words, len(words), (0,)).compile(REGEX)
    with pytest.raises(InvalidRequestError, match="cannot be held to a grammar"):
        Grammars(object(), 5, (0,)).compile(REGEX)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(InvalidRequestError, match="pip install llguidance"):
        Grammars(BYTES, 260, (EOS,)).compile(REGEX)


def test_grammars_are_loaded_without_llguidance():
    program = "import sys; import trimtab.server.engine.grammar; assert 'llguidance' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_fault_within_a_matcher_is_logged_and_not_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail(*_: object) -> list[int]:
        raise KeyError("secret")

    tokenizer = byte_tokenizer()
    grammar = Grammars(tokenizer, len(tokenizer), [EOS]).compile(PERSON).copy()
    monkeypatch.setattr(grammar_module._Words, "__call__", fail)
    assert not grammar.mask().any()
    assert grammar.problem == "the server failed on it, and the log says more"
    assert "secret" in caplog.text


def test_a_fault_within_the_compiler_is_logged_and_not_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    said = json.dumps({"error": "panic: at a secret place"}).encode()
    answer = subprocess.CompletedProcess([], 0, said)
    monkeypatch.setattr(grammar_module.subprocess, "run", lambda *_, **__: answer)
    tokenizer = byte_tokenizer()
    with pytest.raises(InvalidRequestError, match="the log says more") as told:
        Grammars(tokenizer, len(tokenizer), [EOS]).compile(PERSON)
    assert "secret" not in str(told.value)
    assert "secret" in caplog.text
