"""Blind reading: shows readers two replies to each prompt, and tells which of the two they prefer.

`python -m examples.heads.reading --plain plain.parquet --others warm-1.parquet --out runs/reading`
"""

from __future__ import annotations

import csv
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.guidance.data.load import load_rollouts
from trimtab.guidance.errors import DataError, UsageError, told_in_one_line
from trimtab.guidance.evaluation.table import Table, show
from trimtab.guidance.files import write_json, write_text
from trimtab.guidance.statistics import PerPrompt, resample_prompts
from trimtab.guidance.text.message import Prompt
from trimtab.server.flags import parse

ASKED = ("better", "quality")
"""Which reply a reader would rather have got; and which shows more of the quality that is read for."""
TIE = "="


@dataclass(frozen=True)
class ReadingConfig:
    """Writes a page for every reader, reading-0.md and so on: the prompts, each with two replies A and B in
    an order that does not tell who wrote which, and the next reader has the sides changed. Readers write
    answers-0.csv and so on beside it, with rows n, better, quality, each A, B or =. Run again, it prints what
    they prefer, and writes every answer to report.json.

    plain: rollouts, one reply to each prompt.
    others: the same of other policies, whose names are the files'.
    out: folder of the pages and the answers.
    readers: how many.
    seed: of the order and the sides.
    """

    plain: Path
    others: tuple[Path, ...]
    out: Path
    readers: int = 2
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replies to a prompt. other: who wrote the second. is_first: whether the other's is A for the first
    reader, and so for every second one."""

    other: str
    prompt: int
    asked: str
    plain_reply: str
    other_reply: str
    is_first: bool

    def is_a(self, reader: int) -> bool:
        return self.is_first == (reader % 2 == 0)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a reader says of a pair: `other`, `plain` or `=`."""

    other: str
    prompt: int
    reader: int
    better: str
    quality: str


def make_pairs(plain: Path, others: Sequence[Path], seed: int) -> list[Pair]:
    """In the order of the pages. Raises DataError where a file does not answer the plain one's prompts, or
    two are called alike."""
    if len({path.stem for path in others}) < len(others):
        raise DataError("two of the files of --others have one name, by which their replies are told apart")
    asked = load_rollouts(plain).rows
    draw, pairs = random.Random(seed), []
    for path in others:
        rows = load_rollouts(path).rows
        if [row.prompt for row in rows] != [row.prompt for row in asked]:
            raise DataError(f"{path} does not reply to the prompts of {plain} in their order")
        for number, (one, other) in enumerate(zip(asked, rows, strict=True)):
            replies = one.completion, other.completion
            pairs.append(Pair(path.stem, number, _text(one.prompt), *replies, draw.random() < 0.5))
    draw.shuffle(pairs)
    return pairs


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n\n".join(f"{m.role}: {m.text}" for m in prompt)


def page(pairs: Sequence[Pair], reader: int) -> str:
    """As Markdown: what one reader is shown."""
    return "\n".join(_shown(number, pair, reader) for number, pair in enumerate(pairs))


def _shown(number: int, pair: Pair, reader: int) -> str:
    replies = (pair.other_reply, pair.plain_reply)
    a, b = replies if pair.is_a(reader) else replies[::-1]
    return f"### {number}\n\n{pair.asked}\n\n--- A\n{a.strip()}\n\n--- B\n{b.strip()}\n"


def read_answers(path: Path, pairs: Sequence[Pair], reader: int) -> Iterator[Answer]:
    """Of one reader, to every pair. Replies that are the same are tied, whatever is said of them.

    Raises DataError where an answer is missing, doubled or no answer.
    """
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = list(csv.DictReader(file))
    if sorted(row.get("n") or "" for row in rows) != sorted(map(str, range(len(pairs)))):
        last = len(pairs) - 1
        raise DataError(f"{path}: needs one row for each n from 0 to {last}, under n,better,quality")
    for row in rows:
        pair = pairs[int(row["n"])]
        said = [(row.get(name) or "").strip() for name in ASKED]
        if wrong := [answer for answer in said if answer not in ("A", "B", TIE)]:
            raise DataError(f"{path}: n {row['n']} says {wrong[0]!r}: answers are A, B and =")
        a, b = ("other", "plain") if pair.is_a(reader) else ("plain", "other")
        is_same = pair.plain_reply == pair.other_reply
        meant = (TIE if is_same else {"A": a, "B": b, TIE: TIE}[answer] for answer in said)
        yield Answer(pair.other, pair.prompt, reader, *meant)


