"""One run per fingerprint, with everything that leads from its numbers to its data and commit; a lost server loses no run."""

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests

from prosemill.errors import ProsemillError
from prosemill.tracking import open_run, run_fingerprint, tracking_uri
from tests.ports import free_port
from tests.waiting import LIMIT, until


@pytest.fixture
def store(workspace: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository's own tracking store, by default's rules."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (workspace / ".prosemill/mlflow").mkdir(parents=True)
    (workspace / ".prosemill/mlflow/mlflow.db").write_bytes(empty_store.read_bytes())
    yield workspace
    mlflow.end_run()


def runs() -> list[Any]:
    client = mlflow.MlflowClient(tracking_uri())
    experiment = client.get_experiment_by_name("prosemill")
    return client.search_runs([experiment.experiment_id]) if experiment else []


def test_training_and_evaluation_of_one_fingerprint_are_one_run(store: Path) -> None:
    with open_run("f" * 16, name="llama") as run:
        run.log_params({"train.learning_rate": 0.5})
        run.log_metrics({"train_loss": 3.0}, step=1)
        run.log_metrics({"train_loss": 2.0}, step=2)
        run.log_dataset("blocks", "d" * 64, source="data/blocks")
        run.log_table("training_samples", [{"step": 0, "prompt": "The", "continuation": " end"}])
        run.log_table("training_samples", [{"step": 2, "prompt": "The", "continuation": " beginning"}])
    with open_run("f" * 16, name="llama") as run:
        run.log_params({"train.learning_rate": 0.7})
        run.log_metrics({"trained.bits_per_byte": 0.8})
        (store / "plot.png").write_bytes(b"png")
        run.log_file(store / "plot.png", "plots")
    (found,) = runs()
    assert found.info.status == "FINISHED"
    assert found.data.params == {"train.learning_rate": "0.5"}, "a param of a reopened run keeps its first value"
    assert found.data.metrics["trained.bits_per_byte"] == 0.8
    client = mlflow.MlflowClient(tracking_uri())
    assert [point.value for point in client.get_metric_history(found.info.run_id, "train_loss")] == [3.0, 2.0]
    assert found.data.tags["prosemill.blocks_digest"] == "d" * 64
    assert [given.dataset.digest for given in found.inputs.dataset_inputs] == ["d" * 36]
    assert {artifact.path for artifact in client.list_artifacts(found.info.run_id)} == {"plots", "training_samples.json"}
    table = client.load_table(found.info.experiment_id, "training_samples.json", [found.info.run_id])
    assert list(table["continuation"]) == [" end", " beginning"]


def test_a_store_whose_making_was_cut_is_made_again(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    class Cut(BaseException):
        """Stands for a kill."""

    def cut(_: object) -> None:
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.store.db.utils._upgrade_db", cut)  # half of the tables are there by then
        with pytest.raises(Cut):
            open_run("a" * 16, name="llama").__enter__()
    assert [path.name for path in (workspace / ".prosemill/mlflow").glob("*.db*")] == ["mlflow.db.part"]
    with open_run("a" * 16, name="llama"):
        pass
    assert [run.info.status for run in runs()] == ["FINISHED"]
    assert not list((workspace / ".prosemill/mlflow").glob("*.part*"))


def test_a_run_has_its_fingerprint_from_its_first_moment(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cut(BaseException):
        """Stands for a kill."""

    def cut(*_: object) -> None:
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_tag", cut)
        patch.setattr(mlflow, "set_tags", cut)
        with open_run("a" * 16, name="llama"):
            pass
    with open_run("a" * 16, name="llama"):
        pass
    assert len(runs()) == 1


def test_another_fingerprint_is_another_run(store: Path) -> None:
    for fingerprint in ("a" * 16, "b" * 16, "a" * 16):
        with open_run(fingerprint, name="llama"):
            pass
    assert sorted(run.data.tags["prosemill.fingerprint"][0] for run in runs()) == ["a", "b"]


@pytest.mark.parametrize(("mistake", "status"), [(KeyboardInterrupt, "KILLED"), (ProsemillError, "FAILED"), (SystemExit, "FAILED")])
def test_a_run_that_ends_badly_says_so(store: Path, mistake: type[BaseException], status: str) -> None:
    with pytest.raises(mistake), open_run("a" * 16, name="llama"):
        raise mistake
    assert [run.info.status for run in runs()] == [status]


def test_a_run_knows_its_commit_and_whether_the_tree_was_clean(store: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    Path("file").write_text("one", encoding="utf-8")
    git("add", "file")
    git("commit", "--quiet", "--message", "one")
    with open_run("a" * 16, name="llama"):
        pass
    Path("file").write_text("two", encoding="utf-8")
    with open_run("b" * 16, name="llama"):
        pass
    with open_run("a" * 16, name="llama"):
        pass  # an evaluation in a changed tree
    tags = {run.data.tags["prosemill.fingerprint"][0]: run.data.tags for run in runs()}
    assert tags["a"]["git_commit"] == tags["b"]["git_commit"] == git("rev-parse", "HEAD")
    assert (tags["a"]["git_dirty"], tags["b"]["git_dirty"]) == ("false", "true")


def test_the_default_store_is_absolute_and_a_server_can_be_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri() == f"sqlite:///{workspace}/.prosemill/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking_uri() == "http://127.0.0.1:1"


def test_a_server_that_does_not_answer_is_one_line(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ProsemillError, match=r"MLflow server at http://127\.0\.0\.1:9 .*: start it, or unset MLFLOW_TRACKING_URI"):
        open_run("a" * 16, name="llama").__enter__()


def test_a_store_that_breaks_while_the_run_goes_on_is_said_once(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = mlflow.MlflowClient(tracking_uri())
    with open_run("a" * 16, name="llama") as run:
        client.delete_run(run.run_id)  # a deleted run takes no more metrics
        run.log_metrics({"train_loss": 3.0}, step=1)
        run.log_metrics({"train_loss": 2.0}, step=2)
    client.restore_run(run.run_id)
    assert capsys.readouterr().err.count("warning: ") == 1


def test_weights_and_biases_gets_the_same_offline(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(store))
    import wandb

    with open_run("c" * 16, name="llama", wandb=True) as run:
        run.log_params({"train.learning_rate": 0.5})
        run.log_metrics({"train_loss": 3.25}, step=1)
        run.log_table("training_samples", [{"step": 0, "prompt": "The", "continuation": " quick brown fox"}])
    wandb.teardown()  # waits for its writer process
    (log,) = (store / "wandb").glob("offline-run-*/run-*.wandb")
    content = log.read_bytes()
    assert b"train_loss" in content
    assert b"3.25" in content
    assert b"train.learning_rate" in content
    assert any(b"quick brown fox" in path.read_bytes() for path in (store / "wandb").rglob("*.table.json"))
    (found,) = runs()
    assert found.data.metrics["train_loss"] == 3.25


def test_weights_and_biases_that_is_not_installed_is_one_line(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ProsemillError, match=r"pip install 'prosemill\[wandb\]'"):
        open_run("c" * 16, name="llama", wandb=True).__enter__()


def test_a_server_by_http_gets_the_run(workspace: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "server.db").write_bytes(empty_store.read_bytes())
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store_options = ["--backend-store-uri", f"sqlite:///{workspace}/server.db", "--artifacts-destination", str(workspace / "artifacts")]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "8")
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    server = subprocess.Popen([*command, *store_options], env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        until(lambda: is_ready(port) or server.poll() is not None, "the server is ready")
        assert server.poll() is None, "it has ended"
        with open_run("e" * 16, name="llama") as run:
            run.log_metrics({"train_loss": 3.0}, step=1)
            run.log_table("training_samples", [{"step": 0, "prompt": "The", "continuation": " end"}])
        (found,) = runs()
        assert found.data.metrics["train_loss"] == 3.0
        assert list((workspace / "artifacts").rglob("training_samples.json"))
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def test_a_fingerprint_depends_on_all_it_is_given() -> None:
    fingerprints = {run_fingerprint({"seed": seed}, data, base) for seed in (0, 1) for data in "ab" for base in "ab"}
    assert len(fingerprints) == 8
    assert run_fingerprint({"seed": 0}, "a", "b") in fingerprints
    assert all(len(fingerprint) == 16 for fingerprint in fingerprints)


def is_ready(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=LIMIT).ok
    except requests.RequestException:
        return False


@pytest.mark.parametrize("library", ["torch", "transformers", "accelerate", "peft"])
def test_another_version_of_a_library_that_trains_is_another_run(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    before, version = run_fingerprint({"seed": 0}, "a", "b"), importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1" if name == library else version(name))
    assert run_fingerprint({"seed": 0}, "a", "b") != before
