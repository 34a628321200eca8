"""The workspace's trained and evaluated model as a version of the registry.

    version = register()

One version for each fingerprint, however often it is registered: the same weights keep their version, whose lineage and evaluation are
brought up to date.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

from prosemill.console import say
from prosemill.dvc_lock import DvcLock, digest_of
from prosemill.errors import ProsemillError
from prosemill.registry.kept import EVALUATION, digests, keep
from prosemill.registry.lineage import commit_links
from prosemill.registry.packaging import log_package
from prosemill.registry.store import CHALLENGER, Registry, Version
from prosemill.tracking import open_run
from prosemill.tracking.evaluation import numbers_of, read_identity
from prosemill.tracking.fingerprint import RESULTS, git_state
from prosemill.tracking.run import find_run
from prosemill.tracking.server import experiment_id, needing_answers
from prosemill.workspace import BASE_MODEL, CORPUS, LOCK, TRAINED_MODEL

NOTES_OF_DVC = Path(".dvc/tmp")  # which it puts into an experiment's commit


def register() -> Version:
    """Register the trained model of this workspace as the challenger; the version, new or not.

    Raises:
        ProsemillError: the pipeline's results are missing or not those of its last run, the package is not the trained model, or the
            server does not answer.
    """
    lock = _read_results()
    identity = read_identity(TRAINED_MODEL)
    evaluation: dict[str, Any] = json.loads(EVALUATION.read_text(encoding="utf-8"))
    tags = _tags(lock, identity, evaluation)
    registry = Registry.open()
    with registry.locked(wait=True):  # whoever changes the registry now does not mind one version more
        version = registry.find_weights(tags["fingerprint"], tags["model_digest"])
        if version is None:
            number = _register_new(registry, tags, evaluation)
            say(f"registered as version {number}")
        else:
            number = version.number
            _bring_up_to_date(registry, version, tags, evaluation, lock)
            say(f"these weights are version {number} already; its lineage is up to date")
        if registry.served().champion != number:
            registry.set_alias(CHALLENGER, number)
        return registry.version(number)


def find_registered(registry: Registry) -> Version | None:
    """The version of this workspace's trained model, if it is registered. Raises `ProsemillError` if there is no trained model."""
    lock, identity = _read_results(), read_identity(TRAINED_MODEL)
    return registry.find_weights(identity["fingerprint"], lock.outs[TRAINED_MODEL.as_posix()])


def _register_new(registry: Registry, tags: dict[str, str], evaluation: dict[str, Any]) -> int:
    run_id = _run_of(tags)
    keep(registry, run_id)
    try:
        names = {name: tags[name] for name in ("fingerprint", "model", "corpus")}
        package = log_package(TRAINED_MODEL, run_id=run_id, name=tags["model"], params=names)
        of_package = {"package_digest": package.digest, "logit_difference": f"{package.logit_difference:.1e}"}
        registry.log_evaluation(run_id, package.model_id, numbers_of(evaluation), evaluation["data"])
        return registry.create(package.model_id, run_id, tags | of_package)
    finally:
        registry.forget_unregistered(run_id)


def _bring_up_to_date(registry: Registry, version: Version, tags: dict[str, str], evaluation: dict[str, Any], lock: DvcLock) -> None:
    keep(registry, version.run_id)
    if version.tag("evaluation_digest") != tags["evaluation_digest"]:
        registry.log_evaluation(version.run_id, version.model_id, numbers_of(evaluation), evaluation["data"])
    same_run = version.tag("dvc_lock") == tags["dvc_lock"]
    if same_run and version.tag("git_dirty") == "false" and _is_commit_of(version.tag("git_commit"), lock):
        tags = {name: value for name, value in tags.items() if not name.startswith("git_")}  # a later commit did not make these weights
    registry.set_tags(version.number, tags)


def _is_commit_of(commit: str, lock: DvcLock) -> bool:
    return all(link.state == "verified" for link in commit_links(commit, lock))


def _read_results() -> DvcLock:
    """dvc.lock, if the trained model and its evaluation here are what it says."""
    lock = DvcLock.read(LOCK)
    for path in (TRAINED_MODEL, EVALUATION):
        found = digest_of(path)
        if found is None:
            raise ProsemillError(f"{path} is missing: run `make run` or `dvc repro` first")
        if found != lock.outs.get(path.as_posix()):
            raise ProsemillError(f"{path} is not what {LOCK} says the last run made: run `dvc repro`")
    return lock


def _tags(lock: DvcLock, identity: dict[str, str], evaluation: dict[str, Any]) -> dict[str, str]:
    """What the version says of itself, as far as the package does not say it."""
    return {
        "fingerprint": identity["fingerprint"],
        "model": identity["name"],
        "corpus": lock.params["download"]["corpus"]["name"],
        **_commit(),
        **digests(),
        "corpus_digest": lock.outs[CORPUS.as_posix()],
        "base_digest": lock.outs[BASE_MODEL.as_posix()],
        "model_digest": lock.outs[TRAINED_MODEL.as_posix()],
        "bits_per_byte": str(evaluation["trained"]["bits_per_byte"]),
        "base_bits_per_byte": str(evaluation["base"]["bits_per_byte"]),
    }


def _commit() -> dict[str, str]:
    """The commit that holds the tracked files: the one checked out, or else one of DVC's experiments that begin there."""
    state = git_state(Path.cwd())
    if state["git_dirty"] == "true":
        head = state["git_commit"]
        references = ["git", "for-each-ref", "--format=%(objectname)", f"refs/exps/{head[:2]}/{head[2:]}"]
        for commit in subprocess.run(references, capture_output=True, text=True, check=False).stdout.split():
            compare = ["git", "diff", "--quiet", commit, "--", ".", *(f":!{path}" for path in (*RESULTS, NOTES_OF_DVC))]
            if subprocess.run(compare, check=False).returncode == 0:
                return {"git_commit": commit, "git_dirty": "false"}
    return state


def _run_of(tags: dict[str, str]) -> str:
    """The run that trained the model; a model that DVC brought from its cache may have none here, and gets one."""
    with needing_answers():
        found = find_run(tags["fingerprint"], experiment_id())
    if found is not None:
        return found
    with open_run(tags["fingerprint"], name=tags["model"]) as run:
        return run.run_id
