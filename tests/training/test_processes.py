"""Several processes train the model that one trains, bit for bit, and what becomes of one of them becomes of all."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

import prosemill.training
from prosemill.errors import ProsemillError
from prosemill.locks import alone
from prosemill.params import Train, as_plain
from prosemill.tokens import Blocks
from prosemill.training import fingerprint_of, parts, processes, trainer
from prosemill.training.parts import Parts
from prosemill.workspace import CHECKPOINTS
from tests.conftest import environment
from tests.training import sabotage
from tests.training.conftest import FULL, inside, train, train_section
from tests.training.test_resume import Cut, cut_at, result
from tests.waiting import LIMIT, until

ROOT = Path(__file__).parents[2]
NAMING_THE_BASE = {"trained/adapter/README.md", "trained/adapter/adapter_config.json"}
"""Files that hold the path of the base model's folder."""


def section_in(num_processes: int, **values: Any) -> Train:
    """Dropout, several parts for each of two processes, and a last step off the interval."""
    quick = {"max_steps": 11, "evaluation_interval": 4, "sampling_interval": 4, "gradient_accumulation": 4}
    lora = {"r": 4, "alpha": 8, "dropout": 0.3}
    return train_section(num_processes=num_processes, **{**quick, "lora": lora, **values})


def result_in(num_processes: int, root: Path) -> dict[str, Any]:
    """All that a run leaves, times left out."""
    found = result(root)
    assert found["metrics"].pop("num_processes") == num_processes
    return found


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """One thread in each process: with another number of threads a matrix product may be rounded otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with environment({"OMP_NUM_THREADS": "1"}):
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone_and_uncut(tmp_path_factory: pytest.TempPathFactory, blocks: Path, tiny_model: Path) -> dict[str, Any]:
    """What one process leaves that nothing cuts."""
    with inside(tmp_path_factory.mktemp("alone")) as root:
        train(section_in(1), blocks, tiny_model, root)
        return result_in(1, root)


@pytest.fixture
def suffering(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Has the processes that are started from now on train by a function of `sabotage`."""
    return lambda function: monkeypatch.setattr(prosemill.training, "_train", function)


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("num_blocks", [1, 6, 12, 13, 17])
def test_the_processes_parts_are_together_what_one_sees(monkeypatch: pytest.MonkeyPatch, number: int, num_blocks: int) -> None:
    def turns(process: int, of: int) -> list[list[int]]:
        monkeypatch.setattr(parts, "rank", lambda: process)
        monkeypatch.setattr(parts, "num_processes", lambda: of)
        mine = Parts(num_blocks, part_size=2, seed=3)
        mine.epoch = 5
        assert len(list(mine)) == len(mine)
        return list(mine)

    shared = [part for turn in zip(*(turns(process, number) for process in range(number)), strict=True) for part in turn]
    expected = turns(0, 1)
    assert shared[: len(expected)] == expected
    assert not any(shared[len(expected) :])
    assert sorted(block for part in expected for block in part) == list(range(num_blocks))


def test_what_processes_find_is_put_into_the_order_of_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "gather", lambda _: torch.tensor([[[0, 0], [2, 2], [4, 4]], [[1, 1], [3, 3], [5, 5]]]))
    assert parts.in_order(torch.zeros(3, 2)).tolist() == [[number, number] for number in range(6)]


