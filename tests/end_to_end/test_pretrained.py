"""A pretrained folder of the hub's format goes through all five stages, in full and with LoRA, and leaves for plain transformers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

from prosemill.base_model import build_base_model
from prosemill.evaluation import evaluate_models
from prosemill.families import Family, families, family_of
from prosemill.params import Download, Evaluate, HubModel, parse_section
from prosemill.tokens import Blocks
from tests.conftest import environment
from tests.models import write_model
from tests.training.conftest import FULL, LORA, inside, make_blocks, train, train_section

EVALUATE = Evaluate(
    context=32,
    max_documents=4,
    num_prompts=2,
    prompt_words=4,
    continuation_words=2,
    num_samples=1,
    num_shown=1,
    bootstrap_resamples=2,
    latency_prompt_tokens=4,
    latency_new_tokens=2,
    latency_repeats=1,
    precision="fp32",
)


@pytest.fixture(autouse=True, scope="module")
def tracked(tracking_store: dict[str, str]) -> Iterator[None]:
    with environment(tracking_store):
        yield


def write_t5(folder: Path, texts: list[str]) -> None:
    """A T5 as google-t5 publishes them: pieces of words by their likelihood, padding 0, end of sequence 1, more embeddings than tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {"tokenizer_class": "T5Tokenizer", "extra_ids": 100}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    ids: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    torch.manual_seed(0)
    T5ForConditionalGeneration(T5Config(vocab_size=512, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, **ids)).save_pretrained(
        folder
    )


@pytest.fixture(scope="module", params=list(families()))
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, prose: list[str]) -> Path:
    """A workspace where everything before training has run, from a pretrained folder of each family in turn."""
    root: Path = tmp_path_factory.mktemp(request.param)
    (root / "upstream").mkdir()
    if request.param == "t5":
        write_t5(root / "upstream", prose[:20])
    else:
        write_model(root / "upstream", request.param, tiny_model)
    corpus = {"source": "files", "name": "topics", "root": "files"}
    section = parse_section("download", Download, {"corpus": corpus, "model": {"source": "hub", "name": "mine", "repository": "upstream"}})
    assert isinstance(section.model, HubModel)
    with inside(root):
        build_base_model(section, root / "corpus", root / "base")
    make_blocks(root, [text[:600] for text in prose], root / "base")
    return root


def frame(family: Family, model: PreTrainedModel, end_of_text_id: int) -> dict[str, torch.Tensor]:
    """What `forward` takes to score eight tokens."""
    batch = family.frame([list(range(20, 28))], list(family.windows(0, 8, 8, 8)), model.config, end_of_text_id)
    del batch["labels"]
    return batch


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_a_pretrained_folder_goes_through_and_comes_out_for_plain_transformers(
    prepared: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    base, trained, family = prepared / "base", tmp_path / "trained", family_of(prepared / "base")
    with inside(tmp_path) as root:
        train(train_section(**method), prepared / "blocks", base, root)
    folders = {"corpus": prepared / "corpus", "tokens": prepared / "tokens", "base": base, "trained": trained}
    metrics = evaluate_models(EVALUATE, **folders).metrics
    assert metrics["trained"]["bits_per_byte"] < metrics["base"]["bits_per_byte"]

    model, report = family.auto_class().from_pretrained(trained, output_loading_info=True)
    assert not any(report.values())
    before, after = AutoTokenizer.from_pretrained(prepared / "upstream"), AutoTokenizer.from_pretrained(trained)
    assert before("A word, and another.")["input_ids"] == after("A word, and another.")["input_ids"]
    end = Blocks.open(prepared / "blocks", "train").end_of_text_id
    batch = frame(family, model, end)
    with torch.no_grad():
        logits = model(**batch).logits
        if method is LORA:
            assert torch.allclose(family.auto_class().from_pretrained(trained / "adapter")(**batch).logits, logits, atol=1e-4)
        assert not torch.allclose(family.load(base)(**batch).logits, logits, atol=1e-4)
    assert end in model.generation_config.eos_token_id
    if family.name == "t5":
        assert end == model.config.eos_token_id == after.eos_token_id == 1
        assert model.config.pad_token_id == after.pad_token_id == model.config.decoder_start_token_id == 0
        assert model.generate(**after("A word", return_tensors="pt"), max_new_tokens=1)[0, 0] == 0
