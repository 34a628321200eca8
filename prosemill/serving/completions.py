"""The routes that clients of OpenAI's completions know: `POST /v1/completions` and `GET /v1/models`."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from prosemill.registry.answers import name_answer
from prosemill.serving.desk import Desk, unless_gone
from prosemill.serving.errors import EngineError, error_body, refusal
from prosemill.serving.events import EventStream, event
from prosemill.serving.messages import MOST_ANSWERS, CompletionRequest, Usage
from prosemill.serving.stream import Stream

MODEL = "prosemill"
"""What clients call the model that is served, whichever version that is."""

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The one model that is served, and where its version is from."""
    champion = request.app.state.desk.champion
    model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "prosemill", "version": champion.version}
    return {"object": "list", "data": [model | champion.facts]}


@router.post("/v1/completions", response_model=None)
async def complete(request: Request, wanted: CompletionRequest) -> Response:
    """Continue a prompt, `n` times with seeds that follow each other."""
    desk: Desk = request.app.state.desk
    if wanted.model != MODEL:
        return refusal(404, f"there is no model {wanted.model!r}: the one that is served is {MODEL!r}", "model")
    seed = secrets.randbelow(2**63 - MOST_ANSWERS) if wanted.seed is None else wanted.seed
    with ExitStack() as stack:
        champion = stack.enter_context(desk.visit())
        tokens = await run_in_threadpool(champion.writer.read, wanted.prompt)
        head = {"id": name_answer(champion.version), "object": "text_completion", "created": int(time.time()), "model": MODEL}
        streams = stack.enter_context(desk.enter(champion.writer, tokens, wanted.settings(seed), deadline=None))
        if wanted.stream:
            has_usage = bool((wanted.stream_options or {}).get("include_usage"))
            return EventStream(_events(streams, head, has_usage=has_usage), stack.pop_all().close, seconds=desk.deadline)
        texts = await unless_gone(request, asyncio.gather(*(stream.text() for stream in streams)))
    choices = [_choice(index, text, stream) for index, (text, stream) in enumerate(zip(texts, streams, strict=True))]
    return JSONResponse(head | {"choices": choices, "usage": Usage.of(*streams).model_dump()})


async def _events(streams: list[Stream], head: dict[str, Any], *, has_usage: bool) -> AsyncIterator[str]:
    """The pieces of all answers as they come, and the end of each."""
    pieces: asyncio.Queue[tuple[int, str | EngineError | None]] = asyncio.Queue()

    async def pass_on(index: int, stream: Stream) -> None:
        last = None
        try:
            async for piece in stream:
                pieces.put_nowait((index, piece))
        except EngineError as error:
            last = error
        pieces.put_nowait((index, last))

    async with asyncio.TaskGroup() as group:
        for number, stream in enumerate(streams):
            group.create_task(pass_on(number, stream))
        left = len(streams)
        while left:
            index, piece = await pieces.get()
            if isinstance(piece, EngineError):
                yield event(error_body(500, str(piece)))
            else:
                yield event(head | {"choices": [_choice(index, piece or "", streams[index] if piece is None else None)]})
            left -= not isinstance(piece, str)
    if has_usage:
        yield event(head | {"choices": [], "usage": Usage.of(*streams).model_dump()})
    yield event("[DONE]")


def _choice(index: int, text: str, ended: Stream | None) -> dict[str, Any]:
    """A choice, or a piece of one that has not ended yet. OpenAI's clients know no deadline; there as here more might have come."""
    reason = None if ended is None else "stop" if ended.finish == "stop" else "length"
    return {"text": text, "index": index, "logprobs": None, "finish_reason": reason}
