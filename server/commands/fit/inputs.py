"""Files that `trimtab fit` was begun with: kept by hash, so that a run goes on with these or with none."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.guidance.data.row_files.source import files_of
from trimtab.guidance.errors import UserError
from trimtab.guidance.files import write_json
from trimtab.server.commands.fit.config import FitConfig


@dataclass(frozen=True)
class Inputs:
    """What the files of a run held when it was begun, and the reward's when the replies were scored."""

    run: Path

    @property
    def path(self) -> Path:
        return self.run / "inputs.json"

    def check(self, config: FitConfig) -> None:
        """Raises UserError where one has changed since."""
        before, now = self._read(), {}
        for name in ("preferences", "rubric", "rollouts"):
            file = getattr(config, name)
            if file is None:
                continue
            now[name] = _digest([file] if name == "rubric" else files_of(file))
            if before.get(name, now[name]) != now[name]:
                raise UserError(
                    f"{file} has changed since {config.run} was begun with it: put it back as it was, or "
                    "name another --run-folder"
                )
        write_json(self.path, before | now)

    def keep_reward(self, config: FitConfig) -> None:
        write_json(self.path, self._read() | {"reward": _code(config)})

    def is_reward_changed(self, config: FitConfig) -> bool:
        return self._read().get("reward", _code(config)) != _code(config)

    def _read(self) -> dict[str, str]:
        found: dict[str, str] = json.loads(self.path.read_text("utf-8")) if self.path.is_file() else {}
        return found


def _digest(files: Sequence[Path]) -> str:
    """Of their contents in this order."""
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as data:
            whole.update(hashlib.file_digest(data, "sha256").digest())
    return whole.hexdigest()


def _code(config: FitConfig) -> str:
    """Of the file that a reward's function stands in; "" for other rewards."""
    kind, _, rest = config.reward.partition(":")
    if kind != "function":
        return ""
    file = getattr(sys.modules.get(rest.partition(":")[0]), "__file__", None)
    return _digest([Path(file)]) if file is not None and Path(file).is_file() else ""
