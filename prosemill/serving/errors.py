"""The one shape in which the service says no, which clients of OpenAI's API know: `{"error": {"message", "type", "param", "code"}}`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import BaseModel, Field
from starlette.responses import Response

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
REFUSALS: dict[int | str, str] = {
    400: "The request makes no sense; the message says what to change.",
    401: "A key is needed, where the service has any.",
    403: "The request names another host, or comes from another origin.",
    404: "There is no such model.",
    413: "The body is too long.",
    415: "The body is not declared as JSON.",
    429: "There is no room; `Retry-After` says in how many seconds there may be.",
    500: "The model could not answer, or the service is broken.",
    503: "The service is ending, its engine has ended, or it had no time for the request.",
    "4XX": "The request makes no sense for another reason.",  # without which FastAPI would promise 422 in a shape of its own
}
"""Statuses that the routes answer with, and what each means."""

BROKEN = "the service is broken here: its log says where"


class Fault(BaseModel):
    """What is wrong."""

    message: Annotated[str, Field(description="What is wrong and what to change, in one line.")]
    type: str
    param: Annotated[str | None, Field(description="The field that it is about.")]
    code: Annotated[int, Field(description="The answer's status.")]


class ErrorAnswer(BaseModel):
    """What every route gives if it cannot give what was asked for."""

    error: Fault


class TooMuchError(Exception):
    """More is asked for than there can ever be; the message names both numbers."""


class EngineError(Exception):
    """The engine could not write; the message says why."""


class UnavailableError(Exception):
    """Nobody is served now; the message says why."""


@contextmanager
def refused_by_engine() -> Iterator[None]:
    """Turn what `Engine.submit` and `Engine.score` raise into `TooMuchError` and `EngineError`."""
    try:
        yield
    except ValueError as error:
        raise TooMuchError(str(error)) from None
    except RuntimeError as error:
        raise EngineError(f"the model cannot answer: {error}") from None


def fault_line(field: str, message: str) -> str:
    """What pydantic finds wrong with a field, in one line."""
    return f"{field or 'body'}: {message.removeprefix('Value error, ')}"


def refusals(*statuses: int | str) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI document says of these statuses."""
    return {status: {"model": ErrorAnswer, "description": REFUSALS[status]} for status in statuses}


def error_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """What is wrong, in one line, and with which field."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": " ".join(message.split()), "type": kind, "param": param, "code": status}}


def refusal(status: int, message: str, param: str | None = None) -> Response:
    """An answer that says so, in ASCII: a message may quote half of a surrogate pair, which UTF-8 cannot hold."""
    return Response(json.dumps(error_body(status, message, param)), status_code=status, media_type="application/json")
