"""The command line as a whole: exit codes, one-line complaints, and help that is quick."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from trimtab.server.cli import COMMANDS, main


def complaint(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    code = main(args)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("trimtab: ")
    return code, lines[0]


def test_the_overview_names_every_command(capsys):
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"  {name} " in overview for name in COMMANDS)


def test_an_unknown_command_is_named_with_the_known_ones(capsys):
    code, line = complaint(capsys, "sreve")
    assert code == 2
    assert "'sreve'" in line
    assert "serve" in line


@pytest.mark.parametrize("command", ["serve", "chat", "heads"])
def test_help_needs_no_torch(command):
    script = (
        "import sys; from trimtab.server.cli import main\n"
        f"try: main(['{command}', '--help'])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, 'fastapi' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"
    assert "usage: trimtab" in done.stdout


def test_a_taken_port_is_told_before_anything_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = complaint(capsys, "serve", "--model", "no/such/model", "--port", str(port))
    assert code == 1
    assert str(port) in line
    assert "--port" in line


def test_a_host_that_is_not_ours_is_told(capsys):
    code, line = complaint(capsys, "serve", "--model", "no/such/model", "--host", "203.0.113.1")
    assert code == 1
    assert "203.0.113.1" in line


def test_a_chat_template_that_is_not_there_is_told(capsys):
    code, line = complaint(capsys, "serve", "--model", "m", "--chat-template", "no/such.jinja")
    assert code == 1
    assert "no/such.jinja" in line


def test_a_server_that_is_not_there_is_told(capsys):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code, line = complaint(capsys, "chat", "--url", f"http://127.0.0.1:{port}")
    assert code == 1
    assert str(port) in line
    assert "trimtab serve" in line


@pytest.mark.parametrize(("flag", "value"), [("--port", "65536"), ("--max-num-seqs", "0")])
def test_a_value_that_is_refused_is_told_in_one_line(capsys, flag, value):
    code, line = complaint(capsys, "serve", flag, value)
    assert code == 2
    assert value in line
    assert "trimtab serve --help" in line


@pytest.mark.parametrize("flags", [["--port", "x"], ["--frobnicate"]])
def test_flags_that_are_not_understood_exit_with_2(flags):
    with pytest.raises(SystemExit) as stopped:
        main(["serve", *flags])
    assert stopped.value.code == 2
