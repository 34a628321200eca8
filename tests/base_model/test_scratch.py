"""A model from random weights: its tokenizer comes from the train split alone, and the same params give the same bytes."""

import hashlib
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from prosemill.base_model import build_base_model, scratch
from prosemill.errors import ProsemillError
from prosemill.params import Download
from prosemill.pretrained import end_of_text_id, load_model, load_tokenizer
from tests.base_model.conftest import download

OUTPUT = Path("models/base")
CORPUS = Path("data/corpus")


@pytest.fixture
def corpus(workspace: Path, prose: list[str]) -> Path:
    """Prose in the train split, and a word of its own in the validation split."""
    write_split(workspace / CORPUS, "train", [prose[:20], [], prose[20:40]])
    write_split(workspace / CORPUS, "validation", [["zyzzyvas " * 5000]])
    return CORPUS


def write_split(corpus: Path, split: str, shards: list[list[str]]) -> None:
    (corpus / split).mkdir(parents=True)
    for number, texts in enumerate(shards):
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), corpus / split / f"shard-{number:05}.parquet")


def section(**values: object) -> Download:
    small = {"vocabulary_size": 400, "num_layers": 1, "hidden_size": 32, "num_heads": 2, "context_size": 64}
    return download({"source": "scratch", "name": "tiny", **small, **values})


def digests() -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in OUTPUT.iterdir()}


def test_it_has_the_size_that_params_say(corpus: Path) -> None:
    metrics = build_base_model(section(), corpus, OUTPUT)
    model = load_model(OUTPUT)
    assert metrics == {
        "name": "tiny",
        "family": "llama",
        "num_parameters": sum(weight.numel() for weight in model.parameters()),
        "dtype": "float32",
        "vocabulary_size": 400,
        "context_size": 64,
        "num_bytes_without_token": 0,
    }
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.config.num_attention_heads) == (1, 32, 2)


def test_the_tokenizer_is_trained_on_the_beginning_of_a_large_corpus(
    corpus: Path, prose: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build_base_model(section(), corpus, OUTPUT)
    whole = digests()
    monkeypatch.setattr(scratch, "SAMPLE_BYTES", sum(len(text.encode()) for text in prose[:20]))
    build_base_model(section(), corpus, OUTPUT)
    beginning = digests()
    write_split(corpus.parent / "other", "train", [prose[:20]])
    build_base_model(section(), corpus.parent / "other", OUTPUT)
    assert digests() == beginning != whole


def test_it_begins_near_the_uniform_loss(corpus: Path) -> None:
    build_base_model(section(), corpus, OUTPUT)
    ids = torch.arange(60)[None]
    with torch.no_grad():
        loss = load_model(OUTPUT)(input_ids=ids, labels=ids).loss
    assert abs(float(loss) - math.log(400)) < 0.1


def test_the_end_of_text_is_0_and_is_trained(corpus: Path) -> None:
    build_base_model(section(), corpus, OUTPUT)
    model, tokenizer = load_model(OUTPUT), load_tokenizer(OUTPUT)
    assert end_of_text_id(tokenizer) == 0
    assert model.generation_config is not None
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == ([0], 0)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, torch.nn.Embedding)
    assert embedding.padding_idx is None
    assert tokenizer.encode("text") == tokenizer.encode("text", add_special_tokens=False)


def test_the_same_params_give_the_same_bytes_and_another_seed_others(corpus: Path) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    build_base_model(section(), corpus, OUTPUT)
    assert torch.equal(torch.random.get_rng_state(), before)
    first = digests()
    torch.manual_seed(2)
    build_base_model(section(), corpus, OUTPUT)
    assert digests() == first
    build_base_model(section(seed=1), corpus, OUTPUT)
    other = digests()
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors", "SOURCE.json"}


def test_the_tokenizer_sees_the_train_split_alone(corpus: Path) -> None:
    build_base_model(section(), corpus, OUTPUT)
    tokenizer = load_tokenizer(OUTPUT)
    assert len(tokenizer.tokenize(" the")) == 1
    assert not any("zyz" in token for token in tokenizer.get_vocab())


@pytest.mark.parametrize("text", ["", "a", "don't . , !", "a\r\n\r\n b", "الجبر", "深度学习", "👩‍👩‍👧‍👦", "\x00\x04\x7f", "  1990   12"])
def test_every_text_comes_back(corpus: Path, text: str) -> None:
    build_base_model(section(vocabulary_size=300), corpus, OUTPUT)
    tokenizer = load_tokenizer(OUTPUT)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_corpus_without_text_is_refused(workspace: Path) -> None:
    write_split(workspace / CORPUS, "train", [[]])
    with pytest.raises(ProsemillError, match="the corpus's train split has no text"):
        build_base_model(section(), CORPUS, OUTPUT)
    assert not OUTPUT.exists()


def test_a_vocabulary_of_bytes_needs_no_text(workspace: Path) -> None:
    write_split(workspace / CORPUS, "train", [["a"]])
    assert build_base_model(section(vocabulary_size=257), CORPUS, OUTPUT)["vocabulary_size"] == 257


def test_heads_of_odd_width_are_refused(corpus: Path) -> None:
    with pytest.raises(ProsemillError, match="hidden_size 30 over num_heads 2 is odd"):
        build_base_model(section(hidden_size=30), corpus, OUTPUT)
