"""Nobody is called: the libraries behind our rooms are imported and used under two spies.

One is a hook on every socket that Python opens. The other is a proxy that the environment names, for native code and for programs that a
library starts with an environment of its own, as DVC does to send its reports.
"""

import json
import os
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from prosemill.telemetry import SWITCHES, switch_off
from tests.generation.models import VLLM_FAMILIES, VLLM_WIDTH, draw, folder_of, needs_vllm
from tests.waiting import LIMIT

ROOT = Path(__file__).resolve().parents[1]

# Runs in every Python process that the program starts. A hook cannot be removed, and it sees the call before the network does.
SPY = """
import os, sys
EVENTS = {"socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyname_ex"}
INSIDE = ("127.", "localhost", "::1", "/")
def spy(event, arguments):
    if event in EVENTS:
        place = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
        host = place[0] if isinstance(place, tuple) else place
        host = host.decode(errors="replace") if isinstance(host, bytes) else host
        if host and not str(host).startswith(INSIDE):
            with open(os.environ["SPY_REPORT"], "a") as report:
                report.write(f"{event} {host}\\n")
            raise OSError("the spy lets nobody out")
sys.addaudithook(spy)
"""

IMPORT_AND_USE = """
import os, pathlib, sys
from prosemill.errors import run_main

def main():
    import datasets, evaluate, mlflow, peft, torch, transformers
    from prosemill.evaluation.overlap import load_module
    from prosemill.pretrained import load_model, load_tokenizer
    from prosemill.tracking import open_run
    folder = pathlib.Path(sys.argv[1])
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    model.generate(**tokenizer("a", return_tensors="pt"), max_new_tokens=2)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained("adapter")
    datasets.Dataset.from_dict({"text": ["a", "b"]}).map(lambda row: {"length": len(row["text"])})
    assert load_module("bleu").compute(predictions=["a b c d"], references=["a b c d"])["bleu"] == 1.0
    with open_run("0" * 16, name="spied") as run:
        run.log_params({"a": 1})
        run.log_metrics({"loss": 1.0}, step=1)
    print("done")

run_main(main)
"""

WRITE_WITH_VLLM = """
import pathlib, sys
from prosemill.errors import run_main

def main():
    from prosemill.generation.writer import Writer
    with Writer.open(pathlib.Path(sys.argv[1]), precision="fp32", num_rows=1, engine="vllm") as writer:
        writer.warm_up()
    print("done")

run_main(main)
"""

DVC = """
import subprocess, sys
from prosemill.errors import run_main

def main():
    for command in (["init", "--no-scm", "--quiet"], ["stage", "add", "-n", "one", "-o", "out", "touch out"], ["repro"], ["status"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], check=True, capture_output=True)
    print("done")

run_main(main)
"""

KNOCK = """
import socket, subprocess, sys
for call in (lambda: socket.create_connection(("192.0.2.1", 80), 0.2), lambda: socket.getaddrinfo("example.invalid", 80)):
    try:
        call()
    except OSError:
        pass
if len(sys.argv) == 2:
    subprocess.run([sys.executable, __file__, "again", "again"], check=True)
    code = "import urllib.request as r; r.urlopen('https://example.invalid')"
    subprocess.Popen([sys.executable, "-I", "-c", code], stderr=subprocess.DEVNULL)  # as a library's sender: isolated, left behind
print("done")
"""


class Proxy(socketserver.ThreadingTCPServer):
    """Writes down the first line of every request and closes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Refuse)
        self.asked: list[str] = []


class Refuse(socketserver.StreamRequestHandler):
    server: Proxy

    def handle(self) -> None:
        self.server.asked.append(self.rfile.readline().decode(errors="replace").strip())


@pytest.fixture
def spied(workspace: Path) -> Iterator["Spied"]:
    """Runs programs under both spies."""
    with Proxy() as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        yield Spied(workspace, proxy)
        proxy.shutdown()
        thread.join()


class Spied:
    def __init__(self, folder: Path, proxy: Proxy) -> None:
        self.folder, self._proxy = folder, proxy
        (folder / "spy").mkdir()
        (folder / "spy" / "sitecustomize.py").write_text(SPY)

    def run(self, program: str, argument: str = "") -> list[str]:
        """Run a program as a user would who has set nothing; returns whom it and its children tried to reach."""
        (self.folder / "program.py").write_text(program)
        report = self.folder / "report"
        report.unlink(missing_ok=True)
        command = [sys.executable, "program.py", argument]
        done = subprocess.run(command, env=self._environment(), capture_output=True, text=True, check=False, timeout=LIMIT)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "done"
        self._wait_for_stragglers()
        return [*(report.read_text().splitlines() if report.exists() else []), *self._proxy.asked]

    def _environment(self) -> dict[str, str]:
        # Libraries also keep still when they think that they are tested or run by a service.
        hidden = {*SWITCHES, "HF_HUB_OFFLINE", "CI", "GITHUB_ACTIONS", "NO_PROXY", "no_proxy"}
        kept = {name: value for name, value in os.environ.items() if name not in hidden and not name.startswith("PYTEST")}
        address = f"http://127.0.0.1:{self._proxy.server_address[1]}"
        proxies = dict.fromkeys(["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"], address)
        paths = {"SPY_REPORT": str(self.folder / "report"), "HOME": str(self.folder)}
        return {**kept, **proxies, **paths, "PYTHONPATH": f"{self.folder / 'spy'}{os.pathsep}{ROOT}"}

    def _wait_for_stragglers(self) -> None:
        """Wait for processes that the program left behind, such as a sender of reports."""
        end = time.monotonic() + 60
        while any(self._is_ours(process) for process in psutil.process_iter()):
            assert time.monotonic() < end
            time.sleep(0.1)

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("SPY_REPORT") == str(self.folder / "report")
        except psutil.Error:
            return False


def test_the_spies_see_a_knock_a_childs_knock_and_a_request(spied: Spied) -> None:
    hook = ["socket.getaddrinfo 192.0.2.1", "socket.getaddrinfo example.invalid"] * 2
    assert spied.run(KNOCK) == [*hook, "CONNECT example.invalid:443 HTTP/1.0"]


def test_importing_and_using_our_rooms_calls_nobody(spied: Spied, tiny_model: Path) -> None:
    assert spied.run(IMPORT_AND_USE, str(tiny_model)) == []


@needs_vllm
def test_writing_with_vllm_calls_nobody(spied: Spied, tiny_model: Path) -> None:
    model = draw(VLLM_FAMILIES[0], hidden_size=VLLM_WIDTH)
    assert spied.run(WRITE_WITH_VLLM, str(folder_of(model, tiny_model, spied.folder / "model"))) == []


def test_dvc_under_our_switches_calls_nobody(spied: Spied) -> None:
    assert spied.run(DVC) == []


def test_the_users_own_choice_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    switch_off()
    assert {name: os.environ[name] for name in SWITCHES} == {**SWITCHES, "MLFLOW_DISABLE_TELEMETRY": "false"}


def test_every_program_switches_off_before_it_begins() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    code = "import json, os; from prosemill.errors import run_main; run_main(lambda: print(json.dumps(dict(os.environ))))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert SWITCHES.items() <= json.loads(done.stdout).items()


def test_dvc_itself_is_switched_off_here() -> None:
    assert "analytics = false" in (ROOT / ".dvc" / "config").read_text()
