"""The routes of the service.

app = make_app()
app.state.desk = Desk(champion, settings, Meters())
"""

import math
from collections.abc import AsyncIterator
from contextlib import ExitStack

from fastapi import APIRouter, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from prosemill.registry.answers import name_answer
from prosemill.serving import completions
from prosemill.serving.admission import BusyError
from prosemill.serving.desk import Desk, GoneError, unless_gone
from prosemill.serving.errors import EngineError, TooLongError, error_body, fault_line, refusal
from prosemill.serving.events import EventStream, event
from prosemill.serving.messages import Ending, GenerateAnswer, GenerateRequest, ScoreAnswer, ScoreRequest
from prosemill.serving.page import PATH, Page
from prosemill.serving.stream import Stream

CLIENT_GONE = 499  # nobody reads it; nginx calls it so

router = APIRouter()


def make_app() -> FastAPI:
    """The application, whose `state.desk` must be set before a request comes."""
    app = FastAPI(title="Prosemill", openapi_url="/openapi.json", docs_url=None, redoc_url=None)  # its pages load foreign scripts
    app.add_exception_handler(RequestValidationError, _say_what_is_wrong)
    app.add_exception_handler(HTTPException, _say_no)
    app.add_exception_handler(TooLongError, _say_too_much)
    app.add_exception_handler(BusyError, _say_when)
    app.add_exception_handler(EngineError, _say_broken)
    app.add_exception_handler(GoneError, _say_nothing)
    app.include_router(router)
    app.include_router(completions.router)
    app.state.page = Page(lambda: app.state.desk)
    app.mount(PATH, app.state.page)
    return app


@router.post("/generate")
async def generate(request: Request, wanted: GenerateRequest) -> GenerateAnswer:
    """Continue a prompt."""
    desk: Desk = request.app.state.desk
    with desk.visit() as champion:
        tokens = await run_in_threadpool(champion.writer.read, wanted.prompt)
        with desk.enter(champion.writer, tokens, [wanted.settings(len(tokens))], deadline=wanted.timeout) as (stream,):
            text = await unless_gone(request, stream.text())
    return GenerateAnswer(generated_text=text, **Ending.of(name_answer(champion.version), champion.version, stream))


@router.post("/generate/stream", response_class=StreamingResponse, responses={200: {"content": {EventStream.media_type: {}}}})
async def generate_stream(request: Request, wanted: GenerateRequest) -> Response:
    """Continue a prompt, as events: `text` with each piece, and at last `end`."""
    desk: Desk = request.app.state.desk
    with ExitStack() as stack:
        champion = stack.enter_context(desk.visit())
        tokens = await run_in_threadpool(champion.writer.read, wanted.prompt)
        (stream,) = stack.enter_context(desk.enter(champion.writer, tokens, [wanted.settings(len(tokens))], deadline=wanted.timeout))
        return EventStream(_events(stream, champion.version), stack.pop_all().close, seconds=desk.deadline)


@router.post("/score")
async def score(request: Request, wanted: ScoreRequest) -> ScoreAnswer:
    """How likely a document is: its log-likelihood, and bits per byte."""
    desk: Desk = request.app.state.desk
    with desk.visit() as champion:
        try:
            framed = await run_in_threadpool(champion.writer.frame, wanted.text)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        nll = await unless_gone(request, desk.score(champion, framed))
    return ScoreAnswer(
        id=name_answer(champion.version),
        model_version=champion.version,
        log_likelihood=-nll,
        bits_per_byte=nll / (math.log(2) * framed.num_bytes),
        num_tokens=framed.num_tokens,
        num_bytes=framed.num_bytes,
    )


async def _events(stream: Stream, version: int) -> AsyncIterator[str]:
    try:
        async for piece in stream:
            yield event({"text": piece}, "text")
    except EngineError as error:
        yield event(error_body(500, str(error)), "error")
    else:
        yield event(Ending(**Ending.of(name_answer(version), version, stream)), "end")


async def _say_what_is_wrong(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:])
    return refusal(400, fault_line(param, first["msg"]), param or None)


async def _say_no(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, str(error.detail))


async def _say_too_much(_: Request, error: Exception) -> JSONResponse:
    return refusal(400, str(error))


async def _say_when(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, BusyError)
    answer = refusal(429, str(error))
    answer.headers["Retry-After"] = str(error.seconds)
    return answer


async def _say_broken(_: Request, error: Exception) -> JSONResponse:
    return refusal(500, str(error))


async def _say_nothing(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)
