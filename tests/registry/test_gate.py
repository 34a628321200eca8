"""Each rule of the gate refuses by itself, and a champion is compared on the challenger's documents or not at all."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest

from prosemill.errors import ProsemillError
from prosemill.evaluation.measurement import measure_bits_per_byte
from prosemill.params import Evaluate, Gate
from prosemill.registry import gate, store
from prosemill.registry.gate import judge
from prosemill.registry.lineage import model_folder
from prosemill.registry.promotion import promote
from prosemill.registry.registering import register
from prosemill.registry.store import CHALLENGER, CHAMPION, Registry
from tests.registry.conftest import Server, on_every_server
from tests.registry.workspace import PROTOCOL, Workspace


def failed(registry: Registry, number: int, champion: int | None = None, **section: Any) -> set[str]:
    verdict = judge(registry, registry.version(number), registry.version(champion) if champion else None, Gate(**section))
    assert verdict.passed == all(rule.passed for rule in verdict.rules)
    return {rule.name for rule in verdict.rules if not rule.passed}


@on_every_server
def test_a_sound_version_passes(registry: Registry) -> None:
    assert failed(registry, 1) == set()
    assert failed(registry, 2, champion=1) == set()


@pytest.mark.parametrize(
    ("section", "rule"),
    [
        ({"max_repetition_rate": 0.049}, "repetition rate"),
        ({"max_time_per_token_ms": 1.9}, "ms per token, p95"),
        ({"min_improvement": 0.11}, "bits per byte"),
    ],
)
def test_each_number_refuses_by_itself(registry: Registry, section: dict[str, float], rule: str) -> None:
    assert failed(registry, 2, champion=1, **section) == {rule}


def test_the_margin_itself_is_enough(registry: Registry) -> None:
    assert failed(registry, 2, champion=2, min_improvement=0.0) == set()
    assert failed(registry, 1, champion=2, min_improvement=0.0) == {"bits per byte"}
    assert failed(registry, 1, min_improvement=0.19) == set()
    assert failed(registry, 1, min_improvement=0.21) == {"bits per byte"}


def test_loops_dirt_and_a_broken_lineage_refuse(fresh: Workspace) -> None:
    fresh.train("a" * 16, loop_rate=0.3)
    (fresh.folder / "stages/train.py").write_text("other()\n")
    number, registry = register().number, Registry.open()
    assert failed(registry, number) == {"loop rate", "git"}
    assert failed(registry, number, clean_git=False) == {"loop rate"}
    fresh.commit()
    register()
    assert failed(registry, number) == {"loop rate", "lineage"}
    registry.set_tags(number, {"logit_difference": "2e-05"})
    assert failed(registry, number) == {"loop rate", "lineage", "probe"}


def test_the_verdict_is_kept_and_shown(registry: Registry) -> None:
    promote(registry, Gate(), 1)
    verdict = promote(registry, Gate(max_loop_rate=0.0, max_repetition_rate=0.01), 2)
    kept = json.loads(registry.version(2).tags["verdict"])
    assert kept["passed"] is False
    assert kept["champion"] == 1
    assert {rule["name"] for rule in kept["rules"] if not rule["passed"]} == {"repetition rate"}
    text = verdict.as_markdown()
    assert "against the champion, version 1" in text
    assert "| repetition rate | 0.05 | at most 0.01 | failed |" in text


@on_every_server
def test_a_champion_of_other_documents_is_evaluated_again_once(
    anywhere: Workspace, texts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    anywhere.train("a" * 16, seed=1, bits_per_byte=2.4)
    register()
    registry = Registry.open()
    promote(registry, Gate())
    anywhere.write_corpus([*texts, "One more document that was not there before."])
    anywhere.train("b" * 16, seed=2, bits_per_byte=1.0)
    register()
    section = Evaluate(context=64, precision="fp32")  # whatever params say: it is the challenger's arithmetic
    digest = json.loads(Path("metrics/evaluation.json").read_text())["data"]["digest"]
    champion = registry.version(1)
    with registry.whole_package(champion) as package:
        expected = measure_bits_per_byte(section, corpus=Path("data/corpus"), folder=model_folder(package), digest=digest)
    verdict = judge(registry, registry.version(2), champion, Gate())
    assert "evaluating it on the challenger's documents" in capsys.readouterr().err
    (rule,) = [rule for rule in verdict.rules if rule.name == "bits per byte"]
    assert rule.needed == f"at most {expected - 0.001:.4f} (version 1 has {expected:.4f})"
    monkeypatch.setattr(gate, "_evaluate_again", None)  # not called
    assert judge(registry, registry.version(2), registry.version(1), Gate()) == verdict


def test_a_champion_cannot_be_evaluated_on_documents_that_are_not_here(fresh: Workspace, texts: list[str]) -> None:
    fresh.train("a" * 16, seed=1, bits_per_byte=2.4)
    register()
    registry = Registry.open()
    promote(registry, Gate())
    fresh.write_corpus(texts[:3])
    fresh.train("b" * 16, seed=2, bits_per_byte=1.0)
    register()
    fresh.write_corpus(texts[:2])
    with pytest.raises(ProsemillError, match=r"the test split of data/corpus has the digest .* is needed: check out that commit"):
        promote(registry, Gate())
    assert registry.aliases() == {CHAMPION: 1, CHALLENGER: 2}
    assert "gate" not in registry.version(2).tags


@on_every_server
def test_a_champion_whose_kept_evaluation_was_altered_is_no_measure(anywhere: Workspace, server: Server) -> None:
    anywhere.train("a" * 16, seed=1, bits_per_byte=2.0)
    register()
    registry = Registry.open()
    promote(registry, Gate())
    (kept,) = server.artifacts(f"lineage/{registry.version(1).tag('dvc_lock')[:16]}/evaluation.json")
    kept.write_text(kept.read_text().replace("2.0", "2.4"))
    anywhere.train("b" * 16, seed=2, bits_per_byte=2.2)
    register()
    with pytest.raises(ProsemillError, match=r"evaluation.json of the champion, version 1, is not what was registered: "):
        promote(registry, Gate())
    assert registry.aliases() == {CHAMPION: 1, CHALLENGER: 2}


@pytest.mark.parametrize(("key", "value"), [("name", "novels"), ("direction", "prefix → continuation")])
def test_a_challenger_of_another_corpus_or_kind_is_refused(
    anywhere: Workspace, key: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    anywhere.train("a" * 16, seed=1)
    register()
    registry = Registry.open()
    promote(registry, Gate())
    if key == "name":
        anywhere.params["download"]["corpus"]["name"] = value
    else:
        monkeypatch.setitem(PROTOCOL, key, value)
    anywhere.train("b" * 16, seed=2, bits_per_byte=1.0)
    register()
    with pytest.raises(ProsemillError, match=rf"version 2 \w+ .*{value}, the champion \(version 1\) .*: their numbers do not compare"):
        promote(registry, Gate())
    assert registry.aliases() == {CHAMPION: 1, CHALLENGER: 2}
    assert "gate" not in registry.version(2).tags


@on_every_server
def test_a_package_altered_after_registration_is_refused_and_nothing_of_it_imported(anywhere: Workspace, server: Server) -> None:
    anywhere.train("a" * 16)
    version, registry = register(), Registry.open()
    canary = anywhere.folder / "canary"
    for name in ("entry.py", "code/prosemill/__init__.py"):
        (code,) = server.artifacts(f"{version.model_id}/artifacts/{name}")
        code.write_text(f"open({str(canary)!r}, 'w')\n" + code.read_text())
    with pytest.raises(ProsemillError, match=r"the package of version 1 was altered after it was registered \(digest .*\): do not use it"):
        promote(registry, Gate())
    assert not canary.exists()
    assert registry.aliases() == {CHALLENGER: version.number}
    assert registry.version(1).tags == version.tags


@on_every_server
def test_a_package_or_its_record_that_is_gone_is_one_line(anywhere: Workspace, server: Server) -> None:
    anywhere.train("a" * 16)
    version, registry = register(), Registry.open()
    (entry,) = server.artifacts(f"{version.model_id}/artifacts/entry.py")
    entry.parent.rename(anywhere.folder / "package")
    with pytest.raises(ProsemillError, match=r"artifacts (cannot be had \(.*\)|is gone): restore it, or delete what points to it"):
        promote(registry, Gate())
    (anywhere.folder / "package").rename(entry.parent)
    (kept,) = server.artifacts(f"lineage/{version.tag('dvc_lock')[:16]}")
    shutil.rmtree(kept)
    with pytest.raises(ProsemillError, match=r"lineage/\w+ (cannot be had \(.*\)|is gone): restore it, or delete what points to it"):
        promote(registry, Gate())
    assert registry.version(1).tags == version.tags
    register()
    assert promote(registry, Gate()).passed, "registering again puts back what was kept"


@on_every_server
def test_what_a_person_wrote_of_a_version_stays(anywhere: Workspace) -> None:
    anywhere.train("a" * 16)
    register()
    registry, client = Registry.open(), mlflow.MlflowClient()
    promote(registry, Gate(max_loop_rate=0.0, max_repetition_rate=0.0))
    assert "Gate, against its base model:" in str(client.get_model_version(store.MODEL_NAME, "1").description)
    client.update_model_version(store.MODEL_NAME, "1", "Ask Ada first.")
    promote(registry, Gate())
    assert client.get_model_version(store.MODEL_NAME, "1").description == "Ask Ada first."
