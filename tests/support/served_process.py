"""Server in a process of its own: starts one, and waits until it says that it serves."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO


def start_process(
    command: Sequence[object], environment: Mapping[str, str], stderr: int | IO[str] = subprocess.PIPE
) -> tuple[subprocess.Popen[str], str]:
    """The process and its address, once it serves; its standard output is read so far. It has one thread of
    torch's, and what `environment` adds to ours."""
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert process.stdout is not None
    url = re.search(r"http://\S+?:\d+", process.stdout.readline())
    assert url is not None
    while "try" not in (line := process.stdout.readline()):
        assert line, process.communicate()[1]
    return process, url[0]
