"""Requests by a rule: the same prompt under any guidance, and heads whose values take every form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tiny_models import save_random_head

from trimtab.guidance.heads.manifest import ScalarPart
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Completion, Guidance, Request, SamplingParams
from trimtab.server.rollouts.sample import sample

PROMPT = tuple(range(40, 61))


def save_valued_heads(folder: Path, policy: Path, parts: Mapping[str, ScalarPart]) -> dict[str, Path]:
    """A low-rank head for each value part, under its name."""
    return {
        name: save_random_head(folder, policy, name, "lowrank", seed, value=part)
        for seed, (name, part) in enumerate(parts.items())
    }


def request(name: str, guidance: Guidance, prompt: Sequence[int] = PROMPT, **sampling: object) -> Request:
    options = {"max_tokens": 12, "seed": 3, "ignore_eos": True, **sampling}
    return Request(name, tuple(prompt), SamplingParams(**options), guidance)  # type: ignore[arg-type]


def one(engine: Engine, guidance: Guidance, prompt: Sequence[int] = PROMPT, **sampling: object) -> Completion:
    return sample(engine, [request("one", guidance, prompt, **sampling)])[0]
