"""The usage reports of the libraries that Prosemill stands on, switched off.

    from prosemill.telemetry import switch_off
    switch_off()  # before the libraries are imported: most of them read their switch once

Every program of ours calls it, most through `prosemill.errors.run_main`. It sets what the user has not set: a library whose reports you
want to send keeps doing so with its own switch, for example `MLFLOW_DISABLE_TELEMETRY=false`. `dvc` is a program of its own: it is
switched off in `.dvc/config`.
"""

import os

SWITCHES = {
    "DO_NOT_TRACK": "1",  # huggingface_hub and others that follow consoledonottrack.com
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_EVALUATE_OFFLINE": "1",  # evaluate would count each load of a metric at its hub
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "BENTOML_DO_NOT_TRACK": "True",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "VLLM_NO_USAGE_STATS": "1",
}


def switch_off() -> None:
    """Set every library's switch in this process's environment, for it and its children, unless the user has set it."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
