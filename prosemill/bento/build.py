"""A Bento built of a registered version.

    bento = build(Registry.open(), version)
    bento.tag, bento.folder

BentoML imports the service to build it, so that it does so in a process of its own; and away from its store, into which what it has built
comes whole or not at all.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prosemill.bento.packed import BASE, EVALUATION, FOLDER, MODEL, seal
from prosemill.console import say
from prosemill.digests import sha256_of_value
from prosemill.dvc_lock import digest_of
from prosemill.errors import ProsemillError
from prosemill.locks import alone
from prosemill.registry.champion import RegisteredVersion
from prosemill.registry.digest import folder_digest, remove_compiled
from prosemill.registry.kept import read_kept
from prosemill.registry.packaging import copy_code, pinned
from prosemill.registry.store import Registry, Version
from prosemill.workspace import BASE_MODEL

NAME = "prosemill"
STORE = "bentos"  # below `BENTOML_HOME`
SOURCE = "src"  # where BentoML puts what it was given
WRITTEN_BY_BENTOML = Path("bentofile.yaml")  # beside that
REQUIREMENTS_FILE = "env/python/requirements.txt"
DIGITS = 12  # of the digest that is part of a tag

CODE = (
    "__init__.py",
    "bento/__init__.py",
    "bento/packed.py",
    "console.py",
    "digests.py",
    "end_of_text.py",
    "errors.py",
    "evaluation/table.py",  # without the package around it, which imports all that an evaluation needs
    "families",
    "generation",
    "orphans.py",
    "precision.py",
    "pretrained.py",
    "registry/__init__.py",
    "registry/answers.py",
    "registry/digest.py",
    "registry/evaluation.py",
    "serving",
    "telemetry.py",
)
"""Files and folders of `prosemill` that a Bento carries."""

REQUIREMENTS = (
    "click",
    "fastapi",
    "gradio",
    "httptools",
    "numpy",
    "platformdirs",
    "prometheus-client",
    "psutil",
    "pydantic",
    "pydantic-settings",
    "safetensors",
    "starlette",
    "tokenizers",
    "torch",
    "transformers",
    "uvloop",
)
"""Libraries that a Bento needs besides BentoML, in the versions that it was built with."""

BUILD = "import json, sys, prosemill.serving.worker, bentoml; bentoml.bentos.build(**json.load(sys.stdin))"
"""Run where the Bento's content lies, whose code it tries: BentoML imports only what stands above the worker. `bentoml build` does not
run below a folder whose name begins with a dot."""

ERROR = re.compile(r"^[\w.]+: (?s:.*)", re.MULTILINE)  # the end of a stack trace, which says what is wrong

README = """\
# {name}:{tag}

Version {number} of {model}, fine-tuned on {corpus}: its weights, and the service that writes with them.

    bentoml serve {name}:{tag}    # or `bentoml serve .` beside this file
    curl http://127.0.0.1:3000/generate --json '{{"prompt": "The history of"}}'

It listens on its own machine alone, unless `PROSEMILL_API_KEYS` holds keys; in a container, whose only way in is another address:

    docker run --rm --publish 3000:3000 --env PROSEMILL_API_KEYS=… {name}:{tag} serve --host 0.0.0.0

