"""The pipeline as a flow, run by `python -m flows` in a clone: what its page gets, and what is left of it when it is ended in every way."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import yaml

from prosemill.registry.store import CHAMPION, Registry, State
from tests.conftest import environment
from tests.end_to_end.conftest import Clone
from tests.end_to_end.house import living
from tests.end_to_end.pipeline import outputs
from tests.end_to_end.prefect_api import PrefectApi, client_environment, serving
from tests.waiting import LIMIT, until

COMMENT = "I read it"
STAGES = ["download", "tokenize", "group", "train", "evaluate"]
STAND_IN = """
import shutil, time
from pathlib import Path
print("it trains", flush=True)
while not Path("go-on").exists():
    time.sleep(0.1)
shutil.copytree("kept", ".", dirs_exist_ok=True)
"""
LONG = ("-S", "train.max_steps=30000")  # some minutes of training


class Workspace:
    """A clone and the Prefect server that its flows report to."""

    def __init__(self, clone: Clone, api: PrefectApi) -> None:
        self.clone, self.api = clone, api
        self.environment = clone.environment | client_environment(api, clone.folder)

    def start(self, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        """Start the pipeline's flow; its output goes to the file `output` as well as it can be read while it runs."""
        with (self.clone.folder / ".prosemill/output").open("w", encoding="utf-8") as output:
            command = [sys.executable, "-m", "flows", *arguments]
            folder, merged = self.clone.folder, self.environment | variables
            return subprocess.Popen(command, cwd=folder, env=merged, stdout=output, stderr=subprocess.STDOUT, text=True)

    def output(self) -> str:
        """What the flow that was started last has printed so far."""
        return (self.clone.folder / ".prosemill/output").read_text(encoding="utf-8")

    def run(self, *arguments: str, fails: bool = False, **variables: str) -> str:
        """Run the pipeline's flow to its end; what it printed."""
        process = self.start(*arguments, **variables)
        code = process.wait(LIMIT)
        assert (code != 0) == fails, self.output()
        return self.output()

    def wait_for(self, text: str) -> None:
        """Wait until the flow that was started last has printed a text."""
        until(lambda: text in self.output(), f"{text!r} is not printed: {self.output()}")

    def newest(self) -> dict[str, Any]:
        """The flow run that was started last."""
        return self.api.flow_runs()[0]


def wait_for_end(processes: list[psutil.Process]) -> None:
    until(lambda: not living(set(processes)), "no process of the flow lives")


