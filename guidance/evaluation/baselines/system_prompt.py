"""System prompts, the baseline that needs no head: wordings that ask for what a head was trained for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from trimtab.guidance.errors import DataError, first_line
from trimtab.guidance.statistics import Estimate
from trimtab.guidance.text.message import Message, Prompt, template_role

_LISTS = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class Wording:
    """name: what tables call it. text: of the system message."""

    name: str
    text: str

    def before(self, prompt: Prompt) -> Prompt:
        """The conversation with this message in front; before the words of a system message of its own."""
        turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        if turns and template_role(turns[0].role) == "system":
            return (replace(turns[0], content=f"{self.text}\n\n{turns[0].text}"), *turns[1:])
        return (Message("system", self.text), *turns)


@dataclass(frozen=True, slots=True)
class WordingTrial:
    """One wording on the tuning prompts. score: None where it is the only one, which nothing was tried for.
    tokens_added: to each prompt, on average over the prompts that are judged: what it costs beside KL."""

    name: str
    text: str
    tokens_added: float
    score: Estimate | None = None
    is_chosen: bool = False


def load_wordings(path: Path) -> tuple[Wording, ...]:
    """A wording a line; or, of a .yaml or .json file, a list of texts or of {name?, system}.

    Raises:
        DataError: none, one that is malformed, or two of one name.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.safe_load(text) if path.suffix in _LISTS else text.splitlines()
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)})") from error
    if path.suffix not in _LISTS:
        data = [line for line in data if line.strip()]
    if not isinstance(data, list) or not data:
        raise DataError(f"{path}: must hold at least one system prompt, a line of text each or a list")
    wordings = tuple(_wording(given, number, path) for number, given in enumerate(data, start=1))
    names = [wording.name for wording in wordings]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: two system prompts are called {twice[0]}: give each a name of its own")
    return wordings


def rank_wordings(trials: Sequence[WordingTrial]) -> list[WordingTrial]:
    """The best score first, which is marked as chosen; of equal ones the first given."""
    first, *others = sorted(trials, key=lambda t: -t.score.mean if t.score else 0.0)
    return [replace(first, is_chosen=True), *others]


def _wording(given: object, number: int, path: Path) -> Wording:
    entry = {"system": given} if isinstance(given, str) else given
    where = f"{path}: system prompt {number}"
    if not isinstance(entry, dict) or not {"system"} <= set(entry) <= {"system", "name"}:
        raise DataError(f"{where} must be a text, or hold system and at most name, got {str(given)[:60]!r}")
    name, text = entry.get("name", str(number)), entry["system"]
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: system must be a text that is not empty, got {text!r}")
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{where}: name must be a text that is not empty, got {name!r}")
    return Wording(name.strip(), text.strip())