def test_every_part_of_every_step_is_seeded_as_no_other(
    blocks: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[tuple[int, int, int]] = []
    monkeypatch.setattr(trainer, "seed_part", lambda seed, step, part: seeds.append((seed, step, part)))
    with inside(tmp_path) as root:
        train(section_in(1, max_steps=3, seed=5), blocks, tiny_model, root)
    assert seeds == [(5, step, part) for step in range(3) for part in range(4)]
    drawn = set()
    for seed, step, part in [*seeds, (6, 0, 0)]:
        parts.seed_part(seed, step, part)
        drawn.add(tuple(torch.rand(4).tolist()))
    assert len(drawn) == 13


def test_every_epoch_reads_each_block_once_in_an_order_of_its_own(
    brief_blocks: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    iterate = Parts.__iter__

    def noting(self: Parts) -> Iterator[list[int]]:
        for part in iterate(self):
            read.extend(part)
            yield part

    monkeypatch.setattr(Parts, "__iter__", noting)
    with inside(tmp_path) as root:
        train(section_in(1, max_steps=None, num_epochs=2, max_validation_blocks=1), brief_blocks, tiny_model, root)
    num_blocks = len(Blocks.open(brief_blocks, "train"))
    read = [block for block in read if block]  # the one of each validation is the first
    first, second = read[: num_blocks - 1], read[num_blocks - 1 :]
    assert sorted(first) == sorted(second) == list(range(1, num_blocks))
    assert first != second


def test_every_family_trains_in_two_processes_as_in_one(base: Path, brief_blocks: Path, tmp_path: Path) -> None:
    num_blocks = len(Blocks.open(brief_blocks, "train"))
    assert num_blocks % 4 == 3, "in an epoch's last batch the second process must have a part less than the first"
    method = FULL | ({"optimizer": "muon"} if base.name.startswith("llama") else {})
    found = []
    for number in (1, 2):
        epochs = {"max_steps": None, "num_epochs": 1.6, "evaluation_interval": 3, "sampling_interval": 3}
        with inside(tmp_path / str(number)) as root:
            metrics = train(section_in(number, **method, **epochs), brief_blocks, base, root)
            found.append(result_in(number, root))
        assert metrics["num_tokens"] == (num_blocks + (metrics["num_steps"] - 4) * 4) * 64
    assert found[0]["metrics"]["num_steps"] > 4
    assert found[1] == found[0]


def test_a_process_that_is_lost_is_started_again_and_the_run_ends_as_uncut(
    alone_and_uncut: dict[str, Any],
    suffering: Callable[[Callable[..., None]], None],
    blocks: Path,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    suffering(sabotage.lose_one)
    with inside(tmp_path) as root:
        train(section_in(2), blocks, tiny_model, root)
        assert (root / "killed").exists()
        assert (root / "begun").read_text(encoding="utf-8").split() == ["0", "4", "4"], "it goes on from the checkpoint"
        assert result_in(2, root) == alone_and_uncut


def test_sigterm_saves_a_checkpoint_from_which_any_number_of_processes_goes_on(
    suffering: Callable[[Callable[..., None]], None], blocks: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prosemill.training, "LOGS_PER_EVALUATION", 1)
    with inside(tmp_path / "uncut") as root:
        train(section_in(1), blocks, tiny_model, root)
        uncut = result_in(1, root)
    with monkeypatch.context() as patch, inside(tmp_path / "one") as root:
        patch.setattr(prosemill.training, "_train", sabotage.ask_parent)
        with pytest.raises(KeyboardInterrupt):
            train(section_in(2), blocks, tiny_model, root)
    assert {path.name for path in root.glob(".checkpoints/*/*")} == {"checkpoint-4", "checkpoint-6"}
    for number in (0, 1):
        interface, *listeners = json.loads((root / sabotage.LISTENERS.format(number)).read_text(encoding="utf-8"))
        assert interface == processes.LOOPBACK, "where a host has a name of its own, they would talk at its address"
        assert listeners, "the processes talk somewhere"
        assert set(listeners) <= {"127.0.0.1", "::1"}
    shutil.copytree(root, tmp_path / "two")
    with inside(tmp_path / "one") as root:
        train(section_in(1), blocks, tiny_model, root)
        assert result_in(1, root) == uncut
    suffering(sabotage.log_seldom)
    with inside(tmp_path / "two") as root:
        train(section_in(2), blocks, tiny_model, root)
        assert result_in(2, root) == uncut


def test_two_processes_go_on_with_what_one_began(alone_and_uncut: dict[str, Any], blocks: Path, tiny_model: Path, tmp_path: Path) -> None:
    with inside(tmp_path) as root:
        with pytest.MonkeyPatch.context() as patch:
            cut_at("on_step_end", 7)(patch)
            with pytest.raises(Cut):
                train(section_in(1), blocks, tiny_model, root)
        train(section_in(2), blocks, tiny_model, root)
        assert result_in(2, root) == alone_and_uncut


def test_a_disk_that_fills_ends_all_processes_and_leaves_the_last_checkpoint(
    suffering: Callable[[Callable[..., None]], None], blocks: Path, tiny_model: Path, tmp_path: Path
) -> None:
    suffering(sabotage.fill_disk)
    with inside(tmp_path) as root:
        with pytest.raises(OSError, match=r"No space left on device: '\.checkpoints'"):
            train(section_in(2), blocks, tiny_model, root)
        assert [path.name for path in root.glob(".checkpoints/*/*")] == ["checkpoint-4"]


def test_a_bug_is_tried_again_so_often_and_then_shown(
    suffering: Callable[[Callable[..., None]], None], blocks: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "MAX_RESTARTS", 1)
    suffering(sabotage.have_a_bug)
    with inside(tmp_path) as root, pytest.raises(RuntimeError, match=r"lost 2 times(?s:.)*in have_a_bug(?s:.)*LookupError: a bug of ours"):
        train(section_in(2), blocks, tiny_model, root)
    assert sorted((tmp_path / "starts").read_text(encoding="utf-8").split()) == ["0", "0", "1", "1"]


def workspace_of(root: Path, section: Train, blocks: Path, base: Path) -> dict[str, str]:
    """Lay out what the stage reads; the environment to run it in."""
    for path, target in ((root / "data/blocks", blocks), (root / "models/base", base)):
        path.parent.mkdir()
        path.symlink_to(target)
    values = json.loads(json.dumps(as_plain(section)))
    (root / "params.yaml").write_text(yaml.safe_dump({"train": values}), encoding="utf-8")
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_mistake_is_one_line_and_not_tried_again(blocks: Path, tiny_model: Path, tmp_path: Path) -> None:
    lock = tmp_path / CHECKPOINTS / f"{fingerprint_of(section_in(1), blocks, tiny_model)}.lock"
    env = workspace_of(tmp_path, section_in(2), blocks, tiny_model)
    with alone(lock, "test"):
        finished = subprocess.run(
            [sys.executable, "-m", "stages.train"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
    assert finished.returncode == 1
    assert re.fullmatch(rf"error: another training of .* \(process {os.getpid()} since .*\n", finished.stderr)


def test_no_process_outlives_the_stage_that_started_it(blocks: Path, tiny_model: Path, tmp_path: Path) -> None:
    env = workspace_of(tmp_path, section_in(2, max_steps=1_000_000), blocks, tiny_model)
    stage = subprocess.Popen([sys.executable, "-m", "stages.train"], cwd=tmp_path, env=env, stderr=subprocess.DEVNULL)
    try:
        until(lambda: any(tmp_path.glob(".checkpoints/*/checkpoint-8")) or stage.poll() is not None, "a checkpoint is saved")
        assert stage.poll() is None, "it trains"
        family = psutil.Process(stage.pid).children(recursive=True)
    finally:
        stage.kill()
        stage.wait()
    assert len(family) >= 2
    assert psutil.wait_procs(family, timeout=LIMIT)[1] == []


def test_torchrun_by_hand_trains_the_same(alone_and_uncut: dict[str, Any], blocks: Path, tiny_model: Path, tmp_path: Path) -> None:
    env = workspace_of(tmp_path, section_in(2), blocks, tiny_model)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "stages.train"]
    finished = subprocess.run(torchrun, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    (tmp_path / "models/trained").rename(tmp_path / "trained")
    found = result_in(2, tmp_path)
    assert {name for name, value in found.items() if value != alone_and_uncut[name]} <= NAMING_THE_BASE


def test_torchrun_with_another_number_of_processes_is_told_so(
    blocks: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    with inside(tmp_path) as root, pytest.raises(ProsemillError, match=r"`train.num_processes` is 2, and WORLD_SIZE .* started 4: make"):
        train(section_in(2), blocks, tiny_model, root)
    monkeypatch.setenv("RANK", "1")
    with inside(tmp_path) as root, pytest.raises(SystemExit):  # without a second line
        train(section_in(2), blocks, tiny_model, root)


def test_the_number_of_processes_is_no_part_of_what_a_run_is(blocks: Path, tiny_model: Path) -> None:
    assert fingerprint_of(section_in(2), blocks, tiny_model) == fingerprint_of(section_in(1), blocks, tiny_model)
