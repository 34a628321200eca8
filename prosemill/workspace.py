"""Where everything of a workspace lies.

The only place in the Python code that names a data path; dvc.yaml names them again, and a test compares the two.
"""

from pathlib import Path

PARAMS = Path("params.yaml")
LOCK = Path("dvc.lock")
EXPERIMENTS = Path("experiments")
CORPUS = Path("data/corpus")
TOKENS = Path("data/tokens")
BLOCKS = Path("data/blocks")
BASE_MODEL = Path("models/base")
TRAINED_MODEL = Path("models/trained")
METRICS = Path("metrics")
REPORTS = Path("reports")
COMPARISON = REPORTS / "comparison.md"
SHARD_WORK = Path(".shards")
CHECKPOINTS = Path(".checkpoints")
STATE = Path(".prosemill")
"""What the local servers remember, and who is at work here."""
TRACKING = STATE / "mlflow"

SPLITS = ("train", "validation", "test")
