"""Which engines there are. Quick to import: what is wrong is said before seconds are spent on loading."""

from importlib.util import find_spec
from typing import Literal

from prosemill.errors import ProsemillError
from prosemill.families import Family
from prosemill.generation.precision import Precision

EngineName = Literal["own", "vllm"]
"""Who writes: our own engine, or vLLM."""
INSTALL = "run `uv pip install -e '.[vllm]'`, or unset PROSEMILL_ENGINE"
OF_VLLM: dict[Precision, str] = {"bf16": "bfloat16", "fp32": "float32"}
"""Its names of the precisions that it holds weights in here."""


def check_engine(name: EngineName, precision: Precision | Literal["auto"]) -> None:
    """Raise `ProsemillError` if an engine is not installed, or does not hold weights in a precision."""
    if name == "own":
        return
    if precision != "auto" and precision not in OF_VLLM:
        raise ProsemillError(
            f"vLLM does not hold weights in {precision} here: set PROSEMILL_PRECISION to {' or '.join(OF_VLLM)}, or unset PROSEMILL_ENGINE"
        )
    if find_spec("vllm") is None:
        raise ProsemillError(f"PROSEMILL_ENGINE is vllm, which is not installed: {INSTALL}")


def check_family(name: EngineName, family: Family, *, whose: str) -> None:
    """Raise `ProsemillError` if an engine takes no models of a family; `whose` says which it would be."""
    if name == "vllm" and not family.is_served_by_vllm:
        raise ProsemillError(f"{whose} is of the family {family.name!r}, which vLLM does not serve here: unset PROSEMILL_ENGINE")
