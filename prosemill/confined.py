"""Reading a stranger's file in a child process that may die: limited memory, limited time, one clear line when it goes wrong.

    rows = run_confined(read_rows, path, memory_bytes=1 << 30, seconds=60.0, what=str(path))

A few bytes can make a parser hang, crash or unpack to gigabytes. Here that costs the child's life and nothing else.
"""

import errno
import importlib
import multiprocessing
import os
import pickle
import resource
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar, TypeVarTuple

import psutil

from prosemill.errors import ProsemillError

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

MIB = 1 << 20


def run_confined(
    function: Callable[[*Arguments], Result],
    *arguments: *Arguments,
    memory_bytes: int,
    seconds: float,
    what: str = "the input",
    preload: tuple[str, ...] = (),
) -> Result:
    """Call `function(*arguments)` in a child process of its own and return its result.

    Args:
        function: A function of a module's top level. It and its arguments and result must pickle.
        arguments: Passed on by position.
        memory_bytes: Address space that the call may add to what the child holds when it begins. A thread's stack and heap count
            with up to 72 MiB, so give libraries that start threads some hundred MiB.
        seconds: Wall-clock time for the call alone, without the start of the child.
        what: What is read, such as a file's path: the beginning of the error message.
        preload: Modules that the child imports before it counts memory and time, because the function imports them itself.

    Raises:
        ProsemillError: the call took too much memory or time, the child died, or the function raised it.
        Exception: whatever else the function raised, with the child's stack trace as a note.
    """
    # A forked child would inherit the locks of other threads: start a clean one.
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments, memory_bytes, seconds, preload), daemon=True)
    process.start()
    sender.close()
    try:
        succeeded, value = _receive(receiver)
        process.join()
    finally:
        process.kill()
        process.join()
        exit_code = process.exitcode
        process.close()
        receiver.close()
    if succeeded:
        result: Result = value
        return result
    if value is None:
        raise ProsemillError(_explain_death(what, exit_code, seconds))
    if isinstance(value, MemoryError) or (isinstance(value, OSError) and value.errno == errno.ENOMEM):
        raise ProsemillError(f"{what}: reading it takes more than {memory_bytes // MIB} MiB of memory; it is broken or hostile, replace it")
    raise value


def _receive(receiver: "Connection[Any, Any]") -> tuple[bool, Any]:
    """Whether the call succeeded, and its result or exception; (False, None) if the child died without an answer."""
    try:
        answer: tuple[bool, Any] = pickle.loads(receiver.recv_bytes())  # noqa: S301 - our own child wrote it
    except (EOFError, ConnectionResetError):
        return False, None
    return answer


def _explain_death(what: str, exit_code: int | None, seconds: float) -> str:
    if exit_code == -signal.SIGALRM:
        return f"{what}: reading it was not done after {seconds:g} s; it is broken or hostile, replace it"
    reason = signal.Signals(-exit_code).name if exit_code is not None and exit_code < 0 else f"exit status {exit_code}"
    return f"{what}: its reader crashed ({reason}); it is broken or hostile, replace it"


def _answer(
    sender: "Connection[Any, Any]",
    function: Callable[..., object],
    arguments: tuple[object, ...],
    memory_bytes: int,
    seconds: float,
    preload: tuple[str, ...],
) -> None:
    """What the child does: confine itself, call, and send back (True, result) or (False, exception)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and kills the child
    _end_with_parent()
    for module in preload:
        importlib.import_module(module)
    _confine(memory_bytes, seconds)
    try:
        answer = pickle.dumps((True, function(*arguments)))
    except Exception as error:  # noqa: BLE001 - raised again in the parent, whatever it is
        answer = _pickle_error(error)
    sender.send_bytes(answer)


def _end_with_parent() -> None:
    """End this process when its parent dies, however it dies."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _confine(memory_bytes: int, seconds: float) -> None:
    """Limit this process: address space beyond today's, wall-clock time, no core dump.

    The kernel's alarm kills even a reader that never lets another thread run, and even when the parent is gone.
    """
    limit = psutil.Process().memory_info().vms + memory_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _pickle_error(error: Exception) -> bytes:
    """(False, error) as bytes; an error that does not survive pickling is told by a RuntimeError."""
    if not isinstance(error, ProsemillError | MemoryError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        answer = pickle.dumps((False, error))
        pickle.loads(answer)  # noqa: S301 - our own bytes
    except Exception:  # noqa: BLE001 - an exception class may do anything here
        return pickle.dumps((False, RuntimeError("".join(traceback.format_exception(error)))))
    return answer
