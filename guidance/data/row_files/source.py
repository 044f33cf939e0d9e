"""Sources of rows: a file, a folder of shards, a glob, a `datasets` folder, or a data set of the hub."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from trimtab.guidance.data.row_files.readers import READERS, Raw, is_readable, kind_of_file, read_file
from trimtab.guidance.errors import DataError, first_line

_SPLIT_NAMES = ("train", "test", "validation", "valid", "val", "dev", "eval")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(?::[\w.-]+){0,2}")
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
SUPPORTED = f"{', '.join(READERS)} (also .gz, .xz, .bz2, .zst)"
"""What a file may be, for messages."""


@dataclass(frozen=True, slots=True)
class Source:
    """A path as a user gives it. name: without the split. split: what stands after its colon, or ""."""

    name: str
    split: str = ""


def raw_rows(path: Path | str) -> Iterator[Raw]:
    """(where, row) pairs of everything that the path means, in the order of the files' names.

    A row is whatever the file holds; what cannot be read as one comes as a BadRow.

    Raises DataError with one line.
    """
    source = find_source(path)
    place = Path(source.name)
    if not place.exists() and is_hub_id(source):
        yield from _from_hub(source)
    elif place.is_dir() and _is_saved_dataset(place):
        yield from _from_saved(place, source.split)
    else:
        files = _files(source)
        for file in files:
            beginning = f"{file.name} " if len(files) > 1 else ""
            # A file's own split is its key; a folder's split has chosen the files.
            split = source.split if place.is_file() else ""
            for where, row in read_file(file, split):
                yield f"{beginning}{where}", row


def check_source(path: Path | str) -> None:
    """Raises DataError where nothing is there, before anything is read; a hub id is looked up later."""
    source = find_source(path)
    if Path(source.name).is_dir() or is_hub_id(source):
        return
    _files(source)


def files_of(path: Path | str) -> Sequence[Path]:
    """The files that a path means; none of a hub id, or a folder that `datasets` has saved. Raises
    DataError."""
    source = find_source(path)
    if is_hub_id(source) or _is_saved_dataset(Path(source.name)):
        return []
    return _files(source)


def find_source(path: Path | str) -> Source:
    """What a path names: what is there, or what is there without `:split` at its end."""
    text = str(path)
    before, colon, split = text.rpartition(":")
    if colon and not Path(text).exists() and (Path(before).exists() or _HUB_ID.fullmatch(text)):
        return Source(before, split)
    return Source(text)


def is_hub_id(source: Source) -> bool:
    """`org/name`, where no such file is and its name is no data file's."""
    name = source.name
    is_file_name = kind_of_file(Path(name)) is not None or "*" in name or Path(name).suffix in (".gz", ".zip")
    return bool(_HUB_ID.fullmatch(name)) and not Path(name).exists() and not is_file_name


def _files(source: Source) -> Sequence[Path]:
    place = Path(source.name)
    if place.is_dir():
        return _shards(place, source.split)
    if place.exists():
        if not is_readable(place):
            raise DataError(f"{place}: must be {SUPPORTED}, a folder of such files, or a datasets folder")
        return [place]
    if glob.has_magic(source.name):
        return _matching(source.name)
    raise DataError(f"{place}: no such file or folder")


def _matching(pattern: str) -> Sequence[Path]:
    found = sorted(map(Path, glob.glob(pattern, recursive=True)))
    files = [path for path in found if is_readable(path) and path.is_file()]
    if not files:
        others = f": {len(found)} match, and none is {SUPPORTED}" if found else ""
        raise DataError(f"{pattern}: no such file or folder{others}")
    return files


def _shards(folder: Path, split: str) -> Sequence[Path]:
    """The files of a folder, or of its folder `data` and others below it, of one split."""
    files = [path for path in sorted(folder.rglob("*")) if _is_shard(path, folder)]
    top = [path for path in files if path.parent == folder]
    files = top or files
    if not files:
        raise DataError(f"{folder}: holds no file that is {SUPPORTED}, and is no datasets folder")
    splits: dict[str, list[Path]] = {}
    for path in files:
        splits.setdefault(_split_of(path, folder), []).append(path)
    kinds = {kind_of_file(path) for path in files}
    if split:
        if split not in splits:
            raise DataError(f"{folder}: has no split {split}, there are {', '.join(filter(None, splits))}")
        return splits[split]
    if len(splits) > 1:
        names = [name or "(others)" for name in splits]
        raise DataError(f"{folder}: {_choose(str(folder), [name for name in splits if name] or names)}")
    if len(kinds) > 1:
        raise DataError(
            f"{folder}: holds files of the kinds {', '.join(sorted(map(str, kinds)))}: use a glob"
        )
    return files


def _is_shard(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    return path.is_file() and not hidden and path.name not in _ABOUT and is_readable(path)


def _split_of(path: Path, folder: Path) -> str:
    """`train` of train-00000-of-00002.parquet or of train/part-0.jsonl; "" where no split is named."""
    parts = [*path.relative_to(folder).parts[:-1], re.split(r"[-_.]", path.name)[0]]
    stem = path.name.split(".")[0]
    sharded = re.match(r"(.+?)-\d+-of-\d+", stem)
    if sharded:
        return sharded[1]
    return next((part for part in reversed(parts) if part in _SPLIT_NAMES), "")


def _choose(name: str, splits: Sequence[str]) -> str:
    return f"holds the splits {', '.join(splits)}: name one of them, as in {name}:{splits[0]}"


def _is_saved_dataset(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("dataset_dict.json", "state.json"))


def _from_saved(folder: Path, split: str) -> Iterator[Raw]:
    try:
        table = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(f"{folder}: datasets cannot read it ({first_line(error)})") from error
    yield from _from_table(str(folder), table, split)


def _from_hub(source: Source) -> Iterator[Raw]:
    """`org/name`, `org/name:split` or `org/name:config:split`, from the hub or the local cache."""
    name, _, config = source.name.partition(":")
    try:
        table = datasets.load_dataset(name, config or None)
    except Exception as error:
        raise DataError(
            f"{source.name}: no such file or folder, and datasets cannot load it from the hub or its cache "
            f"({first_line(error)})"
        ) from error
    yield from _from_table(source.name, table, source.split)


def _from_table(name: str, table: datasets.Dataset | datasets.DatasetDict, split: str) -> Iterator[Raw]:
    if isinstance(table, datasets.DatasetDict):
        if split and split not in table:
            raise DataError(f"{name}: has no split {split}, there are {', '.join(table)}")
        if not split and len(table) > 1:
            raise DataError(f"{name}: {_choose(name, list(table))}")
        table = table[split or next(iter(table))]
    elif split:
        raise DataError(f"{name}: has no splits, and {split} is asked for")
    for number, row in enumerate(table):
        yield f"row {number}", row
