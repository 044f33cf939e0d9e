"""Row that notes which of its columns were read, so that the others can be named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class ReadRow(Mapping[str, Any]):
    """A row whose columns count as read once their value is taken; `peek` takes none."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._row = row
        self.read = set[str]()

    def __getitem__(self, name: str) -> Any:
        value = self._row[name]
        self.read.add(name)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._row

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)

    def peek(self) -> Mapping[str, Any]:
        """The row itself."""
        return self._row

    def unread(self) -> list[str]:
        """Columns that hold something and were not read."""
        return [name for name, value in self._row.items() if name not in self.read and value is not None]
