"""`trimtab heads`: what head folders hold, and heads to and from others."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.guidance.errors import UsageError
from trimtab.server.commands.heads.config import (
    ExportRewardConfig,
    ImportRewardConfig,
    ListConfig,
    PullConfig,
    PushConfig,
    RescaleConfig,
    ShowConfig,
)
from trimtab.server.commands.log import show_log
from trimtab.server.flags import parse

Action = (
    ListConfig
    | ShowConfig
    | PushConfig
    | PullConfig
    | ExportRewardConfig
    | ImportRewardConfig
    | RescaleConfig
)
ACTIONS: dict[str, type[Action]] = {
    "list": ListConfig,
    "show": ShowConfig,
    "push": PushConfig,
    "pull": PullConfig,
    "export-reward": ExportRewardConfig,
    "import-reward": ImportRewardConfig,
    "rescale": RescaleConfig,
}
USAGE = """\
usage: trimtab heads list [FOLDER ...]    lists head folders; without one, the bundled heads
       trimtab heads show HEAD            shows one: a folder, or the name of a bundled head
       trimtab heads push HEAD PLACE      publishes one with a card, to the hub (user/name) or a folder
       trimtab heads pull PLACE FOLDER    fetches a published one, and makes sure that it is whole
       trimtab heads export-reward HEAD   writes its reward as a transformers …ForSequenceClassification
       trimtab heads import-reward MODEL  makes a head with a reward of such a model
       trimtab heads rescale HEAD         sets its scale anew, so that a unit of strength costs what it should

`trimtab heads push --help` and so on list the options of each.
"""


def main(prog: str, args: Sequence[str]) -> None:
    """Does one of ACTIONS. Raises UserError, HeadError, PolicyError or DataError with one line."""
    if args and args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    if not args or args[0] not in ACTIONS:
        raise UsageError(f"say what to do with heads: {', '.join(ACTIONS)}")
    config = parse(ACTIONS[args[0]], f"{prog} {args[0]}", args[1:])
    show_log()
    _run(config)


def _run(config: Action) -> None:
    match config:
        case ListConfig() | ShowConfig():
            from trimtab.server.commands.heads.show import show  # noqa: PLC0415 (bad flags are told before)

            show(config)
        case PushConfig():
            from trimtab.server.commands.heads.share import push  # noqa: PLC0415 (heavy)

            push(config)
        case PullConfig():
            from trimtab.server.commands.heads.share import pull  # noqa: PLC0415 (heavy)

            pull(config)
        case ExportRewardConfig():
            from trimtab.server.commands.heads.reward import export  # noqa: PLC0415 (heavy)

            export(config)
        case ImportRewardConfig():
            from trimtab.server.commands.heads.reward import import_  # noqa: PLC0415 (heavy)

            import_(config)
        case RescaleConfig():
            from trimtab.server.commands.heads.scale import rescale  # noqa: PLC0415 (heavy)

            rescale(config)
