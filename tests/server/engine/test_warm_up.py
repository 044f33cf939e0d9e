"""Whatever serving launches, warm-up has launched before: a request never waits for a compiler."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from benchmarks.gpu.engine.subject import TOY_ENGINE_SIZES, Subject, random_prompts
from trimtab.guidance.controllers.entropy_gate import EntropyGate
from trimtab.guidance.controllers.kl_budget import KLBudget
from trimtab.guidance.controllers.schedule import Schedule
from trimtab.kernels.dispatch import Compilation
from trimtab.kernels.guided_head import ROW_TILES
from trimtab.server.engine import control as control_module
from trimtab.server.engine import sampler as sampler_module
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Guidance, Request, SamplingParams
from trimtab.server.engine.warm_up import _log, warm_up
from trimtab.server.rollouts.sample import sample

NUM_REQUESTS = 70
FORMS = {"tied": "tied", "tied2": "tied", "lowrank": "lowrank", "lowrank2": "lowrank"}
Program = tuple[object, ...]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> set[Program]:
    """What decides which programs a draw launches, of every draw; the paths are a GPU's."""
    programs: set[Program] = set()
    choose, fused, logits = (
        sampler_module.choose_head_path,
        sampler_module.guided_head,
        sampler_module.guided_logits,
    )

    def tile(rows: int) -> int:
        return next(size for size in ROW_TILES if size >= rows)

    def watch_fused(h: torch.Tensor, weight: torch.Tensor, **given: Any) -> Any:
        rank = None if given["lowrank"] is None else given["lowrank"][1].shape[1]
        programs.add(("fused", tile(len(h)), given["column"] is not None, rank, given["any_sampled"]))
        return fused(h, weight, **given)

    def watch_logits(z: torch.Tensor, **given: Any) -> Any:
        flags = (given["beta"] is not None, given.get("top_k") is not None)
        programs.add(("logits", *flags, given["want_entropy"], given["any_sampled"]))
        return logits(z, **given)

    monkeypatch.setattr(
        sampler_module,
        "choose_head_path",
        lambda rows, **given: choose(rows, **given | {"device_type": "cuda"}),
    )

    def watch(module: Any, name: str) -> Any:
        function = getattr(module, name)

        def watched(*args: Any, **given: Any) -> Any:
            programs.add((name, *sorted(key for key, value in given.items() if value is not None)))
            return function(*args, **given)

        return watched

    for module, name in ((control_module, "solve_tilt"), (sampler_module, "base_statistics")):
        monkeypatch.setattr(module, name, watch(module, name))
    monkeypatch.setattr(sampler_module, "guided_head", watch_fused)
    monkeypatch.setattr(sampler_module, "guided_logits", watch_logits)
    return programs


@pytest.fixture
def engine(launched: set[Program]) -> Engine:
    sizes = TOY_ENGINE_SIZES
    subject = Subject(sizes.small, torch.device("cpu"), torch.float32, sizes.rank, FORMS)
    return subject.engine(max_num_seqs=NUM_REQUESTS)


def warm(engine: Engine) -> int:
    return warm_up(engine.sampler, engine.policy, engine.bank, engine.runner.state)


def requests(count: int, seed: int) -> list[Request]:
    draw = random.Random(seed)
    found = []
    for i, prompt in enumerate(random_prompts(TOY_ENGINE_SIZES.small, [5] * count, seed)):
        strength = draw.choice([0.0, 1.0])
        heads = (
            tuple((name, 1.0) for name in draw.sample(list(FORMS), draw.randint(1, 3))) if strength else ()
        )
        sampling = SamplingParams(
            max_tokens=4,
            temperature=draw.choice([0.0, 1.0]),
            ignore_eos=True,
            **draw.choice([{}, {}, {"top_p": 0.9}, {"top_k": 3}, {"logprobs": 2}, {"presence_penalty": 0.5}]),
        )
        controllers = draw.choice([(), (), (KLBudget(1.0),), (EntropyGate(1.0), Schedule("decay", 3))])
        guidance = Guidance(strength, heads, draw.random() < 0.1, controllers)
        found.append(Request(str(i), prompt, sampling, guidance))
    return found


@pytest.mark.parametrize("count", [1, 3, 20, 40, NUM_REQUESTS])
def test_no_request_launches_a_program_that_warm_up_did_not(
    engine: Engine, launched: set[Program], count: int
):
    assert warm(engine) > 10
    warmed = set(launched)
    launched.clear()
    for seed in range(12 if count < 20 else 3):
        sample(engine, requests(count, seed))
        plain = [Request("plain", (1, 2), SamplingParams(max_tokens=2, temperature=seed % 2))]
        sample(engine, plain)
    assert launched
    assert launched <= warmed


def test_warm_up_changes_no_lane_and_no_settings(engine: Engine):
    state = engine.runner.state
    before = state.last_tokens[:-1].clone()
    warm(engine)
    assert torch.equal(state.last_tokens[:-1], before)
    assert engine.scheduler.schedule().rows == []


def test_a_program_compiled_while_serving_is_logged_and_one_from_the_cache_is_not(
    caplog: pytest.LogCaptureFixture,
):
    _log(Compilation("_tiles", 1.5, is_cached=True))
    assert not caplog.records
    _log(Compilation("_tiles", 1.5, is_cached=False))
    assert "_tiles" in caplog.text
    assert "1.5 s" in caplog.text
