"""Command line: runs `trimtab COMMAND`, and tells users' errors in one line."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from trimtab.guidance.errors import TOLD, UsageError
from trimtab.server.engine.request import InvalidRequestError

COMMANDS = {
    "serve": "answer OpenAI-style requests over HTTP from a model, steered by heads",
    "chat": "talk to a model in the terminal and turn its knobs between replies",
    "heads": "list, show, publish and fetch heads; rewards to and from classification models",
    "fit": "a head from a reward or preferences in one command: sample, score, train, judge",
    "rollouts": "sample replies to a prompt file, score them, make training rows of them",
    "label": "have a judge model compare replies by a written constitution",
    "features": "run the policy once over training replies and keep what heads read",
    "train": "train a head from preferences, thumbs, rankings, scored replies, or by RLHF",
    "eval": "judge heads: accuracy, reward against KL beside baselines, variety, sycophancy",
}
"""Each is a module `commands/<name>/main.py` with main(prog, args); imported only when asked for."""

OVERVIEW = f"""usage: trimtab COMMAND [OPTIONS]

Serves a frozen language model and steers every token it samples: the policy rows, the head steers.

{chr(10).join(f"  {name:10}{about}" for name, about in COMMANDS.items())}

`trimtab COMMAND --help` lists a command's options. To begin:

  trimtab serve     SmolLM2-135M-Instruct with its heads, on http://127.0.0.1:8000
  trimtab chat      the same in the terminal
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns its exit code: 1 for what went wrong, 2 for a command line not understood."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(OVERVIEW, end="")
        return 0 if args else 2
    if args[0] not in COMMANDS:
        return _complain(f"no command {args[0]!r}; commands are {', '.join(COMMANDS)}", 2)
    try:
        command = importlib.import_module(f"trimtab.server.commands.{args[0]}.main")
        command.main(f"trimtab {args[0]}", args[1:])
    except UsageError as error:
        return _complain(f"{error}; see `trimtab {args[0]} --help`", 2)
    except (*TOLD, InvalidRequestError) as error:
        return _complain(str(error), 1)
    except BrokenPipeError:  # whoever read our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        sys.stdout.flush()
        os._exit(130)  # a thread may be inside torch, where the interpreter's orderly end would crash
    return 0


def _complain(message: str, code: int) -> int:
    print(f"trimtab: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
