"""Controllers at work: what they promise of every reply, however batched, and what they leave alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from preemptions import watch_preemptions
from tiny_models import SIZES, save_random_head, save_random_model
from transformers import LlamaConfig

from trimtab.guidance.controllers import CONTROLLERS, read_controllers
from trimtab.guidance.controllers.base import Controller, Heads, Limits, RowState
from trimtab.guidance.controllers.entropy_gate import EntropyGate
from trimtab.guidance.controllers.kl_budget import KLBudget
from trimtab.guidance.controllers.max_kl import MaxKL
from trimtab.guidance.controllers.on import On
from trimtab.guidance.controllers.schedule import Schedule
from trimtab.guidance.controllers.target import Target
from trimtab.guidance.heads.manifest import ScalarPart
from trimtab.guidance.heads.store import load_head
from trimtab.server.engine import sampler
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.policy import forward_with_hidden, load_served
from trimtab.server.engine.request import (
    Completion,
    Guidance,
    InvalidRequestError,
    Request,
    SamplingParams,
    TokenTrace,
)
from trimtab.server.rollouts.sample import sample

PROMPT = tuple(range(40, 60))
SLOPES = {"kind": 0.8, "concise": 0.3, "gauge": None}
ONES = {
    "max_kl": MaxKL(0.05),
    "kl_budget": KLBudget(0.5, horizon=8),
    "target": Target("kind", 0.5),
    "schedule": Schedule("warmup", 6),
    "entropy_gate": EntropyGate(3.0),
    "on": On("all"),
}
MIX = (("kind", 1.0), ("concise", -0.5))


@pytest.fixture(scope="module")
def folders(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """`kind` is tied and its value remembers; `concise` is low-rank; `gauge` only measures."""
    root = tmp_path_factory.mktemp("heads")
    return (
        save_random_head(
            root, llama_folder, "kind", slope=SLOPES["kind"], value=ScalarPart("gru", 8, units=5)
        ),
        save_random_head(root, llama_folder, "concise", "lowrank", seed=1, slope=SLOPES["concise"]),
        save_random_head(root, llama_folder, "gauge", parts="v", seed=9),
    )


@pytest.fixture(scope="module")
def shared(llama_folder: Path, folders: tuple[Path, ...]) -> Engine:
    """An engine for tests that change nothing about it."""
    return Engine.from_config(EngineConfig(llama_folder, heads=folders, block_size=8, max_num_seqs=8))


def guided(*controllers: Controller, strength: float = 3.0, trace: bool = True) -> Guidance:
    return Guidance(strength, MIX, trace, controllers)


def request(name: str, guidance: Guidance, **sampling: object) -> Request:
    options = {"max_tokens": 12, "seed": 3, "ignore_eos": True, **sampling}
    return Request(name, PROMPT, SamplingParams(**options), guidance)  # type: ignore[arg-type]


def one(engine: Engine, guidance: Guidance, **sampling: object) -> Completion:
    return sample(engine, [request("one", guidance, **sampling)])[0]


def traces(reply: Completion) -> list[TokenTrace]:
    return [token.trace for token in reply.tokens if token.trace is not None]


@dataclass
class Measured:
    """Of each position of a reply [T]: log π₀ and Ā [T, V], in float64."""

    base: torch.Tensor
    centred: torch.Tensor

    def at(self, t: int, beta: float) -> tuple[float, float]:
        """KL and E_β[Ā] there."""
        tilt = (self.base[t] + beta * self.centred[t]).log_softmax(-1)
        return float((tilt.exp() * (tilt - self.base[t])).sum()), float(tilt.exp() @ self.centred[t])

    def entropy(self, t: int) -> float:
        return float(-(self.base[t].exp() * self.base[t]).sum())


@pytest.fixture(scope="module")
def measure(llama_folder: Path, folders: tuple[Path, ...]) -> Callable[[Completion], Measured]:
    policy = load_served(llama_folder)
    policy.use_attention("eager")

    def measure(reply: Completion) -> Measured:
        ids = torch.tensor([[*PROMPT, *reply.token_ids]])
        at = torch.arange(len(PROMPT) - 1, ids.shape[1] - 1)
        h, logits = forward_with_hidden(policy.model, ids, torch.arange(ids.shape[1])[None], at)
        base = logits.double().log_softmax(-1)
        advantage = torch.zeros_like(base)
        for head, manifest in map(load_head, folders):
            if head.advantage is not None:
                weight = dict(MIX)[manifest.name]
                advantage += weight * head.double().advantage(h.double(), policy.lm_head.double())
        return Measured(base, advantage - (base.exp() * advantage).sum(-1, keepdim=True))

    return measure


Measure = Callable[[Completion], Measured]


@pytest.mark.parametrize("strength", [3.0, -3.0])
def test_max_kl_holds_at_every_token_and_is_used_up(shared: Engine, measure: Measure, strength: float):
    cap = 0.05
    reply = one(shared, guided(MaxKL(cap), strength=strength), logprobs=3)
    found = measure(reply)
    for t, (token, trace) in enumerate(zip(reply.tokens, traces(reply), strict=True)):
        assert trace.strength * strength > 0
        kl, _ = found.at(t, trace.strength)
        assert trace.kl == pytest.approx(kl, rel=1e-3, abs=1e-5)
        assert kl <= cap * (1 + 1e-4) + 1e-5
        assert trace.strength == strength or kl >= 0.98 * cap
        tilt = (found.base[t] + trace.strength * found.centred[t]).log_softmax(-1)
        assert token.logprob == pytest.approx(float(tilt[token.token_id]), abs=1e-3)
        assert [p for _, p in token.top_logprobs] == pytest.approx(tilt.topk(3).values.tolist(), abs=1e-3)
    assert reply.summary.mean_strength == pytest.approx(sum(t.strength for t in traces(reply)) / 12)


@pytest.mark.parametrize("strength", [30.0, -30.0])
def test_a_target_gets_the_smallest_strength_that_lifts_enough(
    shared: Engine, measure: Measure, strength: float
):
    strength /= 3
    target, horizon, slope = Target("kind", 0.3 if strength > 0 else -0.3, horizon=4), 4, SLOPES["kind"]
    assert slope is not None
    reply = one(shared, guided(target, strength=strength), max_tokens=40)
    found, sign, ways = measure(reply), 1 if strength > 0 else -1, set()
    for t, trace in enumerate(traces(reply)):
        missing = sign * (target.value - dict(trace.value)["kind"])
        _, gain = found.at(t, trace.strength)
        lift = missing / min(40 - t, horizon) / slope
        if missing <= 0:
            assert trace.strength == 0
            ways.add("beyond it, nothing steers")
        elif abs(trace.strength) < abs(strength):
            assert lift * (1 - 1e-3) <= sign * gain <= lift * 1.01
            ways.add("just enough")
        else:
            assert sign * gain < lift
    assert len(ways) == 2


def test_the_gate_opens_where_the_entropy_is_above_it(shared: Engine, measure: Measure):
    entropies = sorted(trace.entropy for trace in traces(one(shared, guided(), max_tokens=40)))
    gate = entropies[20]
    reply = one(shared, guided(EntropyGate(gate)), max_tokens=40)
    found = measure(reply)
    for t, trace in enumerate(traces(reply)):
        assert trace.entropy == pytest.approx(found.entropy(t), abs=1e-4)
        assert trace.strength == (3.0 if found.entropy(t) > gate else 0.0)
        assert (trace.kl > 0) == (trace.strength > 0)
    assert {trace.strength for trace in traces(reply)} == {0.0, 3.0}


def test_a_schedule_is_seen_in_the_trace(shared: Engine):
    warmup = one(shared, guided(Schedule("warmup", 4), strength=-2.0))
    assert [t.strength for t in traces(warmup)] == [-0.5, -1.0, -1.5, *[-2.0] * 9]
    decay = one(shared, guided(Schedule("decay", 4), strength=2.0))
    assert [t.strength for t in traces(decay)] == [2.0, 1.5, 1.0, 0.5, *[0.0] * 8]
    constant = one(shared, guided(Schedule("constant")), logprobs=0)
    assert [(t.token_id, t.logprob) for t in constant.tokens] == [
        (t.token_id, t.logprob) for t in one(shared, guided(), logprobs=0).tokens
    ]


@settings(max_examples=25, deadline=None)
@given(
    budget=st.floats(1e-7, 30),
    strength=st.floats(0.1, 10) | st.floats(-10, -0.1),
    horizon=st.integers(1, 60),
    weights=st.tuples(st.sampled_from([-10, -1, 0.1, 1, 5, 10]), st.sampled_from([-3, 0, 1, 10])),
    others=st.sets(st.sampled_from(["max_kl", "target", "schedule", "entropy_gate"])),
    seed=st.integers(0, 999),
)
def test_no_reply_ever_spends_more_than_its_budget(
    shared: Engine,
    budget: float,
    strength: float,
    horizon: int,
    weights: tuple[float, float],
    others: set[str],
    seed: int,
):
    heads = (("kind", weights[0]), ("concise", weights[1]))
    controllers = (KLBudget(budget, horizon), *(ONES[name] for name in sorted(others)))
    guidance = Guidance(strength, heads, False, controllers)
    for reply in sample(shared, [request("a", guidance, seed=seed, n=2, max_tokens=25)]):
        assert 0 <= reply.summary.kl <= budget


def test_a_budget_that_binds_is_spent(shared: Engine):
    spent = one(shared, guided(KLBudget(0.5, horizon=4)), max_tokens=60).summary.kl
    assert 0.45 < spent <= 0.5
    early, late = (
        sum(t.kl for t in traces(one(shared, guided(KLBudget(0.5, horizon)), max_tokens=60))[:10])
        for horizon in (4, 60)
    )
    assert early > 2 * late


@pytest.mark.parametrize("strength", [3.0, -3.0])
def test_of_several_the_weakest_counts(shared: Engine, strength: float):
    """At the first token, which all of them see in the same state."""

    def first(*controllers: Controller) -> float:
        return traces(one(shared, guided(*controllers, strength=strength), max_tokens=8))[0].strength

    alone = {name: first(controller) for name, controller in ONES.items()}
    rng = random.Random(0)
    for _ in range(6):
        names = rng.sample(list(ONES), rng.randint(2, 5))
        together = first(*(ONES[name] for name in names))
        assert abs(together) == pytest.approx(min(abs(alone[name]) for name in names), rel=0.01)


def batch(**sampling: object) -> list[Request]:
    every = tuple(ONES.values())
    mixes = [
        guided(trace=False),
        Guidance(),
        *(guided(controller, trace=i % 2 == 0) for i, controller in enumerate(every)),
        guided(*every, strength=-2.0),
        Guidance(0.0, MIX, True, every),
        Guidance(2.0, (("concise", 1.0),), False, (KLBudget(0.3), Schedule("decay", 20))),
    ]
    return [request(str(i), guidance, seed=i, **sampling) for i, guidance in enumerate(mixes)]


OPTIONS: dict[str, dict[str, object]] = {
    "pipelined": {"async_depth": 1},
    "padded": {"padding": "buckets"},
    "one by one": {"max_num_seqs": 1},
    "preempted": {"num_blocks": 22, "async_depth": 1},
}


@pytest.fixture(scope="module")
def replies(shared: Engine) -> list[Completion]:
    return sample(shared, batch(max_tokens=20, n=2))


@pytest.mark.parametrize("name", OPTIONS)
def test_controlled_replies_do_not_depend_on_engine_options(
    name: str, make_engine: Callable[..., Engine], folders: tuple[Path, ...], replies: list[Completion]
):
    engine = make_engine(heads=folders, **OPTIONS[name])
    preempted = watch_preemptions(engine)
    got = sample(engine, batch(max_tokens=20, n=2))
    assert [reply.token_ids for reply in got] == [reply.token_ids for reply in replies]
    for ours, theirs in zip(got, replies, strict=True):
        assert ours.summary.kl == pytest.approx(theirs.summary.kl, rel=1e-3, abs=1e-5)
        assert ours.summary.mean_strength == pytest.approx(theirs.summary.mean_strength, rel=1e-2, abs=1e-5)
    assert bool(preempted) == (name == "preempted")


def test_strength_0_is_plain_whatever_controls_it(shared: Engine):
    plain = one(shared, Guidance(), logprobs=0)
    off = one(shared, Guidance(0.0, MIX, True, tuple(ONES.values())), logprobs=0)
    assert [(t.token_id, t.logprob) for t in off.tokens] == [(t.token_id, t.logprob) for t in plain.tokens]
    assert (off.summary.kl, off.summary.mean_strength) == (0.0, 0.0)


def test_batches_that_nothing_controls_never_meet_the_solver(shared: Engine, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise AssertionError("no row has a controller")

    monkeypatch.setattr(sampler, "Control", fail)
    rows = [guided(trace=False), Guidance(), Guidance(0.0, MIX, False, tuple(ONES.values()))]
    assert len(sample(shared, [request(str(i), guidance) for i, guidance in enumerate(rows)])) == 3


def test_a_constant_row_keeps_its_strength_to_the_bit_beside_controlled_ones(shared: Engine):
    beside = [request("constant", guided(strength=0.3)), request("capped", guided(MaxKL(0.01)))]
    reply, capped = sample(shared, beside)
    assert {trace.strength for trace in traces(reply)} == {0.3}
    assert reply.token_ids == one(shared, guided(strength=0.3)).token_ids
    assert max(abs(trace.strength) for trace in traces(capped)) < 3


def test_controlled_rows_go_by_logits_where_others_are_fused(
    make_engine: Callable[..., Engine], folders: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
):
    shared = make_engine(heads=folders, cpu_backend="torch")
    asked: list[bool] = []

    def path(*_: object, needs_logits: bool, **__: object) -> str:
        asked.append(needs_logits)
        return "materialised" if needs_logits else "fused"

    monkeypatch.setattr(sampler, "choose_head_path", path)
    fused = one(shared, guided(trace=False))
    assert not any(asked)
    asked.clear()
    assert one(shared, guided(Schedule("constant"), trace=False)).token_ids == fused.token_ids
    assert all(asked)


def test_under_strict_no_bit_depends_on_batchmates_or_preemptions(tmp_path: Path):
    folder = save_random_model(LlamaConfig(**{**SIZES, "num_hidden_layers": 1}), tmp_path / "model")
    heads = (
        save_random_head(tmp_path, folder, "kind", slope=0.8, value=ScalarPart("gru", 32, units=32)),
        save_random_head(tmp_path, folder, "concise", "lowrank", seed=1),
    )
    engine = Engine.from_config(
        EngineConfig(
            folder,
            heads=heads,
            block_size=8,
            max_num_seqs=6,
            max_num_batched_tokens=24,
            num_blocks=26,
            strict=True,
            async_depth=1,
        )
    )

    def bits(choice: Completion) -> list[object]:
        return [choice.summary, *((t.token_id, t.logprob, t.trace) for t in choice.tokens)]

    targets = {name: request(name, guided(one), max_tokens=20) for name, one in ONES.items()}
    targets["all"] = request("all", guided(*ONES.values()), max_tokens=20)
    targets["down"] = request("down", guided(KLBudget(0.8), strength=-3.0), max_tokens=30)
    alone = {name: bits(sample(engine, [target])[0]) for name, target in targets.items()}
    preempted = watch_preemptions(engine)
    long = [request(f"long {each.request_id}", each.guidance, max_tokens=40) for each in batch()[:4]]
    budgets = ("kl_budget", "down")
    rest = [target for name, target in targets.items() if name not in budgets]
    for made in ([*long, *(targets[name] for name in budgets), *rest], [*rest, *long]):
        for choice in sample(engine, made):
            if choice.request.request_id in targets:
                assert bits(choice) == alone[choice.request.request_id]
    assert {choice.request.request_id for choice in preempted} & set(budgets)


def test_a_new_controller_needs_no_line_elsewhere(shared: Engine):
    @dataclass(frozen=True, slots=True)
    class Half(Controller):
        def numbers(self, heads: Heads) -> tuple[float, ...]:
            return (0.5,)

        @staticmethod
        def limits(numbers: Sequence[torch.Tensor], rows: RowState) -> Limits:
            (share,) = numbers
            return Limits(beta_max=rows.strength.abs() * share)

    assert {trace.strength for trace in traces(one(shared, guided(Half(), strength=-3.0)))} == {-1.5}


@pytest.mark.parametrize(
    ("head", "says"),
    [("unkind", "no such head; loaded heads: kind, concise, gauge"), ("gauge", "value_per_advantage")],
)
def test_a_target_that_no_head_can_hold_is_refused(shared: Engine, head: str, says: str):
    for strength in (0.0, 1.0):
        with pytest.raises(InvalidRequestError, match=says) as error:
            shared.add(request("bad", guided(Target(head, 1.0), strength=strength)))
        assert error.value.param == "guidance.target.head"


def test_two_controllers_of_one_kind_are_refused():
    with pytest.raises(InvalidRequestError, match="two controllers of one kind"):
        guided(MaxKL(1.0), MaxKL(2.0))


def test_every_controller_is_tried_here():
    assert list(ONES) == list(CONTROLLERS)
    assert read_controllers({}) == ()
