"""The model registry: versions of one registered model, their tags, and the aliases that say which of them is served.

    registry = Registry.open()
    version = registry.version(3)
    registry.set_alias(CHALLENGER, 3)

What MLflow answers, this module puts into plain terms; what it does not answer becomes one line. It promises no more than MLflow does: each
call is one transaction, and the last writer wins.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prosemill.digests import sha256_of_value
from prosemill.errors import FULL_DISK, ProsemillError, first_line
from prosemill.locks import alone
from prosemill.registry.digest import folder_digest, remove_compiled
from prosemill.tracking.run import FINGERPRINT_TAG, dataset_of
from prosemill.tracking.server import NO_CONNECTION, SQLITE, connect, experiment_id, explain, needing_answers, tracking_uri
from prosemill.wheels import cache_folder
from prosemill.workspace import CORPUS, TRACKING

MODEL_NAME = "prosemill"
CHALLENGER, CHAMPION, PREVIOUS_CHAMPION = "challenger", "champion", "previous_champion"

PREFIX = "prosemill."  # of our tags
STATE = f"{PREFIX}state"  # tag of the registered model
DECISION = "decision"  # tag of a version: what a person said to its promotion, as JSON
WRITTEN_BY_MLFLOW = Path("registered_model_meta")  # into a package that is loaded where it lies


@dataclass(frozen=True)
class Version:
    """One registered version."""

    number: int
    run_id: str
    """The MLflow run that trained it."""
    model_id: str
    """MLflow's logged model: the package."""
    tags: Mapping[str, str]
    """Ours, without their prefix."""
    aliases: tuple[str, ...]

    def tag(self, name: str) -> str:
        """A tag's value; empty if there is none."""
        return self.tags.get(name, "")

    def number_in(self, name: str) -> float | None:
        """A tag's value as a number; None if it is none."""
        try:
            return float(self.tag(name))
        except ValueError:
            return None


@dataclass(frozen=True)
class Served:
    """Which versions serve: the champion and the one before it."""

    champion: int | None = None
    previous: int | None = None


@dataclass(frozen=True)
class State:
    """What is written down of the champions: who served when all was settled last, and what was about to change."""

    served: Served = Served()
    coming: Served | None = None
    rolled_back: int | None = None
    """The version that the change takes back, if it does."""
    by: str = ""
    """Who is at the change: a word of its own for every change."""

    @classmethod
    def parse(cls, text: str) -> "State":
        """Read what `as_json` gave; anything else counts as nothing written."""
        try:
            content = json.loads(text)
            coming = content["coming"]
            state = cls(Served(**content["served"]), None if coming is None else Served(**coming), content["rolled_back"], content["by"])
        except (ValueError, KeyError, TypeError):
            return cls()
        return state

    def as_json(self) -> str:
        """As a tag."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class PackageFolder:
    """The folder of a version's package."""

    folder: Path
    fault: str | None
    """Why it must not be used; None if it is as it was registered."""


