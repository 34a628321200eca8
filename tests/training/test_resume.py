"""A run that is cut at any moment goes on when it is started again, and ends as the run that was never cut."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest

import prosemill.training
from prosemill.errors import ProsemillError
from prosemill.params import Train, as_plain
from prosemill.training.record import Recorder
from prosemill.training.trainer import TokenWeightedTrainer
from tests.training import sabotage
from tests.training.conftest import FULL, inside, train, train_section

TIMES = {"matmul_teraflops_per_second", "mfu", "peak_memory_bytes", "tokens_per_second", "train_seconds"}
"""What metrics say of the machine, not of the model."""

# Dropout draws random numbers; logs every second step and a last step off the interval catch what hangs between two checkpoints.
SECTION = train_section(
    max_steps=11,
    gradient_accumulation=2,
    evaluation_interval=4,
    sampling_interval=4,
    lora={"r": 4, "alpha": 8, "dropout": 0.3},
)


class Cut(BaseException):
    """Stands for a kill: nothing catches it but clean-up code."""


def result(root: Path) -> dict[str, Any]:
    """All that a run leaves, times left out."""
    metrics = json.loads((root / "metrics/train.json").read_text(encoding="utf-8"))
    files = [*(path for path in (root / "trained").rglob("*") if path.is_file()), *(root / "reports").glob("*.csv")]
    return {
        "metrics": {name: value for name, value in metrics.items() if name not in TIMES},
        **{path.relative_to(root).as_posix(): path.read_bytes() for path in files},
    }


def cut_at(event: str, number: int) -> Callable[[pytest.MonkeyPatch], None]:
    """Cut the run at the recorder's event of this number (1 for the first)."""
    return cut_in(Recorder, event, number)


def cut_in(owner: Any, name: str, number: int = 1) -> Callable[[pytest.MonkeyPatch], None]:
    """Cut the run before this call of a function."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        original, count = getattr(owner, name), 0

        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                raise Cut
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, counted)

    return patch


MOMENTS = {
    "before the first checkpoint": cut_at("on_step_end", 2),
    "between two checkpoints": cut_at("on_step_end", 7),
    "in the measurement before a checkpoint": cut_at("on_evaluate", 3),
    "while a checkpoint is written": cut_in(os, "fsync", 15),
    "after the last step": cut_at("on_train_end", 1),
    "before the model leaves": cut_in(prosemill.training, "export"),
    "before the metrics are written": cut_in(prosemill.training, "write_metrics"),
}


@pytest.fixture(scope="session")
def uncut(tmp_path_factory: pytest.TempPathFactory, blocks: Path, tiny_model: Path) -> dict[str, Any]:
    """What the run leaves that nothing cuts."""
    with inside(tmp_path_factory.mktemp("uncut")) as root:
        train(SECTION, blocks, tiny_model, root)
        return result(root)


@pytest.mark.parametrize("moment", list(MOMENTS))
def test_a_run_that_was_cut_ends_as_one_that_was_not(
    uncut: dict[str, Any], moment: str, blocks: Path, tiny_model: Path, tmp_path: Path
) -> None:
    with inside(tmp_path) as root:
        with pytest.MonkeyPatch.context() as patch:
            MOMENTS[moment](patch)
            with pytest.raises(Cut):
                train(SECTION, blocks, tiny_model, root)
        assert not (root / "metrics/train.json").exists()
        train(SECTION, blocks, tiny_model, root)
        found = result(root)
        assert {name for name in uncut if found.get(name) != uncut[name]} == set()
        assert found == uncut


@pytest.mark.parametrize(
    "values",
    [
        {**FULL, "optimizer": "muon", "max_steps": 7},
        {
            "max_steps": None,
            "num_epochs": 2.5,
            "batch_size": 4,
            "gradient_accumulation": 2,
            "evaluation_interval": 2,
            "sampling_interval": 2,
        },
        {**FULL, "learning_rate": 0.1, "max_steps": 40, "early_stopping_patience": 3, "schedule": "constant_with_warmup"},
    ],
    ids=["muon", "epochs", "early stopping"],
)
def test_optimizers_epochs_and_patience_go_on(values: dict[str, Any], brief_blocks: Path, tiny_model: Path, tmp_path: Path) -> None:
    section, blocks = train_section(**values), brief_blocks
    with inside(tmp_path / "uncut") as root:
        train(section, blocks, tiny_model, root)
        expected = result(root)
    num_steps = expected["metrics"]["num_steps"]
    assert num_steps > 5
    with inside(tmp_path / "cut") as root:
        with pytest.MonkeyPatch.context() as patch:
            cut_at("on_step_end", num_steps - 2)(patch)
            with pytest.raises(Cut):
                train(section, blocks, tiny_model, root)
        train(section, blocks, tiny_model, root)
        assert result(root) == expected


def test_every_family_goes_on(base: Path, blocks: Path, tmp_path: Path) -> None:
    section = train_section(**FULL, max_steps=6)
    with inside(tmp_path / "uncut") as root:
        train(section, blocks, base, root)
        expected = result(root)
    with inside(tmp_path / "cut") as root:
        with pytest.MonkeyPatch.context() as patch:
            cut_at("on_step_end", 5)(patch)
            with pytest.raises(Cut):
                train(section, blocks, base, root)
        train(section, blocks, base, root)
        assert result(root) == expected


def child(root: Path, section: Train, blocks: Path, base: Path, before: str = "") -> "subprocess.Popen[str]":
    """Train in a process of its own, after some code."""
    code = f"""
        import json
        from pathlib import Path
        from prosemill.errors import run_main
        from prosemill.params import Train, parse_section
        from prosemill.training.record import Recorder
        {before}
        def main():
            from prosemill.training import train_model
            root, section = Path({str(root)!r}), parse_section("train", Train, json.loads({json.dumps(as_plain(section))!r}))
            train_model(section, blocks=Path({str(blocks)!r}), base=Path({str(base)!r}), output=root / "trained",
                        metrics=root / "metrics/train.json", reports=root / "reports")
        run_main(main)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = {**os.environ, "PYTHONPATH": str(Path(prosemill.training.__file__).parents[2])}
    return subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE, text=True)


