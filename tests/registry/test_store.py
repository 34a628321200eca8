"""What a package's digest covers, and what it leaves to those who load the package."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from prosemill.registry.store import package_digest


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder like a package's."""
    folder = tmp_path / "package"
    (folder / "code/prosemill").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors:\n")
    (folder / "code/prosemill/__init__.py").write_text("")
    return folder


def change_a_byte(package: Path) -> None:
    (package / "MLmodel").write_text("flavour:\n")


def rename_a_file(package: Path) -> None:
    (package / "MLmodel").rename(package / "mlmodel")


def add_a_file(package: Path) -> None:
    (package / "code/json.py").write_text("")


def add_a_linked_folder(package: Path) -> None:
    (package.parent / "json").mkdir()
    (package / "code/json").symlink_to(package.parent / "json")


def add_a_compiled_file(package: Path) -> None:
    """Python would run it instead of the source that it names."""
    (package / "code/prosemill/__pycache__").mkdir()
    (package / "code/prosemill/__pycache__/__init__.cpython-311.pyc").write_bytes(b"x")


def remove_a_file(package: Path) -> None:
    (package / "code/prosemill/__init__.py").unlink()


@pytest.mark.parametrize("alter", [change_a_byte, rename_a_file, add_a_file, add_a_linked_folder, add_a_compiled_file, remove_a_file])
def test_the_digest_sees_what_changes_a_package(package: Path, alter: Callable[[Path], None]) -> None:
    before = package_digest(package)
    alter(package)
    assert package_digest(package) != before


def test_the_digest_is_of_the_package_wherever_it_lies_and_whoever_loaded_it(package: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(package, copy)
    (copy / "registered_model_meta").write_text("model_name: prosemill\n")
    assert package_digest(copy) == package_digest(package)
