"""What is odd in rows is counted and named, and rows that hold no text are bad."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from trimtab.guidance.data.account import outliers
from trimtab.guidance.data.load import LoadedRows, load_rows
from trimtab.guidance.data.options import RowOptions
from trimtab.guidance.errors import DataError

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


def load(tmp_path: Path, kind: str, rows: list[Any], **options: Any) -> LoadedRows[Any]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_rows(kind, path, RowOptions(**options))


def test_ties_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    loaded = load(tmp_path, "preferences", [PAIR, PAIR | {"rejected": "a"}, PAIR | {"chosen": "b"}])
    assert (len(loaded.rows), loaded.account.num_ties, loaded.num_bad) == (1, 2, 0)
    assert "2 ties left out (first line 2: chosen and rejected are the same)" in caplog.text
    scored = {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 4.0, "score_rejected": 4.0}
    assert load(tmp_path, "preferences", [scored, scored | {"score_chosen": 5.0}]).account.num_ties == 1
    graded = {"prompt": "p", "response_a": "x", "response_b": "y", "winner": "model_a"}
    assert load(tmp_path, "preferences", [graded, graded | {"winner": "tie"}]).account.num_ties == 1
    ranked = {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 2]}
    assert load(tmp_path, "rankings", [ranked, ranked | {"ranks": [1, 1]}]).account.num_ties == 1


def test_a_file_of_ties_alone_has_no_usable_row(tmp_path: Path):
    with pytest.raises(DataError, match="no usable row, all 1 are ties, first line 1: chosen and rejected"):
        load(tmp_path, "preferences", [PAIR | {"rejected": "a"}])


def test_a_score_below_that_of_the_rejected_reply_is_a_bad_row(tmp_path: Path):
    row = PAIR | {"score_chosen": 1.0, "score_rejected": 4.0}
    with pytest.raises(DataError, match="score_chosen 1 is below score_rejected 4"):
        load(tmp_path, "preferences", [row])


def test_replies_that_differ_by_white_space_only_are_counted_and_kept(tmp_path: Path):
    rows = [
        PAIR,
        PAIR | {"chosen": "b c", "rejected": " b\n c "},
        PAIR | {"chosen": "bc\t", "rejected": "b c"},
    ]
    loaded = load(tmp_path, "preferences", rows)
    assert (len(loaded.rows), loaded.account.num_space_only) == (3, 2)
    assert "2 pairs whose replies differ by white space only" in str(loaded.account)


@pytest.mark.parametrize("blank", ["  ", "\n", "\t \u00a0", "\u3000"])
def test_a_reply_of_white_space_is_a_bad_row(tmp_path: Path, blank: str):
    with pytest.raises(DataError, match="chosen is white space only"):
        load(tmp_path, "preferences", [PAIR | {"chosen": blank}])
    with pytest.raises(DataError, match="completion is white space only"):
        load(tmp_path, "unpaired", [{"prompt": "p", "completion": blank, "label": True}])
    with pytest.raises(DataError, match="responses is white space only"):
        load(tmp_path, "rankings", [{"prompt": "p", "responses": [blank, "b"], "ranks": [1, 2]}])
    sampled = {"prompt": "p", "completion": blank, "token_ids": [1]}
    assert load(tmp_path, "rollouts", [sampled]).num_bad == 0


def test_labels_of_one_side_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows = [{"prompt": f"p{i}", "completion": "c", "label": False} for i in range(3)]
    assert load(tmp_path, "unpaired", rows).account.one_sided is False
    assert "all labels are false" in caplog.text
    assert load(tmp_path, "unpaired", [*rows, rows[0] | {"label": True}]).account.one_sided is None


def test_rewards_far_from_the_others_are_counted_with_the_most_extreme(tmp_path: Path):
    rows = [{"prompt": "p", "completion": f"c{i}", "reward": i % 7} for i in range(50)]
    assert load(tmp_path, "rollouts", rows).account.outliers is None
    odd = [rows[0] | {"reward": 900.0}, rows[1] | {"reward": -1e6}]
    account = load(tmp_path, "rollouts", [*rows, *odd]).account
    assert account.outliers is not None
    assert (account.outliers.count, account.outliers.extreme) == (2, -1e6)
    assert "2 rewards lie more than 8 robust standard deviations from the median 3" in str(account)


def test_rare_rewards_and_few_ones_are_no_outliers():
    """0.95 of zeros: the median and its spread are 0, and the ones are what was looked for."""
    assert outliers("reward", [0.0] * 95 + [1.0] * 5) is None
    assert outliers("reward", [1.0, 100.0]) is None
    assert outliers("reward", [2.0] * 50) is None
    found = outliers("reward", [0.0] * 90 + [1.0] * 9 + [1000.0])
    assert found is not None
    assert (found.count, found.extreme) == (1, 1000.0)


def test_the_same_row_again_is_a_duplicate_and_another_sample_is_none(tmp_path: Path):
    assert load(tmp_path, "preferences", [PAIR, PAIR, PAIR | {"prompt": "q"}]).account.num_duplicates == 1
    rollout = {"prompt": "p", "completion": "c", "token_ids": [1], "seed": 0}
    rows = [rollout | {"sample": 0}, rollout | {"sample": 1}, rollout | {"sample": 1}]
    assert load(tmp_path, "rollouts", rows).account.num_duplicates == 1


@pytest.mark.parametrize(
    ("kind", "row", "column"),
    [
        ("prompts", {"prompt": "\ud800"}, "prompt"),
        ("prompts", {"prompt": [{"role": "user", "content": "a\udfffb"}]}, "prompt"),
        ("preferences", PAIR | {"chosen": "x\ud83d"}, "chosen"),
        ("rankings", {"prompt": "p", "responses": ["a", "\udc00"], "ranks": [1, 2]}, "responses"),
        (
            "unpaired",
            {"conversations": [{"from": "human", "value": "\ud800"}], "label": True},
            "conversations",
        ),
        ("preferences", PAIR | {"\ud800": 1}, "a name"),
    ],
)
def test_half_a_surrogate_pair_is_a_bad_row_with_its_line(tmp_path: Path, kind: str, row: Any, column: str):
    good = {"prompts": {"prompt": "p"}, "preferences": PAIR}.get(kind)
    rows = [row] if good is None else [good, row]
    with pytest.raises(DataError, match=f"line {len(rows)}: {column} holds half a surrogate pair") as caught:
        load(tmp_path, kind, rows)
    str(caught.value).encode()
    if good is not None:
        assert load(tmp_path, kind, rows, on_bad_rows="skip").num_bad == 1


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "\\ud83d\\ude00"}\n')
    assert load_rows("prompts", tmp_path / "rows.jsonl").rows == ("\U0001f600",)


def test_a_number_too_large_for_a_float_is_a_bad_row(tmp_path: Path):
    with pytest.raises(DataError, match="margin must hold finite numbers, got 1000"):
        load(tmp_path, "preferences", [PAIR | {"margin": 10**400}])


def test_what_was_found_is_said_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    row = {"question": "q", "chosen": "a", "rejected": "b", "difficulty": 3}
    with caplog.at_level(logging.INFO, "trimtab.guidance.data.load"):
        load(tmp_path, "preferences", [row])
    (line,) = caplog.messages
    assert line.endswith("rows.jsonl: 1 preferences (question rows); not read: difficulty")
