"""What the service adds to the engine, and how it stands a crowd: `python -m benchmarks.service`, in a clone whose champion is promoted.

It serves the champion on a free port, with a copy of the registry, and measures one after the other, with 64 sampled tokens an answer:

- `start`: from `bentoml serve` to ready;
- `against the engine`: tokens a second of 32 requests that come at once, over HTTP and without it, by the same weights; they take turns;
- `first token`: of requests that come while 31 others are being written, beside the time of a step meanwhile;
- `swap`: another version becomes the champion while 16 requests are kept going: what failed, the longest silence of a stream, and the
  longest wait for a first token of those that came from then until some seconds after the other version was served;
- `crowd`: for some minutes ten times as many requests a second as it can hold: the time per token of those that it takes, beside that when
  32 are kept going; what the others are told; and its memory before and after.

The client runs on the same machine. Of more than two cores it has the last, and the service the others, as has the engine without HTTP; on
two it takes part of what the service could have. The first line tells which.
"""

import asyncio
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import requests
import torch
import typer
import uvloop
from mlflow import MlflowClient

from benchmarks.client import Client
from benchmarks.cores import for_service, leave, num_threads, on
from benchmarks.serving import NUM_NEW_TOKENS, PROMPTS, SAMPLING, Load, ask, closed_loop, open_loop
from prosemill.generation.sampling import Settings
from prosemill.generation.writer import Writer
from prosemill.orchestration.environment import free_port
from prosemill.registry.champion import ChampionOfRegistry
from prosemill.registry.store import CHAMPION, MODEL_NAME
from prosemill.serving.champion import load
from prosemill.serving.settings import ServiceSettings
from prosemill.workspace import TRACKING

NUM_ROWS = 32
NUM_SWAPPING = 16
LONG_ANSWER = 512
CROWD = 10
FOLLOW_SECONDS = 1.0
START_SECONDS = 120.0
SETTLING_SECONDS = 5.0
"""In which requests that began all at once get their first tokens, and an old version's last answers end."""


@dataclass(frozen=True)
class Service:
    """One that runs."""

    url: str
    process: "subprocess.Popen[bytes]"
    seconds_to_ready: float
    cores: set[int]
    """Those it was given."""

    def megabytes(self) -> float:
        """Memory that it and its worker have for themselves."""
        above = psutil.Process(self.process.pid)
        return sum(each.memory_full_info().uss for each in (above, *above.children(recursive=True))) / 1e6


def main(
    rounds: Annotated[int, typer.Option(help="Of the comparison with the engine.")] = 5,
    seconds: Annotated[float, typer.Option(help="How long a crowd comes.")] = 120.0,
) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="prosemill-service-") as scratch, serving(Path(scratch)) as service:
        print(leave(service.cores))
        print(f"start: ready after {service.seconds_to_ready:.1f} s", flush=True)
        uvloop.run(_measure(service, rounds, seconds))


@contextmanager
def serving(scratch: Path) -> Iterator[Service]:
    """The champion's service beside a copy of the registry, which this process sees as well."""
    database = scratch / "mlflow.db"
    shutil.copyfile(TRACKING / "mlflow.db", database)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{database}"
    variables = {"PROSEMILL_NUM_ROWS": str(NUM_ROWS), "PROSEMILL_FOLLOW_SECONDS": str(FOLLOW_SECONDS)}
    port, cores = free_port(), for_service()
    command = [sys.executable, "-m", "bentoml", "serve", "--port", str(port)]
    begin = time.perf_counter()
    with ExitStack() as stack:
        log = stack.enter_context((scratch / "log").open("wb"))
        with on(cores):
            process = stack.enter_context(subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=log))
        stack.callback(process.terminate)
        url = f"http://127.0.0.1:{port}"
        while not _is_ready(url):
            if process.poll() is not None or time.perf_counter() - begin > START_SECONDS:
                raise SystemExit((scratch / "log").read_text())
            time.sleep(0.05)
        yield Service(url, process, time.perf_counter() - begin, cores)


def _is_ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/readyz", timeout=5).ok
    except requests.RequestException:
        return False


async def _measure(service: Service, rounds: int, seconds: float) -> None:
    async with Client(service.url) as client:
        await ask(client, 0, Load())
        await against_engine(client, service, rounds)
        await first_token(client)
        await swap(client)
        await crowd(client, service, seconds)


async def against_engine(client: Client, service: Service, rounds: int) -> None:
    """Measure 32 requests that come at once, over HTTP and in this process, whose engine has the service's cores and as many threads."""
    with on(service.cores):
        torch.set_num_threads(num_threads())
        champion = load(ChampionOfRegistry().find(), ServiceSettings(num_rows=NUM_ROWS))
    by_http, by_engine = list[float](), list[float]()
    for number in range(rounds + 1):
        first = number * NUM_ROWS
        seeds, loaded, begin = range(first, first + NUM_ROWS), Load(), time.perf_counter()
        await asyncio.gather(*(ask(client, seed, loaded) for seed in seeds))
        speed = loaded.num_tokens / (time.perf_counter() - begin)
        num_tokens, own = _by_engine(champion.writer, seeds)
        assert num_tokens == loaded.num_tokens, "the same requests give the same texts"
        if number > 0:  # the first one warms up
            by_http.append(speed)
            by_engine.append(own)
    champion.close()
    ratio = statistics.median(a / b for a, b in zip(by_http, by_engine, strict=True))
    print(f"against the engine ({champion.precision}): {statistics.median(by_http):.0f} tokens/s over HTTP, ", end="")
    print(f"{statistics.median(by_engine):.0f} without; ratio {ratio:.3f} ({min(by_http):.0f} to {max(by_http):.0f})", flush=True)


