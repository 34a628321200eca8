"""A `bentoml serve` in a process of its own, as a user starts it."""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import requests

from tests.ports import free_port
from tests.waiting import LIMIT, until


@contextmanager
def starting(
    command: Sequence[str], *, folder: Path, environment: Mapping[str, str], log: Path | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """What was started in a folder, until the block ends; what it prints goes to the log, if there is one."""
    with ExitStack() as stack:
        output = None if log is None else stack.enter_context(log.open("wb"))
        process = stack.enter_context(subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output))
        stack.callback(process.terminate)
        yield process


@contextmanager
def serving(
    port: int, *arguments: str, folder: Path, environment: Mapping[str, str], python: str = sys.executable, log: Path | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """One that was started as `starting` does and is ready."""
    with starting(_command(port, *arguments, python=python), folder=folder, environment=environment, log=log) as process:
        until(lambda: process.poll() is not None or is_ready(port), "the service is ready")
        assert process.poll() is None, log and log.read_text()
        yield process


def refusal(*arguments: str, folder: Path, environment: Mapping[str, str], python: str = sys.executable) -> str:
    """What one that does not start says."""
    command = _command(free_port(), *arguments, python=python)
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.stderr


def is_ready(port: int) -> bool:
    """Whether a service answers there, and can answer requests."""
    try:
        return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=5).ok
    except requests.RequestException:
        return False


def _command(port: int, *arguments: str, python: str) -> list[str]:
    return [python, "-m", "bentoml", "serve", "--port", str(port), *arguments]
