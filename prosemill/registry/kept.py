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
from prosemill.registry.store import Registry, Version
from prosemill.workspace import BASE_MODEL, CORPUS, LOCK, METRICS

EVALUATION = METRICS / "evaluation.json"
SOURCES = {"corpus": CORPUS / "SOURCE.json", "model": BASE_MODEL / "SOURCE.json"}
"""Where `download.corpus` and `download.model` were fetched from."""

FILES = {"dvc_lock": LOCK, "evaluation_digest": EVALUATION} | {f"{name}_source": path for name, path in SOURCES.items()}
"""The files by the version's tag that holds their SHA-256."""

COST = "cost_"

CONDITIONS = ("context", "stride", "detokenize", "scoring_arithmetic")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the gate asks of metrics/evaluation.json."""

    bits_per_byte: float
    base_bits_per_byte: float
    repetition_rate: float
    loop_rate: float
    time_per_token_ms_p95: float
    costs: Mapping[str, float]
    """As `costs_in` tells."""
    direction: str
    """What the model predicts from what."""
    data: Mapping[str, Any]
    """`split`, `digest`, `num_documents`."""
    conditions: Mapping[str, Any]
    """What must be the same for two numbers of bits per byte to compare."""

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> "Evaluation":
        """Read the file's content. Raises `KeyError`, `TypeError` or `ValueError` if it is not one."""
        trained, protocol, data = content["trained"], content["protocol"], content["data"]
        return cls(
            bits_per_byte=float(trained["bits_per_byte"]),
            base_bits_per_byte=float(content["base"]["bits_per_byte"]),
            repetition_rate=float(trained["repetition_rate"]),
            loop_rate=float(trained["loop_rate"]),
            time_per_token_ms_p95=float(trained["time_per_token_ms_p95"]),
            costs=costs_in(content),
            direction=str(protocol["direction"]),
            data={name: data[name] for name in ("split", "digest", "num_documents")},
            conditions={**data, **{name: protocol[name] for name in CONDITIONS}},
        )


def costs_in(content: Mapping[str, Any]) -> dict[str, float]:
    """What metrics/evaluation.json says that serving in a precision adds to bits per byte, as a share; empty if that was not measured."""
    return {name.removeprefix(COST): float(cost) for name, cost in content.get("serving", {}).items() if name.startswith(COST)}


@dataclass(frozen=True)
class Kept:
    """What was kept with a version."""

    lock: DvcLock
    evaluation: Evaluation
    metrics: dict[str, Any]
    """All of metrics/evaluation.json."""
    evaluation_md5: str
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
            evaluation_md5=hashlib.md5(content["evaluation_digest"], usedforsecurity=False).hexdigest(),
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
