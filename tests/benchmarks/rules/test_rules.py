"""The rules benchmark on a tiny model: what it measures, and the loop over transformers beside it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tiny_models import SIZES, save_random_head, save_random_model
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.rules.__main__ import CONTROLLED, RulesConfig, measure, table
from benchmarks.rules.one_by_one import OneByOne
from benchmarks.worker import Worker

PROMPT = [5, 9, 80, 33]
NUM_NEW = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(LlamaConfig(**SIZES), tmp_path_factory.mktemp("rules") / "model")


@pytest.fixture(scope="module")
def head(model: Path) -> Path:
    return save_random_head(model.parent / "head", model, "kind", slope=1.0)


@torch.inference_mode()
def values_after(loop: OneByOne, policy: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    """V of all but the first of the tokens, with nothing kept from one to the next."""
    states = [
        policy.base_model(torch.tensor([tokens[: i + 1]])).last_hidden_state[0, -1]
        for i in range(len(tokens))
    ]
    return (loop._value(torch.stack(states[1:])) - loop._mean) / loop._std


def test_the_loop_is_the_policy_s_greedy_reply_where_one_token_is_tried(model: Path, head: Path) -> None:
    policy = AutoModelForCausalLM.from_pretrained(model)
    greedy = policy.generate(
        torch.tensor([PROMPT]), do_sample=False, max_new_tokens=NUM_NEW, eos_token_id=None
    )
    assert OneByOne(model, head, 1, 3.0).reply(PROMPT, NUM_NEW) == greedy[0, len(PROMPT) :].tolist()


def test_a_strong_loop_draws_the_tried_token_of_the_best_value(model: Path, head: Path) -> None:
    policy, k = AutoModelForCausalLM.from_pretrained(model), 4
    loop = OneByOne(model, head, k, 1e6)
    reply = loop.reply(PROMPT, NUM_NEW)
    tokens = list(PROMPT)
    for drawn in reply:
        tried = policy(torch.tensor([tokens])).logits[0, -1].topk(k).indices.tolist()
        values = [float(values_after(loop, policy, [*tokens, token])[-1]) for token in tried]
        assert drawn == tried[max(range(k), key=values.__getitem__)]
        tokens.append(drawn)


def test_every_part_is_measured_and_what_is_absent_is_named(model: Path, head: Path) -> None:
    config = RulesConfig(model, head, rows=(2,), new_tokens=2, k=2, one_by_one=1, particles=2, repeats=1)
    found = measure(config)
    assert list(found["controllers"]["2"]["ratios"]) == [f"constant / {name}" for name in CONTROLLED]
    assert found["lookahead"]["ratios"]["lookahead, 2 rows / one by one"]["median"] > 0
    assert list(found["smc"]["tokens_per_second"]) == ["smc, block 1", "smc"]
    assert "absent: genlm-control: give --genlm-python" in table(found)


def test_a_worker_answers_until_it_dies(tmp_path: Path) -> None:
    script = tmp_path / "echo_worker.py"
    script.write_text(
        "import sys\n"
        'print(\'{"version": "7"}\', flush=True)\n'
        "print(sys.stdin.readline().strip(), flush=True)\n"
    )
    worker = Worker(Path(sys.executable), str(script))
    assert worker.version == "7"
    assert worker.ask({"seconds": 2}) == {"seconds": 2}
    with pytest.raises(RuntimeError, match="echo_worker has ended with code 0"):
        worker.ask({})
    worker.close()
