"""Inputs of `trimtab fit`: the files that a run was begun with, and the code of its reward."""

from __future__ import annotations

import sys
from pathlib import Path

from trimtab.guidance.data.input_files import INPUTS_FILE, check_inputs, hash_of, kept_hashes
from trimtab.guidance.data.row_files.source import files_of
from trimtab.guidance.files import write_json
from trimtab.server.commands.fit.config import FitConfig


def check_files(config: FitConfig) -> None:
    """Raises DataError where one has changed since the run was begun."""
    given = {name: getattr(config, name) for name in ("preferences", "rubric", "rollouts")}
    inputs = {
        name: (path, [path] if name == "rubric" else files_of(path))
        for name, path in given.items()
        if path is not None
    }
    check_inputs(config.run, inputs, "name another --run-folder")


def keep_reward(config: FitConfig) -> None:
    """Its code, when the replies are scored: until then it may be mended."""
    write_json(config.run / INPUTS_FILE, kept_hashes(config.run) | {"reward": _code(config)})


def is_reward_changed(config: FitConfig) -> bool:
    """Since it scored the replies."""
    return kept_hashes(config.run).get("reward", _code(config)) != _code(config)


def _code(config: FitConfig) -> str:
    """Of the file that a reward's function stands in; "" for other rewards."""
    kind, _, rest = config.reward.partition(":")
    file = getattr(sys.modules.get(rest.partition(":")[0]), "__file__", None)
    return hash_of([Path(file)]) if kind == "function" and file and Path(file).is_file() else ""
