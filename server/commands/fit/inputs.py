"""Inputs of `trimtab fit`: the files that a run was begun with, and what its reward is."""

from __future__ import annotations

import os
from pathlib import Path

from trimtab.guidance.data.input_files import INPUTS_FILE, check_inputs, kept_hashes
from trimtab.guidance.data.row_files.source import files_of
from trimtab.guidance.files import write_json
from trimtab.server.commands.fit.config import FitConfig
from trimtab.server.scoring.choose import ScorerContext, identity_of


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
    """What its scores depend on, when the replies are scored: until then it may be mended."""
    write_json(config.run / INPUTS_FILE, kept_hashes(config.run) | {"reward": _reward_of(config)})


def is_reward_changed(config: FitConfig) -> bool:
    """Since it scored the replies."""
    kept = kept_hashes(config.run).get("reward")
    return kept is not None and kept != _reward_of(config)


def _reward_of(config: FitConfig) -> str:
    engine = config.engine
    return identity_of(
        config.scorer, ScorerContext(engine.model, (), config.judge, Path(os.devnull), device=engine.device)
    )
