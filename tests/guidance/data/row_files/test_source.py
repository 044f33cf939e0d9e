"""The same rows from every kind of file and place that people keep them in."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trimtab.guidance.data.load import load_preferences, load_rows
from trimtab.guidance.data.options import RowOptions
from trimtab.guidance.data.rows import Preference
from trimtab.guidance.errors import DataError

ROWS = [
    {"prompt": "Hello?", "chosen": 'Hi, "Ann"!\nWell?', "rejected": "No."},
    {"prompt": "Größe?", "chosen": "3 m", "rejected": "4 m"},
    {"prompt": "And now?", "chosen": "Tea.", "rejected": "Nothing."},
]
WANT = tuple(Preference(**row) for row in ROWS)


def _zst(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": _zst,
}


def lines(rows: list[Any] = ROWS) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


TEXTS: dict[str, tuple[str, bytes]] = {
    "jsonl": (".jsonl", lines()),
    "a list": (".json", json.dumps(ROWS, indent=2).encode()),
    "jsonl named json": (".json", lines()),
    "a list named jsonl": (".jsonl", json.dumps(ROWS).encode()),
    "ndjson": (".ndjson", lines()),
    "blank lines": (".jsonl", b"\n\n" + lines().replace(b"\n", b"\n\n")),
    "windows lines": (".jsonl", lines().replace(b"\n", b"\r\n")),
    "a byte order mark": (".jsonl", b"\xef\xbb\xbf" + lines()),
    "a byte order mark and a list": (".json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode()),
    "a byte order mark and a table": (".csv", b"\xef\xbb\xbf" + table(",")),
    "train": (".json", json.dumps({"train": ROWS}).encode()),
    "data with a version": (".json", json.dumps({"version": "1", "data": ROWS}, indent=1).encode()),
    "columns": (".json", json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}).encode()),
    "pandas columns": (
        ".json",
        json.dumps({n: {str(i): row[n] for i, row in enumerate(ROWS)} for n in ROWS[0]}).encode(),
    ),
    "csv": (".csv", table(",")),
    "tsv": (".tsv", table("\t")),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_every_way_to_write_rows_as_text_gives_the_same_rows(tmp_path: Path, kind: str):
    suffix, content = TEXTS[kind]
    path = tmp_path / f"rows.of.mine{suffix}"
    path.write_bytes(content)
    assert load_preferences(path).rows == WANT


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("kind", ["jsonl", "a list", "csv"])
def test_every_compression_gives_the_same_rows(tmp_path: Path, kind: str, packed: str):
    suffix, content = TEXTS[kind]
    path = tmp_path / f"rows{suffix}{packed}"
    path.write_bytes(PACK[packed](content))
    assert load_preferences(path).rows == WANT


def test_concatenated_streams_are_read_to_their_end(tmp_path: Path):
    for suffix, pack in list(PACK.items())[1:]:
        path = tmp_path / f"rows.jsonl{suffix}"
        path.write_bytes(pack(lines(ROWS[:1])) + pack(lines(ROWS[1:])))
        assert load_preferences(path).rows == WANT


@pytest.mark.parametrize("packed", [".gz", ".xz", ".bz2", ".zst"])
@pytest.mark.parametrize("spoil", [lambda data: data[:-9], lambda data: data[:9] + b"\xff\x00" + data[11:]])
def test_a_broken_stream_is_no_shorter_file(tmp_path: Path, packed: str, spoil: Callable[[bytes], bytes]):
    path = tmp_path / f"rows.jsonl{packed}"
    path.write_bytes(spoil(PACK[packed](lines(ROWS * 40))))
    with pytest.raises(DataError, match="cannot be read") as caught:
        load_preferences(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def shards(folder: Path, name: str = "part") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(ROWS):
        pq.write_table(pa.Table.from_pylist([row]), folder / f"{name}-{number:05}-of-00003.parquet")
    return folder


def test_a_folder_of_shards_is_read_in_order(tmp_path: Path):
    folder = shards(tmp_path / "shards")
    (folder / "README.md").write_text("about")
    (folder / "dataset_info.json").write_text("{}")
    (folder / ".cache.json").write_text("{}")
    assert load_preferences(folder).rows == WANT
    packed = tmp_path / "packed"
    packed.mkdir()
    for number, row in enumerate(ROWS):
        (packed / f"{number}.jsonl.gz").write_bytes(gzip.compress(lines([row])))
    assert load_preferences(packed).rows == WANT


def test_a_glob_is_read_in_the_order_of_its_names(tmp_path: Path):
    shards(tmp_path / "a")
    assert load_preferences(tmp_path / "a" / "*.parquet").rows == WANT
    assert load_preferences(tmp_path / "**" / "part-0000[01]*.parquet").rows == WANT[:2]
    with pytest.raises(DataError, match="no such file"):
        load_preferences(tmp_path / "a" / "*.jsonl")


def test_a_bad_row_of_a_shard_is_told_with_its_file(tmp_path: Path):
    (tmp_path / "1.jsonl").write_bytes(lines(ROWS))
    (tmp_path / "2.jsonl").write_bytes(lines([*ROWS, {"prompt": "p", "chosen": "c"}]))
    with pytest.raises(DataError, match=r"1 bad rows, first 2\.jsonl line 4: rejected is missing"):
        load_preferences(tmp_path)


def test_a_downloaded_repository_has_splits_that_a_colon_names(tmp_path: Path):
    shards(tmp_path / "set" / "data", "train")
    with pytest.raises(DataError, match="has no split test, there are train"):
        load_preferences(Path(f"{tmp_path / 'set'}:test"))
    shards(tmp_path / "set" / "data", "test_prefs")
    with pytest.raises(DataError, match=r"holds the splits test_prefs, train: .*set:test_prefs"):
        load_preferences(tmp_path / "set")
    assert load_preferences(Path(f"{tmp_path / 'set'}:train")).rows == WANT


def test_splits_in_one_file_are_named_and_chosen_with_a_colon(tmp_path: Path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"train": ROWS, "test": ROWS[:1]}))
    with pytest.raises(DataError, match="holds the splits train, test"):
        load_preferences(path)
    assert load_preferences(Path(f"{path}:test")).rows == WANT[:1]
    with pytest.raises(DataError, match="has no split dev, there are train, test"):
        load_preferences(Path(f"{path}:dev"))


def test_a_single_split_of_a_saved_dataset_needs_no_name(tmp_path: Path):
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "saved")
    assert load_preferences(tmp_path / "saved").rows == WANT


def test_a_hub_id_that_is_not_in_the_cache_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def refuse(name: str, config: str | None) -> None:
        asked.append((name, config))
        raise ConnectionError("Couldn't reach the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    for name in ("org/name", "org/name:train", "org/name:config:train"):
        with pytest.raises(DataError, match=r"org/name.*cannot load it .*\(Couldn't reach the Hub\)$"):
            load_preferences(Path(name))
    assert asked == [("org/name", None), ("org/name", None), ("org/name", "config")]


def test_a_hub_id_gives_the_rows_of_the_split(monkeypatch: pytest.MonkeyPatch):
    rows = datasets.Dataset.from_list(ROWS)
    both = datasets.DatasetDict({"train": rows, "test": rows.select([0])})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: both)
    assert load_preferences(Path("org/name:test")).rows == WANT[:1]
    with pytest.raises(DataError, match=r"holds the splits train, test.*org/name:train"):
        load_preferences(Path("org/name"))


def test_a_cells_numbers_and_lists_are_no_text(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion,label\n7,"[1, 2]",true\n12,no,False\n')
    rows = load_rows("unpaired", path).rows
    assert [(row.prompt, row.completion, row.label) for row in rows] == [
        ("7", "[1, 2]", True),
        ("12", "no", False),
    ]
    turns = [{"role": "user", "content": "it's"}]
    for written in (json.dumps(turns), str(turns)):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["prompt"], [written]])
        assert load_rows("prompts", path).rows[0][0].content == "it's"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "responses", "ranks"], ["p", '["a", "b"]', "[2, 1]"]])
    assert load_rows("rankings", path).rows[0].ranks == (2.0, 1.0)


def test_a_table_row_with_a_cell_too_many_is_bad(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,chosen,rejected\na,b,c\na,b\n")
    with pytest.raises(DataError, match="1 bad rows, first line 3: has 2 cells for 3 columns"):
        load_preferences(path)


def test_strings_alone_are_prompts(tmp_path: Path):
    path = tmp_path / "stories.json"
    path.write_text(json.dumps(["One day", "Then"]))
    assert load_rows("prompts", path).rows == ("One day", "Then")
    path.write_text('"One day"\n"Then"\n')
    assert load_rows("prompts", path).rows == ("One day", "Then")
    with pytest.raises(DataError, match="is not a JSON object"):
        load_rows("rollouts", path)


def test_json_that_is_nested_too_deep_is_a_bad_row(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines() + b"[" * 200_000 + b"\n")
    loaded = load_preferences(path, RowOptions(on_bad_rows="skip"))
    assert loaded.rows == WANT
    assert loaded.num_bad == 1
