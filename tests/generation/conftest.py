"""The engine's tests, with the native kernels and without."""

import pytest

from prosemill.generation import native
from tests.generation.models import compiles


@pytest.fixture(params=[pytest.param("native", marks=compiles), "torch"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the native kernels, and as where there are none."""
    if request.param == "torch":
        monkeypatch.setattr(native, "load", lambda: None)
