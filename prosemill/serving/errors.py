"""The one shape in which the service says no, which clients of OpenAI's API know: `{"error": {"message", "type", "param", "code"}}`."""

from starlette.responses import JSONResponse

TYPES = {403: "permission_error", 404: "not_found_error"}


def refusal(status: int, message: str, param: str | None = None) -> JSONResponse:
    """An answer that says what is wrong in one line, and with which field."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": status}}, status_code=status)
