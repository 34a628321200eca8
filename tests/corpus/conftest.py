"""One worker for the corpus tests: a process pool's start would take most of their time. Those about workers set their own number."""

import pytest


@pytest.fixture(autouse=True)
def one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROSEMILL_WORKERS", "1")
