"""An experiment in the place of params.yaml, for as long as it runs.

    with experiment(["model=tiny", "corpus=python-300"]):
        ...

Overrides mean what they mean to `dvc exp run -S`: they choose files of experiments/ and set keys, and what comes out of it is the whole of
params.yaml. The user's own comes back when the block ends, or at the next start if a kill came before. What the experiment made is kept as
one of DVC's experiments: a commit that holds its params, which a registered version can point to.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from prosemill.console import say
from prosemill.digests import sha256_of_file, sha256_of_value
from prosemill.errors import ProsemillError
from prosemill.params import SECTIONS, Download, parse_section, read_section
from prosemill.shards import write_durably
from prosemill.tracking.fingerprint import RESULTS, git_state
from prosemill.workspace import EXPERIMENTS, PARAMS, STATE

OWN = STATE / "params.yaml"
COMPOSED_DIGEST = STATE / "params.sha256"  # of the experiment that stands in its place
MAX_NAME = 60


@contextmanager
def experiment(overrides: Sequence[str]) -> Iterator[None]:
    """Have params.yaml hold an experiment's values while the block runs; without overrides it stays as it is.

    Raises:
        ProsemillError: an override is wrong.
    """
    restore_params()
    if not overrides:
        yield
        return
    text = compose(overrides)
    write_durably(COMPOSED_DIGEST, sha256_of_value(text))
    write_durably(OWN, _text(PARAMS))
    try:
        write_durably(PARAMS.resolve(), text)  # a link stays one
        yield
    finally:
        restore_params()


def restore_params() -> None:
    """Bring the user's params.yaml back, if an experiment stands in its place."""
    if not OWN.is_file():
        return
    if _stands_in_place():
        write_durably(PARAMS.resolve(), _text(OWN))
        OWN.unlink()
    elif sha256_of_file(PARAMS) == sha256_of_file(OWN):
        OWN.unlink()
    else:
        kept = PARAMS.with_name(f"{PARAMS.name}.before-experiment")
        if kept.exists():  # an earlier one is the user's to delete
            kept = kept.with_name(f"{kept.name}-{sha256_of_file(OWN)[:8]}")
        OWN.replace(kept)
        say(f"warning: {PARAMS} was changed while an experiment stood in its place; it is left so, and what it was before is {kept}")


def own_params() -> Path:
    """Where the user's own params stand: params.yaml, or beside it while an experiment stands in its place."""
    return OWN if OWN.is_file() and _stands_in_place() else PARAMS


def _stands_in_place() -> bool:
    """Whether params.yaml is what an experiment put there, and no edit of the user's."""
    return sha256_of_value(_text(PARAMS)) == COMPOSED_DIGEST.read_text(encoding="utf-8")


def compose(overrides: Sequence[str]) -> str:
    """The text of params.yaml with an experiment's values.

    Raises:
        ProsemillError: an override names what there is not, or gives a value that is not allowed.
    """
    from dvc.utils.hydra import compose_and_dump
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    with tempfile.TemporaryDirectory(prefix="prosemill-") as scratch:
        path = Path(scratch) / PARAMS.name
        try:
            compose_and_dump(path, str(EXPERIMENTS.absolute()), None, "default", str(Path(".dvc/plugins").absolute()), list(overrides))
        except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
            raise ProsemillError(f"the experiment {' '.join(overrides)!r} cannot be had: {_explain(error)}") from None
        text = path.read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    missing = [name for name in SECTIONS if name not in values]
    if missing:
        raise ProsemillError(f"the experiment {' '.join(overrides)!r} takes the section `{missing[0]}` away, which is needed")
    for name in values:
        if name not in SECTIONS:
            raise ProsemillError(f"unknown section `{name}`: choose from {', '.join(SECTIONS)}, or a group of {EXPERIMENTS}/")
    for name, section in SECTIONS.items():
        parse_section(name, section, values[name], where="overrides")
    return text


def save_experiment(overrides: Sequence[str]) -> str:
    """Keep the tracked files as one of DVC's experiments; its name. `dvc exp show` lists it, `dvc exp apply` brings it back.

    By git alone: `dvc exp save` writes into dvc.lock that every stage has run, also where code was changed since. A name ends in a
    digest of what it holds, so that an experiment that a version points to is never replaced.

    Raises:
        ProsemillError: git cannot.
    """
    with tempfile.TemporaryDirectory(prefix="prosemill-") as scratch:
        identity = {f"GIT_{role}_{what}": "prosemill" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        environment = os.environ | identity | {"GIT_INDEX_FILE": str(Path(scratch) / "index")}  # the user's own index stays as it is
        head = _git("rev-parse", "HEAD", environment=environment)
        _git("read-tree", head, environment=environment)
        _git("add", "--update", ":/", environment=environment)
        tree = _git("write-tree", environment=environment)
        name = f"{experiment_name(overrides)}-{tree[:7]}"
        references = _git("for-each-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", environment=environment)
        if not references:
            commit = _git("commit-tree", "-p", head, "-m", f"Experiment: {' '.join(overrides)}", tree, environment=environment)
            _git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", commit, environment=environment)
    return name


def _git(*arguments: str, environment: dict[str, str]) -> str:
    finished = subprocess.run(["git", *arguments], env=environment, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        why = " ".join(finished.stderr.split()) or f"exit status {finished.returncode}"
        raise ProsemillError(f"the experiment cannot be kept: `git {arguments[0]}` says {why}")
    return finished.stdout.strip()


def experiment_name(overrides: Sequence[str]) -> str:
    """A name that git accepts: the overrides themselves, as far as they are short."""
    name = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(overrides))).strip("-.") or "experiment"
    name = re.sub(r"\.lock$", "-lock", name)  # which git keeps for itself
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}-{sha256_of_value(list(overrides))[:8]}"


def uncommitted_changes() -> list[str]:
    """Files that git tracks and that differ from its last commit, the pipeline's results aside."""
    command = ["git", "diff", "--name-only", "HEAD", "--", ".", *(f":!{path}" for path in RESULTS)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    return finished.stdout.splitlines() if finished.returncode == 0 else []


def run_name(overrides: Sequence[str], *, has_changes: bool) -> str:
    """What a run of params.yaml is called: model, corpus, whatever else the experiment sets, and the commit."""
    download = read_section("download", Download)
    others = [override for override in overrides if not override.startswith(("model=", "corpus="))]
    name = ", ".join([f"{download.model.name} on {download.corpus.name}", *others])
    commit = git_state(Path.cwd())["git_commit"][:7]
    return f"{_cut(name)} @ {commit}" + (" + changes" if has_changes else "")


def _cut(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"


def _text(path: Path) -> str:
    """The file's text with its own line ends. Raises `ProsemillError` if it is not there, or no text."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ProsemillError(f"{path} is missing: bring it back with `git checkout {path}`") from None
    except UnicodeDecodeError as error:
        raise ProsemillError(f"{path} is not in UTF-8 (byte {error.start + 1}): save it as that") from None


def _explain(error: Exception) -> str:
    """Hydra's words without its search path, and without the advice to add keys that no stage reads."""
    text = " ".join(str(error).partition("Config search path:")[0].partition("See https")[0].split())
    return text.partition("To append to your config")[0].strip() + (
        " `prosemill params` lists the keys, experiments/ the groups" if "To append to your config" in text else ""
    )
