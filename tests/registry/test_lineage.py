"""Each step back from the weights is checked: whatever is altered, its step is said to be broken, and no other."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import yaml

from prosemill.errors import ProsemillError
from prosemill.registry.kept import read_kept
from prosemill.registry.lineage import links
from prosemill.registry.registering import register
from prosemill.registry.store import Registry
from tests.registry.conftest import on_every_server
from tests.registry.workspace import Workspace

STEPS = ["package", "weights", "run", "dvc.lock", "evaluation", "stages", "commit", "params", "corpus", "base model"]


def states(registry: Registry, number: int, *, thorough: bool = False) -> dict[str, str]:
    version = registry.version(number)
    return {link.name: link.state for link in links(registry, version, read_kept(registry, version), thorough=thorough)}


@on_every_server
def test_every_step_of_a_sound_version_is_verified(registry: Registry) -> None:
    found = states(registry, 3)
    assert list(found) == [*STEPS, "corpus's source", "model's source"]
    not_here = {name for name, state in found.items() if state == "not here"}
    assert not_here == {"corpus", "base model"}, "DVC never put this test's data into its cache"
    assert {state for name, state in found.items() if name not in not_here} == {"verified"}


def test_data_in_dvcs_cache_is_verified(fresh: Workspace) -> None:
    fresh.train("a" * 16)
    number = register().number
    for path in ("data/corpus", "models/base"):
        put_into_cache(fresh.folder / path, fresh.folder / ".dvc/cache/files/md5")
    assert set(states(Registry.open(), number, thorough=True).values()) == {"verified"}
    weights = next(path for path in (fresh.folder / ".dvc/cache/files/md5").rglob("*") if path.is_file() and path.stat().st_size > 100_000)
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    assert states(Registry.open(), number)["base model"] == "verified", "a quick look reads no content"
    assert states(Registry.open(), number, thorough=True)["base model"] == "not here"
    weights.write_bytes(content)
    (lost, *_) = [path for path in (fresh.folder / ".dvc/cache/files/md5").rglob("*") if path.is_file() and path.suffix != ".dir"]
    lost.unlink()
    assert set(states(Registry.open(), number).values()) == {"verified", "not here"}


def put_into_cache(folder: Path, cache: Path) -> None:
    """What `dvc commit` does for a folder."""
    from prosemill.dvc_lock import digest_of

    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    listing = []
    for name, path in files:
        digest = digest_of(path)
        assert digest is not None
        listing.append({"md5": digest, "relpath": name})
        target = cache / digest[:2] / digest[2:]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    digest = digest_of(folder)
    assert digest is not None
    target = cache / digest[:2] / digest[2:]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(listing), encoding="utf-8")


def alter_code(workspace: Workspace, number: int) -> None:
    """The version names another commit than the one whose code ran."""
    (workspace.folder / "stages/train.py").write_text("other()\n")
    workspace.commit()
    Registry.open().set_tags(number, {"git_commit": workspace.git("rev-parse", "HEAD")})


def alter_params(workspace: Workspace, number: int) -> None:
    text = (workspace.folder / "params.yaml").read_text()
    (workspace.folder / "params.yaml").write_text(text.replace("seed: 0", "seed: 1"))
    workspace.commit()
    Registry.open().set_tags(number, {"git_commit": workspace.git("rev-parse", "HEAD")})


def alter_weights_of_lock(workspace: Workspace, number: int) -> None:
    lock(workspace, lambda text: text.replace(Registry.open().version(number).tags["model_digest"], f"{'0' * 32}.dir"))


def test_only_a_thorough_look_digests_the_weights_again(fresh: Workspace) -> None:
    fresh.train("a" * 16)
    number = register().number
    alter_weights_of_lock(fresh, number)
    Registry.open().set_tags(number, {"model_digest": f"{'0' * 32}.dir"})
    assert states(Registry.open(), number)["weights"] == "verified"
    assert states(Registry.open(), number, thorough=True)["weights"] == "broken"


def alter_a_read(workspace: Workspace, number: int) -> None:
    def change(text: str) -> str:
        stages = yaml.safe_load(text)
        (dep,) = [dep for dep in stages["stages"]["train"]["deps"] if dep["path"] == "data/corpus"]
        dep["md5"] = f"{'0' * 32}.dir"
        return yaml.safe_dump(stages)

    lock(workspace, change)


def alter_source(workspace: Workspace, number: int) -> None:
    kept(number, "corpus.SOURCE.json", lambda text: json.dumps(json.loads(text) | {"sha256": "0" * 64}))


def alter_evaluation(workspace: Workspace, number: int) -> None:
    kept(number, "evaluation.json", lambda text: text.replace("2.0", "1.0"))


def alter_run(workspace: Workspace, number: int) -> None:
    mlflow.MlflowClient().set_tag(Registry.open().version(number).run_id, "prosemill.fingerprint", "0" * 16)


def alter_corpus_tag(workspace: Workspace, number: int) -> None:
    Registry.open().set_tags(number, {"corpus_digest": f"{'0' * 32}.dir"})


def alter_package(workspace: Workspace, number: int) -> None:
    (weights,) = (workspace.folder / ".prosemill/mlflow/artifacts/models").rglob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))


def lock(workspace: Workspace, change: Callable[[str], str]) -> None:
    """Register with another dvc.lock, as if that had been written."""
    number = Registry.open().versions()[0].number
    kept(number, "dvc.lock", change)


def kept(number: int, name: str, change: Callable[[str], str]) -> None:
    version = Registry.open().version(number)
    (path,) = Path(".prosemill/mlflow/artifacts").glob(f"{version.run_id}/artifacts/lineage/*/{name}")
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


@pytest.mark.parametrize(
    ("alter", "broken"),
    [
        (alter_package, {"package"}),
        (alter_weights_of_lock, {"weights", "dvc.lock"}),
        (alter_run, {"run"}),
        (alter_evaluation, {"evaluation"}),
        (alter_source, {"corpus's source"}),
        (alter_a_read, {"dvc.lock", "stages"}),
        (alter_code, {"commit"}),
        (alter_params, {"params"}),
        (alter_corpus_tag, {"corpus"}),
    ],
)
def test_what_was_altered_is_said_to_be_broken(fresh: Workspace, alter: Callable[[Workspace, int], None], broken: set[str]) -> None:
    fresh.train("a" * 16)
    number = register().number
    alter(fresh, number)
    assert {name for name, state in states(Registry.open(), number).items() if state == "broken"} == broken


@pytest.mark.parametrize("pin", [{"sha256": "1" * 64}, {"source": "wheel"}, {"revision": "0" * 40}])
def test_a_source_that_is_not_what_params_pin_is_broken(fresh: Workspace, pin: dict[str, str]) -> None:
    fresh.train("a" * 16)
    assert states(Registry.open(), register().number)["corpus's source"] == "verified"
    fresh.params["download"]["corpus"] |= pin
    fresh.train("b" * 16)
    assert states(Registry.open(), register().number)["corpus's source"] == "broken"


@pytest.mark.parametrize("commit", ["0" * 40, "", "HEAD", "--output=params.yaml"])
def test_a_commit_that_is_not_here_is_broken_and_git_takes_it_for_nothing_else(fresh: Workspace, commit: str) -> None:
    fresh.train("a" * 16)
    registry = Registry.open()
    number = register().number
    registry.set_tags(number, {"git_commit": commit})
    found = states(registry, number)
    assert (fresh.folder / "params.yaml").stat().st_size > 0
    assert found["commit"] == "broken"
    assert "params" not in found


def test_a_version_made_by_hand_has_no_lineage(fresh: Workspace) -> None:
    fresh.train("a" * 16)
    version, registry = register(), Registry.open()
    number = registry.create(version.model_id, version.run_id, {})
    with pytest.raises(ProsemillError, match=f"version {number} has no lineage: register a model with `prosemill register`"):
        states(registry, number)
    shutil.rmtree(Path(".prosemill/mlflow/artifacts") / version.run_id)
    with pytest.raises(ProsemillError, match=r"lineage/.* cannot be had"):
        states(registry, version.number)
    register()
    assert "broken" not in states(registry, version.number).values(), "registering again puts back what is kept"


@pytest.mark.parametrize("name", ["dvc.lock", "evaluation.json", "corpus.SOURCE.json"])
@pytest.mark.parametrize("content", [None, "", "[]", "{}", '"x"', "{"])
def test_kept_files_that_are_damaged_are_one_line(fresh: Workspace, name: str, content: str | None) -> None:
    fresh.train("a" * 16)
    number = register().number
    (path,) = Path(".prosemill/mlflow/artifacts").glob(f"*/artifacts/lineage/*/{name}")
    path.unlink()
    if content is not None:
        path.write_text(content)
    if name == "corpus.SOURCE.json" and content in ("{}", "[]"):
        assert states(Registry.open(), number)["corpus's source"] == "broken"
        return
    with pytest.raises(
        ProsemillError, match=r"version 1 is (gone|damaged).*: check out its commit, run `dvc repro` and `prosemill register`"
    ):
        states(Registry.open(), number)


def test_a_version_without_its_tags_is_broken_and_no_stack_trace(fresh: Workspace) -> None:
    fresh.train("a" * 16)
    version, registry = register(), Registry.open()
    number = registry.create(version.model_id, version.run_id, {"dvc_lock": version.tag("dvc_lock")})
    broken = {name for name, state in states(registry, number).items() if state == "broken"}
    assert {"package", "run", "evaluation", "commit", "corpus", "base model"} <= broken
    shutil.rmtree(".dvc")
    assert states(registry, version.number)["corpus"] == "not here"
