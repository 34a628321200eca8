"""What a package says in a process of its own: `python -P probe.py MODEL_URI QUESTIONS ANSWERS`.

It knows nothing of this repository, so that what it gets is the package's own code and weights. QUESTIONS is a JSON file with `texts`,
`prompts` and `params`; ANSWERS becomes a NumPy file: `logits-0`, `logits-1`, … of the texts, `generated` of the prompts,
and `foreign`, the modules of `prosemill` that the package did not bring itself.
"""

import gc
import json
import sys
from pathlib import Path


def main(uri: str, questions: str, answers: str) -> None:
    """Ask the package and write what it says."""
    gc.disable()  # looking for garbage takes a fifth of the imports' time, and this process soon ends
    import mlflow
    import numpy as np
    import pandas as pd

    asked = json.loads(Path(questions).read_text(encoding="utf-8"))
    model = mlflow.pyfunc.load_model(uri)
    logits = model.unwrap_python_model().logits(asked["texts"])
    generated = model.predict(pd.DataFrame({"prompt": asked["prompts"]}), params=asked["params"])["generated_text"]
    arrays = {f"logits-{number}": row for number, row in enumerate(logits)}
    np.savez(answers, generated=np.array(list(generated), dtype=str), foreign=np.array(foreign_modules(), dtype=str), **arrays)


def foreign_modules() -> list[str]:
    """Modules of prosemill that do not lie below the folder of an MLmodel."""
    modules = {name: Path(str(module.__file__)) for name, module in sys.modules.items() if name.partition(".")[0] == "prosemill"}
    return sorted(name for name, path in modules.items() if not any((folder / "MLmodel").is_file() for folder in path.parents))


if __name__ == "__main__":
    main(*sys.argv[1:])
