"""What goes into the tokens comes out of them, with any number of workers, in memory that does not grow; bad input is one line."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from prosemill.digests import sha256_of_file
from prosemill.errors import ProsemillError
from prosemill.params import Tokenize
from prosemill.shards import MANIFEST, read_manifest, rows_of_split
from prosemill.tokens import tokenize_corpus, tokenizing
from prosemill.tokens.encoding import load_tokenizer
from prosemill.workspace import SHARD_WORK, SPLITS
from tests.tokens.conftest import KINDS, make_corpus, write_manifest

ROOT = Path(__file__).parents[2]
OUTPUT = Path("data/tokens")


@pytest.fixture(autouse=True)
def one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process unless a test asks for more."""
    monkeypatch.setenv("PROSEMILL_WORKERS", "1")


def run(corpus: Path, model: Path, section: Tokenize | None = None) -> dict[str, object]:
    return tokenize_corpus(section or Tokenize(), corpus, model, OUTPUT)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def texts_of(corpus: Path, name: str) -> list[str]:
    texts: list[str] = pq.read_table(corpus / name)["text"].to_pylist()
    return texts


def documents_of(path: Path, model: Path) -> list[str]:
    """The texts between the ends of text, decoded by the library alone."""
    ids = np.fromfile(path, "<u2")
    ends = np.flatnonzero(ids == 0)
    assert len(ids) == 0 or ends[-1] == len(ids) - 1, "every document is closed, nothing follows the last end"
    pieces = np.split(ids, ends + 1)[:-1]
    tokenizer = load_tokenizer(model)
    return [tokenizer.decode(piece[:-1].tolist(), skip_special_tokens=False) for piece in pieces]


def test_texts_of_every_kind_come_out_byte_for_byte(prose_corpus: Path, tiny_model: Path) -> None:
    run(prose_corpus, tiny_model)
    for row in read_manifest(prose_corpus):
        texts = texts_of(prose_corpus, row["file"])
        assert documents_of(OUTPUT / row["file"].replace(".parquet", ".bin"), tiny_model) == texts
    assert len(read_manifest(OUTPUT)) == 7


