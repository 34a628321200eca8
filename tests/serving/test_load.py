"""The load driver counts what becomes of the requests, and calls no broken answer a good one."""

import asyncio
import time

import pytest
import uvloop

from benchmarks.client import Client
from benchmarks.serving import Load, ask, closed_loop, open_loop, report
from tests.serving.conftest import NUM_ROWS, Served


def test_answers_are_counted_and_timed(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    async def run() -> Load:
        async with Client(served.url) as client:
            load = await closed_loop(client, NUM_ROWS, 0.5, num_new_tokens=8)
            arriving = await open_loop(client, rate=20, seconds=0.5, seed=0)
            load.statuses.update(arriving.statuses)
            return load

    load = uvloop.run(run())
    assert set(load.statuses) == {200}
    assert 0 < load.num_tokens <= 8 * load.statuses[200]
    assert 0 < len(load.begun) == len(load.first) == len(load.per_token) <= load.statuses[200]
    assert all(0 < first < 30 for first in load.first)
    report(load, 1.0, first=30.0, per_token=30.0)
    told = capsys.readouterr().out
    assert f"{load.num_tokens} tokens/s; goodput {len(load.first)}.00 answers/s" in told


def test_what_was_asked_before_it_was_enough_is_read_to_its_end(served: Served) -> None:
    async def run() -> tuple[Load, float]:
        enough = asyncio.Event()
        async with Client(served.url) as client:
            going = asyncio.create_task(closed_loop(client, NUM_ROWS, enough=enough, num_new_tokens=40))
            await asyncio.sleep(0.5)
            enough.set()
            return await going, time.perf_counter()

    load, end = uvloop.run(run())
    assert set(load.statuses) == {200}
    assert load.statuses[200] >= NUM_ROWS
    assert all(end - 30 < begun < end for begun in load.begun)


def test_an_answer_that_breaks_off_is_no_good_one(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = served.desk.champion.writer.engine

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    async def run() -> Load:
        load = Load()
        async with Client(served.url) as client:
            await ask(client, 0, load)
        return load

    monkeypatch.setattr(engine, "_show", fail)
    load = uvloop.run(run())
    assert (dict(load.statuses), load.num_tokens) == ({"broken": 1}, 0)
