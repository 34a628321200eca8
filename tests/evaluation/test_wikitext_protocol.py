"""A file in WikiText's format through download, tokenize, group, train and evaluate, against a calculation that shares no code."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prosemill.base_model import build_base_model
from prosemill.corpus import build_corpus
from prosemill.evaluation import evaluate_models
from prosemill.evaluation.documents import read_split
from prosemill.params import Download, Evaluate, Group, Tokenize, Train, parse_section
from prosemill.tokens import group_tokens, tokenize_corpus
from prosemill.training import train_model
from prosemill.wikitext import detokenize
from tests.conftest import environment
from tests.wikitext_files import WikiText

CONTEXT = 256
NUM_ARTICLES = 8  # of the file: all sixty take the loop below minutes
EVALUATE = Evaluate(
    context=CONTEXT,
    split="validation",
    num_prompts=4,
    num_shown=1,
    num_samples=1,
    bootstrap_resamples=10,
    latency_repeats=1,
    latency_new_tokens=2,
    precision="fp32",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, prose: list[str], wikitext: WikiText, tracking_store: dict[str, str]) -> Path:
    """A workspace whose official validation split is the file, and whose other text is Python's help."""
    root = tmp_path_factory.mktemp("wikitext")
    (root / "wikitext-2").mkdir()
    articles = articles_of(wikitext.path)
    assert len(articles) == wikitext.num_articles
    (root / "wikitext-2/wiki.valid.tokens").write_text("".join(articles[:NUM_ARTICLES]), encoding="utf-8")
    train = "".join(f" = Topic {number} = \n \n {text} \n \n" for number, text in enumerate(prose[8:]))
    (root / "wikitext-2/wiki.train.tokens").write_text(train, encoding="utf-8")
    corpus = {"source": "files", "name": "wikitext2", "root": "wikitext-2", "patterns": ["*.tokens"], "format": "wikitext"}
    shape = {"source": "scratch", "name": "tiny", "family": "gpt2", "vocabulary_size": 1024, "hidden_size": 32, "context_size": 512}
    download = parse_section("download", Download, {"corpus": corpus, "model": shape, "num_shards": 2, "test_share": 0.1})
    brief = {"max_steps": 16, "evaluation_interval": 16, "sampling_interval": 16, "sample_tokens": 2, "max_validation_blocks": 4}
    training = parse_section("train", Train, {**brief, "learning_rate": 0.03, "precision": "fp32"})
    with pytest.MonkeyPatch.context() as patch, environment(tracking_store):
        patch.chdir(root)
        build_corpus(download, root / "corpus")
        build_base_model(download, root / "corpus", root / "base")
        tokenize_corpus(Tokenize(), root / "corpus", root / "base", root / "tokens")
        group_tokens(Group(block_size=128), root / "tokens", root / "base", root / "blocks")
        outputs: dict[str, Path] = {"output": root / "trained", "metrics": root / "train.json", "reports": root / "reports"}
        train_model(training, blocks=root / "blocks", base=root / "base", **outputs)
    return root


def articles_of(path: Path) -> list[str]:
    """The articles, cut where a heading of the first level stands between blank lines."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    starts = [
        index
        for index, line in enumerate(lines)
        if line.startswith(" = ") and not line.startswith(" = = ") and not lines[index - 1].strip() and not lines[index + 1].strip()
    ]
    texts = ["".join(lines[start:end]) for start, end in zip(starts, [*starts[1:], None], strict=True)]
    return ["".join(lines[: starts[0]]) + texts[0], *texts[1:]]


def nll_by_hugging_faces_recipe(model: Any, ids: list[int], stride: int) -> float:
    """The loop of "Perplexity of fixed-length models", with the model's own loss: the tokens before the stride are not labelled."""
    stream = torch.tensor([[0, *ids]])
    total, previous_end = 0.0, 1
    for begin in range(0, len(ids), stride):
        end = min(begin + CONTEXT + 1, stream.shape[1])
        inputs, labels = stream[:, begin:end], stream[:, begin:end].clone()
        num_new = end - previous_end
        labels[:, :-num_new] = -100
        with torch.no_grad():
            total += float(model(inputs, labels=labels).loss) * num_new
        previous_end = end
        if end == stream.shape[1]:
            break
    return total


def test_bits_per_byte_at_two_strides_agree_with_an_independent_calculation(root: Path) -> None:
    folders = {name: root / name for name in ("corpus", "tokens", "base", "trained")}
    evaluation = evaluate_models(EVALUATE, **folders).metrics
    file = root / "wikitext-2/wiki.valid.tokens"
    texts, num_bytes = articles_of(file), file.stat().st_size
    assert len(texts) == evaluation["data"]["num_documents"] == NUM_ARTICLES
    assert evaluation["base"]["num_bytes"] == len("".join(texts).encode()) == num_bytes
    tokenizer = AutoTokenizer.from_pretrained(root / "base")
    model = AutoModelForCausalLM.from_pretrained(root / "trained").eval()
    documents = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    for stride, name in ((CONTEXT, "bits_per_byte"), (CONTEXT // 2, "bits_per_byte_half_stride")):
        nll = math.fsum(nll_by_hugging_faces_recipe(model, ids, stride) for ids in documents)
        assert evaluation["trained"][name] == pytest.approx(nll / math.log(2) / num_bytes, abs=2e-5)
    difference = abs(evaluation["trained"]["bits_per_byte"] - evaluation["trained"]["bits_per_byte_half_stride"])
    assert difference > 5e-5, "the test needs a model to which the stride matters"
    assert evaluation["trained"]["bits_per_byte"] != evaluation["base"]["bits_per_byte"]
    assert evaluation["trigram"]["bits_per_byte"] > 0


def test_detokenised_text_is_scored_on_its_own_bytes_and_the_originals_words(root: Path) -> None:
    folders = {name: root / name for name in ("corpus", "tokens", "base", "trained")}
    evaluation = evaluate_models(replace(EVALUATE, detokenize=True, max_documents=6), **folders).metrics
    originals = [document.text for document in read_split(root / "corpus", "validation", 6)[0]]
    texts = [detokenize(text) for text in originals]
    assert len(originals) == 6
    assert all(text != original for text, original in zip(texts, originals, strict=True))
    assert evaluation["trained"]["num_bytes"] == len("".join(texts).encode())
    assert evaluation["trained"]["num_words"] == sum(len(text.split()) for text in originals)
    tokenizer = AutoTokenizer.from_pretrained(root / "base")
    model = AutoModelForCausalLM.from_pretrained(root / "trained").eval()
    nll = math.fsum(nll_by_hugging_faces_recipe(model, tokenizer(text, add_special_tokens=False)["input_ids"], CONTEXT) for text in texts)
    assert evaluation["trained"]["nll_sum"] == pytest.approx(nll, rel=1e-4)
    assert evaluation["protocol"]["detokenize"] is True
    assert any("tokenisation undone" in note for note in evaluation["protocol"]["notes"])