def preferences(answers: Sequence[Answer]) -> Table:
    """How often the other's reply is preferred to the plain one; a tie is half. Intervals are bootstrapped
    over prompts. Readers agree where they say the same of a prompt's two replies."""
    rows = []
    for other in sorted({answer.other for answer in answers}):
        own = [answer for answer in answers if answer.other == other]
        prompts = [answer.prompt for answer in own]
        draws = resample_prompts(max(prompts) + 1)
        for name in ASKED:
            said = [getattr(answer, name) for answer in own]
            points = [{"other": 1.0, "plain": 0.0, TIE: 0.5}[answer] for answer in said]
            share = PerPrompt.of(prompts, points, max(prompts) + 1).estimate(draws)
            ties = f"{said.count(TIE) / len(said):.0%}"
            rows.append(
                (other, name, str(len(set(prompts))), show(share, percent=True), ties, _agreed(own, name))
            )
    columns = ("reply", "asked", "prompts", "preferred to the plain one", "ties", "readers agree")
    return Table("preferences", "What readers prefer", columns, tuple(rows))


def _by_reader(answers: Sequence[Answer], readers: int) -> dict[str, dict[str, list[str]]]:
    """What each reader said of each prompt in its order, a letter each: `o`ther, `p`lain or `=`."""
    found = {(answer.other, answer.reader, answer.prompt): answer for answer in answers}
    prompts = sorted({answer.prompt for answer in answers})
    return {
        other: {
            name: [
                "".join(getattr(found[other, reader, prompt], name)[0] for prompt in prompts)
                for reader in range(readers)
            ]
            for name in ASKED
        }
        for other in sorted({answer.other for answer in answers})
    }


def _agreed(answers: Sequence[Answer], name: str) -> str:
    by_prompt: defaultdict[int, set[str]] = defaultdict(set)
    for answer in answers:
        by_prompt[answer.prompt].add(getattr(answer, name))
    return f"{sum(len(said) == 1 for said in by_prompt.values()) / len(by_prompt):.0%}"


def main(args: list[str] | None = None) -> None:
    with told_in_one_line("reading"):
        run(parse(ReadingConfig, "python -m examples.heads.reading", sys.argv[1:] if args is None else args))


def run(config: ReadingConfig) -> None:
    if config.readers < 1:
        raise UsageError(f"--readers {config.readers}: give 1 or more")
    pairs = make_pairs(config.plain, config.others, config.seed)
    config.out.mkdir(parents=True, exist_ok=True)
    answered = [config.out / f"answers-{reader}.csv" for reader in range(config.readers)]
    pages = {config.out / f"reading-{reader}.md": page(pairs, reader) for reader in range(config.readers)}
    for path, shown in pages.items():
        if path.is_file() and path.read_text(encoding="utf-8") != shown:
            raise DataError(
                f"{path} shows other replies, or another --seed's order: give those again, or another --out"
            )
    if not all(path.is_file() for path in answered):
        for path, shown in pages.items():
            write_text(path, shown)
        print(f"{config.out}: {config.readers} pages of {len(pairs)} pairs; answers go beside them")
        return
    answers = [answer for reader, path in enumerate(answered) for answer in read_answers(path, pairs, reader)]
    write_json(config.out / "report.json", _by_reader(answers, config.readers))
    print(preferences(answers).to_markdown())


if __name__ == "__main__":
    main()
