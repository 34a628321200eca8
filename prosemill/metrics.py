"""The JSON files below metrics/: small, kept in git, the same bytes for the same values.

write_metrics(METRICS / "group.json", {"num_blocks": 4071})
"""

import json
from collections.abc import Mapping
from pathlib import Path

from prosemill.shards import write_durably


def write_metrics(path: Path, values: Mapping[str, object]) -> None:
    """Write metrics with sorted keys, whole or not at all. NaN and infinity, which JSON lacks, raise `ValueError`."""
    write_durably(path, json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")
