"""Rules and controllers on the CPU: controllers beside constant strength, rules beside other programs.

    python -m benchmarks.rules --genlm-python PATH/TO/genlm-venv/bin/python

Of each part, tokens of replies a second, end to end: `controllers` at each number of rows; `lookahead` at the
most rows beside the same method over transformers, one reply at a time; `smc` of one request beside
genlm-control. Contestants take turns, and ratios are taken within a turn. The last line is one JSON document.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoTokenizer

from benchmarks import common
from benchmarks.common import Document, ratio_of, spread_of, take_turns
from benchmarks.rules import genlm_worker
from benchmarks.rules.one_by_one import OneByOne
from benchmarks.worker import Worker
from trimtab.guidance.bundled import HEADS_DIR
from trimtab.guidance.controllers import parse_controllers, read_controllers
from trimtab.guidance.model_names import DEFAULT_MODEL, find_model, name_of
from trimtab.guidance.rules import Lookahead, Smc
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Guidance, Request, SamplingParams
from trimtab.server.rollouts.sample import sample

Prompts = Sequence[Sequence[int]]
Rates = Mapping[str, Callable[[int], float]]
CONSTANT = "constant"
CONTROLLED = {  # as `--controllers` spells them; {} is the head
    "max_kl": "max_kl=0.05",
    "kl_budget": "kl_budget=4",
    "target": "target={}:1",
    "schedule": "schedule=warmup:16",
    "entropy_gate": "entropy_gate=1",
    "on": "on=all",
    "all of them": "max_kl=0.05,kl_budget=4,target={}:1,schedule=warmup:16,entropy_gate=1,on=all",
}
MESSAGES = (
    "Write a short story about a dog that is lost in a city.",
    "How do I cook rice so that it does not stick?",
    "My day was terrible. What would you do?",
    "Explain to a child why the sky is blue.",
    "What should I see in Lisbon on a rainy weekend?",
    "Write a letter to a neighbour whose music is too loud.",
    "Which is better for a beginner, the piano or the guitar?",
    "Describe the sea at night.",
)


@dataclass(frozen=True, slots=True)
class RulesConfig:
    """model: a folder or GGUF; by default SmolLM2-135M-Instruct. head: its folder, of an advantage and a
    value. parts: what is measured. rows: concurrent replies; of `lookahead` the most of them. strength: of
    the head's advantage; value_strength: of its value. k: tokens that are tried. one_by_one: replies of a
    turn of the loop over transformers. particles: of `smc`. repeats: turns of every contestant, after one to
    warm up. genlm_python: the interpreter of a virtual environment that holds genlm-control; without it that
    peer is absent. out: where the JSON document is kept.
    """

    model: Path | None = None
    head: Path = HEADS_DIR / "warm"
    parts: tuple[Literal["controllers", "lookahead", "smc"], ...] = ("controllers", "lookahead", "smc")
    rows: tuple[int, ...] = (1, 8, 32)
    new_tokens: int = 64
    strength: float = 4.0
    value_strength: float = 1.0
    k: int = 10
    one_by_one: int = 2
    particles: int = 8
    repeats: int = 5
    seed: int = 0
    genlm_python: Path | None = None
    out: Path | None = None


class Subject:
    """The engine, what it is asked and the same for others."""

    def __init__(self, config: RulesConfig) -> None:
        self.config, self.model = config, find_model(config.model or DEFAULT_MODEL)
        # Every turn brings the same prompts, which the others compute anew, too.
        options = EngineConfig(self.model, heads=(config.head,), prefix_caching=False)
        self.engine = Engine.from_config(options)
        self.head = self.engine.info.heads[0].name
        self._prompts = read_messages(self.model)
        self._ids = itertools.count()

    def prompts(self, num_rows: int) -> Prompts:
        return [prompt for _, prompt in zip(range(num_rows), itertools.cycle(self._prompts), strict=False)]

    def rate(self, guidance: Guidance, num_rows: int, turn: int) -> float:
        """Tokens of replies a second."""
        config = self.config
        requests = [
            Request(
                str(next(self._ids)),
                tuple(prompt),
                SamplingParams(
                    max_tokens=config.new_tokens, ignore_eos=True, seed=config.seed + 1000 * turn + row
                ),
                guidance,
            )
            for row, prompt in enumerate(self.prompts(num_rows))
        ]
        start = time.perf_counter()
        replies = sample(self.engine, requests)
        seconds = time.perf_counter() - start
        assert all(len(reply.tokens) == config.new_tokens for reply in replies)
        assert all(reply.summary.kl > 0 or reply.summary.rule for reply in replies), "nothing was steered"
        return num_rows * config.new_tokens / seconds


def read_messages(model: str | Path) -> Prompts:
    """MESSAGES as chats, or as texts where the model has no template."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    if not tokenizer.chat_template:
        return [tokenizer(message)["input_ids"] for message in MESSAGES]
    chats = [[{"role": "user", "content": message}] for message in MESSAGES]
    found: Prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True)["input_ids"]
    return found


