"""The one exception for a user's mistake, and the way every program of this repository ends on it.

A mistake of the user's (a wrong param, a corrupt file, no network, a full disk) ends in one line on standard error that says
what, where and what to do, with exit status 1. Everything else is a bug of ours and keeps its stack trace.
"""

import errno
import gc
import os
import sys
from collections.abc import Callable
from typing import Never

from prosemill.orphans import end_with_dvc
from prosemill.telemetry import switch_off

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of an `OSError` that says that nothing more can be written."""

OBJECTS_PER_COLLECTION = 50_000
"""New objects after which Python looks for garbage; its own 700 make the imports of torch, transformers and MLflow a fifth slower."""


class ProsemillError(ValueError):
    """A mistake that the user can mend. The message is one line: what is wrong, where, and what to do."""


class TemporaryError(ProsemillError):
    """What may be gone in a while, as a network that does not answer. A program ends on it with the exit status `TRY_AGAIN`."""


TRY_AGAIN = os.EX_TEMPFAIL


def is_mistake(error: BaseException) -> bool:
    """Whether a program ends on it in one line, and trying again as it stands would be in vain."""
    return isinstance(error, ProsemillError | KeyboardInterrupt) or (isinstance(error, OSError) and error.errno in FULL_DISK)


def first_line(error: Exception) -> str:
    """What a library says of its trouble, without the lines of advice that follow."""
    return str(error).strip().partition("\n")[0]


def exit_with(message: str, status: int = 1) -> Never:
    """Print `error: message` as one line on standard error and exit."""
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    raise SystemExit(status)


def run_main(main: Callable[[], None]) -> None:
    """Run a program's `main`, turning the user's mistakes and a full disk into one line and exit status 1 (`TRY_AGAIN` for what may pass).

    The libraries' usage reports are switched off before (prosemill/telemetry.py), and a stage of DVC ends with it (prosemill/orphans.py).
    """
    gc.set_threshold(OBJECTS_PER_COLLECTION)
    switch_off()
    end_with_dvc()
    try:
        main()
    except ProsemillError as error:
        exit_with(str(error), TRY_AGAIN if isinstance(error, TemporaryError) else 1)
    except OSError as error:
        if not is_mistake(error):
            raise
        exit_with(f"the disk is full while writing {error.filename or 'an output'}: free some space and run the same command again")
    except KeyboardInterrupt:
        exit_with("interrupted; run the same command again to go on")
