"""What CONTRIBUTING.md asks of the code and a linter does not check."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("prosemill", "stages", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py"))
MAX_LINES = 50


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_functions_are_short(path: Path) -> None:
    lengths = {node.name: (node.end_lineno or node.lineno) - node.body[0].lineno + 1 for node in functions(path)}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_the_library_does_not_know_its_callers() -> None:
    for path in (ROOT / "prosemill").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in ("stages", "flows", "tests", "benchmarks") for name in names), path
