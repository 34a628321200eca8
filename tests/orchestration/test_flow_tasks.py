"""What the flow `pipeline` decides by itself: which failures are worth another try, and whose promotion is asked for."""

import json
from typing import Any
from unittest.mock import MagicMock

import pytest

from prosemill.orchestration.stages import CommandFailedError
from prosemill.registry.store import Version


@pytest.mark.parametrize(
    ("error", "is_worth_it"),
    [
        (CommandFailedError("download failed: no network", is_temporary=True), True),
        (CommandFailedError("train was killed", was_killed=True), True),
        (CommandFailedError("train failed: the training loss is nan"), False),
        (OSError("no such file"), False),
    ],
    ids=["no network", "killed", "a mistake", "a bug"],
)
def test_a_stage_is_tried_again_where_that_may_help(error: Exception, is_worth_it: bool) -> None:
    from prefect.states import Failed

    from flows.pipeline import NUM_RETRIES, is_worth_another_try, stage

    run: Any = None
    assert is_worth_another_try(None, run, Failed(data=error)) == is_worth_it
    assert stage.retries == NUM_RETRIES
    assert stage.retry_condition_fn is is_worth_another_try


@pytest.mark.parametrize(
    ("decision", "num_asked", "said"),
    [
        (None, 1, "its promotion is asked for"),
        ({"accept": True, "comment": "so"}, 1, "its promotion is asked for"),
        ({"accept": False, "comment": "so"}, 0, "a person has refused it"),
    ],
    ids=["nobody has decided", "accepted before", "refused before"],
)
def test_a_promotion_is_asked_for_unless_a_person_has_refused_it(
    monkeypatch: pytest.MonkeyPatch, decision: dict[str, Any] | None, num_asked: int, said: str
) -> None:
    from flows import pipeline

    events: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(pipeline, "emit_event", lambda name, resource, payload: events.append((name, payload)))
    tags = {} if decision is None else {"decision": json.dumps(decision)}
    assert said in pipeline.ask_for_promotion(Version(7, "", "", tags, ()))
    assert events == [(pipeline.PROMOTION_REQUESTED, {"version": 7})] * num_asked


@pytest.mark.parametrize("force", [False, True])
def test_a_forced_run_takes_no_stage_for_unchanged(monkeypatch: pytest.MonkeyPatch, force: bool) -> None:
    from flows import pipeline

    called, page = [], MagicMock()

    def stage(name: str, _page: Any, is_unchanged: bool, is_forced: bool, *_: Any) -> MagicMock:
        called.append((name, is_unchanged, is_forced))
        return MagicMock(result=lambda: "ran")

    monkeypatch.setattr(pipeline, "stage", MagicMock(with_options=lambda **_: stage))
    monkeypatch.setattr(pipeline, "stage_names", lambda: ["download", "train"])
    monkeypatch.setattr(pipeline, "leading_unchanged_stages", lambda **_: ["download"])
    pipeline.run_stages(page, force, pipeline.Hours(), 0, lambda: None)
    assert called == [("download", not force, force), ("train", False, force)]
    assert [(row.stage, row.result) for row in page.show_stages.call_args.args[0]] == [("download", "ran"), ("train", "ran")]


@pytest.mark.parametrize(("result", "name"), [("ran", "Completed"), ("cached", "Cached"), ("unchanged", "Unchanged")])
def test_a_stages_state_is_called_by_what_came_of_it(monkeypatch: pytest.MonkeyPatch, result: str, name: str) -> None:
    from flows import pipeline

    monkeypatch.setattr(pipeline, "get_run_logger", MagicMock())
    monkeypatch.setattr(pipeline, "reproduce", lambda *_, **__: result)
    state = pipeline.stage.fn("train", MagicMock(), False, False, 1.0, 0, lambda: None)
    assert (state.name, state.type.value, state.message) == (name, "COMPLETED", f"train: {result}")
