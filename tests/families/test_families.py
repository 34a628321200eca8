"""Every family: packed documents cost what they cost alone, parts of a batch add up, and a score is a sum of −ln p."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

import prosemill.families
from prosemill.errors import ProsemillError
from prosemill.families import Family, Window, families, family_named, family_of
from prosemill.families.decoder import position_ids
from prosemill.families.family import IGNORED
from prosemill.generation.decoder import Decoder
from prosemill.params import ScratchModel
from prosemill.training.loss import sum_over_tokens, token_nll
from tests.families.conftest import CONTEXT, VOCABULARY

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"
END = 0


def documents(*lengths: int, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def nll_of_block(family: Family, model: PreTrainedModel, block: list[int], *, documents_stop_attention: bool = True) -> float:
    """Sum of -ln p of everything that training predicts in a block."""
    batch = family.pack(torch.tensor([block]), model.config, END, documents_stop_attention=documents_stop_attention)
    labels = batch.pop("labels")
    with torch.no_grad():
        return float(token_nll(model(**batch).logits, labels).double().sum())


def test_the_four_families_are_found() -> None:
    assert {"gpt2", "gpt_neo", "llama", "t5"} <= set(families())


def test_a_packed_block_costs_what_its_documents_cost_alone(family: Family, model: PreTrainedModel) -> None:
    texts = documents(20, 1, 2, 17)
    # A decoder reads a document's beginning off the end-of-text before it; T5 reads up to the end-of-text after it.
    first = [END] if family.task == "CAUSAL_LM" else []
    packed = [*first, *(token for text in texts for token in [*text, END])]
    together = nll_of_block(family, model, packed)
    alone = sum(nll_of_block(family, model, [*first, *text, END], documents_stop_attention=False) for text in texts)
    assert together == pytest.approx(alone, rel=1e-5)
    blind = nll_of_block(family, model, packed, documents_stop_attention=False)
    assert blind != pytest.approx(alone, rel=1e-5), "documents that see each other must cost something else"


def test_rows_of_a_batch_do_not_touch_each_other(family: Family, model: PreTrainedModel) -> None:
    rows = [[*documents(20)[0], END, *documents(11, seed=2)[0]], [END, END, *documents(29, seed=3)[0], END]]
    batch = family.pack(torch.tensor(rows), model.config, END, documents_stop_attention=True)
    labels = batch.pop("labels")
    with torch.no_grad():
        together = token_nll(model(**batch).logits, labels).double().sum(dim=1)
    assert together.tolist() == pytest.approx([nll_of_block(family, model, row) for row in rows], rel=1e-5)


@pytest.mark.parametrize("num_parts", [2, 8])
def test_packed_parts_give_the_gradient_of_the_whole_batch(family: Family, model: PreTrainedModel, num_parts: int) -> None:
    """Accumulation of 1×8, 2×4 and 8×1 (parts × blocks); rows hold different numbers of documents, so T5's predict different numbers."""
    blocks = torch.tensor([token for text in documents(*range(5, 60, 3)) for token in [*text, END]][: 8 * CONTEXT]).view(8, CONTEXT)

    def pack(part: torch.Tensor) -> dict[str, torch.Tensor]:
        return family.pack(part, model.config, END, documents_stop_attention=True)

    def gradient(parts: int) -> torch.Tensor:
        model.zero_grad()
        batches = [pack(part) for part in blocks.chunk(parts)]
        num_tokens = sum(int(batch["labels"].ne(IGNORED).sum()) for batch in batches)
        for batch in batches:
            labels = batch.pop("labels")
            sum_over_tokens(model(**batch).logits, labels, num_tokens).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    whole, parts = gradient(1), gradient(num_parts)
    assert float((whole - parts).norm() / whole.norm()) < 1e-4


