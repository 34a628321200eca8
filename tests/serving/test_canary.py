"""A version's package may hold any code: to serve it, none of that is run."""

from pathlib import Path

import pytest

from prosemill.errors import ProsemillError
from prosemill.registry.champion import ChampionOfRegistry
from prosemill.registry.store import Registry, package_digest
from prosemill.serving.champion import load
from prosemill.serving.settings import ServiceSettings
from tests.serving.real import make_champion


def test_code_in_a_package_is_refused_and_registered_with_it_is_not_run(
    tmp_path: Path, tiny_model: Path, prose: list[str], empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(make_champion(tmp_path / "workspace", tiny_model, [text[:400] for text in prose[:6]], empty_store).folder)
    canary, settings = tmp_path / "canary", ServiceSettings(num_rows=1)
    candidate = ChampionOfRegistry().find()
    registry, version = candidate.registry, candidate.version
    with registry.whole_package(version) as package:
        files = [*package.rglob("*.py"), package / "sitecustomize.py", package / "conftest.py"]
        for file in files:
            before = file.read_text() if file.exists() else ""
            file.write_text(f"{before}\nopen({str(canary)!r}, 'w').close()\n")
        assert len(files) > 5
        digest = package_digest(package)
    with pytest.raises(ProsemillError, match="was altered after it was registered"):
        load(candidate, settings)
    registry.set_tags(version.number, {"package_digest": digest})
    champion = load(ChampionOfRegistry().find(), settings)
    champion.close()
    assert Registry.open().served().champion == champion.version
    assert not canary.exists()
