"""A stream lets go of what it holds however it ends."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from prosemill.serving.events import EventStream, event
from tests.waiting import LIMIT

HTTP = {"type": "http", "asgi": {"spec_version": "2.3"}}


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield event({"text": "more"})
        await asyncio.sleep(0)


async def nothing_comes() -> Any:
    await asyncio.Event().wait()


async def never_taken(message: Any) -> None:
    if message["type"] == "http.response.body":
        await asyncio.Event().wait()


def test_an_event_is_one_line_however_a_client_splits_lines() -> None:
    data = {"text": "é\u2028\u0085\r\n😀"}
    head, body, last = event(data, "text").decode("ascii").splitlines()
    assert (head, last) == ("event: text", "")
    assert json.loads(body.removeprefix("data: ")) == data


@pytest.mark.parametrize("version", ["2.3", "2.4"])
def test_a_client_that_reads_nothing_is_let_go(version: str) -> None:
    closed = list[bool]()
    stream = EventStream(endless(), lambda: closed.append(True), seconds=0.1)
    scope = HTTP | {"asgi": {"spec_version": version}}
    asyncio.run(asyncio.wait_for(stream(scope, nothing_comes, never_taken), timeout=LIMIT))
    assert closed == [True]


async def taken_now_and_then(_: Any) -> None:
    await asyncio.sleep(0.05)


def test_a_client_that_reads_a_little_now_and_then_is_let_go_as_well() -> None:
    closed = list[bool]()
    stream = EventStream(endless(), lambda: closed.append(True), seconds=0.3)
    asyncio.run(asyncio.wait_for(stream(HTTP, nothing_comes, taken_now_and_then), timeout=LIMIT))
    assert closed == [True]


def test_a_client_that_goes_before_the_first_event_is_let_go() -> None:
    async def gone() -> Any:
        return {"type": "http.disconnect"}

    closed = list[bool]()
    stream = EventStream(endless(), lambda: closed.append(True), seconds=2 * LIMIT)
    asyncio.run(asyncio.wait_for(stream(HTTP, gone, never_taken), timeout=LIMIT))
    assert closed == [True]