@pytest.mark.parametrize("stride", [16, 8, 5])
def test_windows_score_no_token_twice(family: Family, stride: int) -> None:
    for num_tokens in (1, 2, 7, 16, 17, 40, 41):
        windows = list(family.windows(0, num_tokens, 16, stride))
        scored = [token for window in windows for token in range(window.first_new, window.end)]
        assert scored == sorted(set(scored))
        assert scored[-1] == num_tokens - 1
        assert all(0 <= window.begin <= window.first_new < window.end <= window.begin + 16 for window in windows)
        if family.task == "CAUSAL_LM":
            assert scored == list(range(num_tokens))
        elif stride == 8:
            assert scored == list(range(min(num_tokens // 2, 8), num_tokens)), "half strides leave out the first prefix alone"


def test_a_frame_scores_each_window_as_if_it_were_alone(family: Family, model: PreTrainedModel) -> None:
    texts = documents(40, 3, 16)
    windows = [window for index, text in enumerate(texts) for window in family.windows(index, len(text), 16, 8)]

    def scores(chosen: list[Window]) -> list[float]:
        batch = family.frame(texts, chosen, model.config, END)
        labels = batch.pop("labels")
        assert int(labels.ne(IGNORED).sum()) == sum(window.end - window.first_new for window in chosen)
        with torch.no_grad():
            return token_nll(model(**batch).logits, labels).double().sum(dim=1).tolist()

    assert scores(windows) == pytest.approx([scores([window])[0] for window in windows], rel=1e-5)


def test_a_document_is_scored_as_it_is_trained(family: Family, model: PreTrainedModel) -> None:
    (text,) = documents(16)
    (window,) = family.windows(0, len(text), 16, 16)
    batch = family.frame([text], [window], model.config, END)
    labels = batch.pop("labels")
    with torch.no_grad():
        scored = float(token_nll(model(**batch).logits, labels).sum())
    block = [END, *text] if family.task == "CAUSAL_LM" else text
    assert scored == pytest.approx(nll_of_block(family, model, block), rel=1e-5)


def test_prompts_of_unequal_length_continue_as_alone(family: Family, model: PreTrainedModel) -> None:
    model.config.use_cache = True
    prompts = documents(9, 2, 5)
    start = getattr(model.config, "decoder_start_token_id", None)
    model.generation_config = GenerationConfig(decoder_start_token_id=start)
    config = GenerationConfig(max_new_tokens=6, min_new_tokens=6, do_sample=False, eos_token_id=END, pad_token_id=END)

    def continued(rows: list[list[int]]) -> list[list[int]]:
        batch = family.prompt(rows, END)
        generate: Any = model.generate
        rows_of_tokens: list[list[int]] = generate(**batch, generation_config=config)[:, family.num_given(batch) :].tolist()
        return rows_of_tokens

    together = continued(prompts)
    assert together == [continued([prompt])[0] for prompt in prompts]
    assert all(len(row) == 6 for row in together)


def test_the_first_new_token_is_the_most_likely_one(family: Family, model: PreTrainedModel) -> None:
    (text,) = documents(9)
    batch = family.prompt([text], END)
    model.generation_config = GenerationConfig(decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None))
    config = GenerationConfig(max_new_tokens=1, do_sample=False, eos_token_id=VOCABULARY + 1, pad_token_id=END)
    generate: Any = model.generate
    new = int(generate(**batch, generation_config=config)[0, family.num_given(batch)])
    frame = family.frame([[*text, 1]], [Window(0, 0, len(text), len(text) + 1)], model.config, END)
    labels = frame.pop("labels")
    with torch.no_grad():
        logits = model(**frame).logits[0, labels[0].ne(IGNORED)]
    assert new == int(logits.argmax())


def test_adapters_find_their_layers(family: Family, model: PreTrainedModel) -> None:
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    assert set(family.lora_targets) <= names


def test_a_drawn_model_depends_on_its_seed_alone(family: Family) -> None:
    def weights(seed: int) -> torch.Tensor:
        shape = ScratchModel(source="scratch", name="tiny", family=family.name, hidden_size=16, num_heads=2, context_size=32, seed=seed)
        return torch.cat([parameter.flatten() for parameter in family.draw(shape, VOCABULARY).parameters()])

    before = torch.random.get_rng_state()
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert torch.equal(before, torch.random.get_rng_state())


def test_context_sizes(family: Family, model: PreTrainedModel) -> None:
    assert family.context_size(model.config.to_dict()) == (None if family.name == "t5" else CONTEXT)


def test_the_decoding_engine_reads_as_the_model_does(family: Family, model: PreTrainedModel) -> None:
    document = list(range(1, CONTEXT))
    window = next(family.windows(0, len(document), CONTEXT, CONTEXT))
    batch = family.frame([document], [window], model.config, END)
    labels = batch.pop("labels")
    decoder = Decoder(family.layout(model), precision="fp32", num_rows=1)
    tokens = batch.get("decoder_input_ids", batch["input_ids"])[0].tolist()
    if decoder.is_encoded:
        decoder.look_at(0, decoder.encode(batch["input_ids"][0].tolist()))
    found = decoder.read(0, tokens, begin=0, only_last=False)
    with torch.inference_mode():
        expected = model(**batch).logits[0]
    assert len(expected) == labels.shape[1]
    assert torch.allclose(found, expected, atol=1e-4)


def test_an_unknown_family_is_named_with_the_list(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ProsemillError, match=f"'bert', which is not supported: choose a model of {', '.join(families())}"):
        family_of(tmp_path)


def test_a_fifth_family_is_the_one_file_of_contributing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", CONTRIBUTING.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "qwen2.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(prosemill.families, "__path__", [*prosemill.families.__path__, str(tmp_path)])
    families.cache_clear()
    try:
        family = family_named("qwen2", whose="a model")
        model = family.draw(ScratchModel(source="scratch", name="tiny", family="qwen2", hidden_size=32, context_size=CONTEXT), VOCABULARY)
        model.config.use_cache = False
        assert (family.name, model.config.model_type) == ("qwen2", "qwen2")
        test_a_packed_block_costs_what_its_documents_cost_alone(family, model)
        test_the_decoding_engine_reads_as_the_model_does(family, model)
    finally:
        families.cache_clear()


def test_positions_restart_at_every_end_of_text() -> None:
    block = torch.tensor([[5, 6, END, 7, 8, 9, END, END, 4]])
    assert position_ids(block, END).tolist() == [[0, 1, 0, 1, 2, 3, 0, 0, 1]]


def test_t5_predicts_the_second_half_of_every_stretch() -> None:
    t5 = families()["t5"]
    config = t5.scratch_config(ScratchModel(source="scratch", name="tiny", family="t5"), VOCABULARY)
    batch = t5.pack(torch.tensor([[5, 6, 7, END, 8, 9, 10, 11, 12]]), config, END, documents_stop_attention=True)
    assert batch["input_ids"].tolist() == [[5, 6, END, 8, 9, END]]
    assert batch["decoder_input_ids"].tolist() == [[END, 7, END, END, 10, 11]]
    assert batch["labels"].tolist() == [[7, END, IGNORED, 10, 11, 12]]
    visible = batch["attention_mask"][0, 0] == 0
    assert visible[0].tolist() == [True, True, True, False, False, False]
    assert visible[4].tolist() == [False, False, False, True, True, True]
