"""The routes that clients of OpenAI's completions know: `POST /v1/completions` and `GET /v1/models`."""

import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from prosemill.registry.answers import name_answer
from prosemill.serving.desk import READING_SECONDS, Desk, unless_gone
from prosemill.serving.errors import error_body, refusal, refusals
from prosemill.serving.events import EventStream, event
from prosemill.serving.messages import MODEL, CompletionAnswer, CompletionRequest, Model, ModelList, Usage
from prosemill.serving.stream import Finished, Stream

ANSWERS = refusals(400, 404, 413, 415, 429, 503) | {200: {"model": CompletionAnswer, "content": {EventStream.media_type: {}}}}
LAST_EVENT = b"data: [DONE]\n\n"

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> ModelList:
    """The one model that is served, and where its version is from."""
    desk: Desk = request.app.state.desk
    champion = desk.champion
    return ModelList(data=[Model.model_validate({"id": MODEL, "version": champion.version, **champion.facts})])


@router.post("/v1/completions", response_model=None, responses=ANSWERS)
async def complete(request: Request, wanted: CompletionRequest) -> Response:
    """Continue a prompt, `n` times with seeds that follow each other."""
    desk: Desk = request.app.state.desk
    if wanted.model != MODEL:
        return refusal(404, f"there is no model {wanted.model!r}: the one that is served is {MODEL!r}", "model")
    with ExitStack() as stack:
        champion = stack.enter_context(desk.visit(wanted.prompt))
        head: dict[str, Any] = {"id": name_answer(champion.version), "object": "text_completion", "model": MODEL}
        head["created"] = int(time.time())
        stream = await desk.enter(stack, champion.writer, wanted.prompt, wanted, deadline=None)
        if wanted.stream:
            has_usage = bool((wanted.stream_options or {}).get("include_usage"))
            seconds = desk.deadline + READING_SECONDS
            return EventStream(_events(stream, head, has_usage=has_usage), stack.pop_all().close, seconds=seconds)
        texts = await unless_gone(request, stream.texts())
    choices = [_choice(index, text, finished) for index, (text, finished) in enumerate(texts)]
    answer = CompletionAnswer.model_validate(head | {"choices": choices, "usage": Usage.of(stream.ends)})
    return JSONResponse(answer.model_dump())


async def _events(stream: Stream, head: dict[str, Any], *, has_usage: bool) -> AsyncIterator[bytes]:
    """The pieces of all answers as they come, and the end of each."""
    async for index, piece in stream:
        if isinstance(piece, str):
            yield event(head | {"choices": [_choice(index, piece, None)]})
        elif isinstance(piece, Finished):
            yield event(head | {"choices": [_choice(index, "", piece)]})
        else:
            yield event(error_body(500, str(piece)))
    if has_usage:
        yield event(head | {"choices": [], "usage": Usage.of(stream.ends)})
    yield LAST_EVENT


def _choice(index: int, text: str, finished: Finished | None) -> dict[str, Any]:
    """The fields of a `Choice`, or of a piece of one that has not ended yet.

    OpenAI's clients know no deadline; there as with a full length more might have come.
    """
    finish = None if finished is None else "stop" if finished.reason == "stop" else "length"
    return {"text": text, "index": index, "logprobs": None, "finish_reason": finish}
