"""What the page may ask Gradio to do.

    asked = read("/gradio_api/queue/join", body, {1: 8})    # function 1 takes 8 values

Gradio takes more than the page sends: a value that looks like a file of its own is read, copied or fetched, whatever part it is for. So
it gets texts, numbers and truths for functions that the page has, and of each body what stands here and nothing else.
"""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

Session = Annotated[str, Field(pattern="^[0-9a-z]{1,32}$")]
"""What a browser calls its visit."""
Event = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Function = Annotated[int, Field(ge=0, le=1000)]


class Asked(BaseModel):
    """Types are as they are named."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class OfSession(Asked):
    """By a browser that opened the page; by itself: tell what becomes of its calls."""

    session_hash: Session


class Join(OfSession):
    """Have a function called with the values of its parts."""

    data: list[str | float | bool | None]
    fn_index: Function

    @model_validator(mode="after")
    def _is_a_call(self, info: ValidationInfo) -> Self:
        num_values = info.context.get(self.fn_index) if info.context else None
        if num_values is None:
            raise ValueError("fn_index names no function of the page")
        if len(self.data) != num_values:
            raise ValueError(f"the function takes {num_values} values, not {len(self.data)}")
        return self


class Cancel(OfSession):
    """End a call."""

    fn_index: Function
    event_id: Event


class Reset(Asked):
    """Forget what a call that was ended had begun."""

    event_id: Event


POSTS: dict[str, type[Asked]] = {"/gradio_api/queue/join": Join, "/gradio_api/cancel": Cancel, "/gradio_api/reset": Reset}


def read(route: str, body: bytes, functions: Mapping[int, int]) -> Asked:
    """What a body asks for.

    Args:
        route: One of `POSTS`.
        body: JSON.
        functions: How many values each of the page's functions takes.

    Raises:
        ValidationError: it asks for something else.
    """
    return POSTS[route].model_validate_json(body, context=functions)
