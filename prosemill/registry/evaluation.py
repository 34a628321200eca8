"""What the gate and the service ask of metrics/evaluation.json.

evaluation = Evaluation.parse(json.loads(path.read_text()))
precision = choose_precision(costs_in(content))
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COST = "cost_"

CONDITIONS = ("context", "stride", "detokenize", "scoring_arithmetic")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the gate asks of metrics/evaluation.json."""

    bits_per_byte: float
    base_bits_per_byte: float
    repetition_rate: float
    loop_rate: float
    time_per_token_ms_p95: float
    costs: Mapping[str, float]
    """As `costs_in` tells."""
    direction: str
    """What the model predicts from what."""
    data: Mapping[str, Any]
    """`split`, `digest`, `num_documents`."""
    conditions: Mapping[str, Any]
    """What must be the same for two numbers of bits per byte to compare."""

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> "Evaluation":
        """Read the file's content. Raises `KeyError`, `TypeError` or `ValueError` if it is not one."""
        trained, protocol, data = content["trained"], content["protocol"], content["data"]
        return cls(
            bits_per_byte=float(trained["bits_per_byte"]),
            base_bits_per_byte=float(content["base"]["bits_per_byte"]),
            repetition_rate=float(trained["repetition_rate"]),
            loop_rate=float(trained["loop_rate"]),
            time_per_token_ms_p95=float(trained["time_per_token_ms_p95"]),
            costs=costs_in(content),
            direction=str(protocol["direction"]),
            data={name: data[name] for name in ("split", "digest", "num_documents")},
            conditions={**data, **{name: protocol[name] for name in CONDITIONS}},
        )


def costs_in(content: Mapping[str, Any]) -> dict[str, float]:
    """What metrics/evaluation.json says that serving in a precision adds to bits per byte, as a share; empty if that was not measured."""
    return {name.removeprefix(COST): float(cost) for name, cost in content.get("serving", {}).items() if name.startswith(COST)}
