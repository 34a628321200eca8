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
REAPERS = ("init", "systemd", "launchd", "tini", "dumb-init")
"""What takes over the children of a process that died."""

INTERVAL = 1.0  # seconds between two looks


def end_with_dvc() -> None:
    """Start to watch the DVC that runs this process; nothing where none does."""
    if DVC_STAGE not in os.environ:
        return
    import psutil

    ancestors = psutil.Process().parents()
    num_shells = next((index for index, process in enumerate(ancestors) if process.name() not in SHELLS), len(ancestors))
    up_to_dvc = ancestors[: num_shells + 1]
    if len(up_to_dvc) == num_shells or _is_reaper(up_to_dvc[-1]):
        os.kill(os.getpid(), signal.SIGTERM)  # DVC died before this looked for it
    else:
        threading.Thread(target=_watch, args=(up_to_dvc,), daemon=True).start()


def _is_reaper(process: "psutil.Process") -> bool:
    return (process.pid == 1 or process.name() in REAPERS) and not any("dvc" in part for part in process.cmdline())


def _watch(ancestors: "list[psutil.Process]") -> None:
    """Wait until they are others: that changes when one dies, while a dead process may long wait to be reaped."""
    import psutil

    pause = threading.Event()
    while psutil.Process().parents()[: len(ancestors)] == ancestors:
        pause.wait(INTERVAL)
    os.kill(os.getpid(), signal.SIGTERM)
