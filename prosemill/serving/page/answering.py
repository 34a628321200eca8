"""What happens between *Generate* and *Stop*.

async for answers in write(desk, wanted, with_base=True):
    answers[0].text, answers[0].finished
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from dataclasses import dataclass

from prosemill.serving.champion import Champion
from prosemill.serving.desk import Desk
from prosemill.serving.errors import EngineError
from prosemill.serving.messages import GenerateRequest
from prosemill.serving.stream import Finished, Stream

PULSE = 0.1
"""Seconds between two looks at what has been written. After each Gradio sees whether anybody is still there."""


@dataclass(eq=False)
class Growing:
    """An answer as it is at the moment."""

    champion: Champion
    stream: Stream
    text: str = ""
    finished: Finished | None = None

    async def read(self) -> None:
        """Have it grow until it ends. Raises `EngineError` if it fails."""
        async for _, piece in self.stream:
            if isinstance(piece, EngineError):
                raise piece
            if isinstance(piece, Finished):
                self.finished = piece
            else:
                self.text += piece


async def write(desk: Desk, wanted: GenerateRequest, *, with_base: bool) -> AsyncGenerator[list[Growing], None]:
    """Have a prompt continued, with the base model's answer beside it if the champion holds that and it is wanted.

    Yields:
        The champion's answer and the base model's, every `PULSE` seconds. They end with whoever reads them.

    Raises:
        BusyError: there is no room.
        TooMuchError: the prompt is too long, or its answer would be.
        EngineError: an engine could not write.
        UnavailableError: nobody is served now.
    """
    with ExitStack() as stack:
        champion = stack.enter_context(desk.visit(wanted.prompt))
        answers = []
        for writer in champion.writers if with_base else champion.writers[:1]:
            stream = await desk.enter(stack, writer, wanted.prompt, wanted, deadline=None)
            answers.append(Growing(champion, stream))
        yield answers
        reading = {asyncio.create_task(answer.read()) for answer in answers}
        for task in reading:
            stack.callback(task.cancel)
        while reading:
            ended, reading = await asyncio.wait(reading, timeout=PULSE)
            for task in ended:
                task.result()
            yield answers
