"""A stage whose DVC was killed ends too: it would hold its lock and work for nobody.

    end_with_dvc()   # at the beginning of a stage

A killed `dvc repro` leaves its stage alive, below a shell that waits for it. So a stage that DVC has started looks every second whether
that DVC is still there, and if not sends itself SIGTERM, on which training saves a checkpoint first.
"""

import os
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

DVC_STAGE = "DVC_STAGE"  # which DVC sets for what it runs
SHELLS = ("sh", "dash", "bash", "zsh", "fish", "ksh")
INTERVAL = 1.0  # seconds between two looks


def end_with_dvc() -> None:
    """Start to watch the DVC that runs this process; nothing where there is none."""
    import psutil

    if DVC_STAGE not in os.environ:
        return
    ancestors = []
    for process in psutil.Process().parents():
        ancestors.append(process)
        if process.name() not in SHELLS:
            threading.Thread(target=_watch, args=(ancestors,), daemon=True).start()
            return


def _watch(ancestors: "list[psutil.Process]") -> None:
    """Wait until one of them is gone: is_running knows a process from a later one of the same number."""
    pause = threading.Event()
    while all(process.is_running() for process in ancestors):
        pause.wait(INTERVAL)
    os.kill(os.getpid(), signal.SIGTERM)
