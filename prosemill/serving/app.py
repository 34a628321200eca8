"""The routes of the service.

app = make_app()
app.state.champion = load_champion()
"""

from typing import Annotated

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from prosemill.packaged import DEFAULTS
from prosemill.serving.champion import Champion
from prosemill.serving.errors import refusal


class GenerateRequest(BaseModel):
    """What `POST /generate` takes."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: Annotated[str, Field(min_length=1, description="The beginning of a document.")]
    max_new_tokens: Annotated[int, Field(ge=1, le=100_000, description="Tokens to add at most.")] = int(DEFAULTS["max_new_tokens"])
    temperature: Annotated[float, Field(ge=0, le=100, description="0 always takes the likeliest token.")] = DEFAULTS["temperature"]
    top_p: Annotated[float, Field(gt=0, le=1, description="Share of the probability that is drawn from.")] = DEFAULTS["top_p"]
    seed: Annotated[int, Field(ge=0, lt=2**63, description="The same seed gives the same text.")] = int(DEFAULTS["seed"])


class GenerateAnswer(BaseModel):
    """What `POST /generate` gives."""

    generated_text: Annotated[str, Field(description="What follows the prompt, without it.")]
    model_version: Annotated[int, Field(description="Version of the registered model.")]


def make_app() -> FastAPI:
    """The application, whose `state.champion` must be set before a request comes."""
    app = FastAPI(title="Prosemill", openapi_url="/openapi.json", docs_url=None, redoc_url=None)  # its pages load foreign scripts
    app.add_exception_handler(RequestValidationError, _say_what_is_wrong)
    app.add_exception_handler(HTTPException, _say_no)
    app.post("/generate")(generate)
    return app


async def generate(request: Request, wanted: GenerateRequest) -> GenerateAnswer:
    """Continue a prompt."""
    champion: Champion = request.app.state.champion
    settings = wanted.model_dump(exclude={"prompt"})
    try:
        text = await run_in_threadpool(champion.generate, wanted.prompt, **settings)
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    return GenerateAnswer(generated_text=text, model_version=champion.version)


async def _say_what_is_wrong(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:])
    return refusal(400, f"{param or 'body'}: {first['msg']}", param or None)


async def _say_no(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, str(error.detail))
