"""What the page of a pipeline's run shows: Prefect's artifacts, made from the pipeline's own results.

    page = Page()
    page.show_stages([StageRow("train", "ran", 254.0)])
    page.show_evaluation()

Artifacts are for looking at. A server that does not take one costs that one and nothing else; `Page.unreported` names it.
"""

import base64
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from prosemill.errors import ProsemillError
from prosemill.evaluation.table import HEADER, headline, table_cells
from prosemill.registry.store import MODEL_NAME
from prosemill.tracking.server import experiment_id, needing_answers
from prosemill.workspace import METRICS, REPORTS

if TYPE_CHECKING:
    from prosemill.registry.gate import Verdict
    from prosemill.registry.store import Version

PROGRESS = re.compile(r"^([a-z][a-z ]*): ([\d,]+)/([\d,]+) (\w+) in (.*)")
"""Lines of `prosemill.console.progress`."""
ANSWER_SECONDS = 10.0
PICTURE = re.compile(r"!\[([^\]]*)\]\(([\w.-]+\.png)\)")


class StageRow(NamedTuple):
    """What came of a stage."""

    stage: str
    result: str
    """As `prosemill.orchestration.stages.Result` says it, or `failed`."""
    seconds: float


@contextmanager
def at_once() -> Iterator[None]:
    """Have a server that is away fail a call immediately, else Prefect's client tries for a minute; a frozen one fails a new client's
    after `ANSWER_SECONDS`.
    """
    from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: ANSWER_SECONDS}):
        yield


class Page:
    """The artifacts of the flow run in whose context it is used."""

    def __init__(self) -> None:
        self.unreported: list[str] = []
        """Names of artifacts that the server did not take."""

    def show_stages(self, rows: Sequence[StageRow]) -> None:
        """A table of the stages so far."""
        table = [{"stage": row.stage, "result": row.result, "duration": duration_text(row.seconds)} for row in rows]
        self._create("stages", "create_table_artifact", table=table, description="What each stage did, and how long it took")

    def show_evaluation(self) -> None:
        """The metrics of the base and the trained model, and the report with curves and samples."""
        metrics = json.loads((METRICS / "evaluation.json").read_text(encoding="utf-8"))
        table = [dict(zip(HEADER, cells, strict=True)) for cells in table_cells(metrics)]
        self._create("metrics", "create_table_artifact", table=table, description=headline(metrics))
        report = (REPORTS / "evaluation.md").read_text(encoding="utf-8")
        self._create("report", "create_markdown_artifact", markdown=with_pictures(report), description="Plots, samples and the protocol")

    def show_version(self, version: "Version", mlflow_page: str) -> None:
        """Links to the MLflow run and to the registered version."""
        with needing_answers():
            run = f"{mlflow_page}/#/experiments/{experiment_id()}/runs/{version.run_id}"
        registered = f"{mlflow_page}/#/models/{MODEL_NAME}/versions/{version.number}"
        for key, text, link in (("mlflow-run", "The MLflow run", run), ("registered-version", f"Version {version.number}", registered)):
            self._create(key, "create_link_artifact", link=link, link_text=text, description=text)

    def show_verdict(self, verdict: "Verdict") -> None:
        """The gate's table."""
        outcome = "passes" if verdict.passed else "does not pass"
        text = f"## Version {verdict.version} {outcome} the gate\n\n{verdict.as_markdown()}\n"
        self._create("gate", "create_markdown_artifact", markdown=text, description=f"Version {verdict.version} {outcome} the gate")

    def show_bento(self, number: int, lines: Sequence[str]) -> None:
        """What `prosemill package` printed: where the Bento lies, and what to do with it."""
        text = f"## Version {number} as a Bento\n\n```bash\n" + "\n".join(lines) + "\n```\n"
        self._create("bento", "create_markdown_artifact", markdown=text, description=f"Version {number}, to be served anywhere")

    def progress(self) -> Callable[[str], None]:
        """What to call with every line of a stage: progress in it is shown as a bar, one for each thing that is counted."""
        return _Bars(self)

    def _create(self, key: str, function: str, **content: Any) -> None:
        """Make an artifact; `key` is what the page calls it."""
        import prefect.artifacts

        self.reported(key, lambda: getattr(prefect.artifacts, function)(key=key, **content))

    def reported(self, what: str, call: Callable[[], Any]) -> Any:
        """What a call to the server returns; None if it does not answer, which is remembered."""
        from httpx import HTTPError
        from prefect.exceptions import PrefectException

        try:
            with at_once():
                return call()
        except (HTTPError, PrefectException):
            if what not in self.unreported:
                self.unreported.append(what)
            return None


class _Bars:
    INTERVAL = 2.0  # seconds between two updates of a bar

    def __init__(self, page: Page) -> None:
        self._page = page
        self._bars: dict[str, tuple[UUID | None, float]] = {}

    def __call__(self, line: str) -> None:
        found = PROGRESS.match(line)
        if found is None:
            return
        what, (done, total), description = found[1], (int(found[number].replace(",", "")) for number in (2, 3)), line
        if not total:
            return
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        key, share = f"{what.replace(' ', '-')}-progress", min(100 * done / total, 100)  # a last window may hold more than was asked for
        bar, due = self._bars.get(what, (None, 0.0))
        if time.monotonic() < due and done < total:
            return
        if bar is None:
            bar = self._page.reported(key, lambda: create_progress_artifact(progress=share, key=key, description=description))
        else:
            self._page.reported(key, lambda: update_progress_artifact(bar, progress=share, description=description))
        self._bars[what] = (bar, time.monotonic() + self.INTERVAL)


class _Brief(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Keep every record; one on a user's mistake loses its stack trace, one on a failure what was logged before."""
        if record.exc_info and isinstance(error := record.exc_info[1], ProsemillError):
            record.msg, record.args, record.exc_info = str(error).partition("\n")[0], (), None
        elif (text := record.getMessage()).startswith("Finished in state Failed("):
            record.msg, record.args = text.partition("(")[0], ()
        elif text.startswith("Task run failed with exception"):
            record.msg, record.args = text.rpartition(" - ")[2], ()  # "Retry 1/3 will start …"
        return True


def quiet_mistakes() -> None:
    """Have Prefect log a user's mistake as its message alone."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(each, _Brief) for each in logger.filters):
            logger.addFilter(_Brief())


def with_pictures(markdown: str) -> str:
    """Markdown with its pictures of reports/ inside, so that it can be read anywhere."""

    def embed(found: re.Match[str]) -> str:
        path = REPORTS / found[2]
        if not path.is_file():
            return found[0]
        return f"![{found[1]}](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')})"

    return PICTURE.sub(embed, markdown)


def duration_text(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
