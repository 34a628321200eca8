"""The small models from random weights, each through the whole pipeline: training time, and bits per byte beside the trigram's.

    python -m benchmarks.minis

Each is a DVC experiment in a folder of DVC's own, so the workspace stays as it is; `prosemill compare` shows them afterwards. One that
DVC has run before with the same code and settings comes from its cache, with the times it took then.
"""

import os
import subprocess

from prosemill.comparison import read_experiments

MODELS = ("gpt2-mini", "gpt-neo-mini", "llama-mini", "t5-mini")
TRAINING_LIMIT = 360  # seconds, on two cores


def main() -> None:
    """Run the experiments and print a Markdown table that holds them against their targets."""
    for model in MODELS:
        command = ["dvc", "exp", "run", "--temp", "--name", f"{model}-{os.getpid()}", "--set-param", f"model={model}"]
        subprocess.run(command, check=True)
    found = {experiment.model: experiment for experiment in read_experiments()}
    print(f"\n| model | training, s (target: under {TRAINING_LIMIT}) | bits per byte | the trigram's | below it |\n|---|---|---|---|---|")
    for model in MODELS:
        seconds, trained, trigram = found[model].train_seconds, found[model].bits_per_byte[1], found[model].trigram_bits_per_byte
        assert trigram is not None
        print(f"| {model} | {seconds:.0f} | {trained:.4f} | {trigram:.4f} | {1 - trained / trigram:.1%} |")


if __name__ == "__main__":
    main()