Made by the commit {git_commit}. `src/version/` holds the weights, and the numbers that they were measured by.
"""


@dataclass(frozen=True)
class Bento:
    """A Bento in BentoML's store."""

    tag: str
    """Its name there."""
    folder: Path

    @property
    def num_bytes(self) -> int:
        """Of all its files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


def build(registry: Registry, version: Version, *, with_base: bool = False) -> Bento:
    """Build a Bento, or find it where the same one has been built before.

    Args:
        registry: Where the version is.
        version: The version.
        with_base: Whether it shall hold the base model too.

    Raises:
        ProsemillError: the version is not as it was registered, the workspace's base model is not the one it was trained from, or BentoML
            cannot build.
    """
    from bentoml._internal.bento import BentoStore
    from bentoml._internal.configuration.containers import BentoMLContainer

    try:
        home = Path(BentoMLContainer.bentoml_home.get())
    except OSError as error:
        raise ProsemillError(f"BentoML's store cannot be made ({error}): set BENTOML_HOME to a folder that can") from None
    work = home / "tmp/prosemill-package"
    with alone(home / "prosemill-package.lock", "`prosemill package`", wait=True) as lock, _scratch(work) as scratch:
        context = scratch / "context"
        say(f"gathering version {version.number}")
        options = _gather(context, registry, version, with_base=with_base)
        bento = Bento(f"{NAME}:{options['version']}", home / STORE / NAME / options["version"])
        if not _is_whole(bento.folder):
            say(f"building {bento.tag}")
            built = _build(context, options, scratch / "home", lock.fileno())
            shutil.rmtree(bento.folder, ignore_errors=True)
            with BentoStore(home / STORE).register(bento.tag) as place:
                built.rename(place)
    return bento


def describe(bento: Bento) -> str:
    """What was built, and the commands that come next."""
    home = os.environ.get("BENTOML_HOME")
    return "\n".join(
        [
            f"{bento.tag}: {bento.num_bytes / 1e6:,.1f} MB in {bento.folder}",
            *([f"export BENTOML_HOME={shlex.quote(home)}"] if home else []),
            "export BENTOML_DO_NOT_TRACK=True  # else BentoML's commands report to their makers; the service never does",
            f"bentoml serve {bento.tag}",
            f'bentoml export {bento.tag} "$PWD/"  # as a file, for `bentoml import` elsewhere',
            f"bentoml containerize {bento.tag}  # as an image, with Docker",
        ]
    )


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder for the while; what a kill has left of the one before is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _gather(context: Path, registry: Registry, version: Version, *, with_base: bool) -> dict[str, Any]:
    """Put together all that the Bento is to hold; what BentoML is to be told of it."""
    candidate, kept = RegisteredVersion(registry, version), read_kept(registry, version)
    if kept.altered:
        raise ProsemillError(
            f"{', '.join(sorted(kept.altered))} of version {version.number} is not what was registered: check out its commit, run "
            "`dvc repro` and `prosemill register`"
        )
    held = context / FOLDER
    held.mkdir(parents=True)
    with candidate.model() as model:
        shutil.copytree(model, held / MODEL)
    if with_base:
        _copy_base(version, held / BASE)
    (held / EVALUATION).write_bytes(kept.evaluation_file)
    seal(held, number=version.number, facts=candidate.facts)
    copy_code(CODE, context)
    shutil.copyfile(Path(__file__).with_name("entry.py"), context / "service.py")
    requirements = pinned(REQUIREMENTS)
    tag = f"{version.number}-{_digest(context, [*requirements, *pinned(['bentoml'])])}"  # which BentoML adds
    return {
        "service": "service:Service",
        "name": NAME,
        "version": tag,
        "labels": {"version": str(version.number), **candidate.facts},
        "description": README.format(name=NAME, tag=tag, number=version.number, **candidate.facts),
        "python": {"packages": requirements, "lock_packages": False},  # to lock the others' versions takes a package index
        "docker": {"system_packages": ["gcc", "libc6-dev"]},  # for the engine's kernels, which are compiled where they run
    }


def _copy_base(version: Version, place: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.copytree(BASE_MODEL, place)
    if digest_of(place) != version.tag("base_digest"):  # of the copy: a run of the pipeline may have begun meanwhile
        raise ProsemillError(
            f"{BASE_MODEL} is not the base model of version {version.number}: check out its commit and run `dvc checkout`, or leave "
            "--with-base out"
        )


def _digest(source: Path, requirements: Sequence[str]) -> str:
    """Of all that a Bento is made of: a version, code and requirements."""
    return sha256_of_value([folder_digest(source, without=WRITTEN_BY_BENTOML), requirements])[:DIGITS]


def _is_whole(folder: Path) -> bool:
    """Whether a Bento lies there that is made of what its tag says."""
    remove_compiled(folder)
    requirements = folder / REQUIREMENTS_FILE
    if not requirements.is_file() or not (folder / "bento.yaml").is_file():
        return False
    return folder.name.endswith(f"-{_digest(folder / SOURCE, requirements.read_text(encoding='utf-8').split())}")


def _build(context: Path, options: Mapping[str, Any], home: Path, lock: int) -> Path:
    """Have BentoML build into a home of its own; the Bento's folder there."""
    finished = subprocess.run(
        [sys.executable, "-c", BUILD],
        input=json.dumps(options),
        cwd=context,
        env=os.environ | {"BENTOML_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        pass_fds=[lock],  # whoever comes after a kill waits until this has ended too
    )
    built = home / STORE / NAME / str(options["version"])
    if finished.returncode != 0 or not _is_whole(built):
        error = ERROR.search(finished.stdout)
        why = error[0].strip() if error else f"its exit status is {finished.returncode}"
        raise ProsemillError(f"BentoML cannot build {options['version']} ({why}): nothing is packaged")
    return built
