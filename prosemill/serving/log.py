"""The service's log: a line of JSON for each request, and what has failed. Nobody's text is in it, unless it is asked for.

log(method="POST", path="/generate", status=200, seconds=0.3)
log_failure(error)
"""

import json
import traceback
from contextlib import suppress
from datetime import UTC, datetime

from prosemill.console import say

NUM_FRAMES = -8  # of a failure, from its end; those before are the frameworks'


def log(**fields: str | float) -> None:
    """Say something in a line of JSON, with the time."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    _say(json.dumps({"time": now} | fields))


def log_failure(error: Exception) -> None:
    """Say what has failed and where, without its message, which may quote a prompt."""
    _say(f"{type(error).__name__} in\n{''.join(traceback.format_tb(error.__traceback__, NUM_FRAMES))}")


def _say(line: str) -> None:
    with suppress(OSError):  # a full disk under the log is no reason not to serve
        say(line)
