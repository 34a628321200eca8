"""The main job as a newcomer meets it: `python -m benchmarks.pipeline`.

Clones the repository into a temporary folder, runs `make run` there with an empty cache for pip and for downloads, and then times a
`dvc repro` that has nothing to do. Prints wall times and bits per byte before and after. Nothing outside the temporary folder is used but
the machine's Python.
"""

import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
NO_OP_RUNS = 5


def main() -> None:
    """Run the benchmark and print its figures."""
    with tempfile.TemporaryDirectory(prefix="prosemill-bench-") as folder:
        clone, cache = Path(folder) / "clone", Path(folder) / "cache"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        environment = _newcomer(clone, cache)
        seconds = _timed(["make", "run"], clone, environment)
        again = _timed(["make", "run"], clone, environment)
        no_op = statistics.median(_timed([str(clone / ".venv/bin/dvc"), "repro", "--quiet"], clone, environment) for _ in range(NO_OP_RUNS))
        evaluation = json.loads((clone / "metrics/evaluation.json").read_text(encoding="utf-8"))
        training = json.loads((clone / "metrics/train.json").read_text(encoding="utf-8"))
    base, trained = evaluation["base"]["bits_per_byte"], evaluation["trained"]["bits_per_byte"]
    print(f"make run, fresh clone, empty caches   {seconds / 60:6.1f} min")
    print(f"make run again                        {again:6.1f} s")
    print(f"dvc repro with nothing to do (median) {no_op:6.2f} s")
    print(f"bits per byte                         {base:.4f} -> {trained:.4f}, ratio {trained / base:.3f}")
    print(f"training                              {training['tokens_per_second']:.0f} tokens/s, MFU {training['mfu']:.1%}")


def _newcomer(clone: Path, cache: Path) -> dict[str, str]:
    """The environment of somebody who has used none of this before."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "MLFLOW_", "PROSEMILL_", "VIRTUAL_ENV"))}
    path = os.pathsep.join(part for part in kept["PATH"].split(os.pathsep) if not part.startswith(str(ROOT)))
    own = {"PIP_CACHE_DIR": str(cache / "pip"), "XDG_CACHE_HOME": str(cache), "PATH": f"{clone / '.venv/bin'}{os.pathsep}{path}"}
    return kept | own


def _timed(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
