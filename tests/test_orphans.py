"""A stage ends with the DVC that runs it, and with nobody else."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from prosemill.orphans import end_with_dvc
from tests.waiting import LIMIT

STAGE = """
import sys, time
from prosemill.orphans import end_with_dvc
end_with_dvc()
print("watching", flush=True)
time.sleep(600)
"""
DVC = """
import subprocess, sys
subprocess.run(["/bin/sh", "-c", f"{sys.executable} stage.py; true"])  # the shell stays, as DVC's does
"""


@pytest.fixture
def stage(tmp_path: Path, request: pytest.FixtureRequest) -> "tuple[subprocess.Popen[str], psutil.Process]":
    """Something like DVC, and the stage below it, which watches already."""
    (tmp_path / "stage.py").write_text(STAGE, encoding="utf-8")
    root = str(Path(__file__).parents[1])
    environment = {key: value for key, value in os.environ.items() if key != "DVC_STAGE"} | {"PYTHONPATH": root} | request.param
    dvc = subprocess.Popen([sys.executable, "-c", DVC], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert dvc.stdout is not None
    assert dvc.stdout.readline() == "watching\n"
    (found,) = [process for process in psutil.Process(dvc.pid).children(recursive=True) if process.name() != "sh"]
    return dvc, found


@pytest.mark.parametrize("stage", [{"DVC_STAGE": "train"}], indirect=True)
def test_a_stage_whose_dvc_was_killed_ends(stage: "tuple[subprocess.Popen[str], psutil.Process]") -> None:
    dvc, process = stage
    dvc.send_signal(signal.SIGKILL)
    psutil.wait_procs([process], timeout=LIMIT)  # dvc is not waited for, so it stays a zombie
    assert not process.is_running()
    dvc.wait()


@pytest.mark.parametrize("stage", [{}], indirect=True)
def test_a_program_that_dvc_does_not_run_outlives_what_started_it(stage: "tuple[subprocess.Popen[str], psutil.Process]") -> None:
    dvc, process = stage
    dvc.send_signal(signal.SIGKILL)
    dvc.wait()
    time.sleep(3)
    try:
        assert process.is_running()
    finally:
        process.kill()


def test_a_stage_whose_dvc_died_before_it_looked_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setenv("DVC_STAGE", "train")
    monkeypatch.setattr(psutil.Process, "parents", lambda _: [psutil.Process(1)])
    monkeypatch.setattr(psutil.Process, "name", lambda _: "init")
    monkeypatch.setattr(psutil.Process, "cmdline", lambda _: ["/sbin/init"])
    monkeypatch.setattr(os, "kill", lambda _, number: sent.append(number))
    end_with_dvc()
    assert sent == [signal.SIGTERM]