def signal_at_step(number: int, name: str) -> str:
    """Code that has a process send itself a signal when that step ends."""
    return f"""
        import os, signal
        original = Recorder.on_step_end
        def on_step_end(self, args, state, control, **options):
            original(self, args, state, control, **options)
            if state.global_step == {number}:
                os.kill(os.getpid(), signal.{name})
        Recorder.on_step_end = on_step_end
    """


def test_a_killed_process_is_continued_in_the_same_tracked_run(
    uncut: dict[str, Any], blocks: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    killed = child(tmp_path, SECTION, blocks, tiny_model, signal_at_step(7, "SIGKILL"))
    said = killed.communicate()[1]
    assert killed.returncode == -signal.SIGKILL, said
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("prosemill")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "RUNNING"
    with inside(tmp_path) as root:
        train(SECTION, blocks, tiny_model, root)
        assert result(root) == uncut
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    for name, steps in (("train_loss", list(range(1, 12))), ("validation_loss", [0, 4, 8, 11])):
        assert [point.step for point in client.get_metric_history(run.info.run_id, name)] == steps
    table = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/training_samples.json")
    assert [row[table["columns"].index("step")] for row in table["data"]] == [0, 4, 8, 11]


def test_sigterm_saves_a_checkpoint_first(uncut: dict[str, Any], blocks: Path, tiny_model: Path, tmp_path: Path) -> None:
    asked = child(tmp_path, SECTION, blocks, tiny_model, signal_at_step(6, "SIGTERM"))
    _, said = asked.communicate()
    assert asked.returncode == 1
    assert "asked to end (SIGTERM): the checkpoint of step 6 is saved" in said
    assert said.splitlines()[-1] == "error: interrupted; run the same command again to go on"
    with inside(tmp_path) as root:
        with pytest.MonkeyPatch.context() as patch:
            cut_at("on_step_begin", 6)(patch)  # of eleven steps five are left
            train(SECTION, blocks, tiny_model, root)
        assert result(root) == uncut


def test_a_second_training_of_the_same_run_is_told_who_trains(blocks: Path, tiny_model: Path, tmp_path: Path) -> None:
    before = signal_at_step(1, "SIGSTOP")
    first = child(tmp_path, SECTION, blocks, tiny_model, before)
    try:
        os.waitpid(first.pid, os.WUNTRACED)
        with (
            inside(tmp_path) as root,
            pytest.raises(ProsemillError, match=rf"another training of .* \(process {first.pid} since .*\): wait"),
        ):
            train(SECTION, blocks, tiny_model, root)
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
    with inside(tmp_path) as root:
        train(SECTION, blocks, tiny_model, root)


def test_a_disk_that_fills_leaves_the_last_checkpoint(uncut: dict[str, Any], blocks: Path, tiny_model: Path, tmp_path: Path) -> None:
    with inside(tmp_path) as root:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TokenWeightedTrainer, "_save_optimizer_and_scheduler", sabotage.saving_on_a_disk_that_fills())
            with pytest.raises(OSError, match=r"No space left on device: '\.checkpoints'"):
                train(SECTION, blocks, tiny_model, root)
        assert [path.name for path in root.glob(".checkpoints/*/*")] == ["checkpoint-4"]
        train(SECTION, blocks, tiny_model, root)
        assert result(root) == uncut


def test_a_damaged_best_checkpoint_is_made_again(
    blocks: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # So high a rate that the first measurement stays the best for a while.
    section = train_section(**FULL | {"learning_rate": 0.03, "max_steps": 10, "schedule": "constant_with_warmup", "warmup_ratio": 0.0})
    with inside(tmp_path / "uncut") as root:
        train(section, blocks, tiny_model, root)
        expected = result(root)
    best = expected["metrics"]["best_step"]
    assert best < 8, "the test needs a best checkpoint that is not among the newest"
    with inside(tmp_path / "damaged") as root:
        with pytest.MonkeyPatch.context() as patch:
            MOMENTS["after the last step"](patch)
            with pytest.raises(Cut):
                train(section, blocks, tiny_model, root)
        (weights,) = root.glob(f".checkpoints/*/checkpoint-{best}/model.safetensors")
        weights.write_bytes(weights.read_bytes()[:-1])
        train(section, blocks, tiny_model, root)
        assert "model.safetensors has changed" in capsys.readouterr().err
        assert result(root) == expected