def _by_engine(writer: Writer, seeds: range) -> tuple[int, float]:
    """New tokens of the same requests, and how many a second."""
    begin = time.perf_counter()
    answers = [
        writer.answer(PROMPTS[seed % len(PROMPTS)], Settings(max_new_tokens=NUM_NEW_TOKENS, seed=seed, **SAMPLING)) for seed in seeds
    ]
    for answer in answers:
        for _ in answer:
            pass
    num_tokens = sum(answer.end.num_new_tokens for answer in answers if answer.end)
    return num_tokens, num_tokens / (time.perf_counter() - begin)


async def first_token(client: Client, num_asked: int = 40) -> None:
    """Measure first tokens while 31 others are being written."""
    others, asked = Load(), Load()
    writing = asyncio.create_task(closed_loop(client, NUM_ROWS - 1, load=others, num_new_tokens=LONG_ANSWER))
    await asyncio.sleep(5)
    for number in range(num_asked):
        await ask(client, number, asked)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    step = statistics.median(asked.per_token)
    p50, p95 = np.percentile(asked.first, (50, 95))
    print(f"first token beside {NUM_ROWS - 1} others: p50 {p50:.3f} s, p95 {p95:.3f} s; a step takes {step:.3f} s: ", end="")
    print(f"p95 is {p95 / step:.1f} steps", flush=True)
    await asyncio.sleep(2)  # in which the service sees that nobody reads the others any more


async def swap(client: Client) -> None:
    """Measure what those hear who are served while another version becomes the champion."""
    versions = MlflowClient()
    before = versions.get_model_version_by_alias(MODEL_NAME, CHAMPION)
    tags = {str(name): str(value) for name, value in before.tags.items()}
    after = versions.create_model_version(MODEL_NAME, str(before.source), run_id=before.run_id, tags=tags, model_id=before.model_id)
    start = time.perf_counter()
    calm = await closed_loop(client, NUM_SWAPPING, 3 * SETTLING_SECONDS)
    loaded, enough = Load(), asyncio.Event()
    writing = asyncio.create_task(closed_loop(client, NUM_SWAPPING, load=loaded, enough=enough))
    await asyncio.sleep(SETTLING_SECONDS)
    begin = time.perf_counter()
    await asyncio.to_thread(versions.set_registered_model_alias, MODEL_NAME, CHAMPION, str(after.version))
    while await _version(client) != int(after.version):
        await asyncio.sleep(0.2)
    seconds = time.perf_counter() - begin
    await asyncio.sleep(SETTLING_SECONDS)
    enough.set()
    await writing
    failed = sum(number for status, number in loaded.statuses.items() if status != HTTPStatus.OK)
    print(f"swap after {seconds:.1f} s: {sum(loaded.statuses.values())} answers, {failed} failed; longest silence of a stream ", end="")
    print(f"{max(loaded.silences):.2f} s ({max(calm.silences):.2f} s without a swap); longest wait for a first token, ", end="")
    print(f"{_longest_wait(loaded, begin)} ({_longest_wait(calm, start + SETTLING_SECONDS)} without a swap)", flush=True)


def _longest_wait(load: Load, since: float) -> str:
    """For the first token, of those that came since a moment."""
    waits = [first for begun, first in zip(load.begun, load.first, strict=True) if begun >= since]
    return f"{max(waits, default=math.nan):.2f} s of {len(waits)} that came"


async def _version(client: Client) -> int:
    answer = await client.ask("GET", "/v1/models")
    return int(json.loads(answer.body)["data"][0]["version"])


async def crowd(client: Client, service: Service, seconds: float) -> None:
    """Measure what ten times too many do to those that are taken."""
    begin = time.perf_counter()
    calm = await closed_loop(client, NUM_ROWS, 20)
    held = len(calm.first) / (time.perf_counter() - begin)
    before = service.megabytes()
    loaded = await open_loop(client, CROWD * held, seconds, seed=0)
    after = service.megabytes()
    usual, crowded = (np.percentile(load.per_token, (50, 95)) for load in (calm, loaded))
    print(f"crowd of {CROWD * held:.1f} requests a second, where it can hold {held:.1f}: {dict(loaded.statuses)}", flush=True)
    for name, slow, fast in zip(("p50", "p95"), crowded, usual, strict=True):
        print(f"  time per token {name} {slow:.3f} s, {slow / fast:.2f} times the {fast:.3f} s with {NUM_ROWS} at once")
    print(f"  memory {before:.0f} MB before, {after:.0f} MB after")


if __name__ == "__main__":
    typer.run(main)
