"""Every command of the README works: run in a clone whose default is the small experiment, in the README's order."""

import json
import re
import shlex
from pathlib import Path

import pytest

from prosemill.comparison import comparison_text, kept_experiments, read_experiments
from prosemill.evaluation import print_table
from prosemill.params import Train, parse_section
from tests.composing import composed
from tests.end_to_end.conftest import ROOT, Clone

# What sets up an environment is tried dry: the environment of the tests is the one it would make.
DRY = {f"make {target}": ("make", "--dry-run", target) for target in ("run", "test", "ui", "up")}
NOT_COMMANDS = ("git clone ", "source ")
COMPOSED = "dvc exp run -S train.num_processes=2 "
"""How a command begins that is composed alone: what the stage does with it is held by tests/training/test_processes.py."""


def commands() -> list[str]:
    """The commands of the README's shell blocks, without their comments."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(NOT_COMMANDS)]


def test_the_commands_of_the_readme_work(own_clone: Clone) -> None:
    given = commands()
    assert {"make run", "dvc repro", "prosemill params train"} <= set(given)
    assert sum(command.startswith(COMPOSED) for command in given) == 1
    for command in given:
        if command.startswith(COMPOSED):
            parse_section("train", Train, composed(*shlex.split(command.replace("-S ", ""))[3:])["train"])
            continue
        output = own_clone.run(*DRY.get(command, tuple(shlex.split(command))))
        assert "Traceback" not in output, output


def test_the_report_is_shown_and_params_are_explained(clone: Clone) -> None:
    report = clone.run("prosemill", "report")
    assert "bits per byte" in report
    assert "trained" in report
    assert "Rank of the adapters." in re.sub(r"\s+", " ", clone.run("prosemill", "params", "train").replace("│", ""))
    assert "no section 'trian'" in clone.run("prosemill", "params", "trian", fails=True)


def test_a_report_before_any_evaluation_says_what_to_do(tmp_path: Path) -> None:
    assert "run `make run` or `dvc repro` first" in Clone(tmp_path).run("prosemill", "report", fails=True)


def test_the_users_own_files_can_be_named_as_the_readme_says(own_clone: Clone, prose: list[str]) -> None:
    folder = own_clone.folder / "my-files"
    folder.mkdir()
    for number, text in enumerate(prose):
        (folder / f"{number}.md").write_text(text, encoding="utf-8")
    shares = ("download.validation_share=0.2", "download.test_share=0.2")
    own_clone.compose("corpus=my-files", *shares)
    assert own_clone.repro("group") == ["download", "tokenize", "group"]
    assert '"source": "files"' in (own_clone.folder / "data/corpus/SOURCE.json").read_text(encoding="utf-8")


def test_a_local_folder_of_the_hubs_format_can_be_named_as_the_readme_says(own_clone: Clone, tiny_model: Path) -> None:
    overrides = "-S model=gpt2 -S download.model.repository=FOLDER"
    assert overrides in (ROOT / "README.md").read_text(encoding="utf-8")
    own_clone.compose(*overrides.replace("FOLDER", str(tiny_model)).replace("-S ", "").split())
    assert own_clone.repro("download") == ["download"]
    assert (own_clone.folder / "models/base/config.json").read_bytes() == (tiny_model / "config.json").read_bytes()


@pytest.mark.parametrize("target", ["run", "up", "test", "lint", "ui", "bench", "clean", "help"])
def test_make_knows_its_targets(clone: Clone, target: str) -> None:
    assert clone.run("make", "--dry-run", target)


def test_the_table_in_the_readme_is_the_committed_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    (table,) = re.findall(r"```text\n(metric.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    print_table(json.loads((ROOT / "metrics/evaluation.json").read_text(encoding="utf-8")))
    printed = capsys.readouterr().out.splitlines()
    assert len(table.splitlines()) >= 5
    assert [line for line in table.splitlines() if line not in printed] == []


def test_the_comparison_in_the_readme_is_the_committed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"<!-- comparison:.*?-->\n(.*?)\n<!-- /comparison -->", readme, re.DOTALL)
    monkeypatch.chdir(ROOT)
    kept = kept_experiments()
    assert shown == comparison_text(kept)
    assert (ROOT / "reports/comparison.md").read_text(encoding="utf-8").endswith(f"{shown}\n")
    commands = {experiment.model: experiment.command for experiment in kept}
    minis = {name: f"dvc exp run -S model={name}" for name in ("gpt2-mini", "gpt-neo-mini", "llama-mini", "t5-mini")}
    assert {"SmolLM2-135M-Instruct": "make run", **minis}.items() <= commands.items()


def test_the_committed_metrics_are_of_todays_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert "make run" in [experiment.command for experiment in read_experiments()]


def test_paths_that_the_readme_names_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text.partition("## The tree")[2]
    for name in re.findall(r"\]\(([a-z][^)]*)\)", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"^(?:  )?([a-z_]+(?:/|\.py|\.yaml))", tree, re.MULTILINE):
        assert (ROOT / name).exists() or (ROOT / "prosemill" / name).exists() or name in ("data/", "models/"), name
