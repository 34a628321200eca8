"""A repository of which a tiny model was trained and evaluated, without the pipeline: what `register` reads, and nothing more."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from prosemill.dvc_lock import digest_of
from prosemill.evaluation.documents import read_split
from tests.evaluation.corpus import write_corpus
from tests.models import write_model

IDENTITY = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org"]
IGNORED = ("/data/", "/models/", "/.prosemill/", "/.dvc/")
PROTOCOL = {"context": 64, "stride": 64, "detokenize": False, "scoring_arithmetic": "fp32", "direction": "left to right"}
SOUND = {"repetition_rate": 0.05, "loop_rate": 0.0, "time_per_token_ms_p95": 2.0}
"""Numbers that pass the gate."""


class Workspace:
    """The repository; the current folder is not changed.

    Args:
        folder: Where it is made.
        tokenizer: The folder whose tokenizer the models have.
        texts: The documents of the test split.
        context_size: Tokens that the models see.
    """

    def __init__(self, folder: Path, tokenizer: Path, texts: list[str], *, context_size: int = 128) -> None:
        self.folder, self._tokenizer, self._context_size = folder, tokenizer, context_size
        self.params: dict[str, Any] = {
            "download": {"corpus": {"source": "files", "name": "topics"}, "model": {"source": "scratch", "name": "tiny"}},
            "train": {"seed": 0},
            "evaluate": {"context": 64, "precision": "fp32"},
        }
        (folder / "stages").mkdir(parents=True)
        (folder / ".dvc").mkdir()
        (folder / ".dvc/config").touch()
        (folder / "metrics").mkdir()
        (folder / "stages/train.py").write_text("train()\n", encoding="utf-8")
        (folder / ".gitignore").write_text("".join(f"{line}\n" for line in IGNORED), encoding="utf-8")
        self.git("init", "--quiet")
        self.write_corpus(texts)
        self._write_model("models/base", "llama", seed=0)
        (folder / "models/base/SOURCE.json").write_text(json.dumps(self.params["download"]["model"]), encoding="utf-8")

    def git(self, *arguments: str) -> str:
        """Run git in it."""
        finished = subprocess.run(["git", *IDENTITY, *arguments], cwd=self.folder, capture_output=True, text=True, check=True)
        return finished.stdout.strip()

    def write_corpus(self, texts: list[str]) -> None:
        """Make these the documents of the test split."""
        write_corpus(self.folder / "data/corpus", {"test": [texts]})

    def train(
        self,
        fingerprint: str,
        *,
        family: str = "llama",
        seed: int = 1,
        bits_per_byte: float = 2.0,
        costs: Mapping[str, float] | None = None,
        **numbers: float,
    ) -> None:
        """Leave what a run leaves, and commit it: another model, its evaluation, dvc.lock.

        Args:
            fingerprint: The run's.
            family: The model's.
            seed: Of its weights.
            bits_per_byte: What its evaluation says.
            costs: What it says of serving in fewer bits.
            numbers: Others that it says.
        """
        self._write_model("models/trained", family, seed)
        identity = {"fingerprint": fingerprint, "name": "tiny", "best_step": 1}
        (self.folder / "models/trained/run.json").write_text(json.dumps(identity), encoding="utf-8")
        _, data = read_split(self.folder / "data/corpus", "test", None)
        trained = {"bits_per_byte": bits_per_byte, **SOUND, **numbers}
        evaluation = {"protocol": PROTOCOL, "data": data, "base": {"bits_per_byte": 2.5}, "trained": trained, "serving": dict(costs or {})}
        (self.folder / "metrics/evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
        self.lock()
        self.commit()

    def lock(self) -> None:
        """Write dvc.lock and params.yaml as they are after a run on what is here."""
        reads = {"download": [], "train": ["data/corpus", "models/base"], "evaluate": ["data/corpus", "models/trained"]}
        writes = {"download": ["data/corpus", "models/base"], "train": ["models/trained"], "evaluate": ["metrics/evaluation.json"]}
        stages = {
            name: {
                "deps": [{"path": path, "md5": digest_of(self.folder / path)} for path in ["stages/train.py", *reads[name]]],
                "params": {"params.yaml": {name: self.params[name]}},
                "outs": [{"path": path, "md5": digest_of(self.folder / path)} for path in writes[name]],
            }
            for name in reads
        }
        (self.folder / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.params), encoding="utf-8")

    def commit(self) -> None:
        """Commit all changes."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "Run")

    def _write_model(self, path: str, family: str, seed: int) -> None:
        folder = self.folder / path
        folder.mkdir(parents=True, exist_ok=True)
        write_model(folder, family, self._tokenizer, seed=seed, context_size=self._context_size)
