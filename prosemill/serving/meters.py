"""What Prometheus is told of the service, at `/metrics`. No text is among it.

meters = Meters()
meters.note_end(end, "length")
"""

from collections.abc import Callable
from typing import Any, Literal

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from prosemill.generation.engine_thread import End

Outcome = Literal["stop", "length", "deadline", "cancelled", "failed"]
ScoreOutcome = Literal["scored", "deadline", "cancelled", "failed"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper ends of the histograms' buckets."""


class Meters:
    """Counts and times of requests."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Register the meters."""
        self._registry = registry
        options: dict[str, Any] = {"namespace": "prosemill", "registry": registry}
        self._first_token = Histogram("time_to_first_token_seconds", "From a request to its first token", buckets=SECONDS, **options)
        self._per_token = Histogram("time_per_token_seconds", "Between tokens of a request, on average", buckets=SECONDS, **options)
        self._queue = Histogram("queue_seconds", "From a request to the first look at its prompt", buckets=SECONDS, **options)
        self._prompt_tokens = Counter("prompt_tokens", "Tokens of prompts", **options)
        self._new_tokens = Counter("new_tokens", "Tokens of answers", **options)
        self._answers = Counter("answers", "Answers by how they ended", ["outcome"], **options)
        self._scores = Counter("scores", "Texts to be scored by what came of them", ["outcome"], **options)
        self._scored_tokens = Counter("scored_tokens", "Tokens of texts that were scored", **options)
        self._score = Histogram("score_seconds", "From a text that is to be scored to its score", buckets=SECONDS, **options)
        self._rejections = Counter("rejections", "Requests that were told to come back", **options)
        self._rows = Gauge("rows_in_use", "Texts that get a token at every step", **options)
        self._version = Gauge("model_version", "Version of the registered model", **options)

    def told(self) -> bytes:
        """All numbers, in the text format that Prometheus reads."""
        return generate_latest(self._registry)

    def note_version(self, version: int) -> None:
        """Say which version is served."""
        self._version.set(version)

    def note_rejection(self) -> None:
        """There was no room for a request."""
        self._rejections.inc()

    def watch_rows(self, num_running: Callable[[], int]) -> None:
        """Have it asked, whenever the numbers are read, how many texts are being written."""
        self._rows.set_function(num_running)

    def note_end(self, end: End, outcome: Outcome) -> None:
        """An answer has ended."""
        self._answers.labels(outcome).inc()
        self._prompt_tokens.inc(end.num_prompt_tokens)
        self._new_tokens.inc(end.num_new_tokens)
        self._queue.observe(end.queue_seconds)
        if end.first_token_seconds is not None:
            self._first_token.observe(end.first_token_seconds)
            if end.num_new_tokens > 1:
                self._per_token.observe((end.seconds - end.first_token_seconds) / (end.num_new_tokens - 1))

    def note_score(self, num_tokens: int, seconds: float, outcome: ScoreOutcome) -> None:
        """A text was scored, or was not."""
        self._scores.labels(outcome).inc()
        if outcome == "scored":
            self._scored_tokens.inc(num_tokens)
            self._score.observe(seconds)
