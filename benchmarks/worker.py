"""Worker of a peer: a script in another virtual environment, a JSON job a line in, an answer a line out.

Stopped between its jobs: its idle threads take time from others.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

Answer = dict[str, Any]


class Worker:
    """`python script *arguments`, which says its `version` first. path: folders that it imports from."""

    def __init__(self, python: Path, script: str, *arguments: object, path: tuple[Path, ...] = ()) -> None:
        self._name = Path(script).stem
        self._process = subprocess.Popen(
            [str(python), "-P", script, *map(str, arguments)],  # a module beside it may bear a package's name
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | ({"PYTHONPATH": os.pathsep.join(map(str, path))} if path else {}),
        )
        self.version: str = self._read()["version"]
        self._process.send_signal(signal.SIGSTOP)

    def ask(self, job: Mapping[str, Any]) -> Answer:
        """Raises RuntimeError where the worker has died."""
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # it has died: there will be no answer
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        answer = self._read()
        self._process.send_signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> Answer:
        stdout: IO[str] | None = self._process.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} has ended with code {self._process.wait()}")
        answer: Answer = json.loads(line)
        return answer
