"""What `bentoml serve` finds in a Bento, as `service.py`: the service of the version beside it, with the code beside it."""

import sys
from pathlib import Path

# `bentoml serve prosemill:TAG` looks for a module `prosemill` first, so that one which is installed may have been imported by now.
for name in [name for name in sys.modules if name.partition(".")[0] == "prosemill"]:
    del sys.modules[name]

from prosemill.bento.packed import FOLDER, Packed  # noqa: E402
from prosemill.serving import make_service  # noqa: E402

Service = make_service(Packed(Path(__file__).parent / FOLDER))
