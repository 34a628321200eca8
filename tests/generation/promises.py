"""What every engine promises to those who ask it."""

import queue

from prosemill.generation.engine_thread import Answer, End, EngineThread, Event, Request
from prosemill.generation.sampling import Settings
from tests.generation.models import Tiny
from tests.waiting import LIMIT


def outcome(answer: Answer) -> tuple[str, str, int]:
    """A request's text, why it ended, and how many tokens it took."""
    text = "".join(answer)
    assert answer.end is not None
    return text, answer.end.reason, answer.end.num_new_tokens


def tokens_of(engine: EngineThread, *asked: tuple[list[int], Settings]) -> list[list[int]]:
    """The new tokens of requests that come together."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    requests = [engine.submit(tokens, settings, events.put) for tokens, settings in asked]
    num_left = len(requests)
    while num_left:
        num_left -= isinstance(events.get(timeout=LIMIT), End)
    return [request.new_tokens for request in requests]


def check_that_only_the_likeliest_is_drawn_where_no_other_may_be(engine: EngineThread, tiny: Tiny, tokens: list[int]) -> None:
    """Draw from the likeliest token alone, as `top_k` and `top_p` can ask for it."""
    for settings in (Settings(temperature=1, top_k=1, max_new_tokens=9), Settings(temperature=1, top_p=1e-6, max_new_tokens=9)):
        assert tokens_of(engine, (tiny.prompt(tokens), settings)) == [tiny.greedy(tokens, 9)]


def check_that_a_penalty_forbids_what_the_text_holds(engine: EngineThread, tiny: Tiny, tokens: list[int]) -> None:
    """Have an answer hold no token twice, nor any that it goes on with."""
    before = {*tiny.written(tokens)}
    settings = Settings(temperature=0, repetition_penalty=1e6, max_new_tokens=40)
    [found] = tokens_of(engine, (tiny.prompt(tokens), settings))
    assert len({*before, *found}) == len(before) + len(found)


def check_that_the_cancelled_leave_their_rows(engine: EngineThread, prompt: list[int], num_rows: int) -> None:
    """Cancel one that is being written, and more than there are rows for; then the engine must be free."""
    under_way: list[Request] = []
    numbers: list[int] = []
    ends: queue.SimpleQueue[End] = queue.SimpleQueue()

    def cancel(event: Event) -> None:
        if isinstance(event, End):
            ends.put(event)
        elif under_way:
            numbers.append(len(under_way[0].new_tokens))
            under_way[0].cancel()

    under_way.append(engine.submit(prompt, Settings(max_new_tokens=200, temperature=1), cancel))
    end = ends.get(timeout=LIMIT)
    # One of the first pieces of text cancels it.
    assert (end.reason, engine.num_running) == ("cancelled", 0)
    assert end.num_new_tokens <= numbers[0] + 1, "the next token is the last"
    answers = [engine.answer(prompt, Settings(max_new_tokens=100)) for _ in range(num_rows + 3)]
    for answer in reversed(answers):  # those without a row first, or they would get one
        answer.cancel()
    found = [outcome(answer)[1:] for answer in answers]
    assert {reason for reason, _ in found} <= {"cancelled", "length"}
    assert found[num_rows:] == [("cancelled", 0)] * 3
    assert outcome(engine.answer(prompt, Settings(max_new_tokens=3)))[1:] == ("length", 3)
