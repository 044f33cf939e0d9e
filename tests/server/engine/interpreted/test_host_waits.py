"""Scheduling and launching a step never makes the host wait for the device, whatever its rows ask for."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import SIZES, save_random_head, save_random_model
from torch.utils._python_dispatch import _disable_current_modes
from transformers import LlamaConfig
from triton.runtime.interpreter import InterpretedFunction

from trimtab.guidance.controllers.entropy_gate import EntropyGate
from trimtab.guidance.controllers.kl_budget import KLBudget
from trimtab.guidance.controllers.max_kl import MaxKL
from trimtab.guidance.controllers.schedule import Schedule
from trimtab.guidance.controllers.target import Target
from trimtab.guidance.heads.bank import HeadBank
from trimtab.guidance.heads.fingerprint import identify
from trimtab.guidance.rules import Expert
from trimtab.server.engine import sampler
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.decode_graphs import HostWaitError, NoHostWaits
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.policy import load_served
from trimtab.server.engine.request import GrammarSpec, Guidance, Request, SamplingParams
from trimtab.server.engine.scheduler import Step

INDEXING = ("__getitem__", "__setitem__")
READS = ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")
MIX = Guidance(1.5, (("kind", 1.0), ("concise", -0.5)))
ALL_CONTROLLERS = (
    MaxKL(0.1),
    KLBudget(1.0),
    Target("kind", 1.0),
    Schedule("warmup", 2),
    EntropyGate(0.5),
)
MASKED = "within a grammar"
BATCHES: dict[str, list[tuple[SamplingParams, Guidance]]] = {
    "plain": [(SamplingParams(max_tokens=2), Guidance()), (SamplingParams(max_tokens=3), Guidance())],
    "guided and measured": [(SamplingParams(max_tokens=2), MIX), (SamplingParams(max_tokens=3), MIX)],
    "mixed": [
        (SamplingParams(max_tokens=2, temperature=0), Guidance()),
        (SamplingParams(max_tokens=3, n=2), MIX),
        (SamplingParams(max_tokens=2, logprobs=3), Guidance(0.0, MIX.heads, trace=True)),
    ],
    "controlled": [
        (SamplingParams(max_tokens=2), replace(MIX, controllers=ALL_CONTROLLERS)),
        (SamplingParams(max_tokens=1), replace(MIX, trace=True, controllers=ALL_CONTROLLERS[-1:])),
    ],
    "truncated": [
        (SamplingParams(max_tokens=2, top_p=0.9, top_k=7), MIX),
        (SamplingParams(max_tokens=2, min_p=0.1), Guidance()),
    ],
    "penalised": [
        (SamplingParams(max_tokens=2, frequency_penalty=1.0, logit_bias=((7, 3.0),)), MIX),
        (SamplingParams(max_tokens=2, repetition_penalty=1.2), Guidance()),
    ],
    "advised": [
        (SamplingParams(max_tokens=1), Guidance(rule=Expert("other", "policy", 0.5, alpha=0.1))),
    ],
    MASKED: [(SamplingParams(max_tokens=3, n=2), MIX), (SamplingParams(max_tokens=2), Guidance())],
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    root = tmp_path_factory.mktemp("engine")
    folder = save_random_model(LlamaConfig(**{**SIZES, "num_hidden_layers": 1}), root / "model")
    forms = {"kind": "tied", "concise": "lowrank"}
    heads = tuple(save_random_head(root, folder, name, form, slope=0.5) for name, form in forms.items())
    options = EngineConfig(
        folder, block_size=8, max_num_seqs=4, num_blocks=40, attention="triton", async_depth=1
    )
    policy = load_served(folder)
    identity = identify(policy.model, policy.tokenizer, policy.name)
    bank = HeadBank.load(heads, identity, device=policy.device, dtype=policy.dtype)
    return Engine(policy, bank, options.resolved("cpu"), experts={"other": load_served(folder)})


@contextlib.contextmanager
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the tensors were on a GPU: reading one fails, and so does making one there of numbers, which are
    not in pinned memory. What a kernel does in the interpreter is the device's own business."""

    def refuse(name: str) -> Callable[..., Any]:
        def fail(*_: object, **__: object) -> None:
            raise AssertionError(f"{name} makes the host wait for the device")

        return fail

    run, tensor = InterpretedFunction.run, torch.tensor

    def on_the_host(*args: Any, **kwargs: Any) -> torch.Tensor:
        assert "device" not in kwargs, "torch.tensor makes the host wait for the device"
        return tensor(*args, **kwargs)

    def launch(*args: Any, **kwargs: Any) -> None:
        with _disable_current_modes(), monkeypatch.context() as inside:
            for name, method in methods.items():
                inside.setattr(torch.Tensor, name, method)
            run(*args, **kwargs)

    def without_lists(method: Callable[..., Any]) -> Callable[..., Any]:
        def index(tensor: torch.Tensor, places: Any, *value: Any) -> Any:
            parts = places if isinstance(places, tuple) else (places,)
            assert not any(isinstance(part, list) for part in parts), "a list as index makes the host wait"
            return method(tensor, places, *value)

        return index

    methods = {name: getattr(torch.Tensor, name) for name in (*READS, *INDEXING)}
    with monkeypatch.context() as patch, NoHostWaits():
        patch.setattr(InterpretedFunction, "run", launch)
        patch.setattr(torch, "tensor", on_the_host)
        for name in READS:
            patch.setattr(torch.Tensor, name, refuse(name))
        for name in INDEXING:
            patch.setattr(torch.Tensor, name, without_lists(methods[name]))
        yield


@pytest.mark.parametrize("path", ["materialised", "fused"])
@pytest.mark.parametrize("name", BATCHES)
def test_no_launch_waits_for_the_device(
    name: str, path: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    if path == "fused" and name not in ("plain", "guided and measured"):
        pytest.skip("needs logits")
    for module in [m for n, m in sys.modules.items() if n.startswith("trimtab.kernels.")]:
        if hasattr(module, "choose_backend"):
            monkeypatch.setattr(module, "choose_backend", lambda _, backend=None, *__: backend or "triton")
    monkeypatch.setattr(sampler, "choose_head_path", lambda *_, **__: path)
    schedule, run = engine.scheduler.schedule, engine._run

    def guarded_schedule() -> Step:
        with on_a_device(monkeypatch):
            return schedule()

    def guarded_run(step: Step) -> object:
        try:
            with on_a_device(monkeypatch):
                return run(step)
        except HostWaitError as error:
            raise AssertionError(str(error)) from error

    monkeypatch.setattr(engine.scheduler, "schedule", guarded_schedule)
    monkeypatch.setattr(engine, "_run", guarded_run)
    for i, (sampling, guidance) in enumerate(BATCHES[name]):
        grammar = GrammarSpec("regex", "[a-z]+") if name == MASKED else None
        engine.add(Request(str(i), tuple(range(40, 45 + i)), sampling, guidance, grammar=grammar))
    while engine.has_work:
        engine.step()
