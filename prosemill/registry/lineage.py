"""From registered weights back to the run, the commit, the corpus and the wheels that made them: every step checked, or said to be broken.

for link in links(registry, version, read_kept(registry, version)):
    print(link.state, link.name, link.text)
"""

import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from prosemill.dvc_lock import DvcLock, digest_of, digest_of_listing, is_in_cache
from prosemill.registry.kept import EVALUATION, SOURCES, Kept
from prosemill.registry.store import Registry, Version
from prosemill.workspace import BASE_MODEL, CORPUS, PARAMS, TRAINED_MODEL

PACKAGE = "package"  # the first step
DATA = (("corpus", CORPUS, "corpus_digest"), ("base model", BASE_MODEL, "base_digest"))
"""What the training started from: name, path in dvc.lock, the version's tag."""

PINS = ("requirement", "sha256", "member", "repository", "revision")
"""Keys of params that say what is fetched; SOURCE.json must say the same."""

State = Literal["verified", "broken", "not here"]


@dataclass(frozen=True)
class Link:
    """One step of the chain."""

    name: str
    text: str
    """What was found; for a broken link, why."""
    state: State


def links(registry: Registry, version: Version, kept: Kept, *, thorough: bool = False) -> list[Link]:
    """All steps, from the weights backwards.

    Args:
        registry: Where the version is.
        version: The version.
        kept: What was kept with it.
        thorough: Whether the weights are digested as DVC does it, and the files of corpus and base model in its cache read, not only
            looked for.
    """
    return [
        *_package(registry, version, kept, thorough=thorough),
        _run(registry, version),
        _lock(version, kept),
        _evaluation(version, kept),
        _stages(kept.lock),
        *commit_links(version.tag("git_commit"), kept.lock),
        *_data(version, kept.lock, thorough=thorough),
        *(_source(name, kept) for name in SOURCES),
    ]


def model_folder(package: Path) -> Path:
    """The trained model's folder inside a package that is whole."""
    content = yaml.safe_load((package / "MLmodel").read_text(encoding="utf-8"))
    return package / str(content["flavors"]["python_function"]["artifacts"]["model"]["path"])


def _package(registry: Registry, version: Version, kept: Kept, *, thorough: bool) -> Iterator[Link]:
    with registry.package(version) as package:
        if package.fault:
            yield _broken(PACKAGE, package.fault)
            return
        yield Link(PACKAGE, f"{version.model_id}, sha256 {version.tag('package_digest')[:16]}", "verified")
        model = model_folder(package.folder)
        # The package is what was made from the model that the tag names: its files need no second reading to be believed.
        found, expected = digest_of(model) if thorough else version.tag("model_digest"), kept.lock.outs.get(TRAINED_MODEL.as_posix())
        of_run = json.loads((model / "run.json").read_text(encoding="utf-8"))["fingerprint"]
    if found != expected:
        yield _broken("weights", f"{found}, but dvc.lock has {expected} for {TRAINED_MODEL}")
    elif of_run != version.tag("fingerprint"):
        yield _broken("weights", f"of the run {of_run}, but the version says {version.tag('fingerprint')}")
    else:
        yield Link("weights", f"{found}, {TRAINED_MODEL} of dvc.lock", "verified")


def _run(registry: Registry, version: Version) -> Link:
    found = registry.fingerprint_of_run(version.run_id)
    if found != version.tag("fingerprint"):
        return _broken("run", f"{version.run_id} has the fingerprint {found}, the version {version.tag('fingerprint')}")
    return Link("run", f"{version.run_id}, fingerprint {found}", "verified")


def _lock(version: Version, kept: Kept) -> Link:
    if "dvc.lock" in kept.altered:
        return _broken("dvc.lock", "the kept file is not the one that was registered")
    return Link("dvc.lock", f"sha256 {version.tag('dvc_lock')[:16]}", "verified")


def _evaluation(version: Version, kept: Kept) -> Link:
    if "evaluation.json" in kept.altered:
        return _broken("evaluation", "the kept file is not the one that was registered")
    if _md5(kept.evaluation_file) != kept.lock.outs.get(EVALUATION.as_posix()):
        return _broken("evaluation", "is not the one that dvc.lock names")
    data = kept.evaluation.data
    return Link("evaluation", f"on {data['num_documents']} {data['split']} documents of {str(data['digest'])[:16]}", "verified")


