"""How the service holds up under load: `python -m benchmarks.serving --rate 2 --seconds 60` beside a service that runs (`bentoml serve`).

Requests arrive as strangers' do, at random moments of a mean rate, whether or not those before them are done (open loop); with
`--concurrent 32` so many are kept going instead (closed loop). Each asks `/v1/completions` for 64 sampled tokens after one of 16 prompts,
and reads the stream.

Reported are the time to the first token, the mean time of each further one, tokens a second, rejections (429), and goodput: answers a
second whose first token came within `--first` and the others within `--per-token` seconds. The client keeps off the service's cores where
that was begun on some of the machine's alone, as with `taskset --cpu-list 0-6 bentoml serve`; the first line tells. A service that asks for
a key is sent the one in `PROSEMILL_API_KEY`.
"""

import asyncio
import math
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import pairwise
from typing import Annotated, Any
from urllib.parse import urlsplit

import numpy as np
import typer
import uvloop

from benchmarks.client import Client
from benchmarks.cores import leave, of_listener

NUM_NEW_TOKENS = 64
SAMPLING: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9}
SUBJECTS = ("city", "river", "treaty", "novel", "comet", "bridge", "violin", "harvest")
PROMPTS = [f"The history of the {subject} {verb}" for subject in SUBJECTS for verb in ("begins with", "has often been told as")]
PERCENTILES = (50, 95, 99)
BROKEN, DONE = b'data: {"error"', b"data: [DONE]\n\n"
COMPLETION_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')


@dataclass
class Load:
    """What came of the requests."""

    begun: list[float] = field(default_factory=list)
    """When each was asked, by `time.perf_counter`."""
    first: list[float] = field(default_factory=list)
    """Seconds to the first token."""
    per_token: list[float] = field(default_factory=list)
    """Mean seconds between the tokens of an answer."""
    silences: list[float] = field(default_factory=list)
    """Longest seconds between two events of an answer."""
    num_tokens: int = 0
    statuses: Counter[int | str] = field(default_factory=Counter)


async def ask(client: Client, seed: int, load: Load, *, num_new_tokens: int = NUM_NEW_TOKENS) -> None:
    """Send one request and read its answer."""
    body = {"model": "prosemill", "prompt": PROMPTS[seed % len(PROMPTS)], "max_tokens": num_new_tokens, "seed": seed}
    body |= SAMPLING | {"stream": True, "stream_options": {"include_usage": True}}
    begin = time.perf_counter()
    try:
        answer = await client.ask("POST", "/v1/completions", body)
    except OSError as error:
        load.statuses[type(error).__name__] += 1
        return
    is_served = answer.status == HTTPStatus.OK
    if is_served and (BROKEN in answer.body or not answer.body.endswith(DONE)):
        load.statuses["broken"] += 1
        return
    load.statuses[answer.status] += 1
    usage = COMPLETION_TOKENS.search(answer.body)
    num_tokens = int(usage[1]) if usage else 0
    if is_served and num_tokens > 1:
        first, last = answer.arrivals[0], answer.arrivals[-1]
        load.num_tokens += num_tokens
        load.begun.append(begin)
        load.first.append(first - begin)
        load.per_token.append((last - first) / (num_tokens - 1))
        load.silences.append(max((b - a for a, b in pairwise(answer.arrivals)), default=0.0))


async def open_loop(client: Client, rate: float, seconds: float, seed: int) -> Load:
    """Let requests arrive at random, `rate` a second."""
    load, draws, asking = Load(), random.Random(seed), list[asyncio.Task[None]]()  # noqa: S311 - arrivals, no secrets
    begin = at = time.perf_counter()
    while (at := at + draws.expovariate(rate)) < begin + seconds:
        await asyncio.sleep(at - time.perf_counter())
        asking.append(asyncio.create_task(ask(client, len(asking), load)))
    await asyncio.gather(*asking)
    return load


async def closed_loop(
    client: Client,
    concurrent: int,
    seconds: float = math.inf,
    *,
    load: Load | None = None,
    enough: asyncio.Event | None = None,
    num_new_tokens: int = NUM_NEW_TOKENS,
) -> Load:
    """Keep so many requests going for some seconds or until it is `enough`, and read those to their end.

    What comes of them goes into `load` at once, if one is given.
    """
    load, seeds, end = load or Load(), iter(range(1_000_000)), time.perf_counter() + seconds

    async def go_on() -> None:
        while time.perf_counter() < end and not (enough and enough.is_set()):
            await ask(client, next(seeds), load, num_new_tokens=num_new_tokens)

    await asyncio.gather(*(go_on() for _ in range(concurrent)))
    return load


def report(load: Load, seconds: float, first: float, per_token: float) -> None:
    """Print a Markdown table."""
    print(f"| seconds | {' | '.join(f'p{percentile}' for percentile in PERCENTILES)} |\n|---|{'---|' * len(PERCENTILES)}")
    for name, values in (("to the first token", load.first), ("for each further token", load.per_token)):
        cells = [f"{value:.3f}" for value in np.percentile(values, PERCENTILES)] if values else ["–"] * len(PERCENTILES)
        print(f"| {name} | {' | '.join(cells)} |")
    num_good = sum(a <= first and b <= per_token for a, b in zip(load.first, load.per_token, strict=True))
    print(f"\n{load.num_tokens / seconds:.0f} tokens/s; goodput {num_good / seconds:.2f} answers/s; {dict(load.statuses)}")


def main(
    url: Annotated[str, typer.Option(help="Of the service.")] = "http://127.0.0.1:3000",
    rate: Annotated[float, typer.Option(help="Arrivals a second.")] = 1.0,
    concurrent: Annotated[int, typer.Option(help="Requests that are kept going instead; 0 for arrivals.")] = 0,
    seconds: Annotated[float, typer.Option(help="How long requests come.")] = 60.0,
    first: Annotated[float, typer.Option(help="Seconds within which a good answer's first token comes.")] = 1.0,
    per_token: Annotated[float, typer.Option(help="Seconds within which its others come.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the arrivals.")] = 0,
) -> None:
    """Load a service that runs."""
    print(leave(of_listener(urlsplit(url).port or 80)), end="\n\n")

    async def run() -> tuple[Load, float]:
        async with Client(url) as client:
            await ask(client, 0, Load())
            begin = time.perf_counter()
            load = await (closed_loop(client, concurrent, seconds) if concurrent else open_loop(client, rate, seconds, seed))
            return load, time.perf_counter() - begin

    report(*uvloop.run(run()), first, per_token)


if __name__ == "__main__":
    typer.run(main)
