"""Reasoning: trains a value on right and wrong solutions of school maths, and judges it on other questions.

`python -m examples.reasoning ../shared/data/gsm8k/example_model_solutions.jsonl.xz`: solutions of four models
(Cobbe et al. 2021, arXiv 2110.14168), each with whether it is right.
"""

from __future__ import annotations

import json
import lzma
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from trimtab.guidance.errors import DataError, told_in_one_line
from trimtab.guidance.files import write_text
from trimtab.guidance.model_names import DEFAULT_MODEL
from trimtab.server import cli
from trimtab.server.flags import parse


@dataclass(frozen=True)
class ReasoningConfig:
    """Writes the solutions as rows, trains a value of whether they are right, and says what it tells of
    solutions to other questions.

    solutions: rows {question, …: {solution, is_correct}}, xz-compressed JSON lines. train_questions: the
    first, that it learns from. test_questions: the next, that it is judged on. form: of the value.
    """

    solutions: tyro.conf.Positional[Path]
    model: str = DEFAULT_MODEL
    out: Path = Path("runs/reasoning")
    train_questions: int = 400
    test_questions: int = 200
    form: str = "mlp"
    epochs: float = 6.0
    seed: int = 0


def main(args: list[str] | None = None) -> int:
    given = sys.argv[1:] if args is None else args
    with told_in_one_line("reasoning"):
        config = parse(ReasoningConfig, "python -m examples.reasoning", given)
        questions = load_questions(config.solutions)
    last = config.train_questions + config.test_questions
    train, test = questions[: config.train_questions], questions[config.train_questions : last]
    config.out.mkdir(parents=True, exist_ok=True)
    as_rewards = ({**row, "reward": float(row["label"])} for row in rows(train))
    write_text(config.out / "train.jsonl", _lines({k: r[k] for k in r if k != "label"} for r in as_rewards))
    write_text(config.out / "test.jsonl", _lines(rows(test)))
    common = ("--model", config.model, "--seed", str(config.seed))
    head = config.out / "heads" / "right"
    commands = (
        (
            *("train", *common, "--name", "right", "--rollouts", str(config.out / "train.jsonl")),
            *("--parts", "value", "--value.form", config.form),
            *("--value.optimiser.epochs", str(config.epochs)),
            *("--head-folder", str(head), "--run-folder", str(config.out / "run")),
        ),
        (
            *("eval", *common, "--heads", str(head), "--steps", str(config.out / "test.jsonl")),
            *("--out", str(config.out / "steps")),
        ),
    )
    for command in commands:
        print(f"trimtab {shlex.join(command)}", flush=True)
        if code := cli.main(command):
            return code
    return 0


def load_questions(path: Path) -> list[dict[str, Any]]:
    """Raises DataError where they cannot be read."""
    try:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except (OSError, lzma.LZMAError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON lines ({error})") from error


def rows(questions: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """{prompt, completion, label} for each solution, as chats; a solution that two models found, once."""
    for question in questions:
        found = {
            value["solution"]: bool(value["is_correct"])
            for value in question.values()
            if isinstance(value, dict) and "solution" in value
        }
        for solution, is_right in found.items():
            prompt = [{"role": "user", "content": question["question"]}]
            yield {"prompt": prompt, "completion": solution, "label": is_right}


def _lines(found: Iterator[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)


if __name__ == "__main__":
    raise SystemExit(main())
