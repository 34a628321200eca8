"""One version for the same weights, with tags that lead back; a workspace that is not what its dvc.lock says is refused."""

import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pytest

from prosemill.digests import sha256_of_file
from prosemill.dvc_lock import digest_of
from prosemill.errors import ProsemillError
from prosemill.registry import packaging, registering
from prosemill.registry.registering import register
from prosemill.registry.store import CHALLENGER, CHAMPION, Registry
from prosemill.tracking import tracking_uri
from tests.registry.conftest import on_every_server
from tests.registry.workspace import Workspace
from tests.waiting import LIMIT


@on_every_server
def test_a_version_carries_what_leads_back(registry: Registry, registered: Workspace) -> None:
    version = registry.version(3)
    assert version.tags["fingerprint"] == f"{3:016x}"
    assert version.tags["git_commit"] == registered.git("rev-parse", "HEAD")
    assert version.tags["git_dirty"] == "false"
    assert version.tags["dvc_lock"] == sha256_of_file(Path("dvc.lock"))
    assert version.tags["model_digest"] == digest_of(Path("models/trained"))
    assert version.tags["base_digest"] == digest_of(Path("models/base"))
    assert version.tags["corpus_digest"] == digest_of(Path("data/corpus"))
    assert version.tags["evaluation_digest"] == sha256_of_file(Path("metrics/evaluation.json"))


@on_every_server
def test_the_evaluation_stands_with_the_package_and_its_dataset(registry: Registry) -> None:
    model = mlflow.MlflowClient().get_logged_model(registry.version(3).model_id)
    (metric,) = [metric for metric in model.metrics or [] if metric.key == "trained.bits_per_byte"]
    assert metric.value == pytest.approx(2.1)
    digest = json.loads(Path("metrics/evaluation.json").read_text())["data"]["digest"]
    assert (metric.dataset_name, metric.dataset_digest) == ("test_split", digest[:36])


@on_every_server
def test_the_same_weights_keep_their_version(registry: Registry, registered: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registering, "log_package", None)  # not called
    before = len(registry.versions())
    assert register().number == 3
    assert len(registry.versions()) == before
    assert registry.aliases() == {CHALLENGER: 3}
    registry.set_alias(CHALLENGER, None)
    registry.set_alias(CHAMPION, 3)
    register()
    assert registry.aliases() == {CHAMPION: 3}, "a champion is no challenger"


def test_a_registration_waits_for_a_change_that_is_at_work(registry: Registry, registered: Workspace) -> None:
    with ThreadPoolExecutor() as pool:
        with registry.locked():
            waiting = pool.submit(register)
            time.sleep(5)  # reading the results comes before the lock
            assert not waiting.done()
        assert waiting.result(timeout=LIMIT).number == 3


def test_another_evaluation_of_the_same_weights_is_brought_up_to_date(fresh: Workspace) -> None:
    fresh.train("a" * 16, bits_per_byte=2.0)
    first = register()
    fresh.train("a" * 16, bits_per_byte=1.9)
    again = register()
    assert again.number == first.number
    assert again.tags["bits_per_byte"] == "1.9"
    assert again.tags["dvc_lock"] != first.tags["dvc_lock"]
    assert again.tags["package_digest"] == first.tags["package_digest"]


def test_other_weights_of_the_same_fingerprint_are_another_version(fresh: Workspace) -> None:
    fresh.train("a" * 16, seed=1)
    first = register()
    fresh.train("a" * 16, seed=2)
    assert register().number == first.number + 1


@pytest.mark.parametrize(("file", "dirty"), [("dvc.lock", "false"), ("metrics/download.json", "false"), ("stages/train.py", "true")])
def test_a_changed_file_is_dirty_and_a_new_result_is_not(fresh: Workspace, file: str, dirty: str) -> None:
    (fresh.folder / "metrics/download.json").write_text("{}")
    fresh.train("a" * 16)
    (fresh.folder / file).write_text((fresh.folder / file).read_text() + "\n")
    assert register().tags["git_dirty"] == dirty


