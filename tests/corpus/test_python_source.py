"""The standard library of the Python that runs is a corpus, without what others installed."""

import json
from collections import Counter
from pathlib import Path

from prosemill.corpus import build_corpus
from prosemill.corpus.python_source import PythonSource
from prosemill.params import PythonSourceCorpus
from prosemill.workspace import CORPUS
from tests.corpus.corpora import download, read_corpus, write_texts


def test_the_standard_library_is_a_corpus(workspace: Path) -> None:
    metrics = build_corpus(download(PythonSourceCorpus(source="python-source", name="python", max_documents=200)), CORPUS)
    built = read_corpus(CORPUS)
    assert 150 < metrics["num_documents"] == len(built) <= 200
    assert metrics["num_over_limit"] > 100
    for name, document in built.items():
        path = Path(json.__file__).parents[1] / name
        assert document.text.encode() == path.read_bytes()
        assert document.label == name.partition("/")[0].removesuffix(".py")
    source = json.loads((CORPUS / "SOURCE.json").read_text())
    assert source["license"] == "PSF-2.0"
    assert "Python" in source["attribution"]


def test_what_is_not_of_the_library_is_left_out(tmp_path: Path) -> None:
    texts: dict[str, str | bytes] = {
        "a.py": "1",
        "json/b.py": "2",
        "site-packages/c.py": "3",
        "test/d.py": "4",
        "json/tests/e.py": "5",
        "f.txt": "6",
        "latin.py": "# ü".encode("latin-1"),
    }
    write_texts(tmp_path / "library", texts)
    write_texts(tmp_path, {"secret.py": "7"})
    (tmp_path / "library" / "link.py").symlink_to("../secret.py")
    source = PythonSource(PythonSourceCorpus(source="python-source", name="python"), tmp_path / "library")
    dropped: Counter[str] = Counter()
    (unit,) = source.units()
    assert [document.document_id for document in unit.documents(dropped)] == ["a.py", "json/b.py"]
    assert dropped == {"num_not_utf8": 1}