def test_manifest_and_metrics_count_everything(prose_corpus: Path, tiny_model: Path) -> None:
    metrics = run(prose_corpus, tiny_model, Tokenize(verify_every=3))
    rows = read_manifest(OUTPUT)
    splits = {}
    for split in SPLITS:
        mine = rows_of_split(rows, split)
        for row in mine:
            ids = np.fromfile(OUTPUT / row["file"], "<u2")
            texts = texts_of(prose_corpus, row["file"].replace(".bin", ".parquet"))
            assert (row["num_tokens"], row["num_documents"]) == (len(ids), len(texts)) == (len(ids), int((ids == 0).sum()))
            assert row["num_text_bytes"] == sum(len(text.encode()) for text in texts)
            assert (row["num_verified"], row["num_lossy"]) == (-(-len(texts) // 3), 0)
            assert (row["dtype"], row["end_of_text_id"], row["vocabulary_size"]) == ("uint16", 0, 1024)
            assert row["sha256"] == sha256_of_file(OUTPUT / row["file"])
        splits[split] = {fact: sum(row[fact] for row in mine) for fact in tokenizing.SUMS}
    assert metrics == {"dtype": "uint16", "end_of_text_id": 0, "vocabulary_size": 1024, "splits": splits}


def test_same_bytes_for_any_number_of_workers(prose_corpus: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for workers in (1, 2, 3):
        monkeypatch.setenv("PROSEMILL_WORKERS", str(workers))
        shutil.rmtree(SHARD_WORK, ignore_errors=True)
        metrics = run(prose_corpus, tiny_model)
        results.append((tree(OUTPUT), metrics))
    assert len(results[0][0]) == 8
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("batch_bytes", [1, 1000, 1 << 30])
def test_batches_change_nothing(prose_corpus: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, batch_bytes: int) -> None:
    run(prose_corpus, tiny_model)
    expected = tree(OUTPUT)
    shutil.rmtree(SHARD_WORK)
    monkeypatch.setattr(tokenizing, "BATCH_BYTES", batch_bytes)
    run(prose_corpus, tiny_model)
    assert tree(OUTPUT) == expected


def test_a_changed_tokenizer_or_param_is_not_taken_for_done(prose_corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    run(prose_corpus, tiny_model)
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    spec = json.loads((other / "tokenizer.json").read_text())
    spec["model"]["merges"] = []
    (other / "tokenizer.json").write_text(json.dumps(spec))
    before = (OUTPUT / "test/shard-00001.bin").stat().st_size
    run(prose_corpus, other)
    assert (OUTPUT / "test/shard-00001.bin").stat().st_size > 1.5 * before, "without merges there are more tokens"
    run(prose_corpus, other, Tokenize(verify_every=1))
    assert all(row["num_verified"] == row["num_documents"] for row in read_manifest(OUTPUT))


def sentence_piece_like(folder: Path, texts: list[str]) -> Path:
    """A Unigram tokenizer that normalises, marks words with ▁ and has no <|endoftext|>, as T5's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}}')
    return folder


def test_a_normalising_tokenizer_is_counted_as_lossy(workspace: Path, prose: list[str], tmp_path: Path) -> None:
    model = sentence_piece_like(tmp_path / "unigram", prose[:10])
    corpus = workspace / "data/corpus"
    make_corpus(corpus, {"train": [["the same", "the  same", "ﬁne", "the"]], "validation": [["the"]], "test": [["the"]]})
    metrics = run(corpus, model, Tokenize(verify_every=1))
    (row,) = rows_of_split(read_manifest(OUTPUT), "train")
    assert (row["num_verified"], row["num_lossy"], row["end_of_text_id"]) == (4, 2, 1)
    ids = np.fromfile(OUTPUT / "train/shard-00000.bin", "<u2")
    assert np.flatnonzero(ids == 1)[-1] == len(ids) - 1
    assert (ids == 1).sum() == 4
    assert metrics["end_of_text_id"] == 1


def test_many_ids_are_four_bytes_wide(workspace: Path, tmp_path: Path) -> None:
    vocabulary = {f"w{number}": number for number in range(65_536)} | {"[UNK]": 65_536, "<|endoftext|>": 65_537}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model = tmp_path / "wide"
    model.mkdir()
    tokenizer.save(str(model / "tokenizer.json"))
    corpus = workspace / "data/corpus"
    make_corpus(corpus, {split: [["w7 w65535 x"]] for split in SPLITS})
    assert run(corpus, model)["dtype"] == "uint32"
    assert np.fromfile(OUTPUT / "train/shard-00000.bin", "<u4").tolist() == [7, 65_535, 65_536, 65_537]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def replace_rows(corpus: Path, **facts: object) -> None:
    """Change the facts of the first training shard in the manifest."""
    rows = read_manifest(corpus)
    first = next(row for row in rows if row["file"] == "train/shard-00000.parquet")
    write_manifest(corpus, [row for row in rows if row is not first] + [{**first, **facts}])


def not_parquet(path: Path) -> None:
    path.write_text("not Parquet")
    replace_rows(path.parent.parent, sha256=sha256_of_file(path), num_bytes=path.stat().st_size)


def without_text(path: Path) -> None:
    pq.write_table(pa.table({"document_id": ["1"]}), path)
    replace_rows(path.parent.parent, sha256=sha256_of_file(path), num_bytes=path.stat().st_size)


def with_null(path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(["a", None], pa.string())}), path)
    replace_rows(path.parent.parent, sha256=sha256_of_file(path), num_bytes=path.stat().st_size, num_documents=2, num_text_bytes=1)


BAD_SHARDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "is missing"),
    "short": (truncate, r"has [\d,]+ bytes where MANIFEST.jsonl says"),
    "damaged": (flip, "is damaged"),
    "not Parquet": (not_parquet, "is not a corpus shard"),
    "no text column": (without_text, "is not a corpus shard"),
    "null text": (with_null, "has a document without text"),
    "other documents": (lambda path: replace_rows(path.parent.parent, num_documents=7), "does not hold the documents"),
    "other bytes": (lambda path: replace_rows(path.parent.parent, num_text_bytes=7), "does not hold the documents"),
}


@pytest.mark.parametrize(("kind", "workers"), [*((kind, 1) for kind in BAD_SHARDS), ("damaged", 2)])
def test_a_bad_corpus_shard_is_one_line(
    prose_corpus: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, kind: str, workers: int
) -> None:
    monkeypatch.setenv("PROSEMILL_WORKERS", str(workers))
    spoil, said = BAD_SHARDS[kind]
    spoil(prose_corpus / "train/shard-00000.parquet")
    with pytest.raises(ProsemillError, match=rf"train/shard-00000.parquet {said}.*dvc repro") as caught:
        run(prose_corpus, tiny_model)
    assert "\n" not in str(caught.value)
    assert not OUTPUT.exists()


def test_a_corpus_without_a_split_or_fact_is_one_line(workspace: Path, tiny_model: Path) -> None:
    make_corpus(workspace, {"train": [["a"]], "validation": [["b"]]})
    with pytest.raises(ProsemillError, match=r"MANIFEST.jsonl has no file of the split test.*dvc repro"):
        run(workspace, tiny_model)
    (workspace / MANIFEST).write_text('{"file": "train/shard-00000.parquet"}\n')
    with pytest.raises(ProsemillError, match=r"MANIFEST.jsonl lacks sha256 of train/shard-00000.parquet.*dvc repro"):
        run(workspace, tiny_model)
    (workspace / MANIFEST).unlink()
    with pytest.raises(ProsemillError, match=r"MANIFEST.jsonl is missing.*dvc repro"):
        run(workspace, tiny_model)


def test_a_tokenizer_beyond_the_model_is_one_line(prose_corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "small"
    shutil.copytree(tiny_model, model)
    (model / "config.json").write_text('{"vocab_size": 1000}')
    with pytest.raises(ProsemillError, match="ids up to 1,023, but the model's vocab_size is 1,000"):
        run(prose_corpus, model)
    (model / "config.json").write_text("{")
    with pytest.raises(ProsemillError, match=r"config.json is not JSON.*dvc repro"):
        run(prose_corpus, model)


def test_the_stage_reads_its_section_and_writes_metrics(prose_corpus: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, "models/base")
    Path("params.yaml").write_text("tokenize:\n  verify_every: 1\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stages.tokenize"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1].startswith("tokenize: 7/7 shards in ")
    content = Path("metrics/tokenize.json").read_text()
    metrics = json.loads(content)
    assert content == json.dumps(metrics, indent=2, sort_keys=True) + "\n"
    assert metrics["splits"]["train"]["num_verified"] == 40 + len(KINDS)
    Path("params.yaml").write_text("tokenize:\n  verify_ever: 1\n")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: params.yaml: unknown key `tokenize.verify_ever`: did you mean `verify_every`?")


MEASURE = """
import sys
from pathlib import Path
from prosemill.params import Tokenize
from prosemill.tokens import tokenize_corpus
tokenize_corpus(Tokenize(), Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) // 1024)
"""


def test_memory_does_not_grow_with_the_corpus(workspace: Path, prose: list[str], tiny_model: Path) -> None:
    peaks = []
    for times in (16, 64):
        corpus = workspace / f"corpus-{times}"
        texts = [f"{number} {text}" for number in range(times) for text in prose]
        make_corpus(corpus, {"train": [texts], "validation": [["a"]], "test": [["b"]]})
        assert read_manifest(corpus)[1]["num_text_bytes"] > times * 400_000
        command = [sys.executable, "-c", MEASURE, str(corpus), str(tiny_model), f"tokens-{times}"]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 12, f"MiB at 7 and at 30 MB of text: {peaks}"
