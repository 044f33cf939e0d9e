"""What `trimtab COMMAND --help` tells."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping

import pytest

from trimtab.server.commands.chat.config import ChatConfig
from trimtab.server.commands.eval.config import EvalConfig
from trimtab.server.commands.features.config import FeaturesConfig
from trimtab.server.commands.fit.config import FitConfig
from trimtab.server.commands.heads.main import ACTIONS
from trimtab.server.commands.label.config import LabelConfig
from trimtab.server.commands.rollouts.config import RolloutsConfig
from trimtab.server.commands.serve.config import ServeConfig
from trimtab.server.commands.train.config import TrainCommandConfig
from trimtab.server.flags import describe, parse
from trimtab.server.rollouts.tuned import TrainLoraConfig

COMMANDS = (ServeConfig, ChatConfig, RolloutsConfig, LabelConfig, FeaturesConfig, EvalConfig, FitConfig)
CONFIGS = (*COMMANDS, TrainCommandConfig, TrainLoraConfig, *ACTIONS.values())


def undescribed(config: type, given: Mapping[str, str]) -> Iterator[str]:
    help_of = describe(config)[1]
    for name, kind in typing.get_type_hints(config).items():
        if dataclasses.is_dataclass(kind):
            yield from undescribed(kind, help_of)
        elif name not in help_of and name not in given:
            yield f"{config.__name__}.{name}"


@pytest.mark.parametrize("config", CONFIGS)
def test_every_flag_is_described(config):
    assert not list(undescribed(config, {}))


@pytest.mark.parametrize(
    ("config", "groups"),
    [
        (ServeConfig, {"access": "--api-keys", "engine": "--model"}),
        (RolloutsConfig, {"engine": "--block-size", "judge": "--judge-url", "row": "--columns"}),
        (FeaturesConfig, {"engine": "--kv-cache-gib", "row": "--max-tokens"}),
    ],
)
def test_a_command_shows_its_own_options_first_and_the_engines_in_a_group(config, groups, capsys):
    with pytest.raises(SystemExit):
        parse(config, "trimtab", ["--help"])
    _, first, own, *others = re.split(
        r"^[^\w\n]*(\w+ |)options[^\w\n]*$", capsys.readouterr().out, flags=re.M
    )
    shown = {title.strip(): text for title, text in zip(others[::2], others[1::2], strict=True)}
    assert (first, list(shown)) == ("", list(groups))
    for title, flag in groups.items():
        assert f" {flag} " in shown[title]
        assert f" {flag} " not in own
