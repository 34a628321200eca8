"""What CONTRIBUTING.md asks of the code and a linter does not check."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from prosemill.families import families

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("prosemill", "stages", "flows", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py"))
MAX_LINES = 50


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_functions_are_short(path: Path) -> None:
    # By line as well: two methods of one file may share a name.
    lengths = {(node.lineno, node.name): (node.end_lineno or node.lineno) - node.body[0].lineno + 1 for node in functions(path)}
    assert {place: length for place, length in lengths.items() if length > MAX_LINES} == {}


def test_the_library_does_not_know_its_callers() -> None:
    for path in (ROOT / "prosemill").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in ("stages", "flows", "tests", "benchmarks") for name in names), path


FAMILY_NAMES = {
    ("prosemill/base_model/gguf.py", "gpt2"),  # what a GGUF file calls its byte-level tokenizer, whatever the model
    ("prosemill/params.py", "llama"),  # the default of a key
}
"""Where a family's name stands outside the families' folder: nothing there asks which family runs."""


def test_nothing_but_the_families_files_knows_a_familys_name() -> None:
    paths = [path for folder in ("prosemill", "stages", "flows") for path in (ROOT / folder).rglob("*.py")]
    found = {
        (path.relative_to(ROOT).as_posix(), node.value)
        for path in paths
        if path.parent != ROOT / "prosemill/families"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in families()
    }
    assert found == FAMILY_NAMES
