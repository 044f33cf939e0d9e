"""Servers under load: started in process groups of their own, and stopped while others have their turn."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

READY_SECONDS = 600.0


class Server:
    """A command that serves on a port. It is stopped (SIGSTOP) once it is ready, and goes on while it is used
    as a context manager.

    environment: beside this process's own.
    """

    def __init__(
        self, command: Sequence[str], port: int, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.url, self._log, self._name = f"http://127.0.0.1:{port}", log, " ".join(command)
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | (environment or {}),
                start_new_session=True,
            )

    def wait(self) -> Server:
        """Until it answers. Raises SystemExit, with the end of its log, where it ends or takes too long."""
        deadline = time.monotonic() + READY_SECONDS
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                end = self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise SystemExit(f"{self._name} did not get ready; its log ends in\n{end}")
            time.sleep(0.2)
        self._signal(signal.SIGSTOP)
        return self

    def __enter__(self) -> Server:
        self._signal(signal.SIGCONT)
        return self

    def __exit__(self, *_: object) -> None:
        self._signal(signal.SIGSTOP)

    @property
    def loop_seconds(self) -> float:
        """That the process's main thread, in which the event loop of HTTP runs, has been on a core so far."""
        process = self._process.pid
        told = Path(f"/proc/{process}/task/{process}/schedstat").read_text(encoding="ascii")
        return int(told.split()[0]) / 1e9

    def close(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _is_ready(self) -> bool:
        try:
            with urlopen(f"{self.url}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def _signal(self, number: signal.Signals) -> None:
        """To the whole group: vLLM's engine is a process of its own."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return


def ours(model: Path, heads: Path, head: str, max_num_seqs: int, max_model_len: int, log: Path) -> Server:
    """This checkout's, guided by the head at strength 1 where a request says nothing."""
    port = free_port()
    command = [sys.executable, "-m", "trimtab.server.cli", "serve", "--port", str(port)]
    command += ["--model", str(model), "--heads", str(heads), "--default-head", head]
    command += ["--default-strength", "1", "--dtype", "float32", "--max-num-seqs", str(max_num_seqs)]
    return Server([*command, "--max-model-len", str(max_model_len)], port, log)


def vllm(python: Path, model: Path, max_num_seqs: int, max_model_len: int, log: Path) -> Server:
    """vLLM's, from its own virtual environment, with its own defaults beside the same sizes."""
    port, cores = free_port(), sorted(os.sched_getaffinity(0))
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--max-num-seqs", str(max_num_seqs), "--no-enable-log-requests"]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}-{cores[-1]}",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return Server([*command, "--max-model-len", str(max_model_len)], port, log, environment)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
