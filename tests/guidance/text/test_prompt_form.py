from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trimtab.guidance.errors import DataError, PolicyError
from trimtab.guidance.text.prompt_form import METADATA_KEY, form_of, mismatch, recorded_form


def rollouts(path: Path, said: object, prompt: object = "a") -> Path:
    """A Parquet file of one row that says what made it."""
    table = pa.Table.from_pylist([{"prompt": prompt, "completion": "b"}])
    metadata = {} if said is None else {METADATA_KEY: json.dumps(said).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


@pytest.mark.parametrize(
    ("has_template", "rows", "form"),
    [(True, "auto", "chat"), (False, "auto", "text"), (True, "text", "text"), (True, "chat", "chat")],
)
def test_rows_are_chats_where_there_is_a_template_unless_told(build_tokenizer, has_template, rows, form):
    tokenizer = build_tokenizer() if has_template else build_tokenizer(None)
    assert form_of(tokenizer, rows, [Path("absent.jsonl")]) == form


def test_chats_without_a_template_are_refused(build_tokenizer):
    with pytest.raises(PolicyError, match="no chat template"):
        form_of(build_tokenizer(None), "chat")


CHAT = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("said", "prompt", "form"),
    [
        ({"rows": "text"}, "a", "text"),
        ({"rows": "chat"}, "a", "chat"),
        ({"model": "an older file's"}, "a", "text"),
        ({"model": "an older file's"}, CHAT, "chat"),
        (None, "a", None),
        ({"rows": "rhymes"}, CHAT, "chat"),
    ],
)
def test_rollouts_say_as_what_they_were_sampled(tmp_path: Path, said, prompt, form):
    assert recorded_form(rollouts(tmp_path / "r.parquet", said, prompt)) == form


def test_auto_follows_the_file_and_others_must_agree_with_it(build_tokenizer, tmp_path: Path):
    text = rollouts(tmp_path / "text.parquet", {"rows": "text"})
    chat = rollouts(tmp_path / "chat.parquet", {"rows": "chat"})
    assert form_of(build_tokenizer(), "auto", [text]) == "text"
    with pytest.raises(DataError, match=r"text\.parquet was sampled with --rows text"):
        form_of(build_tokenizer(), "chat", [text])
    with pytest.raises(DataError, match=r"chat\.parquet was sampled from chats and .*text\.parquet"):
        form_of(build_tokenizer(), "auto", [text, chat])


def test_a_file_that_is_no_parquet_is_left_to_whoever_reads_it(build_tokenizer, tmp_path: Path):
    (tmp_path / "r.parquet").write_text("no")
    assert form_of(build_tokenizer(), "auto", [tmp_path / "r.parquet"]) == "chat"


def test_a_head_meets_prompts_of_the_other_form():
    assert mismatch("kind", None, "chat") is mismatch("kind", "chat", "chat") is None
    told = mismatch("kind", "text", "chat")
    assert told is not None
    assert "head kind was trained on texts" in told
    assert "--rows chat, or ask it by /v1/completions" in told
    assert "ask it by /v1/chat/completions" in (mismatch("kind", "chat", "text") or "")
