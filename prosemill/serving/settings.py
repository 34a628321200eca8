"""How the service is set up: by environment variables, which a container takes as well as a shell.

PROSEMILL_PRECISION=int8 PROSEMILL_DEADLINE=30 bentoml serve
"""

from typing import Annotated, Literal

from pydantic import DirectoryPath, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from prosemill.errors import ProsemillError
from prosemill.generation.engines import EngineName
from prosemill.generation.precision import Precision

PREFIX = "PROSEMILL_"

Count = Annotated[int, Field(ge=1)]


class ServiceSettings(BaseSettings):
    """Each field is read from the variable of its name in capitals behind `PROSEMILL_`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX)

    engine: EngineName = "own"
    """Who writes: own, or vllm for LLaMA and GPT-2 on CUDA, which needs the extra `vllm`."""
    precision: Precision | Literal["auto"] = "auto"
    """In which weights are held.

    auto takes the fastest that costs at most 0.5 % of bits per byte by the version's own evaluation, and on a GPU bf16.
    """
    num_rows: Annotated[int, Field(ge=1, le=256)] = 32
    """Texts that are written at once."""
    max_requests: Count = 128
    """Requests that are written or wait; a further one is answered with 429."""
    max_tokens: Count = 65_536
    """Prompt and new tokens of all these together; beyond it too a request is answered with 429."""
    follow_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5.0
    """How often the registry is asked for another champion."""
    base: DirectoryPath | None = None
    """A folder of the base model, if the page shall show its answers too: it is held in memory beside every version."""
    deadline: Annotated[float, Field(gt=0, le=86_400)] = 120.0
    """Seconds after which a request ends with what it has."""
    drain: Annotated[float, Field(ge=0, le=3600)] = 25.0
    """Seconds that requests have after SIGTERM, before they end with what they have; Kubernetes kills after 30."""
    log_prompts: bool = False
    """Whether the log holds what people have written; else no text of theirs is in it."""

    @classmethod
    def read(cls) -> "ServiceSettings":
        """Read the environment. Raises `ProsemillError` if a variable makes no sense."""
        try:
            return cls()
        except ValidationError as error:
            first = error.errors()[0]
            name = PREFIX + "_".join(str(part) for part in first["loc"][:1]).upper()
            raise ProsemillError(f"{name}={first['input']}: {first['msg']}") from None
