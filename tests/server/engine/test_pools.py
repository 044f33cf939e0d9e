"""Rules of several sequences: blockwise against best-of-n of plain requests, SMC against its exact target."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from preemptions import watch_preemptions
from rule_requests import PROMPT, one, request, save_valued_heads
from tiny_models import EOS, save_random_head
from transformers import AutoModelForCausalLM

from trimtab.guidance.controllers.base import Controller
from trimtab.guidance.controllers.kl_budget import KLBudget
from trimtab.guidance.controllers.max_kl import MaxKL
from trimtab.guidance.heads.forms import along
from trimtab.guidance.heads.manifest import ScalarPart
from trimtab.guidance.heads.store import load_head
from trimtab.guidance.rules import Blockwise, Lookahead, Smc
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import (
    TERMINAL,
    ChoiceDone,
    Completion,
    Delta,
    Event,
    Finished,
    Guidance,
    InvalidRequestError,
    Request,
)
from trimtab.server.rollouts.sample import sample

Make = Callable[..., Engine]
PARTS = {"kind": ScalarPart("linear"), "gru": ScalarPart("gru", 8, units=6)}


@pytest.fixture(scope="module")
def folders(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("heads")
    made = save_valued_heads(folder, llama_folder, PARTS)
    return made | {"gauge": save_random_head(folder, llama_folder, "gauge", parts="v", seed=4)}


def blockwise(strength: float = 1.0, head: str = "kind", **options: object) -> Guidance:
    rule = Blockwise(**{"candidates": 4, "block": 5, **options})  # type: ignore[arg-type]
    return Guidance(strength, ((head, 1.0),), rule=rule)


def smc(strength: float = 1.0, head: str = "kind", **options: object) -> Guidance:
    rule = Smc(**{"particles": 4, "block": 5, **options})  # type: ignore[arg-type]
    return Guidance(strength, ((head, 1.0),), rule=rule)


class Values:
    """V in standard units, after a reply, by transformers' own forward."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(engine.config.model)
        self.head, self.manifest = load_head(folder)

    @torch.inference_mode()
    def __call__(self, reply: Sequence[int]) -> float:
        h = self.model.model(torch.tensor([[*PROMPT, *reply]]))[0][0, len(PROMPT) - 1 :]
        assert self.head.value is not None
        value = float(along(self.head.value, h, torch.tensor([len(h)]))[-1])
        return (value - self.manifest.reward_mean) / self.manifest.reward_std


@pytest.mark.parametrize("head", ["kind", "gru"])
@pytest.mark.parametrize(("strength", "bias"), [(1.0, 0.0), (-1.0, 0.0), (1.0, 6.0)])
def test_blockwise_is_best_of_n_block_by_block(
    make_engine: Make, folders: dict[str, Path], head: str, strength: float, bias: float
):
    sampling = {"ignore_eos": False, "logit_bias": ((EOS, bias),)}
    engine = make_engine(heads=tuple(folders.values()))
    value = Values(engine, folders[head])
    reply: list[int] = []
    for size in (5, 5, 2):  # choice i of a plain request draws what candidate i does: same seed and stream
        drawn = sample(
            engine, [request("n", Guidance(), (*PROMPT, *reply), n=4, max_tokens=size, **sampling)]
        )
        reply = max(([*reply, *each.token_ids] for each in drawn), key=lambda r: strength * value(r))
        if reply[-1] == EOS:
            break
    got = one(engine, blockwise(strength, head), **sampling)
    assert got.token_ids == reply
    assert got.finish_reason == ("stop" if reply[-1] == EOS else "length")
    blocks = math.ceil(len(reply) / 5)
    assert dict(got.summary.rule)["kl_bound"] == pytest.approx(blocks * (math.log(4) - 3 / 4))


def test_blockwise_sends_each_block_once_it_is_chosen(make_engine: Make, folders: dict[str, Path]):
    engine = make_engine(heads=tuple(folders.values()))
    whole = one(engine, blockwise(block=3), max_tokens=12)
    engine.add(request("one", blockwise(block=3), max_tokens=12))
    batches: list[list[Event]] = []
    while engine.has_work:
        batches.append(engine.step())
    sent = [[e for e in events if isinstance(e, Delta)] for events in batches]
    assert [len(deltas) for deltas in sent if deltas] == [3, 3, 3, 3]
    tokens = [token.token_id for delta in itertools.chain(*sent) for token in delta.tokens]
    assert tokens == whole.token_ids
    assert "".join(delta.text for delta in itertools.chain(*sent)) == whole.text
    assert [type(e) for e in itertools.chain(*batches) if not isinstance(e, Delta)][-1] is Finished


