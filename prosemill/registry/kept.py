"""What is kept with the run of a version, to lead back from it: dvc.lock, the evaluation, and where corpus and base model are from.

    keep(registry, run_id)                 # copies of the workspace's files
    kept = read_kept(registry, version)    # checked against the version's tags

dvc.lock names by digest all that every stage read and wrote, so it leads to the rest.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from prosemill.digests import sha256_of_file
from prosemill.dvc_lock import DvcLock
from prosemill.errors import ProsemillError, first_line
from prosemill.registry.evaluation import Evaluation
from prosemill.registry.store import Registry, Version
from prosemill.workspace import BASE_MODEL, CORPUS, LOCK, METRICS

EVALUATION = METRICS / "evaluation.json"
SOURCES = {"corpus": CORPUS / "SOURCE.json", "model": BASE_MODEL / "SOURCE.json"}
"""Where `download.corpus` and `download.model` were fetched from."""

FILES = {"dvc_lock": LOCK, "evaluation_digest": EVALUATION} | {f"{name}_source": path for name, path in SOURCES.items()}
"""The files by the version's tag that holds their SHA-256."""


@dataclass(frozen=True)
class Kept:
    """What was kept with a version."""

    lock: DvcLock
    evaluation: Evaluation
    metrics: Mapping[str, Any]
    """All of metrics/evaluation.json, of which `evaluation` is what the gate asks."""
    evaluation_file: bytes
    """That file."""
    sources: Mapping[str, Mapping[str, Any]]
    """Content of SOURCE.json of `corpus` and `model`."""
    altered: frozenset[str]
    """Names of the files that are not what was registered."""


def digests() -> dict[str, str]:
    """SHA-256 of the workspace's files, by tag. Raises `ProsemillError` if one is missing."""
    for path in FILES.values():
        if not path.is_file():
            raise ProsemillError(f"{path} is missing: run `dvc checkout` or `dvc repro`")
    return {tag: sha256_of_file(path) for tag, path in FILES.items()}


def keep(registry: Registry, run_id: str) -> None:
    """Put copies of the workspace's files with a run."""
    registry.keep(run_id, _folder(sha256_of_file(LOCK)), {_name(tag): path for tag, path in FILES.items()})


def read_kept(registry: Registry, version: Version) -> Kept:
    """What was kept with a version.

    Raises:
        ProsemillError: the version was not registered by `prosemill register`, or a file is gone or cannot be read.
    """
    if not version.tag("dvc_lock"):
        raise ProsemillError(f"version {version.number} has no lineage: register a model with `prosemill register`, not by hand")
    remedy = "check out its commit, run `dvc repro` and `prosemill register`"
    with registry.run_files(version.run_id, _folder(version.tag("dvc_lock"))) as folder:
        try:
            content = {tag: (folder / _name(tag)).read_bytes() for tag in FILES}
        except FileNotFoundError as error:
            raise ProsemillError(f"{error.filename} of version {version.number} is gone: {remedy}") from None
    try:
        metrics = dict(json.loads(content["evaluation_digest"]))
        return Kept(
            lock=DvcLock.parse(content["dvc_lock"].decode("utf-8")),
            evaluation=Evaluation.parse(metrics),
            metrics=metrics,
            evaluation_file=content["evaluation_digest"],
            sources={name: dict(json.loads(content[f"{name}_source"])) for name in SOURCES},
            altered=frozenset(_name(tag) for tag in FILES if hashlib.sha256(content[tag]).hexdigest() != version.tag(tag)),
        )
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ProsemillError(
            f"what was kept of version {version.number} is damaged ({type(error).__name__}: {first_line(error)}): {remedy}"
        ) from None


def _folder(lock_digest: str) -> str:
    return f"lineage/{lock_digest[:16]}"


def _name(tag: str) -> str:
    """What a kept file is called; two are called SOURCE.json where they come from."""
    return f"{tag.removesuffix('_source')}.{FILES[tag].name}" if tag.endswith("_source") else FILES[tag].name
