"""From the pipeline's model to a champion that is served: the real commands, in a clone, and a fresh environment without one."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from mlflow import MlflowClient

from tests.bento.environments import make_environment
from tests.browser import needs_browser, running_browser
from tests.end_to_end.conftest import ROOT, Clone
from tests.ports import free_port
from tests.serving import process
from tests.serving.asking import events
from tests.serving.test_page import ask
from tests.waiting import LIMIT, until

PACKAGES = ".prosemill/mlflow/artifacts/models"
PREDICT = """
import json, mlflow, pandas as pd
model = mlflow.pyfunc.load_model("models:/prosemill@champion")
texts = model.predict(pd.DataFrame({"prompt": ["def main(", "import"]}), params={"max_new_tokens": 8, "seed": 1})
print(json.dumps(list(texts["generated_text"])))
import prosemill
print(prosemill.__file__)
"""


@pytest.fixture(scope="module")
def champion(clone: Clone) -> Clone:
    """A workspace whose version 1 is promoted."""
    assert "version 1 is the champion" in clone.run("prosemill", "promote")
    return clone


@pytest.fixture(scope="module")
def second(champion: Clone) -> Clone:
    """The same, with the model registered as version 2 as well, with a package of its own."""
    client = MlflowClient(store(champion))
    first = client.get_model_version("prosemill", "1")
    (package,) = champion.folder.glob(f"{PACKAGES}/{str(first.source).rpartition('/')[2]}")
    copy = shutil.copytree(package, package.with_name("second"))
    made = client.create_model_version("prosemill", f"file://{copy}/artifacts", first.run_id, tags=first.tags)
    assert str(made.version) == "2"
    return champion


@pytest.fixture(scope="module")
def served(champion: Clone) -> Iterator[tuple[str, int]]:
    """The address of a `bentoml serve` with the base model beside the champion, and its process."""
    port = free_port()
    with serving(champion, port, PROSEMILL_BASE="models/base") as process:
        yield f"http://127.0.0.1:{port}", process.pid


def serve(clone: Clone, *options: str) -> str:
    """What a `bentoml serve` that does not start says."""
    return process.refusal(*options, folder=clone.folder, environment=clone.environment)


def serving(clone: Clone, port: int, log: Path | None = None, **environment: str) -> "AbstractContextManager[subprocess.Popen[bytes]]":
    """A `bentoml serve` that is ready."""
    return process.serving(port, folder=clone.folder, environment=clone.environment | environment, log=log)


@contextmanager
def altered(clone: Clone, package: str = "*") -> Iterator[None]:
    """Have the weights of a registered package, or of each, end in another byte while the block runs."""
    found = clone.folder.glob(f"{PACKAGES}/{package}/artifacts/artifacts/*/model.safetensors")
    contents = {weights: weights.read_bytes() for weights in found}
    assert contents
    try:
        for weights, content in contents.items():
            weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        yield
    finally:
        for weights, content in contents.items():
            weights.write_bytes(content)


def test_the_pipelines_model_is_registered_once_and_promoted(champion: Clone) -> None:
    assert "these weights are version 1 already" in champion.run("prosemill", "register")
    output = champion.run("prosemill", "versions")
    assert ["1", "champion"] in [line.split()[:2] for line in output.splitlines()]
    assert "version 1 is the champion already" in champion.run("prosemill", "promote", "1", fails=True)
    assert champion.run("prosemill", "rollback", fails=True).startswith("error: there is no previous_champion")


def test_the_lineage_of_a_real_run_is_whole(champion: Clone) -> None:
    lines = champion.run("prosemill", "lineage", "1").splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["verified"] * 12
    commit = champion.run("git", "rev-parse", "HEAD").strip()
    assert any(commit[:12] in line and "its code is what the stages ran" in line for line in lines)
    assert "version 7 of prosemill is not in the registry" in champion.run("prosemill", "lineage", "7", fails=True)


def test_the_readmes_python_speaks_with_the_champion(champion: Clone) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert "generated_text" in champion.run(sys.executable, "-c", code)


def test_the_next_version_is_promoted_and_the_way_back_is_one_command(second: Clone) -> None:
    second.compose("gate.min_improvement=0")
    try:
        output = second.run("prosemill", "promote", "2")
    finally:
        second.compose()
    assert "version 2 is the champion" in output
    assert "version 1 has" in output
    assert "version 1 is the champion again, version 2 no more" in second.run("prosemill", "rollback")
    assert "rolled back" in second.run("prosemill", "versions")


def store(clone: Clone) -> str:
    """The registry of a clone."""
    return f"sqlite:///{clone.folder / '.prosemill/mlflow/mlflow.db'}"


def test_bentoml_serves_the_champion_on_this_machine_alone(champion: Clone, served: tuple[str, int]) -> None:
    address, pid = served
    wanted: dict[str, Any] = {"prompt": "def main(", "max_new_tokens": 8, "seed": 1}
    answers = [requests.post(f"{address}/generate", json=wanted, timeout=LIMIT).json() for _ in range(2)]
    assert answers[0]["generated_text"] == answers[1]["generated_text"]
    assert answers[0]["model_version"] == 1
    assert champion.run("git", "rev-parse", "HEAD")[:12] in champion.run("prosemill", "lineage", answers[0]["id"])
    with requests.post(f"{address}/generate/stream", json=wanted, timeout=LIMIT, stream=True) as streamed:
        pieces = [data["text"] for name, data in events(streamed) if name == "text"]
    assert "".join(pieces) == answers[0]["generated_text"]
    assert [model["id"] for model in requests.get(f"{address}/v1/models", timeout=LIMIT).json()["data"]] == ["prosemill"]
    metrics = requests.get(f"{address}/metrics", timeout=LIMIT).text
    assert re.search(r"^prosemill_new_tokens_total [1-9]", metrics, re.MULTILINE), metrics
    for headers, status in (({"Host": "evil.example"}, 403), ({"Origin": "http://evil.example"}, 403)):
        for path in ("/generate", "/metrics", "/docs.json", "/"):
            assert requests.get(address + path, headers=headers, timeout=LIMIT).status_code == status
    assert requests.post(f"{address}/generate", data="{}", headers={"Content-Type": "text/plain"}, timeout=LIMIT).status_code == 415
    processes = psutil.Process(pid).children(recursive=True)
    sockets = [each for one in (psutil.Process(pid), *processes) for each in one.net_connections("inet")]
    listening = {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


@needs_browser
def test_people_ask_the_champion_and_its_base_model_on_the_page(served: tuple[str, int]) -> None:
    address, _ = served
    with running_browser() as browser:
        browser.open(f"{address}/ui")
        browser.shows("tiny", "version 1", "bits per byte", "the trained model is")
        ask(browser, "def main(", new_tokens=40)
        browser.shows("answer-v1-")
        texts = [browser.find(f"//*[@id='{part}']//p").text for part in ("answer", "base-answer")]
        assert all(text.startswith("def main(") for text in texts)
        assert texts[0] != texts[1]
        assert f"http://{','.join(browser.hosts())}" == address
        browser.picture("ui")


def test_another_champion_takes_its_place_while_it_is_asked_unless_it_is_broken(second: Clone, tmp_path: Path) -> None:
    champion = second
    port, client, answers, ends = free_port(), MlflowClient(store(champion)), list[requests.Response](), threading.Event()
    body: dict[str, Any] = {"prompt": "def main(", "max_new_tokens": 30}
    log = tmp_path / "log"

    def go_on() -> None:
        while not ends.is_set():
            answers.append(requests.post(f"http://127.0.0.1:{port}/generate", json=body, timeout=LIMIT))

    with serving(champion, port, log, PROSEMILL_FOLLOW_SECONDS="1"), ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(go_on) for _ in range(4)]
        try:
            with altered(champion, "second"):
                client.set_registered_model_alias("prosemill", "champion", "2")
                until(lambda: "the champion is not served" in log.read_text(), "it is said that it is broken")
                num_answers = len(answers)
                until(lambda: len(answers) > num_answers + 4, "the first version goes on")
                assert {answer.json()["model_version"] for answer in answers} == {1}
                (line,) = [line for line in log.read_text().splitlines() if "the champion is not served" in line]
                assert "version 2 was altered after it was registered" in line
                assert "version 1 goes on" in line
            until(lambda: bool(answers) and answers[-1].json().get("model_version") == 2, "the other version is served")
        finally:
            client.set_registered_model_alias("prosemill", "champion", "1")
        until(lambda: bool(answers) and answers[-1].json().get("model_version") == 1, "the first version is served again")
        ends.set()
        for each in asking:
            each.result()  # raises what a client has met
    assert {answer.status_code for answer in answers} == {200}
    assert "Traceback" not in log.read_text()


def test_an_altered_champion_is_not_served(champion: Clone) -> None:
    with altered(champion):
        assert "was altered after it was registered" in serve(champion)


def test_a_service_that_others_could_reach_does_not_start(champion: Clone) -> None:
    assert "must not listen on 0.0.0.0" in serve(champion, "--host", "0.0.0.0")  # noqa: S104


def test_the_champion_speaks_where_its_requirements_alone_are_installed_and_no_checkout_is(champion: Clone, tmp_path: Path) -> None:
    (requirements,) = list((champion.folder / ".prosemill/mlflow/artifacts/models").glob("*/artifacts/requirements.txt"))[:1]
    python = make_environment(tmp_path / "environment", requirements)
    (tmp_path / "elsewhere").mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["MLFLOW_TRACKING_URI"] = store(champion)
    finished = subprocess.run(
        [python, "-c", PREDICT], cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    texts, code = finished.stdout.strip().splitlines()[-2:]
    assert all(isinstance(text, str) and text for text in json.loads(texts))
    assert Path(code).is_relative_to(champion.folder / ".prosemill/mlflow/artifacts/models"), "the package's own code, not an installed one"
