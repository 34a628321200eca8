"""What the routes take and give."""

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from prosemill.generation.engine_thread import End
from prosemill.generation.sampling import Settings
from prosemill.serving.errors import TooMuchError
from prosemill.serving.stream import Finish, Finished

MODEL = "prosemill"
"""What clients call the model that is served, whichever version that is."""
DEFAULT = Settings()
DEFAULT_LENGTH = 100
MOST_ANSWERS = 16
MOST_STOPS = 16
MOST_SEED = 2**53  # up to which every reader of JSON holds whole numbers as they are
LONGEST_STOP = 64


def _without_nulls(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a null character: remove it")
    return text


def _whole(number: Any) -> Any:
    """JSON has one kind of number: 3.0 is a whole one."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


WHOLE = BeforeValidator(_whole)
Prompt = Annotated[str, Field(min_length=1, json_schema_extra={"pattern": r"^[^\x00]*$"}), AfterValidator(_without_nulls)]
Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Tokens = Annotated[int, Field(ge=1, le=100_000), WHOLE]
Temperature = Annotated[float, Field(ge=0, le=100)]
TopK = Annotated[int, Field(ge=0, le=1_000_000), WHOLE]
TopP = Annotated[float, Field(gt=0, le=1)]
Penalty = Annotated[float, Field(gt=0, le=100)]
Seed = Annotated[int, Field(ge=0, lt=MOST_SEED), WHOLE]
Answers = Annotated[int, Field(ge=1, le=MOST_ANSWERS, description="Answers, whose seeds follow each other."), WHOLE]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Taken(BaseModel):
    """Fields are as they are named and typed, and there are no others."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class GenerateRequest(Taken):
    """What `POST /generate` and its stream take."""

    prompt: Annotated[Prompt, Field(description="The beginning of a document.")]
    max_length: Annotated[Tokens | None, Field(description=f"Tokens of prompt and answer; {DEFAULT_LENGTH} if neither is given.")] = None
    max_new_tokens: Annotated[Tokens | None, Field(description="Tokens of the answer.")] = None
    temperature: Annotated[Temperature, Field(description="0 always takes the likeliest token.")] = DEFAULT.temperature
    top_k: Annotated[TopK, Field(description="Likeliest tokens that are drawn from; 0 for all.")] = DEFAULT.top_k
    top_p: Annotated[TopP, Field(description="Share of the probability that is drawn from.")] = DEFAULT.top_p
    repetition_penalty: Annotated[Penalty, Field(description="Above 1, what stands there already is less likely to come again.")] = 1.0
    stop: Annotated[list[Stop], Field(max_length=MOST_STOPS, description="Texts that end the answer, and are not part of it.")] = []
    seed: Annotated[Seed, Field(description="The same seed gives the same text.")] = DEFAULT.seed
    n: Answers = 1
    timeout: Annotated[Seconds | None, Field(description="Seconds after which the answer ends with what it has.")] = None

    @model_validator(mode="after")
    def _has_one_length(self) -> Self:
        if self.max_length is not None and self.max_new_tokens is not None:
            raise ValueError("give max_length or max_new_tokens, not both")
        return self

    def settings(self, num_prompt_tokens: int) -> list[Settings]:
        """For the engine, of each of the answers. Raises `TooMuchError` if the prompt leaves nothing of `max_length`."""
        length = self.max_length or DEFAULT_LENGTH
        num_new = self.max_new_tokens or length - num_prompt_tokens
        if num_new < 1:
            raise TooMuchError(f"the prompt has {num_prompt_tokens} tokens, and max_length is {length}: raise it, or give max_new_tokens")
        return _settings(self, max_new_tokens=num_new, stop=self.stop, seed=self.seed)


class CompletionRequest(Taken):
    """What `POST /v1/completions` takes of what OpenAI's does, and `top_k` and `repetition_penalty` besides."""

    model: Annotated[str, Field(json_schema_extra={"const": MODEL})]
    prompt: Prompt
    max_tokens: Tokens = 16
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    top_k: TopK = 0
    repetition_penalty: Penalty = 1.0
    n: Answers = 1
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    seed: Annotated[Seed | None, Field(description="A random one if none is given.")] = None
    stream: bool = False
    stream_options: dict[Literal["include_usage"], bool] | None = None
    user: str | None = None

    def settings(self, _: int) -> list[Settings]:
        """For the engine, of each of the answers."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        seed = secrets.randbelow(MOST_SEED) if self.seed is None else self.seed
        return _settings(self, max_new_tokens=self.max_tokens, stop=stop, seed=seed)


def _settings(wanted: GenerateRequest | CompletionRequest, *, max_new_tokens: int, stop: Sequence[str], seed: int) -> list[Settings]:
    return [
        Settings(
            max_new_tokens=max_new_tokens,
            temperature=wanted.temperature,
            top_k=wanted.top_k,
            top_p=wanted.top_p,
            repetition_penalty=wanted.repetition_penalty,
            stop=tuple(stop),
            seed=seed + number,
        )
        for number in range(wanted.n)
    ]


class ScoreRequest(Taken):
    """What `POST /score` takes."""

    text: Annotated[Prompt, Field(description="A whole document.")]


class ScoreAnswer(BaseModel):
    """What `POST /score` gives. An encoder reads the text's first half, and the second half is scored."""

    id: str
    model_version: int
    log_likelihood: Annotated[float, Field(description="Sum of ln p of the tokens, in nats.")]
    bits_per_byte: float
    num_tokens: Annotated[int, Field(description="Tokens that are scored.")]
    num_bytes: Annotated[int, Field(description="UTF-8 bytes of these.")]


class Usage(BaseModel):
    """Tokens that a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, ends: Sequence[End]) -> "Usage":
        """Of one prompt's answers."""
        num_prompt, num_new = ends[0].num_prompt_tokens, sum(end.num_new_tokens for end in ends)
        return cls(prompt_tokens=num_prompt, completion_tokens=num_new, total_tokens=num_prompt + num_new)


class Timings(BaseModel):
    """Seconds from the request's arrival at the engine."""

    queue_seconds: float
    first_token_seconds: float | None
    seconds: float


class Ended(BaseModel):
    """How an answer has ended."""

    finish_reason: Finish
    timings: Timings

    @classmethod
    def of(cls, finished: Finished) -> dict[str, Any]:
        """The fields."""
        end = finished.end
        timings = Timings(queue_seconds=end.queue_seconds, first_token_seconds=end.first_token_seconds, seconds=end.seconds)
        return {"finish_reason": finished.reason, "timings": timings}


class Text(Ended):
    """An answer."""

    generated_text: Annotated[str, Field(description="What follows the prompt, without it.")]


class Origin(BaseModel):
    """Where answers are from, and what they took."""

    id: Annotated[str, Field(description="`prosemill lineage ID` leads from it to the version, its commit and its data.")]
    model_version: int
    usage: Usage


class GenerateAnswer(Text, Origin):
    """What `POST /generate` gives: the answer, and where `n` is above 1 all others."""

    alternatives: Annotated[list[Text], Field(description="Answers 2 to n, in the order of their seeds.")]


class StreamEnd(Ended, Origin):
    """The data of a stream's event `end`; one comes for each answer, with its own usage."""

    index: Annotated[int, Field(description="Which answer it is the end of, from 0.")]


class Choice(BaseModel):
    """An answer, as OpenAI's clients know it."""

    text: str
    index: int
    logprobs: None = None
    finish_reason: Literal["stop", "length"] | None


class CompletionAnswer(BaseModel):
    """What `POST /v1/completions` gives; streamed, each event is one with a piece of one text."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None


class Model(BaseModel):
    """A model that can be asked for, as OpenAI's clients know it, and in further fields what leads back to where its version is from."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "prosemill"
    version: Annotated[int, Field(description="Of the registered model.")]


class ModelList(BaseModel):
    """What `GET /v1/models` gives."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """What health's routes give."""

    status: Literal["ok"] = "ok"
