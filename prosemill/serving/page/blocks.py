"""The page's parts, drawn by Gradio: where they stand, and what their events do."""

import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import gradio as gr
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.types import ASGIApp

from prosemill.registry.answers import name_answer
from prosemill.serving.admission import BusyError
from prosemill.serving.desk import Desk
from prosemill.serving.errors import BROKEN, EngineError, TooMuchError, UnavailableError, fault_line
from prosemill.serving.log import log_failure
from prosemill.serving.messages import DEFAULT, DEFAULT_LENGTH, GenerateRequest
from prosemill.serving.page.answering import write
from prosemill.serving.page.fragments import cards, empty_cards, head, note, report
from prosemill.serving.page.look import CSS, ICON, theme
from prosemill.serving.page.sessions import is_behind

TITLE = "Prosemill"
WRITING = note("Writing …")
MOST_NEW_TOKENS = 1024
"""That a slider offers, where the model sees more."""
LARGEST_SEED = 2**31
"""Of those that the page draws: short enough to be typed again."""
UNUSED = 1
"""Bytes of a file that could be uploaded, if the page had a route for it."""
MOST_BESIDES = 1000
"""Events in Gradio's hands, and as many that wait, besides those that the desk lets in: it alone says who waits and who is refused."""
SECONDS_BETWEEN_LOOKS = 0.02
"""Of Gradio's queue at whether there is something to do; by itself it looks a thousand times a second, and the engine writes slower."""


