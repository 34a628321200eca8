"""One run, written to MLflow and, if asked, to Weights & Biases.

A server that goes away while a run is going costs the traces, never the training: it is said once, and the run goes on.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from prosemill.console import say
from prosemill.errors import ProsemillError
from prosemill.tracking.fingerprint import git_state
from prosemill.tracking.server import EXPERIMENT, UnreachableError, answering, connect, experiment_id, needing_answers

FINGERPRINT_TAG = "prosemill.fingerprint"

TableRow = Mapping[str, str | int | float]


class Run(Protocol):
    """A run that is open for writing. `run_id` is MLflow's."""

    run_id: str

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Values chosen before the run; a param of a reopened run keeps its first value."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Numbers measured in the run, at an optimiser step where there is one; in MLflow a step of a metric counts once."""

    def log_dataset(self, name: str, digest: str, source: str) -> None:
        """The data that the run read, by its digest."""

    def log_table(self, name: str, rows: Sequence[TableRow]) -> None:
        """Rows of equal keys; a second call with the same name adds rows, in MLflow those that are not there yet."""

    def log_file(self, path: Path, folder: str) -> None:
        """A picture or report, put into a folder of the run's artifacts."""


@contextmanager
def open_run(fingerprint: str, *, name: str, wandb: bool = False) -> Iterator[Run]:
    """Open the run of a fingerprint, or start it if there is none; ended as FINISHED, FAILED or KILLED when the block ends.

    Args:
        fingerprint: What names the run.
        name: What people see beside the fingerprint.
        wandb: Whether to write to Weights & Biases as well.

    Raises:
        ProsemillError: the tracking server does not answer, or Weights & Biases is asked for and not installed.
    """
    backends: list[_Backend] = [_Mlflow(fingerprint, name)]
    if wandb:
        backends.append(_Wandb(fingerprint, name))
    run = _Fanout(backends)
    try:
        yield run
    except KeyboardInterrupt:
        run.end("KILLED")
        raise
    except BaseException:
        run.end("FAILED")
        raise
    run.end("FINISHED")


