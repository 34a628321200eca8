"""In what a model's weights are held while it writes."""

from typing import Literal

Precision = Literal["fp32", "bf16", "int8", "int4"]
