"""Every rule beside every controller: served as both promise, or refused by the field at fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rule_requests import PROMPT, request
from tiny_models import SIZES, save_random_head, save_random_model
from transformers import AutoModelForCausalLM, LlamaConfig

from trimtab.guidance.controllers import CONTROLLERS
from trimtab.guidance.controllers.base import Controller
from trimtab.guidance.controllers.entropy_gate import EntropyGate
from trimtab.guidance.controllers.kl_budget import KLBudget
from trimtab.guidance.controllers.max_kl import MaxKL
from trimtab.guidance.controllers.on import On
from trimtab.guidance.controllers.schedule import Schedule
from trimtab.guidance.controllers.target import Target
from trimtab.guidance.heads.manifest import ScalarPart
from trimtab.guidance.heads.store import load_head
from trimtab.guidance.rules import RULES, Blockwise, Contrast, Expert, Lookahead, Rule, Smc, Tilt
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Completion, Guidance, InvalidRequestError, TokenTrace
from trimtab.server.rollouts.sample import sample

OTHER = (9, 8, 7, 6, 5, 4, 3)
ONES: dict[str, Controller] = {
    "max_kl": MaxKL(0.05),
    "kl_budget": KLBudget(0.5, horizon=8),
    "target": Target("kind", 0.5),
    "schedule": Schedule("warmup", 6),
    "entropy_gate": EntropyGate(3.0),
    "on": On("all"),
}
RULES_HERE: dict[str, Rule] = {
    "tilt": Tilt(),
    "contrast": Contrast(OTHER, gamma=3.0),
    "plausible": Contrast(OTHER, gamma=2.0, alpha=0.4),
    "plausible alone": Contrast(OTHER, gamma=1.0, alpha=0.4),
    "expert": Expert("other", weight=2.0),
    "expert beside the policy": Expert("other", "policy", -1.5, alpha=0.1),
    "lookahead": Lookahead(8),
    "lookahead, others kept": Lookahead(8, others="keep"),
    "blockwise by the tilt": Blockwise(block=4, proposal="tilt", candidates=3, keep=2),
    "smc by the tilt": Smc(block=4, proposal="tilt", particles=3, resample=1.0),
    "blockwise": Blockwise(candidates=3),
    "smc": Smc(particles=3),
}
ADDING = ("contrast", "plausible", "expert", "expert beside the policy")
NEVER = {(rule, "target"): "guidance.target" for rule in ADDING}
NEVER |= {(pool, name): "guidance.rule.proposal" for pool in ("blockwise", "smc") for name in ONES}
HEADS = (("kind", 1.0), ("brief", -0.5))
Make = Callable[..., Engine]


@pytest.fixture(scope="module")
def folders(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    root = tmp_path_factory.mktemp("heads")
    gru = ScalarPart("gru", 8, units=5)
    return (
        save_random_head(root, llama_folder, "kind", slope=0.8, value=gru),
        save_random_head(root, llama_folder, "brief", "lowrank", seed=1),
    )


@pytest.fixture(scope="module")
def shared(llama_folder: Path, folders: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """For tests that change nothing about it."""
    shallow = LlamaConfig(**{**SIZES, "num_hidden_layers": 1})
    other = save_random_model(shallow, tmp_path_factory.mktemp("expert"), seed=1)
    return Engine.from_config(
        EngineConfig(llama_folder, folders, (f"other={other}",), block_size=8, max_num_seqs=16)
    )


def by(rule: str, *controllers: Controller, strength: float = 3.0, heads: bool = True) -> Guidance:
    return Guidance(strength, HEADS if heads else (), True, controllers, RULES_HERE[rule])


def traces(reply: Completion) -> list[TokenTrace]:
    return [token.trace for token in reply.tokens if token.trace is not None]


def test_every_rule_and_every_controller_is_tried_here():
    assert list(ONES) == list(CONTROLLERS)
    assert {rule.kind for rule in RULES_HERE.values()} == set(RULES)


@pytest.fixture(scope="module")
def pairs(shared: Engine) -> dict[tuple[str, str], Completion]:
    """Replies of all pairs that are served, in one go."""
    names = [(rule, name) for rule in RULES_HERE for name in ONES if (rule, name) not in NEVER]
    asked = [request(f"{rule} {name}", by(rule, ONES[name]), max_tokens=8) for rule, name in names]
    return dict(zip(names, sample(shared, asked), strict=True))


def test_every_pair_is_served_or_refused_by_its_field(
    shared: Engine, pairs: dict[tuple[str, str], Completion]
):
    for (rule, name), field in NEVER.items():
        with pytest.raises(InvalidRequestError) as error:
            shared.check(request("bad", by(rule, ONES[name])))
        assert error.value.param == field
        shared.check(request("off", Guidance(0.0, HEADS, False, (ONES[name],), RULES_HERE["smc"])))
    for pair, reply in pairs.items():
        assert len(reply.tokens) == 8, pair
        assert all(0 <= trace.strength <= 3.0 for trace in traces(reply)), pair


def test_no_token_costs_more_than_its_cap_and_no_reply_than_its_budget_by_any_rule(
    pairs: dict[tuple[str, str], Completion],
):
    """As they are reported, what a rule leaves out included."""
    for (rule, name), reply in pairs.items():
        if name == "max_kl":
            costs = [trace.kl for trace in traces(reply)]
            assert max(costs) <= 0.05 * (1 + 1e-4) + 1e-5, rule
            assert (max(costs) > 0.98 * 0.05) == (rule != "lookahead"), rule
        if name == "kl_budget":
            assert reply.summary.kl <= 0.5, rule
            assert (reply.summary.kl > 0) == (rule != "lookahead"), rule


def test_schedules_and_gates_act_on_all_that_is_added(pairs: dict[tuple[str, str], Completion]):
    for (rule, name), reply in pairs.items():
        for t, trace in enumerate(traces(reply)):
            if name == "schedule":
                assert trace.strength == pytest.approx(3 * min(1, (t + 1) / 6)), rule
            if name == "entropy_gate":
                assert trace.strength == (3.0 if trace.entropy > 3.0 else 0.0), rule
                assert (trace.kl > 0) == (trace.entropy > 3.0), rule


@torch.inference_mode()
def contrasts(engine: Engine, head: Path, reply: Completion, gamma: float) -> tuple[torch.Tensor, ...]:
    """log p_c and all that is added to it at strength 1, and the contrast alone, [T, V]."""
    model = AutoModelForCausalLM.from_pretrained(engine.config.model)

    def read(prompt: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        h = model.model(torch.tensor([[*prompt, *reply.token_ids]]))[0][0, len(prompt) - 1 : -1]
        return h.double(), model.lm_head(h).double().log_softmax(-1)

    (h, mine), (_, other) = read(PROMPT), read(OTHER)
    advantage = load_head(head)[0].double().advantage(h, engine.policy.lm_head.double())
    return mine, advantage, (gamma - 1) * (mine - other)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("strength", [2.0, -2.0])
def test_a_contrast_and_its_heads_are_lessened_by_the_same_share(
    shared: Engine, folders: tuple[Path, ...], strength: float, alpha: float
):
    cap, rule = 0.4, Contrast(OTHER, gamma=2.5, alpha=alpha)
    guidance = Guidance(strength, (("brief", 1.0),), True, (MaxKL(cap),), rule)
    (reply,) = sample(shared, [request("one", guidance, max_tokens=20)])
    base, advantage, contrast = contrasts(shared, folders[1], reply, 2.5)
    ways = set()
    for t, (token, trace) in enumerate(zip(reply.tokens, traces(reply), strict=True)):
        share = trace.strength / strength
        assert 0 <= share <= 1
        tilt = base[t] + share * (contrast[t] + strength * advantage[t])
        if alpha and share:
            tilt[base[t].exp() < alpha * base[t].exp().max()] = -torch.inf
        tilt = tilt.log_softmax(-1)
        kl = float((tilt.exp() * (tilt - base[t]).clamp(min=-1e9)).sum())
        assert token.logprob == pytest.approx(float(tilt[token.token_id]), abs=1e-3)
        assert trace.kl == pytest.approx(kl, rel=1e-3, abs=1e-4)
        assert kl <= cap * (1 + 1e-3)
        ways.add("off" if share == 0 else "all" if share == 1 else "capped")
    assert "capped" in ways
    assert "off" in ways or not alpha, "where the constraint alone costs more than the cap, it does not hold"


def test_a_contrast_without_heads_is_controlled_as_well(shared: Engine, folders: tuple[Path, ...]):
    plain, capped, left, off = sample(
        shared,
        [
            request("plain", Guidance(), logprobs=0),
            request("capped", by("contrast", MaxKL(0.1), strength=0.0, heads=False)),
            request("left", by("plausible alone", MaxKL(0.1), strength=0.0, heads=False)),
            request("off", by("plausible", EntropyGate(100.0), strength=0.0, heads=False), logprobs=0),
        ],
    )
    base, _, contrast = contrasts(shared, folders[1], capped, 3.0)
    for t, trace in enumerate(traces(capped)):
        free = (base[t] + contrast[t]).log_softmax(-1)
        cost = float((free.exp() * (free - base[t])).sum())
        assert trace.kl == pytest.approx(min(cost, 0.1), rel=0.02)
        assert trace.strength == 0
    base, _, _ = contrasts(shared, folders[1], left, 1.0)
    for t, trace in enumerate(traces(left)):
        cost = -float(base[t][base[t].exp() >= 0.4 * base[t].exp().max()].logsumexp(-1))
        assert trace.kl == pytest.approx(cost if cost <= 0.1 else 0.0, abs=1e-4)
    assert len({trace.kl > 0 for trace in traces(left)}) == 2
    assert [(t.token_id, t.logprob) for t in off.tokens] == [(t.token_id, t.logprob) for t in plain.tokens]
    assert off.summary.kl == 0


@pytest.mark.parametrize("others", ["drop", "keep"])
def test_what_lookahead_drops_counts_and_is_there_again_where_no_strength_is_left(
    shared: Engine, others: str
):
    cap = 1.13
    guidance = Guidance(6.0, HEADS, True, (MaxKL(cap),), Lookahead(64, others))
    (reply,) = sample(shared, [request("one", guidance, max_tokens=24)])
    model = AutoModelForCausalLM.from_pretrained(shared.config.model)
    with torch.no_grad():
        base = model(torch.tensor([[*PROMPT, *reply.token_ids]])).logits[0, len(PROMPT) - 1 :]
    base, ways = base.double().log_softmax(-1), set()
    for t, (token, trace) in enumerate(zip(reply.tokens, traces(reply), strict=True)):
        dropped = -float(base[t].topk(64).values.logsumexp(-1)) if others == "drop" else 0.0
        entropy = -float((base[t].exp() * base[t]).sum())
        assert trace.entropy == pytest.approx(entropy, abs=1e-3), "of all tokens"
        assert trace.base_logprob == pytest.approx(float(base[t, token.token_id]), abs=1e-3)
        assert trace.kl <= cap * (1 + 1e-4) + 1e-5
        if dropped > cap:
            assert (trace.strength, trace.kl) == (0, 0)
            assert token.logprob == pytest.approx(trace.base_logprob, abs=1e-5)
            ways.add("off")
        else:
            assert trace.strength > 0
            ways.add("on")
    assert ways == ({"off", "on"} if others == "drop" else {"on"})
