"""What names a run: its params, its data, its base model, and the code and libraries that compute with them."""

import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any

import prosemill
from prosemill.digests import sha256_of_file, sha256_of_value
from prosemill.workspace import LOCK, METRICS, REPORTS

CODE = ("families", "training", "tokens/blocks.py", "precision.py", "pretrained.py")
LIBRARIES = ("torch", "transformers", "accelerate", "peft")
RESULTS = (LOCK, METRICS, REPORTS)
"""What the pipeline itself writes among the files that git tracks."""


def run_fingerprint(params: dict[str, Any], data_digest: str, base_digest: str) -> str:
    """Sixteen hexadecimal digits that two runs share only if they must end with the same weights on the same machine.

    Args:
        params: The train section's values, without those that change no weight.
        data_digest: Digest of the blocks' manifest.
        base_digest: Digest of the base model.
    """
    root = Path(prosemill.__file__).parent
    files = [file for name in CODE for file in (sorted((root / name).rglob("*.py")) if (root / name).is_dir() else [root / name])]
    code = [[file.relative_to(root).as_posix(), sha256_of_file(file)] for file in files]
    versions = {library: importlib.metadata.version(library) for library in LIBRARIES}
    return sha256_of_value([params, data_digest, base_digest, code, versions])[:16]


def git_state(folder: Path) -> dict[str, str]:
    """The commit checked out and whether tracked files differ from it, the pipeline's results aside; `unknown` outside a git checkout."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {"git_commit": "unknown", "git_dirty": "unknown"}
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".", *(f":!{path}" for path in RESULTS))
    return {"git_commit": commit, "git_dirty": str(bool(changes)).lower()}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        finished = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return finished.stdout.strip() if finished.returncode == 0 else None
