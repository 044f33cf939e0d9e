"""API keys: reads them, and finds whose a request's is, in a time that says nothing of it."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trimtab.guidance.errors import UserError

VARIABLE, ADMIN_VARIABLE = "TRIMTAB_API_KEYS", "TRIMTAB_ADMIN_KEYS"
MIN_LENGTH = 8


@dataclass(frozen=True, slots=True)
class Keys:
    """digests: SHA-256 of each key, with its name; nothing else of it is kept."""

    digests: tuple[tuple[bytes, str], ...] = field(default=(), repr=False)

    def __bool__(self) -> bool:
        return bool(self.digests)

    def find(self, given: str) -> str | None:
        """The name of a key; None for one that there is not. Every key is compared with, to its end."""
        digest, found = _digest(given), None
        for known, name in self.digests:
            if hmac.compare_digest(known, digest):
                found = name
        return found


def load_keys(
    path: Path | None, environment: Mapping[str, str] = os.environ, variable: str = VARIABLE
) -> Keys:
    """Of a file and of the environment. Raises UserError for a file without keys, or with a bad one: it
    names the line, and never the key."""
    flag = "--" + variable.removeprefix("TRIMTAB_").lower().replace("_", "-")
    found: list[tuple[bytes, str]] = []
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{flag} {path} cannot be read ({error}); name a text file") from error
        found += _read(lines, f"{flag} {path}, line")
        if not found:
            raise UserError(f"{flag} {path} holds no key; write one a line, as KEY or NAME:KEY")
    found += _read(environment.get(variable, "").split(","), f"{variable}, key")
    return Keys(tuple(found))


def _read(entries: Iterable[str], where: str) -> list[tuple[bytes, str]]:
    found = []
    for number, entry in enumerate(entries, 1):
        text = entry.strip()
        if not text or text.startswith("#"):
            continue
        name, sign, key = text.partition(":")
        name, key = (name.strip(), key.strip()) if sign else (f"key {number}", text)
        if len(key) < MIN_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(f"{where} {number}: a key has at least {MIN_LENGTH} printable ASCII characters")
        found.append((_digest(key), name))
    return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
