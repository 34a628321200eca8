"""Twenty bugs planted one at a time, one in each room, and whether the tests of the room see them: `python -m benchmarks.mutants`.

Each is planted in a copy of the repository, in which the room's tests run until the first fails. A bug that no test sees is a test that
is missing. Names of rooms after the command choose some: `python -m benchmarks.mutants tokens training`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from prosemill.errors import ProsemillError, run_main

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutant:
    """A bug that a reviewer would find."""

    path: str
    """The file, below `prosemill/`."""
    right: str
    """Code that stands there once."""
    wrong: str
    """What is put in its place."""
    effect: str
    """What goes wrong by it."""
    tests: tuple[str, ...]
    """Where it should be seen, below `tests/`."""

    @property
    def room(self) -> str:
        """The folder or module that it is in."""
        return self.path.partition("/")[0].removesuffix(".py")


MUTANTS = (
    Mutant(
        "base_model/scratch.py",
        '(corpus / "train").glob(',
        '(corpus / "test").glob(',
        "the tokenizer is trained on the test split",
        ("base_model/test_scratch.py",),
    ),
    Mutant(
        "bento/build.py",
        'return folder.name.endswith(f"-{_digest(',
        'return True or folder.name.endswith(f"-{_digest(',
        "an altered Bento counts as built",
        # The others start programs where nothing else is installed, into which the copy would come by PYTHONPATH.
        ("bento/test_build.py::test_an_altered_bento_is_built_anew",),
    ),
    Mutant(
        "comparison.py",
        "(*_group(experiment), experiment.bits_per_byte[1])",
        "(*_group(experiment), experiment.bits_per_byte[0])",
        "experiments are ranked by their base models",
        ("test_comparison.py",),
    ),
    Mutant(
        "confined.py",
        "memory_info().vms + memory_bytes",
        "memory_info().vms + 64 * memory_bytes",
        "a confined reader may take 64 times its memory",
        ("test_confined.py",),
    ),
    Mutant(
        "corpus/contamination.py",
        '(mine == code_of("validation")) | (mine == code_of("test"))',
        '(mine == code_of("test"))',
        "training text that stands in the validation split is kept",
        ("corpus/test_contamination.py",),
    ),
    Mutant(
        "evaluation/overlap.py",
        "referred / np.maximum(predicted, 1)",
        "predicted / np.maximum(referred, 1)",
        "BLEU punishes long continuations in place of short ones",
        ("evaluation/test_overlap.py",),
    ),
    Mutant(
        "families/t5.py",
        "first_new = max(scored, begin + (end - begin) // 2)",
        "first_new = begin + (end - begin) // 2",
        "T5's windows score tokens twice",
        ("evaluation/test_scoring.py", "evaluation/test_families.py", "families"),
    ),
    Mutant(
        "generation/sampling.py",
        "        sums = sums / sums[-1]  # top_p is a share of what top_k leaves\n",
        "",
        "top_p is a share of all tokens though top_k leaves few",
        ("generation/test_sampling.py", "generation/test_native.py"),
    ),
    Mutant(
        "locks.py",
        "fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)",
        "fcntl.LOCK_SH | (0 if wait else fcntl.LOCK_NB)",
        "two processes hold one lock",
        ("orchestration/test_runs.py", "test_shards.py"),
    ),
    Mutant(
        "orchestration/experiment.py",
        "write_durably(PARAMS.resolve(), text)",
        "write_durably(PARAMS, text)",
        "an experiment replaces a params.yaml that is a link",
        ("orchestration/test_experiment.py",),
    ),
    Mutant(
        "packaged/__init__.py",
        "num_given + max_new_tokens > self._context:",
        "num_given + max_new_tokens >= self._context:",
        "a package refuses a request that just fits",
        ("registry/test_packaging.py",),
    ),
    Mutant(
        "params.py",
        "if self.num_shown > self.num_prompts:",
        "if self.num_shown > 2 * self.num_prompts:",
        "more continuations may be shown than there are",
        ("test_params.py",),
    ),
    Mutant(
        "registry/promotion.py",
        "((PREVIOUS_CHAMPION, after.previous), (CHAMPION, after.champion))",
        "((CHAMPION, after.champion), (PREVIOUS_CHAMPION, after.previous))",
        "a promotion that is cut leaves no way back",
        ("registry/test_promotion.py", "registry/test_promotion_model.py"),
    ),
    Mutant(
        "serving/admission.py",
        "self.num_requests - num_requests, self.num_tokens - taken",
        "self.num_requests - num_requests, self.num_tokens",
        "tokens of requests that have ended stay counted",
        ("serving/test_admission.py",),
    ),
    Mutant(
        "supervised.py",
        "    _become_subreaper()\n    for",
        "    for",
        "what a command leaves in the background outlives it",
        ("test_supervised.py",),
    ),
    Mutant(
        "tokens/encoding.py",
        'BORDER = re.compile(r"(?<=\\S)[ \\t\\n\\r]")',
        'BORDER = re.compile(r"[ \\t\\n\\r]")',
        "a long text is cut inside white space, which changes its tokens",
        ("tokens/test_encoding.py",),
    ),
    Mutant(
        "tracking/fingerprint.py",
        "data_digest, base_digest, code, versions]",
        "data_digest, base_digest, code]",
        "a training goes on under another version of torch",
        ("tracking", "training/test_resume.py"),
    ),
    Mutant(
        "training/checkpoints.py",
        ' or sha256_of_file(path) != about["sha256"]:',
        ":",
        "a checkpoint with a flipped bit counts as whole",
        ("training/test_checkpoints.py",),
    ),
    Mutant(
        "wheels.py",
        "    if len(entries) > 1:\n",
        "    if len(entries) > 2:\n",
        "of two members of one name the last is taken",
        ("test_wheels.py",),
    ),
    Mutant(
        "wikitext.py",
        "        yield line, not before.strip()\n",
        "        yield line, True\n",
        "a last line that looks like a heading begins an article",
        ("test_wikitext.py",),
    ),
)


def main(rooms: Annotated[list[str] | None, typer.Argument(help="Rooms; all of them if left out.")] = None) -> None:
    """Plant each bug and print a row of a table for it."""
    run_main(lambda: _main(rooms or []))


def _main(rooms: list[str]) -> None:
    known = {mutant.room for mutant in MUTANTS}
    if unknown := [room for room in rooms if room not in known]:
        raise ProsemillError(f"no bug is known for {unknown[0]}: choose from {', '.join(sorted(known))}")
    print("| room | bug | seen by | s |\n|---|---|---|---|", flush=True)
    for mutant in MUTANTS:
        if not rooms or mutant.room in rooms:
            start = time.monotonic()
            seen = first_failure(mutant) or "no test"
            print(f"| {mutant.room} | {mutant.effect} | {seen} | {time.monotonic() - start:.0f} |", flush=True)


def first_failure(mutant: Mutant) -> str | None:
    """The first test that fails with the bug, and passes without it; None if all pass.

    Raises:
        ProsemillError: a test fails without the bug too.
    """
    with tempfile.TemporaryDirectory(prefix="prosemill-mutant-") as scratch:
        copy = Path(scratch)
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in filter(None, tracked.split("\0")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)

        replace(copy, mutant.path, mutant.right, mutant.wrong)
        failed = run_tests(copy, *mutant.tests)
        if failed is not None:
            shutil.copyfile(ROOT / "prosemill" / mutant.path, copy / "prosemill" / mutant.path)
            if run_tests(copy, failed) is not None:
                raise ProsemillError(f"tests/{failed} fails without a bug in {mutant.path} too: mend it first")
        return failed


def run_tests(folder: Path, *tests: str) -> str | None:
    """Run tests, given below `tests/`, in a copy of the repository until the first fails; its name."""
    names = [f"tests/{test}" for test in tests]
    command = [sys.executable, "-m", "pytest", "--quiet", "--exitfirst", "--no-header", "-p", "no:cacheprovider", *names]
    # The copy's package, not the installed one, in the children of the tests too.
    environment = os.environ | {"PYTHONPATH": str(folder)}
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in finished.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    failed = [line.partition(" tests/")[2].partition(" - ")[0] for line in lines]
    assert bool(failed) == (finished.returncode != 0), finished.stdout + finished.stderr
    return failed[0] if failed else None


def replace(root: Path, path: str, right: str, wrong: str) -> None:
    """Put the bug into a copy of the repository."""
    file = root / "prosemill" / path
    text = file.read_text(encoding="utf-8")
    assert text.count(right) == 1, f"{file} has not once {right!r}"
    file.write_text(text.replace(right, wrong), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
