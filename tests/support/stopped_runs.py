"""Commands that are killed in the midst of their work, in a process of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

STOPPED = """
import os, signal, sys
from pathlib import Path
import {module} as module
from trimtab.server.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
calls, real = 0, {owner}.{name}

def stop(*args, **options):
    global calls
    calls += 1
    if calls > {count}:
        os.kill(os.getpid(), {signal})
    return real(*args, **options)

{owner}.{name} = stop
sys.exit(main(sys.argv[1:]))
"""


def stopped(at: str, count: int, command: list[str], kill: signal.Signals = signal.SIGKILL) -> str:
    """Runs the command until it calls `at`, module:name, more than `count` times; returns what it told."""
    module, _, path = at.partition(":")
    owner, _, name = f"module.{path}".rpartition(".")
    script = STOPPED.format(module=module, owner=owner, name=name, count=count, signal=int(kill))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *command], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == (-kill if kill is signal.SIGKILL else 130), done.stderr
    return done.stderr
