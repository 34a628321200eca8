"""One worker for the corpus tests, as a process pool's start would take most of their time, and no disk syncs, which take the rest.

Tests about workers set their own number; no test cuts the machine's power, and a killed process loses nothing that it has written.
"""

import os

import pytest

from tests.corpus.killing import no_sync


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROSEMILL_WORKERS", "1")
    monkeypatch.setattr(os, "fsync", no_sync)