def test_a_beam_keeps_several_and_returns_the_best(make_engine: Make, folders: dict[str, Path]):
    engine = make_engine(heads=tuple(folders.values()))
    value = Values(engine, folders["kind"])
    narrow, wide = (one(engine, blockwise(candidates=6, keep=k, block=2)) for k in (1, 3))
    assert narrow.token_ids != wide.token_ids
    blocks = math.ceil(len(wide.token_ids) / 2)
    assert dict(wide.summary.rule)["kl_bound"] == pytest.approx(blocks * math.log(6))
    assert value(wide.token_ids) > value(one(engine, Guidance()).token_ids)


ALLOWED = (93, 143, 160, 229)  # about as likely, and of values apart


@pytest.mark.parametrize(
    ("proposal", "resample", "controllers", "n"),
    [
        ("policy", 0.0, (), 1),
        ("policy", 0.8, (), 3),
        ("tilt", 1.0, (), 1),
        ("tilt", 1.0, (KLBudget(0.02, 1),), 3),
    ],
)
def test_smc_estimates_its_target_without_bias(
    make_engine: Make,
    folders: dict[str, Path],
    proposal: str,
    resample: float,
    controllers: tuple[Controller, ...],
    n: int,
):
    """E[Ẑ 1{y}] = π₀(y) exp(β(V(y) − V(prompt))) for every reply y, whatever the number of particles,
    whatever strength each token was drawn at, and whether one is returned or all by their weights."""
    strength, num_runs = 0.6, 192
    engine = make_engine(heads=tuple(folders.values()), max_num_seqs=48)
    value = Values(engine, folders["kind"])
    bias = tuple((token, -100.0) for token in range(260) if token not in ALLOWED)
    guidance = smc(strength, block=1, proposal=proposal, resample=resample, particles=3)
    guidance = replace(guidance, controllers=controllers)
    options = {"max_tokens": 2, "logit_bias": bias, "n": n}
    runs = [request(str(i), guidance, seed=i, **options) for i in range(num_runs)]
    done = sample(engine, runs)
    mass = {tuple(y): 0.0 for y in itertools.product(ALLOWED, repeat=2)}
    squares, square_of_total, masses = dict(mass), 0.0, []
    for run in zip(*[iter(done)] * n, strict=True):
        of_run: defaultdict[tuple[int, ...], float] = defaultdict(float)
        masses.append(0.0)  # of a law beside that of what was drawn
        for completion in run:
            figures = {"weight": 1.0, **dict(completion.summary.rule)}
            of_run[tuple(completion.token_ids)] += math.exp(figures["log_normaliser"]) * figures["weight"]
            masses[-1] += math.exp(-figures["kl_bound"]) * figures["weight"]
        for y, weight in of_run.items():
            mass[y] += weight / num_runs
            squares[y] += weight**2 / num_runs
        square_of_total += sum(of_run.values()) ** 2 / num_runs
    exact = _target(value, strength)
    total, expected_total = sum(mass.values()), sum(exact.values())
    deviation = math.sqrt((square_of_total - total**2) / num_runs)
    assert abs(total - expected_total) < 4 * deviation < 0.2
    for y, expected in exact.items():
        deviation = math.sqrt(max(squares[y] - mass[y] ** 2, expected) / num_runs)
        assert abs(mass[y] - expected) < 4 * deviation, y
    assert statistics.fmean(masses) == pytest.approx(
        1, abs=4 * statistics.stdev(masses) / math.sqrt(num_runs)
    )
    resamplings = [dict(c.summary.rule)["resamplings"] for c in done]
    assert (max(resamplings) > 0) == (resample > 0)


@torch.inference_mode()
def _target(value: Values, strength: float) -> dict[tuple[int, ...], float]:
    def base(reply: tuple[int, ...]) -> dict[int, float]:
        z = value.model(torch.tensor([[*PROMPT, *reply]])).logits[0, -1, list(ALLOWED)]
        return dict(zip(ALLOWED, z.double().softmax(0).tolist(), strict=True))

    origin = value(())
    return {
        (a, b): p * q * math.exp(strength * (value((a, b)) - origin))
        for a, p in base(()).items()
        for b, q in base((a,)).items()
    }


