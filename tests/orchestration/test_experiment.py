"""An experiment stands in the place of params.yaml while it runs, whatever ends it, and is kept as one of DVC's."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prosemill.errors import ProsemillError
from prosemill.orchestration.experiment import (
    OWN,
    compose,
    experiment,
    experiment_name,
    own_params,
    restore_params,
    run_name,
    save_experiment,
    uncommitted_changes,
)
from prosemill.registry.registering import _commit
from prosemill.workspace import PARAMS, STATE
from tests.composing import composed, composed_text

ROOT = Path(__file__).parents[2]
BEFORE = Path("params.yaml.before-experiment")
OVERRIDES = ["model=tiny", "train.max_steps=7"]
STEPS = ("open", "os.rename", "os.remove", "os.mkdir")  # audit events before which a kill is tried
KILLED = """
import os, signal
from prosemill.orchestration.experiment import experiment
with experiment(["train.max_steps=7"]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def own(workspace: Path) -> bytes:
    """The bytes of a params.yaml of the user's own, comment included; the current folder has this repository's experiments."""
    shutil.copytree(ROOT / "experiments", "experiments")
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    PARAMS.write_bytes(f"# mine: é\n{text}\n\n".encode())
    return PARAMS.read_bytes()


@pytest.fixture
def repository(own: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Makes the current folder a repository of git and DVC whose files are committed; runs git in it."""
    from dvc.repo import Repo

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path_factory.mktemp("site")))
    git("init", "--quiet")
    git("config", "user.name", "Nobody")
    git("config", "user.email", "nobody@example.org")
    Repo.init().close()
    Path(".gitignore").write_text("/.prosemill/\n", encoding="utf-8")
    Path("dvc.yaml").write_text("stages:\n  write: {cmd: 'true', params: [group]}\n", encoding="utf-8")
    Path("code.py").write_text("one\n", encoding="utf-8")
    for folder in ("metrics", "reports"):
        Path(folder).mkdir()
        Path(folder, "result").write_text("one\n", encoding="utf-8")
    Path("dvc.lock").write_text("schema: '2.0'\n", encoding="utf-8")
    git("add", "--all")
    git("commit", "--quiet", "--message", "Begin")
    return git


def values() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    return read


def is_as_before(own: bytes) -> bool:
    """Whether nothing but the user's own params.yaml is there."""
    return PARAMS.read_bytes() == own and not BEFORE.exists() and not OWN.exists()


def test_an_experiment_has_its_values_for_as_long_as_it_runs(own: bytes) -> None:
    with PARAMS.open("rb") as before, experiment(OVERRIDES):
        inside = values()
        assert before.read() == own, "nobody ever sees half of it: nothing is written into the file itself"
    assert inside["train"]["max_steps"] == 7
    assert inside["download"]["model"]["name"] == "tiny"
    assert is_as_before(own)


def test_an_experiment_is_what_dvc_makes_of_it(own: bytes) -> None:
    with experiment(OVERRIDES):
        assert values() == composed(*OVERRIDES)
        assert PARAMS.read_text(encoding="utf-8") == composed_text(*OVERRIDES), "DVC tells no change between the two"


@pytest.mark.parametrize("text", [b"group:\r\n  block_size: 8\r\n", b"group: {block_size: 8}", b"\xef\xbb\xbf# BOM\ngroup: {}\n", b""])
def test_params_come_back_byte_by_byte(own: bytes, text: bytes) -> None:
    PARAMS.write_bytes(text)
    with experiment(OVERRIDES):
        pass
    assert is_as_before(text)


@pytest.mark.parametrize("end", [ValueError, KeyboardInterrupt, SystemExit])
def test_params_come_back_when_the_run_fails(own: bytes, end: type[BaseException]) -> None:
    with pytest.raises(end), experiment(OVERRIDES):
        raise end
    assert is_as_before(own)


def test_params_come_back_at_the_next_start_after_a_kill(own: bytes) -> None:
    command = [sys.executable, "-c", KILLED]
    killed = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert values()["train"]["max_steps"] == 7
    with experiment([]):
        assert is_as_before(own)


def test_an_experiment_after_a_killed_one_begins_with_the_users_params(own: bytes) -> None:
    subprocess.run([sys.executable, "-c", KILLED], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    with experiment(["group.block_size=32"]):
        assert (values()["group"]["block_size"], values()["train"]["max_steps"]) == (32, 60)
    assert is_as_before(own)


def run_until_step(kill_at: int) -> int:
    """Run an experiment in a forked child that kills itself before its `kill_at`-th change of a file here; returns the wait status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    steps, here = 0, str(Path.cwd())

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal steps
        is_reading = event == "open" and arguments[2] & os.O_ACCMODE == os.O_RDONLY
        if event in STEPS and not is_reading and str(Path(str(arguments[0])).absolute()).startswith(here):
            steps += 1
            if steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    with experiment(OVERRIDES):
        pass
    os._exit(0)


def test_a_kill_at_any_step_loses_nothing(own: bytes) -> None:
    compose(OVERRIDES)  # imports what the children need
    num_kills = 0
    while run_until_step(num_kills + 1) != 0:
        num_kills += 1
        restore_params()
        assert is_as_before(own), num_kills
        assert num_kills < 50
    assert num_kills >= 6, "three files and their names, at least"
    assert is_as_before(own)


@pytest.mark.parametrize("is_killed", [False, True])
def test_an_edit_meanwhile_stays_and_the_earlier_text_is_kept(own: bytes, capsys: pytest.CaptureFixture[str], is_killed: bool) -> None:
    edit = b"group: {block_size: 16}\r\n"
    if is_killed:
        subprocess.run([sys.executable, "-c", KILLED], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
        PARAMS.write_bytes(edit)
        restore_params()
    else:
        with experiment(OVERRIDES):
            PARAMS.write_bytes(edit)
    assert (PARAMS.read_bytes(), BEFORE.read_bytes()) == (edit, own)
    assert "params.yaml.before-experiment" in capsys.readouterr().err
    with experiment([]):
        assert (PARAMS.read_bytes(), capsys.readouterr().err) == (edit, ""), "it is said once"


def test_what_was_kept_of_an_earlier_edit_stays(own: bytes) -> None:
    for edit in (b"group: {block_size: 16}\n", b"group: {block_size: 32}\n"):
        with experiment(OVERRIDES):
            PARAMS.write_bytes(edit)
        if edit.endswith(b"16}\n"):
            PARAMS.write_bytes(own + b"# mine\n")
    kept = sorted(path.read_bytes() for path in Path.cwd().glob("params.yaml.before-experiment*"))
    assert kept == [own, own + b"# mine\n"]


def test_a_link_stays_one(own: bytes) -> None:
    Path("mine.yaml").write_bytes(own)
    PARAMS.unlink()
    PARAMS.symlink_to("mine.yaml")
    with experiment(OVERRIDES):
        assert PARAMS.is_symlink()
        assert Path("mine.yaml").read_bytes() != own
    assert PARAMS.is_symlink()
    assert Path("mine.yaml").read_bytes() == own


def test_params_that_the_user_has_brought_back_are_left(own: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with experiment(OVERRIDES):
        PARAMS.write_bytes(own)  # as `git checkout params.yaml`
    assert is_as_before(own)
    assert capsys.readouterr().err == ""


def test_without_overrides_nothing_is_touched(own: bytes) -> None:
    before = PARAMS.stat()
    with experiment([]):
        assert PARAMS.stat() == before
    assert PARAMS.stat() == before
    assert not STATE.exists()


@pytest.mark.parametrize(
    ("override", "culprit"),
    [
        ("model=nonesuch", "model/nonesuch"),
        ("nonesuch=1", "nonesuch"),
        ("train.max_stepz=5", "train.max_stepz"),
        ("+train.max_stepz=5", "train.max_stepz"),
        ("nonesuch.x=1", "nonesuch"),
        ("+nonesuch.x=1", "nonesuch"),
        ("train.max_steps", "train.max_steps"),
        ("train.sample_prompts=[a", "[a"),
        ("train.max_steps=1,2", "train.max_steps=1,2"),
        ("train.max_steps=many", "train.max_steps"),
        ("group.block_size=1", "group.block_size"),
        ("train=1", "train"),
        ("train.max_steps=${nonesuch}", "nonesuch"),
        ("~train", "train"),
        ("=5", "=5"),
        ("--force", "--force"),
    ],
)
def test_a_wrong_override_is_one_line(own: bytes, override: str, culprit: str) -> None:
    with pytest.raises(ProsemillError) as raised, experiment(["group.block_size=32", override]):
        pass
    assert culprit in str(raised.value)
    assert "\n" not in str(raised.value)
    assert is_as_before(own)


def test_a_wrong_override_says_what_there_is(own: bytes) -> None:
    with pytest.raises(ProsemillError, match=r"Available options in 'model': distilgpt2 .*tiny"):
        compose(["model=nonesuch"])
    with pytest.raises(ProsemillError, match="`prosemill params` lists the keys"):
        compose(["train.max_stepz=5"])
    with pytest.raises(ProsemillError, match="choose from download, tokenize, group, train, evaluate, gate"):
        compose(["+nonesuch.x=1"])


def test_an_experiment_can_be_composed_again_and_again(own: bytes) -> None:
    with pytest.raises(ProsemillError):
        compose(["model=nonesuch"])
    assert compose(OVERRIDES) == compose(OVERRIDES)


KEYS = st.sampled_from(["model", "train.seed", "download.corpus.name", "train.sample_prompts"])
VALUES = st.text(st.sampled_from(list("aZ09.-_/~^:?*[]@{}\\ \t,'=é\U0001f600")) | st.characters(codec="utf-8"), max_size=80)
ANY_OVERRIDES = st.lists(st.builds(lambda key, value: f"{key}={value}", KEYS, VALUES), min_size=1, max_size=4)


@settings(deadline=None, max_examples=150)
@given(ANY_OVERRIDES)
@example(["download.model.name=a.lock"])
@example(["train.sample_prompts=[And then...,The]"])
@example(["model=@{", "model=.", "model=-"])
def test_git_accepts_every_name(overrides: list[str]) -> None:
    name = experiment_name(overrides)
    assert "/" not in name, "DVC does not"
    subprocess.run(["git", "check-ref-format", f"refs/exps/aa/bb/{name}"], check=True)
    assert name == experiment_name(overrides)
    assert not name.startswith("-"), "that is an option"


@settings(max_examples=50)
@given(VALUES, VALUES)
def test_long_experiments_have_names_of_their_own(one: str, other: str) -> None:
    names = [experiment_name([f"train.sample_prompts=[{'x' * 60}]", f"model={end}"]) for end in (one, other)]
    assert (names[0] == names[1]) == (one == other)


def test_a_short_experiment_has_its_overrides_as_its_name() -> None:
    assert experiment_name(["model=tiny", "train.max_steps=200"]) == "model-tiny-train.max-steps-200"


def test_an_experiment_is_kept_as_a_commit_that_registering_finds(own: bytes, repository: Callable[..., str]) -> None:
    head = repository("rev-parse", "HEAD")
    with experiment(OVERRIDES):
        assert _commit() == {"git_commit": head, "git_dirty": "true"}
        name = save_experiment(OVERRIDES)
        kept = repository("rev-parse", f"refs/exps/{head[:2]}/{head[2:]}/{name}")
        assert _commit() == {"git_commit": kept, "git_dirty": "false"}
        assert repository("show", f"{kept}:params.yaml") == PARAMS.read_text(encoding="utf-8").strip()
        Path("metrics/result").write_text("two\n", encoding="utf-8")
        assert _commit() == {"git_commit": kept, "git_dirty": "false"}, "results are not what is compared"
        Path("code.py").write_text("two\n", encoding="utf-8")
        assert _commit() == {"git_commit": head, "git_dirty": "true"}
    assert is_as_before(own)
    changed = repository("status", "--porcelain", "--", ".", ":!dvc.lock").split()
    assert (repository("rev-parse", "HEAD"), changed) == (head, ["M", "code.py", "M", "metrics/result"])


def test_a_kept_experiment_can_be_brought_back(own: bytes, repository: Callable[..., str]) -> None:
    names = []
    for text in ("7\n", "8\n"):
        Path("code.py").write_text(text, encoding="utf-8")
        with experiment(OVERRIDES):
            names.append(save_experiment(OVERRIDES))
    assert names[0] != names[1], "what was kept first is kept"
    subprocess.run(["dvc", "exp", "apply", "--quiet", names[0]], check=True)
    assert (values()["train"]["max_steps"], Path("code.py").read_text(encoding="utf-8")) == (7, "7\n")


def test_keeping_the_same_again_keeps_its_commit(own: bytes, repository: Callable[..., str]) -> None:
    head = repository("rev-parse", "HEAD")
    commits = []
    for second in (1, 2):
        with experiment(OVERRIDES), pytest.MonkeyPatch.context() as patch:
            patch.setenv("GIT_COMMITTER_DATE", f"2026-01-01T00:00:0{second}Z")
            name = save_experiment(OVERRIDES)
        commits.append(repository("rev-parse", f"refs/exps/{head[:2]}/{head[2:]}/{name}"))
    assert commits[0] == commits[1], "a version may point to it"


def test_keeping_an_experiment_takes_nothing_for_run_that_was_not(own: bytes, repository: Callable[..., str]) -> None:
    lock, status = Path("dvc.lock").read_bytes(), repository("status", "--porcelain")
    with experiment(OVERRIDES):
        save_experiment(OVERRIDES)
    assert Path("dvc.lock").read_bytes() == lock
    assert repository("status", "--porcelain") == status, "the user's index is left alone too"


def test_an_experiment_that_cannot_be_kept_is_one_line(own: bytes) -> None:
    with pytest.raises(ProsemillError, match=r"^the experiment cannot be kept: `git rev-parse` says .*$"):
        save_experiment(["model=tiny"])


def test_changes_are_told_without_the_pipelines_results(repository: Callable[..., str]) -> None:
    assert uncommitted_changes() == []
    for path in ("metrics/result", "reports/result", "dvc.lock", "code.py", "experiments/default.yaml", "untracked.py"):
        Path(path).write_text("two\n", encoding="utf-8")
    repository("add", "experiments/default.yaml")
    Path("experiments/model/tiny.yaml").unlink()
    assert uncommitted_changes() == ["code.py", "experiments/default.yaml", "experiments/model/tiny.yaml"]


def test_outside_git_there_are_no_changes(workspace: Path) -> None:
    assert uncommitted_changes() == []


def test_a_run_is_called_by_its_experiment_and_commit(repository: Callable[..., str]) -> None:
    commit = repository("rev-parse", "HEAD")[:7]
    overrides = ["model=tiny", "corpus=python-300"]
    with experiment(overrides):
        name = run_name(overrides, has_changes=False)
        assert name == f"tiny on {values()['download']['corpus']['name']} @ {commit}"
        assert run_name(overrides, has_changes=True) == f"{name} + changes"
        name = run_name([*overrides, "train.max_steps=20", "train.seed=1"], has_changes=False)
        assert name == f"tiny on {values()['download']['corpus']['name']}, train.max_steps=20, train.seed=1 @ {commit}"
        assert run_name([f"train.{'x' * 200}=1"], has_changes=True).endswith(f"xxx… @ {commit} + changes"), "it stays short"


def test_the_users_own_params_can_be_read_while_an_experiment_stands_in_their_place(own: bytes) -> None:
    assert own_params() == PARAMS
    with experiment(OVERRIDES):
        assert own_params().read_bytes() == own != PARAMS.read_bytes()
        PARAMS.write_bytes(own + b"# an edit meanwhile\n")
        assert own_params() == PARAMS, "what the user has written last counts"
    assert own_params() == PARAMS


def test_a_params_file_that_is_no_text_is_one_line(own: bytes) -> None:
    PARAMS.write_bytes(own + b"\xff")
    with pytest.raises(ProsemillError, match=rf"params\.yaml is not in UTF-8 \(byte {len(own) + 1}\)"), experiment(OVERRIDES):
        pass
    assert PARAMS.read_bytes() == own + b"\xff"


def test_a_params_file_that_is_missing_is_one_line_that_brings_it_back(own: bytes) -> None:
    PARAMS.unlink()
    with (
        pytest.raises(ProsemillError, match=r"params\.yaml is missing: bring it back with `git checkout params\.yaml`"),
        experiment(OVERRIDES),
    ):
        pass
    assert not OWN.exists()
