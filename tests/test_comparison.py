"""Experiments stand side by side: the workspace's, DVC's and those kept, each with the command that makes it."""

import json
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from prosemill import comparison
from prosemill.cli import app
from prosemill.comparison import Experiment, command_of, comparison_text, print_comparison, read_experiments, write_comparison
from prosemill.errors import ProsemillError
from tests.composing import composed, composed_text

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with this project's experiments and nothing else, to be copied."""
    folder = tmp_path_factory.mktemp("comparison") / "repository"
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        git("init", "--quiet")
        commit("start")
    return folder


@pytest.fixture(autouse=True)
def repository(template: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that repository as the current folder, in which no experiment is composed a second time."""
    shutil.copytree(template, workspace, dirs_exist_ok=True)
    monkeypatch.setattr(comparison, "_compose", lambda overrides: composed_once(tuple(overrides)))
    return workspace


_compose = comparison._compose


@cache
def composed_once(overrides: tuple[str, ...]) -> dict[str, Any]:
    """What the comparison itself composes of the experiments, which are the same in every test."""
    return _compose(list(overrides))


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def commit(message: str) -> str:
    git("add", "--all")
    git("commit", "--quiet", "--allow-empty", "--message", message)
    return git("rev-parse", "HEAD")


def compose(*overrides: str) -> dict[str, Any]:
    """Leave the experiment's values in params.yaml."""
    Path("params.yaml").write_text(composed_text(*overrides), encoding="utf-8")
    return composed(*overrides)


def run_experiment(*overrides: str, trained: float, direction: str = "left to right", context: int = 256) -> dict[str, Any]:
    """Leave what an experiment leaves: params.yaml, dvc.lock and the metrics."""
    params = compose(*overrides)
    row = {"token_perplexity": 30.0, "bleu": 0.01, "rougeL": 0.1, "time_per_token_ms": 2.0}
    metrics = {
        "download": {name: {"name": params["download"][name]["name"]} for name in ("model", "corpus")},
        "train": {"num_parameters": 2_600_000, "num_trained_parameters": 2_600_000, "train_seconds": 300.0, "peak_memory_bytes": 10**9},
        "evaluation": {
            "data": {"digest": "d", "num_documents": 1201, "split": "test"},
            "protocol": {"direction": direction, "device": "cpu", "context": context, "detokenize": False},
            "base": row | {"bits_per_byte": 2.5, "token_perplexity": None},
            "trained": row | {"bits_per_byte": trained},
            "trigram": {"bits_per_byte": 1.75},
        },
    }
    stages = {name: {"params": {"params.yaml": {name: section}}} for name, section in params.items()}
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}), encoding="utf-8")
    Path("metrics").mkdir(exist_ok=True)
    for name, values in metrics.items():
        Path(f"metrics/{name}.json").write_text(json.dumps(values), encoding="utf-8")
    return params


def keep_as_dvc_does(name: str) -> None:
    """A commit below refs/exps, beside the branch."""
    head = git("rev-parse", "HEAD")
    made = commit(name)
    git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", made)
    git("update-ref", "refs/exps/exec/EXEC_BRANCH", made)
    git("reset", "--quiet", "--hard", head)


@pytest.mark.parametrize(
    ("overrides", "command"),
    [
        ([], "make run"),
        (["model=gpt2-mini"], "dvc exp run -S model=gpt2-mini"),
        (["model=t5", "corpus=wikitext103"], "dvc exp run -S model=t5-small -S corpus=wikitext103"),
        (["model=tiny", "train.max_steps=7"], "dvc exp run -S model=tiny -S train.max_steps=7"),
        (["model=tiny", "method=lora"], "dvc exp run -S model=tiny -S method=lora"),
        (["model=t5", "method=qlora"], "dvc exp run -S model=t5-small -S method=qlora"),
        (["method=full"], "dvc exp run -S method=full"),
        (["model=gpt2", "method=own"], "dvc exp run -S model=gpt2"),
        (["method=lora", "train.lora.targets=[q_proj]"], """dvc exp run -S method=lora -S 'train.lora.targets=["q_proj"]'"""),
        (["model=tiny", "train.lora={r:4,alpha:8,dropout:0.0,targets:null}"], None),
        (["corpus=my-files", 'train.sample_prompts=["It\'s, or: {so}",second]'], None),
        (["model=gpt2", "download.model.repository=a folder/of mine"], None),
    ],
)
def test_the_command_makes_these_params(overrides: list[str], command: str | None) -> None:
    params = compose(*overrides)
    words = shlex.split(command_of(params))
    assert command is None or command_of(params) == command
    assert compose(*(word for word in words if "=" in word)) == params