class Registry:
    """The registry of the tracking server. Every method raises `ProsemillError` if the server does not answer."""

    def __init__(self, mlflow: Any) -> None:
        self._mlflow = mlflow
        self._client = mlflow.MlflowClient()

    @classmethod
    def open(cls) -> "Registry":
        """The registry of `MLFLOW_TRACKING_URI`, or else the repository's own."""
        mlflow = connect()
        with needing_answers():
            return cls(mlflow)

    @contextmanager
    def locked(self, *, wait: bool = False) -> Iterator[None]:
        """Keep everybody else on this machine from changing the registry while the block runs.

        Args:
            wait: Whether to wait for another process that is changing it.

        Raises:
            ProsemillError: another process is changing it, and `wait` is off.
        """
        uri = tracking_uri().rstrip("/")
        beside = Path(f"{uri.removeprefix(SQLITE)}.registry.lock")
        path = beside if uri.startswith(SQLITE) else cache_folder() / "locks" / f"{sha256_of_value(uri)[:16]}.lock"
        with alone(path, "change of the registry", wait=wait):
            yield

    def aliases(self) -> dict[str, int]:
        """Numbers of versions by alias."""
        model = self._registered_model()
        return {name: int(number) for name, number in model.aliases.items()} if model else {}

    def served(self) -> Served:
        """The versions that the aliases name, whoever set them."""
        aliases = self.aliases()
        return Served(aliases.get(CHAMPION), aliases.get(PREVIOUS_CHAMPION))

    def versions(self) -> list[Version]:
        """All versions, the newest first."""
        with needing_answers():
            found = self._client.search_model_versions(f"name = '{MODEL_NAME}'")
        aliases = sorted(self.aliases().items())  # which the search leaves out
        versions = [_version(each, tuple(name for name, number in aliases if number == int(each.version))) for each in found]
        return sorted(versions, key=lambda version: -version.number)

    def version(self, number: int) -> Version:
        """The version of this number. Raises `ProsemillError` if there is none, or no longer."""
        found = self.find(number)
        if found is None:
            raise ProsemillError(f"version {number} of {MODEL_NAME} is not in the registry: `prosemill versions` lists those that are")
        return found

    def find(self, number: int) -> Version | None:
        """The version of this number, if it is there."""
        from mlflow.exceptions import MlflowException

        with needing_answers():
            try:
                found = self._client.get_model_version(MODEL_NAME, str(number))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None
        return _version(found, tuple(sorted(found.aliases)))

    def find_weights(self, fingerprint: str, model_digest: str) -> Version | None:
        """The newest version with these weights; another machine may have made others of the same fingerprint."""
        wanted = (fingerprint, model_digest)
        return next((version for version in self.versions() if (version.tag("fingerprint"), version.tag("model_digest")) == wanted), None)

    def create(self, model_id: str, run_id: str, tags: Mapping[str, str]) -> int:
        """Register a logged model as a new version, with its tags from its first moment on; its number."""
        with needing_answers():
            if self._registered_model() is None:
                self._client.create_registered_model(MODEL_NAME)
            source, with_prefix = f"models:/{model_id}", {f"{PREFIX}{name}": value for name, value in tags.items()}
            made = self._client.create_model_version(MODEL_NAME, source, run_id, tags=with_prefix, model_id=model_id)
            # Has MLflow's page of the package link to its version.
            link = json.dumps([{"name": MODEL_NAME, "version": made.version}])
            self._client.set_logged_model_tags(model_id, {"mlflow.modelVersions": link})
        return int(made.version)

    def forget_unregistered(self, run_id: str) -> None:
        """Delete the run's packages that are no version: they failed, or a kill came before their registration."""
        from mlflow.utils.file_utils import local_file_uri_to_path

        registered = {version.model_id for version in self.versions()}
        with needing_answers():
            for model in self._client.search_logged_models([experiment_id()], f"source_run_id = '{run_id}'"):
                if model.model_id not in registered:
                    self._client.delete_logged_model(model.model_id)
                    location = Path(local_file_uri_to_path(model.artifact_location))
                    if location.is_relative_to(TRACKING.absolute()):  # elsewhere files are not ours to delete
                        shutil.rmtree(location, ignore_errors=True)

    def log_evaluation(self, run_id: str, model_id: str, numbers: Mapping[str, float], data: Mapping[str, Any]) -> None:
        """Log numbers of an evaluation to a package and its run, with the split that they were measured on."""
        dataset = dataset_of(f"{data['split']}_split", str(data["digest"]), source=str(CORPUS / data["split"]))
        with needing_answers():
            self._mlflow.log_metrics(dict(numbers), run_id=run_id, model_id=model_id, dataset=dataset)

    def keep(self, run_id: str, folder: str, files: Mapping[str, Path]) -> None:
        """Put copies of text files into a folder of a run's artifacts."""
        with needing_answers():
            for name, path in files.items():
                self._client.log_text(run_id, path.read_text(encoding="utf-8"), f"{folder}/{name}")

    def set_tags(self, number: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version; those that have their value already are not written."""
        known = self.version(number).tags
        with needing_answers():
            for name, value in tags.items():
                if known.get(name) != value:
                    self._client.set_model_version_tag(MODEL_NAME, str(number), f"{PREFIX}{name}", value)

    def describe(self, number: int, text: str, *, instead_of: str) -> None:
        """Set what the registry's page shows of a version, in Markdown, unless somebody has written there what does not begin so."""
        with needing_answers():
            if (self._client.get_model_version(MODEL_NAME, str(number)).description or instead_of).startswith(instead_of):
                self._client.update_model_version(MODEL_NAME, str(number), text)

    def set_alias(self, alias: str, number: int | None) -> None:
        """Point an alias to a version, or to none."""
        with needing_answers():
            if number is None:
                self._client.delete_registered_model_alias(MODEL_NAME, alias)
            else:
                self._client.set_registered_model_alias(MODEL_NAME, alias, str(number))

    def state(self) -> State:
        """What `set_state` wrote last; empty before that."""
        model = self._registered_model()
        return State.parse(model.tags.get(STATE, "")) if model else State()

    def set_state(self, state: State) -> None:
        """Write down what the champions are, or are about to be."""
        with needing_answers():
            self._client.set_registered_model_tag(MODEL_NAME, STATE, state.as_json())

    @contextmanager
    def package(self, version: Version) -> Iterator[PackageFolder]:
        """A version's package, checked against its digest; it may be gone after the block. Raises `ProsemillError` if it is gone before."""
        with needing_answers():
            uri = self._client.get_model_version_download_uri(MODEL_NAME, str(version.number))
        with self._local(uri) as folder:
            remove_compiled(folder)
            found, expected = package_digest(folder), version.tag("package_digest")
            yield PackageFolder(
                folder,
                fault=None
                if found == expected
                else f"the package of version {version.number} was altered after it was registered (digest {found[:12]}, registered "
                f"{expected[:12] or 'without one'}): do not use it; delete the version and register anew",
            )

    @contextmanager
    def whole_package(self, version: Version) -> Iterator[Path]:
        """The folder of a package that is as it was registered. Raises `ProsemillError` if it is not."""
        with self.package(version) as package:
            if package.fault:
                raise ProsemillError(package.fault)
            yield package.folder

    def fingerprint_of_run(self, run_id: str) -> str | None:
        """The fingerprint of an MLflow run; None if it has none."""
        with needing_answers():
            found: str | None = self._client.get_run(run_id).data.tags.get(FINGERPRINT_TAG)
        return found

    @contextmanager
    def run_files(self, run_id: str, path: str) -> Iterator[Path]:
        """A folder of a run's artifacts; it may be gone after the block. Raises `ProsemillError` if it is gone before."""
        with needing_answers():
            uri = f"{self._client.get_run(run_id).info.artifact_uri}/{path}"
        with self._local(uri) as folder:
            yield folder

    @contextmanager
    def _local(self, uri: str) -> Iterator[Path]:
        """The folder itself where it is on this machine, else a copy."""
        with tempfile.TemporaryDirectory(prefix="prosemill-") as scratch:
            yield self._fetch(uri, scratch)

    def _fetch(self, uri: str, scratch: str) -> Path:
        from mlflow.exceptions import MlflowException

        try:
            found = Path(self._mlflow.artifacts.download_artifacts(uri, dst_path=None if uri.startswith("file:") else scratch))
        except (MlflowException, OSError) as error:
            if isinstance(error, OSError) and error.errno in FULL_DISK:
                raise
            if NO_CONNECTION in str(error):
                raise ProsemillError(explain(error)) from None
            remedy = "restore it, or delete what points to it in the MLflow page"
            raise ProsemillError(f"{uri} cannot be had ({first_line(error)}): {remedy}") from None
        if not any(found.iterdir()):  # a server lists nothing where nothing is
            raise ProsemillError(f"{uri} is gone: restore it, or delete what points to it in the MLflow page")
        return found

    def _registered_model(self) -> Any | None:
        with needing_answers():
            found = self._client.search_registered_models(f"name = '{MODEL_NAME}'")
        return found[0] if found else None


def package_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of a package's files, in hexadecimal."""
    return folder_digest(folder, without=WRITTEN_BY_MLFLOW)


def _version(found: Any, aliases: tuple[str, ...]) -> Version:
    return Version(
        number=int(found.version),
        run_id=str(found.run_id),
        model_id=str(found.model_id or str(found.source).rpartition("/")[2]),
        tags={name.removeprefix(PREFIX): value for name, value in found.tags.items() if name.startswith(PREFIX)},
        aliases=aliases,
    )