def measure(config: RulesConfig) -> Document:
    subject = Subject(config)
    found: Document = {"model": name_of(config.model or DEFAULT_MODEL), "absent": []}
    if "controllers" in config.parts:
        found["controllers"] = {str(rows): measure_controllers(subject, rows) for rows in config.rows}
    if "lookahead" in config.parts:
        found["lookahead"] = measure_lookahead(subject)
    if "smc" in config.parts:
        worker = None
        if config.genlm_python is None:
            found["absent"].append("genlm-control: give --genlm-python an interpreter that has it")
        else:
            path = Path(__file__).parents[2] / "src"
            script = genlm_worker.__file__
            worker = Worker(config.genlm_python, script, subject.model, config.head, path=(path,))
            found["machine"] = common.hardware() | {"genlm-control": worker.version}
        found["smc"] = measure_smc(subject, worker)
        if worker is not None:
            worker.close()
    return found


def measure_controllers(subject: Subject, num_rows: int) -> Document:
    """Tokens a second of each; constant ÷ controlled is what a controlled token takes in constant ones."""
    steered = partial(Guidance, subject.config.strength, ((subject.head, 1.0),))
    guidances = {CONSTANT: steered()} | {
        name: steered(controllers=read_controllers(parse_controllers(text.format(subject.head))))
        for name, text in CONTROLLED.items()
    }
    rates: Rates = {name: partial(subject.rate, guidance, num_rows) for name, guidance in guidances.items()}
    return _compare(rates, subject.config, [(CONSTANT, name) for name in CONTROLLED], f"{num_rows} rows")


def measure_lookahead(subject: Subject) -> Document:
    config, num_rows = subject.config, max(subject.config.rows)
    guidance = Guidance(config.value_strength, ((subject.head, 1.0),), rule=Lookahead(k=config.k))
    loop = OneByOne(subject.model, config.head, config.k, config.value_strength)

    def one_by_one(turn: int) -> float:
        torch.manual_seed(config.seed + turn)
        start = time.perf_counter()
        for prompt in subject.prompts(config.one_by_one):
            assert len(loop.reply(prompt, config.new_tokens)) == config.new_tokens
        return config.one_by_one * config.new_tokens / (time.perf_counter() - start)

    ours = f"lookahead, {num_rows} rows"
    rates: Rates = {ours: partial(subject.rate, guidance, num_rows), "one by one": one_by_one}
    return _compare(rates, config, [(ours, "one by one")], "lookahead")


def measure_smc(subject: Subject, worker: Worker | None) -> Document:
    """Of one request. genlm-control weighs after every token: a block of 1, where ours has 16 by default."""
    config = subject.config
    steered = partial(Guidance, config.value_strength, ((subject.head, 1.0),))
    rules = {"smc, block 1": Smc(block=1, particles=config.particles), "smc": Smc(particles=config.particles)}
    rates: dict[str, Callable[[int], float]] = {
        name: partial(subject.rate, steered(rule=rule), 1) for name, rule in rules.items()
    }

    def peer(turn: int) -> float:
        assert worker is not None
        job = {
            "prompt": list(subject.prompts(1)[0]),
            "num_new_tokens": config.new_tokens,
            "particles": config.particles,
            "resample": rules["smc"].resample,
            "strength": config.value_strength,
            "seed": config.seed + turn,
        }
        answer = worker.ask(job)
        assert answer["values"] >= config.new_tokens, "the value was read"
        return float(answer["tokens"] / answer["seconds"])

    if worker is not None:
        rates["genlm-control"] = peer
    pairs = [(name, "genlm-control") for name in rules] if worker else [("smc", "smc, block 1")]
    return _compare(rates, config, pairs, "smc")


def _compare(rates: Rates, config: RulesConfig, pairs: Sequence[tuple[str, str]], progress: str) -> Document:
    """Tokens a second of each, and ratios of two within turns."""
    found = take_turns(rates, config.repeats, warm_up=1, progress=progress)
    return {
        "tokens_per_second": {name: spread_of(values).as_dict() for name, values in found.items()},
        "ratios": {f"{a} / {b}": ratio_of(found[a], found[b]).as_dict() for a, b in pairs},
    }


def table(found: Document) -> str:
    """Tokens a second and ratios of each part, medians with p10…p90; a controller's ratio is its cost."""
    tables = []
    if "controllers" in found:
        by_rows = found["controllers"]
        columns = [f"{rows} rows" for rows in by_rows]
        for title, key in (("tokens/s", "tokens_per_second"), ("time", "ratios")):
            names = next(iter(by_rows.values()))[key]
            rows = [[name, *(at[key][name] for at in by_rows.values())] for name in names]
            tables.append(common.as_table([title, *columns], rows))
    for part in ("lookahead", "smc"):
        if part in found:
            rows = [list(row) for key in ("tokens_per_second", "ratios") for row in found[part][key].items()]
            tables.append(common.as_table([part, "tokens/s, and ratios of it"], rows))
    return "\n\n".join([*tables, *(f"absent: {peer}" for peer in found["absent"])])


if __name__ == "__main__":
    common.main(RulesConfig, measure, table)
