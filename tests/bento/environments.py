"""A Python environment in which nothing is installed but what a requirements file asks for: made of links, without a package index."""

import re
import sys
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def make_environment(folder: Path, requirements: Path) -> Path:
    """Make one; its interpreter."""
    venv.create(folder, symlinks=True, with_pip=False)
    (packages,) = folder.glob("lib/*/site-packages")
    for name in installed_by(requirements.read_text(encoding="utf-8").splitlines()):
        found = distribution(name)
        for top in {Path(file).parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            place = packages / top
            if not place.exists():
                place.symlink_to(Path(str(found.locate_file(top))))
    return folder / "bin" / Path(sys.executable).name


def installed_by(requirements: list[str]) -> set[str]:
    """Names of all distributions that pip would install for them."""
    seen, left = set[tuple[str, frozenset[str]]](), [Requirement(line) for line in requirements]
    while left:
        wanted = left.pop()
        key = (re.sub(r"[-_.]+", "-", wanted.name).lower(), frozenset(wanted.extras))
        if key in seen:
            continue
        try:
            needs = [Requirement(line) for line in distribution(wanted.name).requires or ()]
        except PackageNotFoundError:  # of another build of torch
            continue
        seen.add(key)
        extras = wanted.extras or {""}
        left += [need for need in needs if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras)]
    return {name for name, _ in seen}
