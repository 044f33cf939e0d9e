"""Commands of the examples tell users' errors in one line, and leave."""

from __future__ import annotations

import importlib

import pytest

MISSING = "no/such/file"
REFUSED = {
    "examples.gold --only nonsense": (2, "no step nonsense"),
    "examples.gold.ceiling": (2, "name a file or more"),
    f"examples.gold.ceiling {MISSING}": (1, MISSING),
    "examples.gold.table": (2, "name a file or more"),
    f"examples.gold.table {MISSING}": (1, f"{MISSING}: cannot be read as JSON"),
    f"examples.gold.forecasts --rollouts x --model {MISSING}": (1, MISSING),
    f"examples.gold.inputs --rollouts x --model {MISSING}": (1, MISSING),
    f"examples.gold.set_point head {MISSING} --model {MISSING}": (1, MISSING),
    "examples.heads --only nonsense": (2, "no head nonsense"),
    f"examples.heads.reading --plain {MISSING} --others {MISSING} --out x": (1, MISSING),
    f"examples.heads.replies {MISSING}": (1, MISSING),
    f"examples.reasoning {MISSING}": (1, MISSING),
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_done_is_one_line(line: str, capsys: pytest.CaptureFixture[str]):
    module, *args = line.split()
    code, told = REFUSED[line]
    name = f"{module}.__main__" if module.count(".") == 1 else module
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(name).main(args)
    assert ended.value.code == code
    (complaint,) = capsys.readouterr().err.splitlines()
    assert told in complaint


@pytest.mark.parametrize(("of", "flag"), [("forecasts", "--forms"), ("inputs", "--inputs")])
def test_a_form_that_there_is_not_is_no_form(of: str, flag: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(f"examples.gold.{of}").main(["--rollouts", "x", flag, "gru", "mlpp"])
    assert flag in capsys.readouterr().err