def serve_blocks(blocks: gr.Blocks, path: str) -> ASGIApp:
    """The page as an application whose routes stand below a path."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    gr.mount_gradio_app(
        app,
        blocks,
        path=path,
        theme=theme(),
        css=CSS,
        head=ICON,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=UNUSED,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
    )
    return app


def make_blocks(desk: Callable[[], Desk]) -> gr.Blocks:
    """Make the page for the champion that the desk has, and those that follow it."""
    blocks = gr.Blocks(title=TITLE, analytics_enabled=False)
    with blocks:
        _Page(desk, blocks)
    blocks.max_threads = most = desk().admission.max_requests + MOST_BESIDES
    blocks.queue(default_concurrency_limit=None, max_size=most, api_open=False)
    blocks._queue.sleep_when_free = SECONDS_BETWEEN_LOOKS
    blocks._queue.ANALYTICS_MAX_EVENTS = 1  # of 10,000 it would make a table after each event
    return blocks


def _html(value: str, **options: Any) -> gr.HTML:
    """A piece of HTML that is looked at alone."""
    return gr.HTML(value, js_on_load=None, apply_default_css=False, **options)


class _Page:
    """The parts by their names, and their events."""

    def __init__(self, desk: Callable[[], Desk], blocks: gr.Blocks) -> None:
        self._desk, self._blocks = desk, blocks
        self.head = _html("")
        with gr.Row(elem_classes="work"):
            with gr.Column(scale=5, min_width=320):
                self._make_desk()
            with gr.Column(scale=2, min_width=260, elem_classes="settings"):
                self._make_settings()
        with gr.Accordion("Evaluation", open=True, elem_classes="evaluation"):
            self.report = _html("")
        self._bind()

    def _make_desk(self) -> None:
        self.prompt = gr.Textbox(
            label="Prompt",
            placeholder="The beginning of a text, which the model continues",
            lines=3,
            max_lines=12,
            autofocus=True,
            elem_id="prompt",
        )
        with gr.Row(elem_classes="buttons"):
            self.generate = gr.Button("Generate", variant="primary", size="md", elem_id="generate", min_width=100)
            self.stop = gr.Button("Stop", variant="stop", size="md", interactive=False, elem_id="stop", min_width=100)
        self.note = _html(note(""), elem_id="note")
        self.answers = _html(empty_cards(with_base=False), elem_id="answers")

    def _make_settings(self) -> None:
        self.with_base = gr.Checkbox(label="Base model beside it", visible=False, elem_id="with-base", container=False)
        self.max_new_tokens = gr.Slider(1, MOST_NEW_TOKENS, DEFAULT_LENGTH, step=1, label="New tokens", elem_id="new-tokens")
        self.temperature = gr.Slider(
            0, 2, DEFAULT.temperature, step=0.05, label="Temperature", info="0 takes the likeliest token", elem_id="temperature"
        )
        self.top_p = gr.Slider(0.05, 1, DEFAULT.top_p, step=0.05, label="Top-p", info="Share of the probability drawn from")
        with gr.Accordion("More", open=False):
            self.top_k = gr.Slider(0, 200, DEFAULT.top_k, step=1, label="Top-k", info="Likeliest tokens drawn from; 0 for all")
            self.repetition_penalty = gr.Slider(1, 2, DEFAULT.repetition_penalty, step=0.05, label="Repetition penalty")
            self.seed = gr.Textbox(
                label="Seed", elem_id="seed", max_lines=1, placeholder="drawn", info="The same gives the same text; empty draws one"
            )

    def _bind(self) -> None:
        names = ("prompt", "max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed")
        self.fields = {name: getattr(self, name) for name in names}
        buttons = [self.generate, self.stop]
        # Values come as they are sent: what Gradio says of one that does not fit goes to the log and quotes it.
        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "preprocess": False}
        begun = gr.on([self.generate.click, self.prompt.submit], self._begin, None, [self.head, self.report, *buttons], **hidden)
        # Values of few parts: Gradio makes a part anew for an update of it and where it is left out, which takes milliseconds each time.
        writing = begun.then(self._write, [self.with_base, *self.fields.values()], [self.note, self.answers], **hidden)
        writing.then(self._end, [self.note], [self.note, *buttons], **hidden)
        self.stop.click(None, None, None, cancels=[writing], **hidden)
        opened = [self.head, self.report, self.answers, self.with_base, self.max_new_tokens]
        self._blocks.load(self._open, None, opened, **hidden)

    def _open(self) -> tuple[Any, ...]:
        """What depends on the champion, which may be another one whenever somebody opens the page."""
        champion = self._desk().champion
        has_base, longest = champion.base is not None, min(champion.writer.context or MOST_NEW_TOKENS, MOST_NEW_TOKENS)
        length: dict[str, Any] = {"maximum": longest} if longest > DEFAULT_LENGTH else {"maximum": longest, "value": longest}
        return (
            head(champion),
            report(champion),
            empty_cards(with_base=has_base),
            gr.update(value=has_base, visible=has_base),
            gr.update(**length),
        )

    def _begin(self) -> tuple[Any, ...]:
        champion = self._desk().champion
        return head(champion), report(champion), gr.update(interactive=False), gr.update(interactive=True)

    def _end(self, shown: str) -> tuple[Any, ...]:
        """Nothing is being written any more; if the line below the buttons still says otherwise, it was stopped."""
        return note("Stopped") if shown == WRITING else gr.skip(), gr.update(interactive=True), gr.update(interactive=False)

    async def _write(self, request: gr.Request, with_base: bool, *given: Any) -> AsyncGenerator[tuple[Any, Any], None]:
        """Write an answer, or say in one line why there is none."""
        fields = dict(zip(self.fields, given, strict=True))
        if not fields["prompt"]:
            yield _fault("Type the beginning of a text first")
            return
        fields["seed"] = str(fields["seed"] or "").strip() or secrets.randbelow(LARGEST_SEED)
        try:
            wanted = GenerateRequest.model_validate(fields, strict=False)  # the seed is text
            async with aclosing(write(self._desk(), wanted, with_base=with_base)) as writing:
                async for answers in writing:
                    if is_behind(self._blocks, request.session_hash or ""):
                        yield _fault("Ended, as it was not being read")
                        return
                    shown = cards(wanted.prompt, answers)
                    yield WRITING, shown
            yield note(f"Seed {wanted.seed} · {name_answer(answers[0].champion.version)}"), shown
        except ValidationError as error:
            fault = error.errors()[0]
            yield _fault(fault_line(str(fault["loc"][0]), fault["msg"]))
        except (BusyError, TooMuchError, EngineError, UnavailableError) as error:
            yield _fault(str(error))
        except Exception as error:  # noqa: BLE001 - Gradio would print it, with what it quotes
            log_failure(error)
            yield _fault(BROKEN)


def _fault(line: str) -> tuple[Any, Any]:
    return note(line, is_fault=True), gr.skip()