def test_experiments_of_all_places_are_found_and_the_latest_counts() -> None:
    run_experiment("model=tiny", trained=2.0)
    write_comparison(read_experiments())
    commit("keep")
    run_experiment("model=gpt2-mini", trained=1.6)
    keep_as_dvc_does("early-bird")
    run_experiment("model=gpt2-mini", trained=1.5)
    keep_as_dvc_does("late-bird")
    run_experiment("model=t5-mini", trained=1.7, direction="prefix → continuation")
    found = {experiment.model: experiment.bits_per_byte for experiment in read_experiments()}
    assert found == {"tiny": (2.5, 2.0), "gpt2-mini": (2.5, 1.5), "t5-mini": (2.5, 1.7)}


def test_the_workspace_is_later_than_what_was_kept() -> None:
    run_experiment("model=tiny", trained=2.0)
    write_comparison(read_experiments())
    run_experiment("model=tiny", trained=1.9)
    (experiment,) = read_experiments()
    assert experiment.bits_per_byte == (2.5, 1.9)


def test_params_edited_since_the_run_are_not_those_it_was_made_with() -> None:
    run_experiment("model=tiny", trained=2.0)
    compose("model=gpt2-mini")
    (experiment,) = read_experiments()
    assert experiment.command == "dvc exp run -S model=tiny"


def test_other_windows_have_a_table_of_their_own() -> None:
    run_experiment("model=tiny", trained=2.0, context=128)
    keep_as_dvc_does("short")
    run_experiment("model=llama-mini", trained=1.4)
    keep_as_dvc_does("long")
    run_experiment("model=gpt2-mini", trained=1.5)
    experiments = read_experiments()
    text = comparison_text(experiments)
    assert comparison_text(sorted(experiments, key=lambda experiment: experiment.model)) == text
    assert text.count("| model | parameters | trained |") == 2
    assert "vital-articles, 1,201 test documents, context 128, left to right, base → trained, on cpu\n" in text


def test_directions_and_corpora_have_tables_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    run_experiment("model=t5-mini", trained=1.7, direction="prefix → continuation")
    keep_as_dvc_does("t5")
    run_experiment("model=gpt2-mini", trained=1.5)
    experiments = read_experiments()
    text = comparison_text(experiments)
    assert text.count("| model | parameters | trained |") == 2
    (line,) = [line for line in text.splitlines() if line.startswith("| gpt2-mini")]
    assert line == (
        "| gpt2-mini | 2.6 M | all | 2.5000 → 1.5000 | 1.7500 | – → 30.00 | 0.0100 → 0.0100 | 0.100 → 0.100 | 2.0 | 5.0 min | 1.0 GB "
        "| `dvc exp run -S model=gpt2-mini` |"
    )
    print_comparison(experiments)
    shown = capsys.readouterr().out
    assert "2.5000 → 1.5000" in shown
    assert "prefix → continuation" in shown
    assert "gpt2-mini: dvc exp run -S model=gpt2-mini" in shown


def test_what_is_kept_comes_back_as_it_was() -> None:
    run_experiment("model=tiny", trained=2.0)
    (before,) = read_experiments()
    shown = CliRunner().invoke(app, ["compare", "--write"])
    assert shown.exit_code == 0
    assert "tiny: dvc exp run -S model=tiny" in shown.output
    shutil.rmtree("metrics")
    (after,) = read_experiments()
    assert isinstance(after, Experiment)
    assert after == before
    assert comparison_text([after]) in Path("reports/comparison.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["download", "train", "evaluation"])
def test_metrics_of_an_older_format_are_left_out(name: str) -> None:
    run_experiment("model=tiny", trained=2.0)
    Path(f"metrics/{name}.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ProsemillError, match="no evaluated experiment"):
        read_experiments()


def test_nothing_to_compare_is_one_line() -> None:
    with pytest.raises(ProsemillError, match=r"there is no evaluated experiment here: run `make run`"):
        read_experiments()


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b"- [\n- }"])
@pytest.mark.parametrize("name", ["dvc.lock", "metrics/evaluation.json", "reports/comparison.json"])
def test_a_broken_file_is_one_line(name: str, content: bytes) -> None:
    run_experiment("model=tiny", trained=2.0)
    write_comparison(read_experiments())
    Path(name).write_bytes(content)
    with pytest.raises(ProsemillError, match=rf"^{name} of the workspace is broken \(.*\): make it again$"):
        read_experiments()


def test_what_another_version_kept_is_left_out() -> None:
    run_experiment("model=tiny", trained=2.0)
    write_comparison(read_experiments())
    kept = json.loads(Path("reports/comparison.json").read_text(encoding="utf-8"))
    kept["of old"] = {"command": "of old", "model": "old"}
    Path("reports/comparison.json").write_text(json.dumps(kept), encoding="utf-8")
    assert [experiment.model for experiment in read_experiments()] == ["tiny"]
