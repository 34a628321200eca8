"""The one shape in which the service says no, which clients of OpenAI's API know: `{"error": {"message", "type", "param", "code"}}`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.responses import JSONResponse

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class TooLongError(Exception):
    """Prompt and answer do not go together into what the model sees; the message names both numbers."""


class EngineError(Exception):
    """The engine could not write; the message says why."""


@contextmanager
def refused_by_engine() -> Iterator[None]:
    """Turn what `Engine.submit` and `Engine.score` raise into `TooLongError` and `EngineError`."""
    try:
        yield
    except ValueError as error:
        raise TooLongError(str(error)) from None
    except RuntimeError as error:
        raise EngineError(f"the model cannot answer: {error}") from None


def fault_line(field: str, message: str) -> str:
    """What pydantic finds wrong with a field, in one line."""
    return f"{field or 'body'}: {message.removeprefix('Value error, ')}"


def error_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """What is wrong, in one line, and with which field."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def refusal(status: int, message: str, param: str | None = None) -> JSONResponse:
    """An answer that says so."""
    return JSONResponse(error_body(status, message, param), status_code=status)
