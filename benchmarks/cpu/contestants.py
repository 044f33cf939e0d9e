"""The same job for every contestant: complete these prompts with so many new tokens each; seconds taken."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol

from benchmarks.cpu import vllm_worker
from benchmarks.cpu.hugging_face import GuidedGenerate
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Guidance, Request, SamplingParams
from trimtab.server.rollouts.offline import generate

Prompts = Sequence[Sequence[int]]


class Contestant(Protocol):
    def run(self, prompts: Prompts, num_new_tokens: int) -> float: ...


class Ours:
    def __init__(self, engine: Engine, guidance: Guidance) -> None:
        self._engine, self._guidance = engine, guidance
        self._ids = itertools.count()

    def run(self, prompts: Prompts, num_new_tokens: int) -> float:
        sampling = SamplingParams(max_tokens=num_new_tokens, ignore_eos=True)
        requests = [
            Request(f"{id(self)}-{next(self._ids)}", tuple(prompt), sampling, self._guidance)
            for prompt in prompts
        ]
        start = time.perf_counter()
        completions = generate(self._engine, requests)
        seconds = time.perf_counter() - start
        for completion in completions:
            choice = completion.choices[0]
            assert len(choice.tokens) == num_new_tokens
            assert choice.summary is not None
            assert (choice.summary.kl > 0) == bool(self._guidance.strength), (
                "the rule ran where it was asked for"
            )
        return seconds


class Generate:
    """transformers' generate over all prompts as one batch, without guidance."""

    def __init__(self, model: Path, head: Path) -> None:
        self._generate = GuidedGenerate(model, head, strength=0.0)

    def run(self, prompts: Prompts, num_new_tokens: int) -> float:
        start = time.perf_counter()
        self._generate.run(prompts, [num_new_tokens] * len(prompts))
        return time.perf_counter() - start


class Vllm:
    """vLLM in its own interpreter, stopped between its turns: its idle threads take time from others."""

    def __init__(self, python: Path, model: Path) -> None:
        command = [str(python), vllm_worker.__file__, str(model)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.version = self._read()["version"]
        self._process.send_signal(signal.SIGSTOP)

    def run(self, prompts: Prompts, num_new_tokens: int) -> float:
        assert self._process.stdin is not None
        job = {"prompts": [list(prompt) for prompt in prompts], "num_new_tokens": num_new_tokens}
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        seconds = float(self._read()["seconds"])
        self._process.send_signal(signal.SIGSTOP)
        return seconds

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> dict[str, str]:
        stdout: IO[str] | None = self._process.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the vLLM worker has ended with code {self._process.wait()}")
        answer: dict[str, str] = json.loads(line)
        return answer
