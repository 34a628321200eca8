"""Where a run leaves its traces: one MLflow run per fingerprint, and Weights & Biases beside it if asked.

    fingerprint = run_fingerprint(params, data_digest, base_digest)
    with open_run(fingerprint, name="llama", wandb=False) as run:
        run.log_params({"train.learning_rate": 1e-3})
        run.log_metrics({"loss": 2.9}, step=20)

Training and evaluation of the same fingerprint write to the same run, however often and from whichever process.
"""

from prosemill.tracking.evaluation import track_evaluation
from prosemill.tracking.fingerprint import run_fingerprint
from prosemill.tracking.run import Run, open_run
from prosemill.tracking.server import tracking_uri

__all__ = ["Run", "open_run", "run_fingerprint", "track_evaluation", "tracking_uri"]