MIX = [
    Guidance(),
    blockwise(),
    smc(2.0, "gru", particles=3, block=4),
    Guidance(2.0, (("kind", 1.0),)),
    smc(1.0, proposal="tilt", block=3, resample=1.0),
    blockwise(-1.0, "gru", candidates=3, keep=2, block=4, proposal="tilt"),
    Guidance(2.0, (("kind", 1.0),), rule=Lookahead(4)),
    blockwise(1.0, "gauge", block=3),
    replace(smc(3.0, block=4, proposal="tilt", resample=1.0), controllers=(KLBudget(0.4, 8), MaxKL(0.1))),
]
WAYS: list[dict[str, object]] = [
    {"async_depth": 1},
    {"num_blocks": 36, "max_num_seqs": 24},
    {
        "num_blocks": 36,
        "max_num_seqs": 24,
        "max_num_batched_tokens": 24,
        "async_depth": 1,
        "prefix_caching": False,
    },
    {"max_num_seqs": 5},
    {"strict": True, "max_num_batched_tokens": 16},
]


SAMPLING: dict[str, dict[str, object]] = {
    "full": {"max_tokens": 14},
    "ending": {
        "max_tokens": 14,
        "ignore_eos": False,
        "logit_bias": ((EOS, 5.0),),
        "frequency_penalty": 0.5,
    },
}


def mixed(sampling: dict[str, object]) -> list[Request]:
    every = request("every particle", smc(1.0, particles=3, block=4, resample=1.0), n=3, **sampling)
    return [every, *(request(str(i), guidance, **sampling) for i, guidance in enumerate(MIX))]


@pytest.fixture(scope="module")
def alone(llama_folder: Path, folders: dict[str, Path]) -> dict[str, list[Completion]]:
    config = EngineConfig(llama_folder, heads=tuple(folders.values()), block_size=8, max_num_seqs=8)
    engine = Engine.from_config(config)
    return {
        name: [reply for each in mixed(sampling) for reply in sample(engine, [each])]
        for name, sampling in SAMPLING.items()
    }


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("kind", SAMPLING)
def test_replies_are_their_own_in_any_batch_and_nothing_is_left(
    make_engine: Make,
    folders: dict[str, Path],
    alone: dict[str, list[Completion]],
    way: dict[str, object],
    kind: str,
):
    engine, expected = make_engine(heads=tuple(folders.values()), **way), alone[kind]
    preempted = watch_preemptions(engine, lambda choice: choice.is_pool)
    got = sample(engine, mixed(SAMPLING[kind]))
    assert 0 < got[-1].summary.kl <= 0.4
    assert bool(preempted) == ("num_blocks" in way) or kind == "ending"
    assert [completion.token_ids for completion in got] == [each.token_ids for each in expected]
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.text == theirs.text
        assert dict(ours.summary.rule) == pytest.approx(dict(theirs.summary.rule), abs=1e-3)
        assert ours.summary.kl == pytest.approx(theirs.summary.kl, rel=1e-3, abs=1e-5)
        assert dict(ours.summary.reward) == pytest.approx(dict(theirs.summary.reward), abs=1e-3)
    assert engine.scheduler.blocks.num_free == engine.scheduler.blocks.num_usable
    assert len(engine.scheduler._free_slots) == engine.config.max_num_seqs


@pytest.mark.parametrize("head", ["kind", "gauge"])
def test_all_particles_are_returned_where_as_many_replies_are_asked_for(
    make_engine: Make, folders: dict[str, Path], head: str
):
    """`kind` reads each of them once more for a reward."""
    engine = make_engine(heads=tuple(folders.values()), async_depth=1)
    guidance, options = smc(2.0, head, resample=0.5), {"ignore_eos": False, "logit_bias": ((EOS, 3.0),)}
    picked = one(engine, guidance, **options)
    asked = request("all", guidance, n=4, **options)
    engine.add(asked)
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    (*_, last), all_done = events, [event for event in events if isinstance(event, ChoiceDone)]
    assert isinstance(last, Finished) and sum(isinstance(event, TERMINAL) for event in events) == 1
    assert sorted(done.index for done in all_done) == [0, 1, 2, 3]
    particles = [Completion(asked, index) for index in range(4)]
    for event in events:
        if isinstance(event, Delta | ChoiceDone):
            particles[event.index].take(event)
    assert last.num_completion_tokens == sum(len(each.tokens) for each in particles)
    figures = [dict(each.summary.rule) for each in particles]
    assert sum(each["weight"] for each in figures) == pytest.approx(1)
    assert {each["log_normaliser"] for each in figures} == {dict(picked.summary.rule)["log_normaliser"]}
    (same,) = [i for i, each in enumerate(particles) if each.token_ids == picked.token_ids]
    assert figures[same].pop("weight") > 0 and figures[same] == dict(picked.summary.rule)
    assert particles[same].text == picked.text
    assert dict(particles[same].summary.reward) == pytest.approx(dict(picked.summary.reward), abs=1e-5)
    assert len({each.text for each in particles}) > 1
    assert engine.scheduler.blocks.num_free == engine.scheduler.blocks.num_usable
    assert len(engine.scheduler._free_slots) == engine.config.max_num_seqs


