"""How long a person waits before anything happens: `python -m benchmarks.startup`.

Each figure is the median of several fresh processes, given beside the bare interpreter's, as part of the wait is Python's own.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 11
PROGRAM = str(Path(sys.executable).with_name("prosemill"))
COMMANDS = {
    "bare interpreter": [sys.executable, "-c", "pass"],
    "import prosemill": [sys.executable, "-c", "import prosemill"],
    "prosemill --help": [sys.executable, PROGRAM, "--help"],
    "prosemill params": [sys.executable, PROGRAM, "params"],
    "prosemill report": [sys.executable, PROGRAM, "report"],
}
HEAVY = ("torch", "transformers", "datasets", "mlflow", "peft")


def main() -> None:
    """Print the median wait of each command, and whether it imported a heavy library."""
    for name, command in COMMANDS.items():
        seconds = statistics.median(_wait(command) for _ in range(RUNS))
        heavy = _heavy_imports(command)
        print(f"{name:20} {seconds:6.3f} s   heavy imports: {', '.join(heavy) or 'none'}")


def _wait(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def _heavy_imports(command: list[str]) -> list[str]:
    traced = subprocess.run([command[0], "-X", "importtime", *command[1:]], check=True, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in traced.stderr.splitlines()}
    return [name for name in HEAVY if name in imported]


if __name__ == "__main__":
    main()
