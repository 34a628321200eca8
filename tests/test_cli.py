"""The command line answers at once, and a user's mistake is one line."""

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prosemill.errors import ProsemillError, run_main

PROGRAM = str(Path(sys.executable).with_name("prosemill"))
HEAVY = ("torch", "transformers", "datasets", "mlflow", "peft", "pyarrow", "numpy", "matplotlib")


@pytest.mark.parametrize(
    "command", [["-c", "import prosemill"], [PROGRAM, "--help"], [PROGRAM, "params"], [PROGRAM, "report"], [PROGRAM, "ui", "--help"]]
)
def test_no_command_imports_what_it_does_not_need(command: list[str], tmp_path: Path) -> None:
    traced = subprocess.run([sys.executable, "-X", "importtime", *command], cwd=tmp_path, capture_output=True, text=True, check=False)
    imported = {line.rpartition("|")[2].strip() for line in traced.stderr.splitlines() if line.startswith("import time:")}
    assert "prosemill" in imported
    assert not imported & set(HEAVY)


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ProsemillError("a.txt is empty:\n  fill it"), "error: a.txt is empty: fill it\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "data/x"),
            "error: the disk is full while writing data/x: free some space and run the same command again\n",
        ),
        (KeyboardInterrupt(), "error: interrupted; run the same command again to go on\n"),
    ],
)
def test_a_mistake_ends_in_one_line_and_status_1(error: BaseException, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_main(raising(error))
    assert ended.value.code == 1
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EACCES, "Permission denied", "x"), AssertionError()])
def test_a_bug_keeps_its_stack_trace(error: BaseException) -> None:
    with pytest.raises(type(error)):
        run_main(raising(error))