def test_strict_replies_are_bitwise_the_same_whoever_shares_the_batch(
    make_engine: Make, folders: dict[str, Path]
):
    engine = make_engine(heads=tuple(folders.values()), strict=True, max_num_batched_tokens=16)
    guidance = smc(2.0, "gru", block=3, proposal="tilt", resample=1.0)
    alone = one(engine, guidance)
    mates = [request(str(i), mate) for i, mate in enumerate(MIX)]
    together = sample(engine, [mates[0], request("one", guidance), *mates[1:]])[1]
    assert together.token_ids == alone.token_ids
    assert together.summary.rule == alone.summary.rule


def test_a_request_is_aborted_in_the_middle_of_a_block(make_engine: Make, folders: dict[str, Path]):
    engine = make_engine(heads=tuple(folders.values()), async_depth=1)
    for num_steps in range(1, 16, 2):
        engine.add(request("one", blockwise()))
        for _ in range(num_steps):
            engine.step()
        engine.abort("one")
        while engine.has_work:
            engine.step()
        assert engine.scheduler.blocks.num_free == engine.scheduler.blocks.num_usable
        assert len(engine.scheduler._free_slots) == engine.config.max_num_seqs


def test_usage_counts_every_sequence(make_engine: Make, folders: dict[str, Path]):
    engine = make_engine(heads=tuple(folders.values()))
    engine.add(request("one", blockwise(1.0, "gauge", block=6)))
    events = []
    while engine.has_work:
        events += engine.step()
    (done,) = [event for event in events if isinstance(event, Finished)]
    assert done.num_completion_tokens == 12
    assert done.num_computed_tokens == len(PROMPT) - 1 + 4 * (12 + 2), "and one more a block"


@pytest.mark.parametrize(
    ("guidance", "sampling", "options", "param", "words"),
    [
        (blockwise(), {"n": 2}, {}, "n", "must be 1"),
        (smc(), {"n": 2}, {}, "n", "must be 1 or 4"),
        (smc(), {"temperature": 0}, {}, "temperature", "above 0"),
        (smc(proposal="tilt"), {"temperature": 0.7}, {}, "guidance.rule.proposal", "temperature 1"),
        (smc(proposal="tilt"), {"top_k": 5}, {}, "guidance.rule.proposal", "top_k 0"),
        (smc(1.0, "gauge", proposal="tilt"), {}, {}, "guidance.heads.gauge", "no advantage"),
        (smc(particles=9), {}, {}, "guidance.rule.particles", "--max-num-seqs"),
        (blockwise(candidates=8), {}, {"num_blocks": 20}, "guidance.rule.candidates", "blocks"),
    ],
    ids=str,
)
def test_what_can_never_run_is_refused(
    make_engine: Make,
    folders: dict[str, Path],
    guidance: Guidance,
    sampling: dict[str, object],
    options: dict[str, object],
    param: str,
    words: str,
):
    with pytest.raises(InvalidRequestError, match=words) as error:
        make_engine(heads=tuple(folders.values()), **options).add(request("bad", guidance, **sampling))
    assert error.value.param == param


def test_strength_0_is_bitwise_the_policy(make_engine: Make, folders: dict[str, Path]):
    engine = make_engine(heads=tuple(folders.values()))
    plain = one(engine, Guidance(), logprobs=0)
    for guidance in (blockwise(0.0), smc(0.0)):
        off = one(engine, guidance, logprobs=0)
        assert [(t.token_id, t.logprob) for t in off.tokens] == [
            (t.token_id, t.logprob) for t in plain.tokens
        ]
