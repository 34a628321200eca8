"""The real `dvc repro` on the small experiment: what runs, what does not, what comes out."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from prosemill import workspace
from tests.end_to_end.conftest import ROOT, Clone
from tests.end_to_end.pipeline import PIPELINE, STAGES, outputs

CHANGES_NO_RESULT = ("__init__", "console", "errors", "locks", "orphans", "telemetry", "workspace")
"""Modules that every stage imports and no output depends on: dvc.yaml leaves them out, so that a reworded message retrains nothing."""


def metrics(clone: Clone, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((clone.folder / f"metrics/{name}.json").read_text(encoding="utf-8"))
    return content


def test_file_stage_and_params_section_are_the_same_names() -> None:
    files = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}
    sections = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert files == set(PIPELINE) == set(sections) - {"gate"} == set(STAGES)
    for name, stage in PIPELINE.items():
        assert stage["cmd"] == f"python -m stages.{name}"
        assert stage["params"] == [name]


def test_the_workspace_and_dvc_name_the_same_data() -> None:
    tracked = {output for stage in PIPELINE for output in outputs(stage) if output.startswith(("data/", "models/"))}
    named = {workspace.CORPUS, workspace.TOKENS, workspace.BLOCKS, workspace.BASE_MODEL, workspace.TRAINED_MODEL}
    assert tracked == {path.as_posix() for path in named}


def test_every_output_is_there_and_its_numbers_are_sound(clone: Clone) -> None:
    assert all((clone.folder / output).exists() for stage in STAGES for output in outputs(stage))
    evaluation = metrics(clone, "evaluation")
    assert {"protocol", "base", "trained"} <= set(evaluation)
    names = ["bits_per_byte", "token_perplexity", "word_perplexity", "bleu", "rouge1", "rouge2", "rougeL", "distinct_1"]
    names += ["repetition_rate", "time_to_first_token_ms", "time_per_token_ms", "num_tokens", "num_bytes", "nll_sum"]
    for model in ("base", "trained"):
        assert all(math.isfinite(evaluation[model][name]) for name in names)
        bits = evaluation[model]["nll_sum"] / math.log(2) / evaluation[model]["num_bytes"]
        assert evaluation[model]["bits_per_byte"] == pytest.approx(bits, rel=1e-3)
    assert evaluation["trained"]["bits_per_byte"] < evaluation["base"]["bits_per_byte"]
    documents = metrics(clone, "download")["corpus"]
    assert json.dumps(documents).count("num_documents") >= 3
    assert [split["num_lossy"] for split in metrics(clone, "tokenize")["splits"].values()] == [0, 0, 0]


def test_nothing_runs_when_nothing_changed(clone: Clone) -> None:
    assert clone.repro() == []


def test_a_changed_param_runs_only_what_depends_on_it(own_clone: Clone) -> None:
    own_clone.compose("train.learning_rate=0.002")
    assert list(json.loads(own_clone.run("dvc", "status", "--json"))) == ["train"], "evaluate is asked again when the model is another"
    own_clone.compose("evaluate.seed=1")
    assert own_clone.repro() == ["evaluate"]
    own_clone.compose()
    assert own_clone.repro() == [], "what was computed before is in the run cache"


def test_training_and_evaluation_are_one_tracked_run(clone: Clone) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{clone.folder}/.prosemill/mlflow/mlflow.db")
    fingerprint = json.loads((clone.folder / "models/trained/run.json").read_text(encoding="utf-8"))["fingerprint"]
    experiment = client.get_experiment_by_name("prosemill")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`prosemill.fingerprint` = '{fingerprint}'")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["trained.bits_per_byte"] == metrics(clone, "evaluation")["trained"]["bits_per_byte"]
    assert [point.step for point in client.get_metric_history(run.info.run_id, "validation_bits_per_byte")] == [0, 10, 20]
    assert run.data.tags["git_commit"] == clone.run("git", "rev-parse", "HEAD").strip()
    assert "train.learning_rate" in run.data.params
    assert run.inputs is not None
    assert run.inputs.dataset_inputs


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_needs_nothing_but_what_dvc_declares(clone: Clone, tmp_path: Path, stage: str) -> None:
    """Runs the stage in a folder that holds its declared inputs and code, and no other section of the params."""
    for name in [*PIPELINE[stage]["deps"], *(f"prosemill/{module}.py" for module in CHANGES_NO_RESULT), "stages/__init__.py"]:
        source, target = clone.folder / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
    section = yaml.safe_load((clone.folder / "params.yaml").read_text(encoding="utf-8"))[stage]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({stage: section}), encoding="utf-8")
    before = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    alone = Clone(tmp_path)
    alone.run("python", "-m", f"stages.{stage}")
    declared = outputs(stage)
    assert all((tmp_path / output).exists() for output in declared)
    for path in (tmp_path / folder for folder in ("data", "models", "metrics", "reports") if (tmp_path / folder).exists()):
        for file in (file for file in path.rglob("*") if file.is_file()):
            name = file.relative_to(tmp_path).as_posix()
            assert name in before or any(name == output or name.startswith(f"{output}/") for output in declared), f"{name} is not declared"
    for manifest in tmp_path.glob("data/*/MANIFEST.jsonl"):
        assert manifest.read_bytes() == (clone.folder / manifest.relative_to(tmp_path)).read_bytes()
    if stage == "train":
        weights = Path("models/trained/model.safetensors")
        assert (tmp_path / weights).read_bytes() == (clone.folder / weights).read_bytes()
