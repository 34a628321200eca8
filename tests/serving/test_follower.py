"""What is promoted is followed; what cannot be served leaves the old one at work, is said once and tried again."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prosemill.errors import ProsemillError
from prosemill.generation.engine_thread import NO_NUMBERS
from prosemill.serving import follower as module
from prosemill.serving.follower import Follower
from prosemill.serving.settings import ServiceSettings
from tests.models import write_model
from tests.serving.asking import GREEDY, ask
from tests.serving.conftest import VERSION, Served
from tests.waiting import until

SETTINGS = ServiceSettings(precision="fp32", num_rows=2, follow_seconds=0.02)


@dataclass
class Promoted:
    """A source of one version, which may fail."""

    folder: Path
    number: int = VERSION + 1
    error: Exception | None = None
    """Raised where the registry is asked."""
    fault: Exception | None = None
    """Raised where the package is."""
    is_fixed: bool = False
    base: Path | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    """What its evaluation says of serving in fewer bits, as `cost_int8`."""
    num_asked: int = 0
    num_loaded: int = 0

    def find(self) -> "Promoted":
        self.num_asked += 1
        if self.error:
            raise self.error
        return self

    @contextmanager
    def model(self) -> Iterator[Path]:
        self.num_loaded += 1
        if self.fault:
            raise self.fault
        yield self.folder

    def metrics(self) -> Mapping[str, Any]:
        return {"serving": self.costs}


@pytest.fixture
def follow(serve: Callable[..., Served], tiny_model: Path) -> Iterator[Callable[..., tuple[Served, Promoted]]]:
    """Starts a follower of a source with these troubles, beside a service of its own."""
    started = list[tuple[Follower, Served]]()

    def start(folder: Path = tiny_model, **troubles: Exception) -> tuple[Served, Promoted]:
        served, source = serve(), Promoted(folder, **troubles)  # type: ignore[arg-type]
        started.append((Follower(served.desk, source, SETTINGS), served))
        started[-1][0].start()
        return served, source

    yield start
    for one, served in started:
        one.end()
        one.join()
        if served.desk.champion.version != VERSION:
            served.desk.champion.close()


@pytest.mark.parametrize("error", [ProsemillError("the registry does not answer"), OSError("too many open files")])
def test_a_registry_that_does_not_answer_is_asked_again(
    follow: Callable[..., tuple[Served, Promoted]], error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    served, source = follow(error=error)
    until(lambda: source.num_asked > 5, "it is asked again and again")
    assert ask(served, GREEDY).json()["model_version"] == VERSION
    source.error = None
    until(lambda: ask(served, GREEDY).json()["model_version"] == VERSION + 1, "the new one is served")
    told = capfd.readouterr().err
    assert told.count(str(error)) == 1
    assert f"version {VERSION} goes on" in told


def test_a_version_that_does_not_load_leaves_the_old_one_at_work_and_is_tried_again_less_often(
    follow: Callable[..., tuple[Served, Promoted]], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.2)
    served, source = follow(fault=ProsemillError("version 8 was altered after it was registered"))
    until(lambda: source.num_loaded > 3, "it is tried again")
    assert ask(served, GREEDY).json()["model_version"] == VERSION
    source.fault = None
    until(lambda: ask(served, GREEDY).json()["model_version"] == VERSION + 1, "the new one is served")
    told = capfd.readouterr().err
    assert told.count("was altered after it was registered") == 1
    assert f"version {VERSION} goes on" in told


def test_between_two_tries_there_is_twice_the_time_up_to_a_longest(
    served: Served, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0
    monkeypatch.setattr(module, "LONGEST_PAUSE", 5)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    source, tries = Promoted(tiny_model, fault=ProsemillError("it was altered")), list[int]()
    follower = Follower(served.desk, source, ServiceSettings(follow_seconds=1))
    for now in range(20):
        before = source.num_loaded
        with suppress(ProsemillError):
            follower.look()
        tries += [now] * (source.num_loaded - before)
    assert tries == [0, 1, 3, 7, 12, 17]


@pytest.mark.parametrize("broken", [..., 5], ids=["all", "one token's"])
def test_a_version_that_cannot_write_is_not_served_and_the_next_one_is_tried_at_once(
    follow: Callable[..., tuple[Served, Promoted]], tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], broken: Any
) -> None:
    model = write_model(tmp_path, "llama", tiny_model)
    with torch.no_grad():
        model.get_output_embeddings().weight[broken] = torch.nan
    model.save_pretrained(tmp_path)
    served, source = follow(folder=tmp_path)
    until(lambda: source.num_loaded == 1, "it is loaded")
    until(lambda: source.num_asked > 5, "it is looked at again")
    assert ask(served, GREEDY).json()["model_version"] == VERSION
    source.folder, source.number = tiny_model, source.number + 1
    until(lambda: ask(served, GREEDY).json()["model_version"] == VERSION + 2, "the one after it is served")
    told = capfd.readouterr().err
    assert told.count(f"the champion is not served: {NO_NUMBERS}; version {VERSION} goes on") == 1