def dataset_of(name: str, digest: str, source: str) -> Any:
    """Data as MLflow knows it, by its digest alone; MLflow keeps 36 characters of that."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    return MetaDataset(  # type: ignore[abstract]  # its abstract property is implemented only in name
        CodeDatasetSource(tags={"source": source}), name=name, digest=digest[:36]
    )


def find_run(fingerprint: str, experiment: str) -> str | None:
    """The id of the oldest MLflow run of a fingerprint in an experiment, if there is one."""
    import mlflow

    query = f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}'"
    found = mlflow.MlflowClient().search_runs([experiment], query, max_results=1, order_by=["attributes.start_time ASC"])
    return str(found[0].info.run_id) if found else None


class _Backend(Run, Protocol):
    def end(self, status: str) -> None: ...


class _Fanout:
    """Writes to all backends; one that stops answering is left out from then on."""

    def __init__(self, backends: list["_Backend"]) -> None:
        self._backends = backends
        self.run_id = backends[0].run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        self._each("log_params", params)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._each("log_metrics", metrics, step)

    def log_dataset(self, name: str, digest: str, source: str) -> None:
        self._each("log_dataset", name, digest, source)

    def log_table(self, name: str, rows: Sequence[TableRow]) -> None:
        self._each("log_table", name, rows)

    def log_file(self, path: Path, folder: str) -> None:
        self._each("log_file", path, folder)

    def end(self, status: str) -> None:
        self._each("end", status)

    def _each(self, method: str, *arguments: Any) -> None:
        for backend in list(self._backends):
            try:
                getattr(backend, method)(*arguments)
            except UnreachableError as error:
                say(f"warning: {error}; the run goes on without it")
                self._backends.remove(backend)


class _Mlflow:
    def __init__(self, fingerprint: str, name: str) -> None:
        self._mlflow = connect()
        self._last_steps: dict[str, int] = {}  # of metrics, when the run was reopened
        with needing_answers():
            self.run_id, self._is_reopened = self._start(fingerprint, name, experiment_id())

    def _start(self, fingerprint: str, name: str, experiment: str) -> tuple[str, bool]:
        found = find_run(fingerprint, experiment)
        run = self._mlflow.start_run(
            run_id=found,
            experiment_id=experiment,
            run_name=f"{name}-{fingerprint[:8]}",
            log_system_metrics=True,
            # With the run itself: a kill must not leave one that is not found again. A later evaluation does not change which commit
            # made the weights.
            tags=None if found else {FINGERPRINT_TAG: fingerprint, **git_state(Path.cwd())},
        )
        return str(run.info.run_id), bool(found)

    def log_params(self, params: Mapping[str, Any]) -> None:
        with answering():
            known = self._mlflow.MlflowClient().get_run(self.run_id).data.params
            self._mlflow.log_params({key: value for key, value in params.items() if key not in known})

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with answering():
            new = {key: value for key, value in metrics.items() if step is None or step > self._last_step(key)}
            self._mlflow.log_metrics(new, step=step)

    def _last_step(self, key: str) -> int:
        """The last step that the run had of a metric when it was reopened: steps after a checkpoint come again, with the same values."""
        if not self._is_reopened:
            return -1
        if key not in self._last_steps:
            history = self._mlflow.MlflowClient().get_metric_history(self.run_id, key)
            self._last_steps[key] = max((point.step for point in history), default=-1)
        return self._last_steps[key]

    def log_dataset(self, name: str, digest: str, source: str) -> None:
        dataset = dataset_of(name, digest, source)
        with answering():
            self._mlflow.log_input(dataset, context="training")
            self._mlflow.set_tag(f"prosemill.{name}_digest", digest)

    def log_table(self, name: str, rows: Sequence[TableRow]) -> None:
        with answering():
            known = self._rows_of_table(name)
            new = [row for row in rows if dict(row) not in known]
            if new:
                self._mlflow.log_table({key: [row[key] for row in new] for key in new[0]}, artifact_file=f"{name}.json")

    def _rows_of_table(self, name: str) -> list[dict[str, Any]]:
        """The rows that a reopened run has of a table."""
        file = f"{name}.json"
        if not self._is_reopened or file not in {artifact.path for artifact in self._mlflow.MlflowClient().list_artifacts(self.run_id)}:
            return []
        table = self._mlflow.artifacts.load_dict(f"runs:/{self.run_id}/{file}")
        return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]

    def log_file(self, path: Path, folder: str) -> None:
        with answering():
            self._mlflow.log_artifact(str(path), artifact_path=folder)

    def end(self, status: str) -> None:
        with answering():
            self._mlflow.end_run(status)


class _Wandb:
    def __init__(self, fingerprint: str, name: str) -> None:
        try:
            import wandb
        except ImportError:
            raise ProsemillError("`train.wandb` is on and wandb is not installed: run `pip install 'prosemill[wandb]'`") from None
        self._wandb = wandb
        settings = wandb.Settings(silent=True, disable_git=True, disable_code=True)
        self._run = wandb.init(project=EXPERIMENT, id=fingerprint, name=f"{name}-{fingerprint[:8]}", resume="allow", settings=settings)
        self.run_id = str(self._run.id)

    def log_params(self, params: Mapping[str, Any]) -> None:
        self._run.config.update(dict(params), allow_val_change=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._run.log({**metrics, **({} if step is None else {"train/global_step": step})})

    def log_dataset(self, name: str, digest: str, source: str) -> None:
        self._run.config.update({f"{name}_digest": digest, f"{name}_source": source}, allow_val_change=True)

    def log_table(self, name: str, rows: Sequence[TableRow]) -> None:
        if rows:
            self._run.log({name: self._wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])})

    def log_file(self, path: Path, folder: str) -> None:
        if path.suffix == ".png":
            self._run.log({f"{folder}/{path.stem}": self._wandb.Image(str(path))})

    def end(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "FINISHED" else 1)