def test_a_registration_cut_before_its_end_leaves_no_second_package(fresh: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cut(BaseException):
        pass

    def cut(*_: object) -> int:
        raise Cut

    fresh.train("a" * 16)
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "create", cut)
        patch.setattr(Registry, "forget_unregistered", lambda *_: None)  # a kill leaves no time for it
        with pytest.raises(Cut):
            register()
    version = register()
    client = mlflow.MlflowClient(tracking_uri())
    experiment = client.get_experiment_by_name("prosemill")
    assert experiment is not None
    assert [model.model_id for model in client.search_logged_models([experiment.experiment_id])] == [version.model_id]
    assert len(list(Path(".prosemill/mlflow/artifacts/models").glob("*/artifacts"))) == 1
    assert len(client.search_runs([experiment.experiment_id])) == 1


def test_a_package_whose_link_a_kill_cut_is_not_taken_for_one_that_is_no_version(fresh: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: object) -> None:
        raise Cut

    class Cut(BaseException):
        pass

    fresh.train("a" * 16, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_logged_model_tags", cut)
        with pytest.raises(Cut):
            register()
    fresh.train("a" * 16, seed=2)
    assert register().number == 2
    registry = Registry.open()
    for number in (1, 2):
        with registry.whole_package(registry.version(number)):
            pass


def test_registering_again_at_a_later_commit_keeps_the_commit_that_made_the_weights(fresh: Workspace) -> None:
    fresh.train("a" * 16)
    first = register()
    (fresh.folder / "stages/train.py").write_text("other()\n")
    assert register().tags == first.tags
    fresh.commit()
    assert register().tags == first.tags


def test_a_version_of_a_dirty_tree_is_clean_once_that_is_committed(fresh: Workspace) -> None:
    fresh.train("a" * 16)
    (fresh.folder / "stages/train.py").write_text("other()\n")
    fresh.lock()
    assert register().tag("git_dirty") == "true"
    fresh.commit()
    again = register()
    assert (again.tag("git_dirty"), again.tag("git_commit")) == ("false", fresh.git("rev-parse", "HEAD"))


def test_a_relative_path_of_the_store_is_the_same_from_every_folder(fresh: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///.prosemill/mlflow/mlflow.db")
    assert tracking_uri() == f"sqlite:///{fresh.folder}/.prosemill/mlflow/mlflow.db"
    fresh.train("a" * 16)
    assert register().number == 1


def test_a_model_without_a_tracked_run_gets_one(fresh: Workspace) -> None:
    fresh.train("b" * 16)
    version = register()
    assert mlflow.MlflowClient(tracking_uri()).get_run(version.run_id).data.tags["prosemill.fingerprint"] == "b" * 16


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("rm -r models/trained", r"models/trained is missing: run `make run`"),
        ("rm dvc.lock", r"dvc.lock is missing: run `make run`"),
        ("echo stages: > dvc.lock", r"dvc.lock is broken"),
        ("echo x > models/trained/other", r"models/trained is not what dvc.lock says the last run made: run `dvc repro`"),
        ("echo {} > metrics/evaluation.json", r"metrics/evaluation.json is not what dvc.lock says"),
        ("rm data/corpus/SOURCE.json", r"data/corpus/SOURCE.json is missing: run `dvc checkout`"),
    ],
)
def test_a_workspace_that_is_not_what_its_lock_says_is_refused(fresh: Workspace, damage: str, message: str) -> None:
    fresh.train("a" * 16)
    subprocess.run(damage, shell=True, check=True)  # noqa: S602 - a line of this test
    with pytest.raises(ProsemillError, match=message):
        register()
    assert Registry.open().versions() == []


def test_the_probe_is_asked_before_anything_is_registered(fresh: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> float:
        assert Registry.open().versions() == []
        raise ProsemillError("the package is not the trained model")

    fresh.train("a" * 16)
    monkeypatch.setattr(packaging, "compare", refuse)
    with pytest.raises(ProsemillError, match="the package is not the trained model"):
        register()
    assert Registry.open().versions() == []
    experiment = mlflow.get_experiment_by_name("prosemill")
    assert experiment is not None
    assert mlflow.MlflowClient().search_logged_models([experiment.experiment_id]) == [], "nothing of it stays"
    assert list(Path(".prosemill/mlflow/artifacts/models").glob("*/artifacts")) == []