def _stages(lock: DvcLock) -> Link:
    for stage, deps in lock.deps.items():
        for path, digest in deps.items():
            if lock.outs.get(path, digest) != digest:
                return _broken("stages", f"{stage} read another {path} than the stage before it wrote")
    return Link("stages", f"each of {', '.join(lock.deps)} read what the one before it wrote", "verified")


def commit_links(commit: str, lock: DvcLock) -> Iterator[Link]:
    """Whether a commit's code and params are those that the stages ran."""
    files = files_of_commit(commit)
    if files is None:
        yield _broken("commit", f"{commit or 'none'} is not in this repository: `git fetch` it")
        return
    code = {path: digest for deps in lock.deps.values() for path, digest in deps.items() if path not in lock.outs}
    differing = sorted(path for path, digest in code.items() if _digest_in(files, path) != digest)
    if differing:
        yield _broken("commit", f"{commit[:12]}: {_and_more(differing)} there is not what the stages ran: commit it and run again")
    else:
        yield Link("commit", f"{commit[:12]}: its code is what the stages ran ({len(code)} files and folders)", "verified")
    params = _params_in(files)
    changed = [name for name, section in lock.params.items() if params.get(name) != section]
    if changed:
        yield _broken("params", f"{_and_more(changed)} of {PARAMS} in {commit[:12]} is not what the stages ran with: commit {PARAMS}")
    else:
        yield Link("params", f"{PARAMS} of {commit[:12]} is what the stages ran with", "verified")


def _data(version: Version, lock: DvcLock, *, thorough: bool) -> Iterator[Link]:
    cache = _cache()
    for name, path, tag in DATA:
        digest = lock.outs.get(path.as_posix(), "")
        if version.tag(tag) != digest:
            yield _broken(name, f"dvc.lock has {digest or 'none'}, the version {version.tag(tag) or 'none'}")
        elif cache is not None and is_in_cache(digest, cache, thorough=thorough):
            yield Link(name, f"{digest}, {'read from' if thorough else 'in'} DVC's cache", "verified")
        else:
            yield Link(name, f"{digest}, not in this repository's DVC cache: `dvc pull`, or run the pipeline at that commit", "not here")


def _source(name: str, kept: Kept) -> Link:
    pins: Mapping[str, Any] = kept.lock.params.get("download", {}).get(name, {})
    found, label = kept.sources[name], f"{name}'s source"
    if f"{name}.SOURCE.json" in kept.altered:
        return _broken(label, "the kept SOURCE.json is not the one that was registered")
    differing = [key for key in ("source", *PINS) if pins.get(key) is not None and pins[key] != found.get(key)]
    if differing:
        return _broken(label, f"SOURCE.json names another {_and_more(differing)} than the params")
    pinned = " ".join(str(pins[key]) for key in ("requirement", "repository", "revision", "sha256") if pins.get(key))
    return Link(label, f"{pins.get('source')} {pinned}".strip(), "verified")


def _cache() -> Path | None:
    """DVC's cache of this repository, if DVC knows it."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        return Path(Repo().cache.local.path)
    except NotDvcRepoError:
        return None


def files_of_commit(commit: str) -> dict[str, bytes] | None:
    """The content of every file of a commit by its path; None if it is no commit of this repository."""
    if not re.fullmatch(r"[0-9a-f]{40}", commit):  # git would take other text as an option
        return None
    try:
        finished = subprocess.run(["git", "archive", "--format=tar", commit], capture_output=True, check=False)
    except FileNotFoundError:
        return None
    if finished.returncode != 0:
        return None
    with tarfile.open(fileobj=io.BytesIO(finished.stdout)) as archive:
        opened = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        return {name: file.read() for name, file in opened.items() if file is not None}


def _params_in(files: Mapping[str, bytes]) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(files.get(PARAMS.as_posix(), b""))
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def _digest_in(files: Mapping[str, bytes], path: str) -> str | None:
    """DVC's digest of a file or folder among the files of a commit."""
    if path in files:
        return _md5(files[path])
    below = [(name.removeprefix(f"{path}/"), _md5(content)) for name, content in files.items() if name.startswith(f"{path}/")]
    return digest_of_listing(below) if below else None


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _broken(name: str, why: str) -> Link:
    return Link(name, why, "broken")


def _and_more(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"
