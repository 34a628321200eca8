"""How often a test repeats what it does: a few times in `make test`, many in `make soak`.

for number in range(repeats(few=2, many=30)):
    kill(random.Random(seed() + number))
"""

import os

from benchmarks.soak import SEED, SOAK


def repeats(few: int, many: int) -> int:
    """The larger number in a soak campaign, the smaller one elsewhere."""
    return many if os.environ.get(SOAK) else few


def seed() -> int:
    """The seed of whatever a campaign draws; a failure names it, and PROSEMILL_SOAK_SEED brings it back."""
    return int(os.environ.get(SEED, "0"))
