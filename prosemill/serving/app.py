"""The routes of the service.

app = make_app()
app.state.desk = Desk(champion, settings, Meters())
"""

import math
from collections.abc import AsyncIterator, Set
from contextlib import ExitStack

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from prosemill.registry.answers import name_answer
from prosemill.serving import completions, health
from prosemill.serving.admission import BusyError
from prosemill.serving.desk import READING_SECONDS, Desk, GoneError, unless_gone
from prosemill.serving.errors import BROKEN, EngineError, TooMuchError, UnavailableError, error_body, fault_line, refusal, refusals
from prosemill.serving.events import EventStream, event
from prosemill.serving.messages import Ended, GenerateAnswer, GenerateRequest, ScoreAnswer, ScoreRequest, StreamEnd, Text, Usage
from prosemill.serving.page import PATH, Page
from prosemill.serving.stream import Finished, Stream

CLIENT_GONE = 499  # nobody reads it; nginx calls it so
WORDS = {404: "there is no such route: /openapi.json names them all", 405: "the route takes another method: the header Allow names it"}

router = APIRouter(responses=refusals(400, 413, 415, 429, 503))


def make_app() -> FastAPI:
    """The application, whose `state.desk` must be set before a request comes."""
    # The pages that FastAPI has for the document load foreign scripts.
    app = FastAPI(title="Prosemill", openapi_url="/openapi.json", docs_url=None, redoc_url=None, responses=refusals(401, 403, 500, "4XX"))
    app.add_exception_handler(RequestValidationError, _say_what_is_wrong)
    app.add_exception_handler(HTTPException, _say_no)
    app.add_exception_handler(TooMuchError, _say_too_much)
    app.add_exception_handler(BusyError, _say_when)
    app.add_exception_handler(EngineError, _say_broken)
    app.add_exception_handler(UnavailableError, _say_not_now)
    app.add_exception_handler(GoneError, _say_nothing)
    app.add_exception_handler(Exception, _say_sorry)
    app.include_router(router)
    app.include_router(completions.router)
    app.include_router(health.router)
    app.state.page = Page(lambda: app.state.desk)
    app.mount(PATH, app.state.page)
    routes = [route for route in (*router.routes, *completions.router.routes) if isinstance(route, APIRoute)]
    paths = {route.path for route in routes if "POST" in (route.methods or ())}
    app.add_middleware(Threshold, paths=paths)
    return app


class Threshold:
    """An ASGI application in front of the routes: who finds no room there is told so before anybody reads what is asked.

    In a crowd most are refused, and what that costs is taken from those who are being served.
    """

    def __init__(self, app: ASGIApp, paths: Set[str]) -> None:
        """Guard the routes of these paths, to which one POSTs."""
        self._app, self._paths = app, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self._paths:
            desk: Desk = scope["app"].state.desk
            try:
                desk.check()
                desk.check_room()
            except UnavailableError:
                pass  # the routes say so: who comes back in some seconds would find nobody
            except BusyError as error:
                await _busy(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


@router.post("/generate")
async def generate(request: Request, wanted: GenerateRequest) -> GenerateAnswer:
    """Continue a prompt, `n` times with seeds that follow each other."""
    desk: Desk = request.app.state.desk
    with ExitStack() as stack:
        champion = stack.enter_context(desk.visit(wanted.prompt))
        stream = await desk.enter(stack, champion.writer, wanted.prompt, wanted, deadline=wanted.timeout)
        texts = await unless_gone(request, stream.texts())
    first, *others = [Text(generated_text=text, **Ended.of(finished)) for text, finished in texts]
    name, version, usage = name_answer(champion.version), champion.version, Usage.of(stream.ends)
    return GenerateAnswer(id=name, model_version=version, usage=usage, **dict(first), alternatives=others)


@router.post("/generate/stream", response_class=StreamingResponse, responses={200: {"content": {EventStream.media_type: {}}}})
async def generate_stream(request: Request, wanted: GenerateRequest) -> Response:
    """Continue a prompt, as events: `text` with each piece and the `index` of its answer, and an `end` for each of the `n` answers."""
    desk: Desk = request.app.state.desk
    with ExitStack() as stack:
        champion = stack.enter_context(desk.visit(wanted.prompt))
        stream = await desk.enter(stack, champion.writer, wanted.prompt, wanted, deadline=wanted.timeout)
        return EventStream(_events(stream, champion.version), stack.pop_all().close, seconds=desk.deadline + READING_SECONDS)


@router.post("/score")
async def score(request: Request, wanted: ScoreRequest) -> ScoreAnswer:
    """How likely a document is: its log-likelihood, and bits per byte."""
    desk: Desk = request.app.state.desk
    with desk.visit(wanted.text) as champion:
        try:
            framed, nll = await unless_gone(request, desk.score(champion, wanted.text))
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
    return ScoreAnswer(
        id=name_answer(champion.version),
        model_version=champion.version,
        log_likelihood=-nll,
        bits_per_byte=nll / (math.log(2) * framed.num_bytes),
        num_tokens=framed.num_tokens,
        num_bytes=framed.num_bytes,
    )


async def _events(stream: Stream, version: int) -> AsyncIterator[bytes]:
    name = name_answer(version)
    async for index, piece in stream:
        if isinstance(piece, str):
            yield event({"text": piece, "index": index}, "text")
        elif isinstance(piece, Finished):
            yield event(StreamEnd(id=name, model_version=version, usage=Usage.of([piece.end]), index=index, **Ended.of(piece)), "end")
        else:
            yield event(error_body(500, str(piece)) | {"index": index}, "error")


async def _say_what_is_wrong(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return refusal(400, f"the body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}")
    param = ".".join(str(part) for part in first["loc"][1:])
    return refusal(400, fault_line(param, first["msg"]), param or None)


async def _say_no(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = refusal(error.status_code, WORDS.get(error.status_code, str(error.detail)))
    answer.headers.update(error.headers or {})
    return answer


async def _say_too_much(_: Request, error: Exception) -> Response:
    return refusal(400, str(error))


async def _say_when(_: Request, error: Exception) -> Response:
    assert isinstance(error, BusyError)
    return _busy(error)


def _busy(error: BusyError) -> Response:
    answer = refusal(429, str(error))
    answer.headers["Retry-After"] = str(error.seconds)
    return answer


async def _say_broken(_: Request, error: Exception) -> Response:
    return refusal(500, str(error))


async def _say_not_now(_: Request, error: Exception) -> Response:
    return refusal(503, str(error))


async def _say_nothing(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _say_sorry(_: Request, __: Exception) -> Response:
    return refusal(500, BROKEN)
