from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.heads import reading

PROMPTS = ("Hello?", "Why?", "Who?", "Where?")


def write_replies(folder: Path, name: str, replies: list[str]) -> Path:
    path = folder / f"{name}.jsonl"
    rows = ({"prompt": p, "completion": r} for p, r in zip(PROMPTS, replies, strict=True))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    plain = write_replies(tmp_path, "plain", [f"cold {n}" for n in range(4)])
    warm = write_replies(tmp_path, "warm-1", [f"warm {n}" for n in range(3)] + ["cold 3"])
    return ["--plain", str(plain), "--others", str(warm), "--out", str(tmp_path / "out")]


def complaint(capsys: pytest.CaptureFixture[str], args: list[str]) -> str:
    with pytest.raises(SystemExit):
        reading.main(args)
    (line,) = capsys.readouterr().err.splitlines()
    return line


def shown(page: str) -> list[tuple[str, str]]:
    """Replies A and B of each item."""
    items = page.split("### ")[1:]
    return [(i.split("--- A\n")[1].split("\n")[0], i.split("--- B\n")[1].strip()) for i in items]


def answer(out: Path, reader: int, *, better: str, quality: str = "=") -> None:
    """As a reader who prefers, wherever it stands, the reply that begins so."""
    rows = ["n,better,quality"]
    for n, (a, _) in enumerate(shown((out / f"reading-{reader}.md").read_text(encoding="utf-8"))):
        rows.append(f"{n},{'A' if a.startswith(better) else 'B'},{quality}")
    (out / f"answers-{reader}.csv").write_text("\n".join(rows), encoding="utf-8")


def test_readers_see_all_pairs_with_the_sides_changed_and_no_names(files: list[str], tmp_path: Path) -> None:
    reading.main(files)
    pages = [(tmp_path / "out" / f"reading-{reader}.md").read_text(encoding="utf-8") for reader in (0, 1)]
    first, second = map(shown, pages)
    assert [(b, a) for a, b in first] == second
    assert sorted(sorted(pair) for pair in first) == [
        ["cold 0", "warm 0"],
        ["cold 1", "warm 1"],
        ["cold 2", "warm 2"],
        ["cold 3", "cold 3"],
    ]
    assert "warm-1" not in "".join(pages)


def test_a_preference_is_of_who_wrote_the_reply_and_not_of_the_side(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reading.main(files)
    out = tmp_path / "out"
    answer(out, 0, better="warm")
    answer(out, 1, better="warm")
    reading.main(files)
    # Three of four for the warm one, and the same reply twice is a tie: (3 + ½) / 4.
    assert "| warm-1 | better | 4 | 87.5 % " in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report == {"warm-1": {"better": ["ooo=", "ooo="], "quality": ["====", "===="]}}


def test_readers_who_say_the_opposite_leave_it_even(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reading.main(files)
    answer(tmp_path / "out", 0, better="warm")
    answer(tmp_path / "out", 1, better="cold")
    reading.main(files)
    assert "| warm-1 | better | 4 | 50.0 % [50.0, 50.0] | 25% | 25% |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ("0,A,B\n1,A,B\n2,A,B", "one row for each n from 0 to 3"),
        ("0,A,B\n1,A,B\n2,A,B\n2,A,B", "one row for each n from 0 to 3"),
        ("0,A,B\n1,A,B\n2,A,B\n3,left,B", "n 3 says 'left'"),
    ],
)
def test_answers_that_are_none_are_named(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: str, named: str
) -> None:
    reading.main(files)
    answer(tmp_path / "out", 0, better="warm")
    (tmp_path / "out" / "answers-1.csv").write_text(f"n,better,quality\n{rows}\n", encoding="utf-8")
    assert named in complaint(capsys, files)


def test_replies_to_other_prompts_are_refused(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "warm-1.jsonl"
    rows = other.read_text(encoding="utf-8").splitlines(keepends=True)
    other.write_text("".join(rows[:3]), encoding="utf-8")
    assert "does not reply to the prompts of" in complaint(capsys, files)


def test_two_files_of_one_name_are_refused(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    files.insert(files.index("--out"), files[files.index("--others") + 1])
    assert "two of the files of --others have one name" in complaint(capsys, files)


@pytest.mark.parametrize("other", [["--seed", "1"], ["--readers", "0"]])
def test_answers_to_other_pages_and_no_readers_are_refused(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], other: list[str]
) -> None:
    reading.main(files)
    answer(tmp_path / "out", 0, better="warm")
    answer(tmp_path / "out", 1, better="warm")
    told = complaint(capsys, [*files, *other])
    assert ("another --seed's order" if other[0] == "--seed" else "--readers 0") in told


def test_answers_that_a_spreadsheet_saved_are_read(files: list[str], tmp_path: Path) -> None:
    reading.main(files)
    for reader in (0, 1):
        answer(tmp_path / "out", reader, better="warm")
        path = tmp_path / "out" / f"answers-{reader}.csv"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    reading.main(files)