def start_promotion(workspace: Workspace, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
    """Start the flow `promotion`, once with each of the arguments; the first has ended or asks a person when this returns."""
    num_before = len(promotions(workspace))
    calls = "; ".join(f"promotion({each}, return_state=True)" for each in arguments)
    command = [sys.executable, "-c", f"from flows.promotion import promotion; {calls}"]
    process = subprocess.Popen(command, cwd=workspace.clone.folder, env=workspace.environment | variables, text=True)

    def is_so_far() -> bool:
        found = promotions(workspace)
        return len(found) > num_before and found[0]["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "PAUSED")

    until(is_so_far, f"the promotion neither ends nor asks: {promotions(workspace)}")
    return process


def promotions(workspace: Workspace) -> list[dict[str, Any]]:
    """Runs of the flow `promotion`, the newest first."""
    flows = workspace.api.call("POST", "/flows/filter", flows={"name": {"any_": ["promotion"]}})
    return [run for run in workspace.api.flow_runs() if run["flow_id"] in {flow["id"] for flow in flows}]


def num_refused(workspace: Workspace) -> int:
    """How many promotions were refused so far."""
    return sum(run["state"]["name"] == "Refused" for run in promotions(workspace))


def newest_promotion(workspace: Workspace) -> dict[str, Any]:
    return promotions(workspace)[0]


def tracked(workspace: Workspace) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{workspace.clone.folder}/.prosemill/mlflow/mlflow.db")


@contextmanager
def registry_of(workspace: Workspace) -> Iterator[Registry]:
    """The clone's registry."""
    with environment({"MLFLOW_TRACKING_URI": f"sqlite:///{workspace.clone.folder}/.prosemill/mlflow/mlflow.db"}):
        yield Registry.open()


def forget_champion(workspace: Workspace) -> None:
    """Have the registry be as before its first promotion, and before anybody decided on one."""
    tracked(workspace).delete_model_version_tag("prosemill", "1", "prosemill.decision")
    with registry_of(workspace) as registry:
        registry.set_alias(CHAMPION, None)
        registry.set_state(State())


def aliased(workspace: Workspace, alias: str) -> str | None:
    """The version that an alias names."""
    found = tracked(workspace).get_registered_model("prosemill").aliases.get(alias)
    return None if found is None else str(found)


@pytest.fixture(scope="module")
def workspace(clone: Clone) -> Iterator[Workspace]:
    """A copy of the finished workspace, and the server of its flows, which remembers the run that made it."""
    with serving(clone.folder, clone.environment) as (api, _):
        yield Workspace(clone, api)


def test_without_a_server_it_runs_on_one_of_its_own_and_leaves_nothing_behind(finished: Path) -> None:
    output = (finished / "output").read_text(encoding="utf-8")
    assert "page of this run" in output
    assert output.count("Finished in state Completed") >= len(STAGES)
    assert "Error" not in output, "nothing waits to be reported when the server ends"
    assert (finished / "left").read_text(encoding="utf-8") == "", "no process outlives the run"


def test_the_first_run_runs_everything_and_its_page_shows_it(workspace: Workspace) -> None:
    first = workspace.api.flow_runs()[-1]
    commit = workspace.clone.run("git", "rev-parse", "--short=7", "HEAD").strip()
    assert first["name"] == f"tiny on python-300 @ {commit}"
    assert first["state"]["message"] == "version 1 is registered and passes the gate"
    assert workspace.api.task_states(first["id"]) == dict.fromkeys([*STAGES, "register", "gate"], "Completed")
    artifacts = workspace.api.artifacts(first["id"])
    stages = json.loads(artifacts["stages"]["data"])
    assert [(row["stage"], row["result"]) for row in stages] == [(stage, "ran") for stage in STAGES]
    assert artifacts["train-progress"]["data"] == 100
    assert {"metrics", "report", "gate", "mlflow-run", "registered-version", "tokenize-progress"} <= set(artifacts)
    assert json.loads(artifacts["metrics"]["data"])[0]["metric"] == "bits per byte"
    assert artifacts["report"]["data"].count("](data:image/png;base64,") == 3
    assert "| bits per byte |" in artifacts["gate"]["data"]


def test_the_page_gets_the_stages_lines_without_bars(workspace: Workspace) -> None:
    first = workspace.api.flow_runs()[-1]
    lines = workspace.api.logs(first["id"])
    assert "> python -m stages.train" in lines
    assert any(line.startswith("train: 20/20 steps") for line in lines)
    assert not [line for line in lines if "%|" in line or "\r" in line]


def decide(workspace: Workspace, *, accept: bool) -> None:
    """Answer the newest promotion, as soon as it asks."""
    until(lambda: newest_promotion(workspace)["state"]["type"] == "PAUSED", "a promotion asks")
    run = newest_promotion(workspace)["id"]
    assert "| bits per byte |" in workspace.api.artifacts(run)["gate"]["data"]
    workspace.api.call("POST", f"/flow_runs/{run}/resume", run_input={"accept": accept, "comment": COMMENT})


def decision(workspace: Workspace) -> dict[str, Any]:
    """What was decided on version 1, as it is kept with it; nothing if nobody has decided."""
    tags = tracked(workspace).get_model_version("prosemill", "1").tags
    kept: dict[str, Any] = json.loads(tags.get("prosemill.decision", "{}"))
    return kept


def test_a_person_decides_on_a_promotion_and_says_why_and_silence_refuses(workspace: Workspace) -> None:
    """Four promotions in one process: nobody answers, somebody refuses, somebody accepts, and the champion is to be promoted again."""
    forget_champion(workspace)
    num_before = num_refused(workspace)
    process = start_promotion(workspace, "1, hours=0.001", "1, hours=1", "1, hours=1", "1")
    until(lambda: num_refused(workspace) == num_before + 1, "silence refuses")
    assert decision(workspace) == {}, "it may be asked for again"

    decide(workspace, accept=False)
    until(lambda: num_refused(workspace) == num_before + 2, "a person's no refuses")
    assert decision(workspace) == {"accept": False, "comment": COMMENT}
    assert aliased(workspace, "champion") is None

    decide(workspace, accept=True)
    assert process.wait(LIMIT) == 0
    assert decision(workspace) == {"accept": True, "comment": COMMENT}
    assert aliased(workspace, "champion") == "1"

    states = [(run["state"]["name"], run["state"]["message"]) for run in promotions(workspace)[:4]]
    assert states == [
        ("Failed", "version 1 is the champion already: there is nothing to promote"),
        ("Promoted", "version 1 is the champion"),
        ("Refused", f"version 1 is refused: {COMMENT}"),
        ("Refused", "version 1 is refused: nobody answered within 0.001 hours"),
    ]


def test_a_version_that_passes_the_gate_is_packaged_by_either_flow_and_the_page_shows_its_bento(workspace: Workspace) -> None:
    """Here too: changes that were not committed are said, and where nobody is asked the gate alone promotes."""
    forget_champion(workspace)
    readme = workspace.clone.folder / "README.md"
    before = readme.read_bytes()
    try:
        readme.write_text("changed", encoding="utf-8")
        output = workspace.run("--package")
    finally:
        readme.write_bytes(before)
    assert "uncommitted changes go into this run: README.md" in output
    assert workspace.newest()["name"].endswith(" + changes")
    shown = workspace.api.artifacts(workspace.newest()["id"])["bento"]["data"]
    assert workspace.api.task_states(workspace.newest()["id"])["package"] == "Completed"
    (tag,) = set(re.findall(r"^bentoml serve (prosemill:1-[0-9a-f]{12})$", shown, re.MULTILINE))
    (folder,) = re.findall(rf"^{tag}: [\d.,]+ MB in (.*)$", shown, re.MULTILINE)
    assert (Path(folder) / "src/version/model/model.safetensors").is_file()

    assert start_promotion(workspace, "1, approval='none', package=True").wait(LIMIT) == 0
    promoted = newest_promotion(workspace)
    assert (promoted["state"]["name"], promoted["state"]["message"]) == ("Promoted", "version 1 is the champion")
    assert f"bentoml serve {tag}" in workspace.api.artifacts(promoted["id"])["bento"]["data"].splitlines()


def test_a_bento_that_cannot_be_built_costs_no_promotion(workspace: Workspace) -> None:
    nowhere, fault = {"BENTOML_HOME": "/dev/null/bentoml"}, "package failed: BentoML's store cannot be made"
    num_before = len(requests_for_promotion(workspace))
    forget_champion(workspace)
    workspace.run("--package", "--promote", fails=True, **nowhere)
    message = workspace.newest()["state"]["message"]
    assert re.match("version 1 .*passes the gate.*; its promotion is asked for, without a Bento: ", message), message
    assert fault in message
    until(lambda: len(requests_for_promotion(workspace)) == num_before + 1, "its promotion is asked for")


def test_a_gate_that_became_stricter_while_a_person_thought_refuses(workspace: Workspace) -> None:
    params = workspace.clone.folder / "params.yaml"
    before = params.read_bytes()
    forget_champion(workspace)
    process = start_promotion(workspace, "1, hours=1", "1, approval='none'")
    try:
        values = yaml.safe_load(before)
        values["gate"]["min_improvement"] = 9.0
        params.write_text(yaml.safe_dump(values), encoding="utf-8")
        workspace.api.call("POST", f"/flow_runs/{newest_promotion(workspace)['id']}/resume", run_input={"accept": True, "comment": ""})
        assert process.wait(LIMIT) == 0
        again, asked = [run["state"] for run in promotions(workspace)[:2]]
        assert (asked["name"], asked["message"]) == ("Refused", "version 1 does not pass the gate any more: bits per byte")
        assert (again["name"], again["message"]) == ("Refused", "version 1 does not pass the gate: bits per byte")
        assert aliased(workspace, "champion") is None
    finally:
        params.write_bytes(before)
        tracked(workspace).set_registered_model_alias("prosemill", "champion", "1")


def test_an_experiment_comes_and_goes_and_its_version_points_to_its_commit(workspace: Workspace) -> None:
    """An experiment on another corpus, whose version does not compare with the champion and is registered all the same."""
    clone = workspace.clone
    tracked(workspace).set_registered_model_alias("prosemill", "champion", "1")
    params = (clone.folder / "params.yaml").read_bytes()
    output = workspace.run("-S", "download.corpus.name=another", "-S", "train.max_steps=22")
    assert "dvc exp apply download.corpus.name-another-train.max-steps-22" in output
    assert (clone.folder / "params.yaml").read_bytes() == params
    run = workspace.newest()
    assert run["state"]["type"] == "COMPLETED"
    assert "is registered, and the gate cannot judge it: " in run["state"]["message"]
    assert "their numbers do not compare" in run["state"]["message"]
    assert workspace.api.task_states(run["id"])["train"] == "Completed"
    tags = tracked(workspace).get_model_version_by_alias("prosemill", "challenger").tags
    assert tags["prosemill.git_dirty"] == "false"
    assert "max_steps: 22" in clone.run("git", "show", f"{tags['prosemill.git_commit']}:params.yaml")


def requests_for_promotion(workspace: Workspace) -> list[dict[str, Any]]:
    """Events at the server that start the flow `promotion` where it is deployed."""
    wanted = {"event": {"name": ["prosemill.promotion.requested"]}}
    found: list[dict[str, Any]] = workspace.api.call("POST", "/events/filter", filter=wanted)["events"]
    return found


@pytest.mark.parametrize(
    ("variables", "fault"),
    [({"PREFECT_API_URL": "http://127.0.0.1:9/api"}, "Connection refused"), ({"PREFECT_API_AUTH_STRING": "prosemill:wrong"}, "401")],
)
def test_a_server_that_cannot_be_used_is_one_line(workspace: Workspace, variables: dict[str, str], fault: str) -> None:
    output = workspace.run(fails=True, **variables)
    address = variables.get("PREFECT_API_URL", f"{workspace.api.address}/api")
    assert output.startswith(f"error: the Prefect server at {address}")
    assert fault in output
    assert output.count("\n") == 1


def test_a_promotion_is_not_asked_of_a_server_that_ends_with_the_run(workspace: Workspace) -> None:
    output = workspace.clone.run(sys.executable, "-m", "flows", "--promote", fails=True)
    assert output == "error: --promote asks the flow `promotion`, which needs a server that stays: start `prosemill up` first\n"


def test_a_wrong_experiment_is_one_line_and_changes_nothing(workspace: Workspace) -> None:
    output, fault = workspace.run("-S", "model=nosuch", fails=True), "Could not find 'model/nosuch'"
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert fault in line
    assert "Traceback" not in output
    assert fault in workspace.newest()["state"]["message"]
    assert workspace.clone.run("git", "status", "--porcelain", "params.yaml") == ""


def test_a_stage_that_fails_has_its_last_lines_in_the_message(workspace: Workspace) -> None:
    output = workspace.run("-S", "train.learning_rate=1e30", fails=True)
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: train failed: the training loss is nan")
    assert "Traceback" not in output
    message = workspace.newest()["state"]["message"]
    assert message.startswith("train failed: the training loss is nan")
    assert "> python -m stages.train" in message
    stages = json.loads(workspace.api.artifacts(workspace.newest()["id"])["stages"]["data"])
    assert [row["stage"] for row in stages if row["result"] == "failed"] == ["train"]
    assert [row["stage"] for row in stages] == ["download", "tokenize", "group", "train"]


def state_of(workspace: Workspace, flow_run: str) -> str:
    """The type of a flow run's state."""
    return str(workspace.api.call("GET", f"/flow_runs/{flow_run}")["state"]["type"])


def test_a_flow_that_is_killed_or_cancelled_leaves_no_process_and_is_gone_on_with(workspace: Workspace) -> None:
    process = workspace.start(*LONG)
    workspace.wait_for("/30,000 steps")
    killed, processes = workspace.newest()["id"], psutil.Process(process.pid).children(recursive=True)
    assert any("stages.train" in " ".join(each.cmdline()) for each in processes)
    process.kill()
    wait_for_end(processes)

    process.wait(LIMIT)
    process = workspace.start(*LONG)
    workspace.wait_for("going on from the checkpoint of step")
    assert state_of(workspace, killed) == "CRASHED", "a run that was left open is closed by the next"
    cancelled, processes = workspace.newest()["id"], psutil.Process(process.pid).children(recursive=True)
    workspace.api.call("POST", f"/flow_runs/{cancelled}/set_state", state={"type": "CANCELLING"})
    wait_for_end(processes)

    assert process.wait(LIMIT) == 1
    assert "error: cancelled in the Prefect page" in workspace.output()
    assert state_of(workspace, cancelled) == "CANCELLED"


def test_a_server_that_goes_away_costs_no_training(own_clone: Clone) -> None:
    """The training is one that ends when the test says so, with what the real one had made."""
    kept, go_on = own_clone.folder / "kept", own_clone.folder / "go-on"
    for name in outputs("train"):
        (kept / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(own_clone.folder / name, kept / name)
    (own_clone.folder / "stages/train.py").write_text(STAND_IN, encoding="utf-8")
    with serving(own_clone.folder, own_clone.environment) as (api, server):
        there = Workspace(own_clone, api)
        process = there.start(PREFECT_CLIENT_MAX_RETRIES="0")
        there.wait_for("it trains")
        for each in psutil.Process(server.pid).children(recursive=True):
            each.kill()
        go_on.touch()
        code = process.wait(LIMIT)
    (line,) = [line for line in there.output().splitlines() if line.startswith("error: ")]
    assert code == 1
    assert "went away" in line
    assert own_clone.repro("train") == [], "the training was not lost"
