"""A model folder may hold any code, and name it as its own: to write with the model, none of that is run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from prosemill.errors import ProsemillError
from prosemill.generation.writer import Writer


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("config.json", {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}),
        ("config.json", {"AutoTokenizer": [None, "own.Own"]}),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "own.Own"]}),
    ],
    ids=str,
)
@pytest.mark.parametrize("known", [True, False], ids=["known class", "class of its own"])
def test_code_of_a_folder_is_refused_and_not_run(tiny_model: Path, tmp_path: Path, name: str, named: dict[str, Any], known: bool) -> None:
    folder, canary = tmp_path / "model", tmp_path / "canary"
    shutil.copytree(tiny_model, folder)
    (folder / "own.py").write_text(f"open({str(canary)!r}, 'w').close()\n\nclass Own: ...\n", encoding="utf-8")
    tokenizer = {} if known else {"tokenizer_class": "Own"}
    for file, change in (("tokenizer_config.json", tokenizer), (name, {"auto_map": named})):
        content = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps(content | change), encoding="utf-8")
    with pytest.raises(ProsemillError, match="code of its own"), Writer.open(folder, precision="fp32", num_rows=1):
        pass
    assert not canary.exists()
