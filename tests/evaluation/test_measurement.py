"""The text is taken as it is, the folder's own generation settings stay out of the protocol, and latency counts what it says."""

import itertools
import json
import shutil
import time
from pathlib import Path

import pytest

from prosemill.evaluation import latency
from prosemill.evaluation.documents import Document, Passage
from prosemill.evaluation.latency import measure_latency
from prosemill.evaluation.measurement import Measured, measure_models
from prosemill.evaluation.text import encode
from prosemill.params import Evaluate
from prosemill.pretrained import load_model, load_tokenizer

SECTION = Evaluate(
    context=16,
    num_prompts=2,
    num_shown=0,
    prompt_words=3,
    continuation_words=12,
    num_samples=1,
    latency_prompt_tokens=4,
    latency_new_tokens=2,
    latency_repeats=1,
    precision="fp32",
    baseline_tokens=None,
)


def measure(folder: Path) -> Measured:
    texts = ["The value of it", "In Python there are"]
    passages = [Passage(text, text, "a reference") for text in texts]
    return measure_models(
        SECTION, [Document(text, text) for text in texts], passages, {"base": folder, "trained": folder}, Path("no tokens are needed")
    )


def test_a_special_tokens_name_is_ordinary_text(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    ((tokens, _),) = encode(tokenizer, ["a <|endoftext|> b"])
    assert 0 not in tokens
    assert tokenizer.decode(tokens) == "a <|endoftext|> b"


def test_generation_settings_of_the_model_folder_change_nothing(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "opinionated"
    shutil.copytree(tiny_model, folder)
    settings = {"do_sample": True, "temperature": 9.0, "repetition_penalty": 5.0, "max_new_tokens": 1, "eos_token_id": [5, 6, 7]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    assert measure(folder).continuations == measure(tiny_model).continuations


def test_latency_is_of_the_measured_repeats_without_the_warm_up(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    milliseconds = iter([(9000.0, [900.0, 900.0])] * 2 + [(float(10 * turn), [float(turn), float(turn + 1)]) for turn in range(1, 7)])
    order: list[object] = []

    def generate_once(model: object, *_: object) -> tuple[float, list[float]]:
        order.append(model)
        return next(milliseconds)

    monkeypatch.setattr(latency, "_generate_once", generate_once)
    model, other = load_model(tiny_model), load_model(tiny_model)
    rows = measure_latency({"base": model, "trained": other}, prompt=[1], num_new_tokens=3, repeats=3, end_of_text_id=0)
    assert order == [model, other, other, model, model, other, other, model]
    assert rows["base"] == {
        "time_to_first_token_ms": 30.0,
        "time_to_first_token_ms_p95": 57.0,
        "time_per_token_ms": 3.5,
        "time_per_token_ms_p95": 6.75,
    }


def test_exactly_the_asked_tokens_are_timed(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that ticks once a reading: the start, the prompt's arrival, then each of the tokens.
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    rows = measure_latency({"base": load_model(tiny_model)}, prompt=[1, 2], num_new_tokens=5, repeats=2, end_of_text_id=0)
    assert rows["base"]["time_to_first_token_ms"] == 2000.0
    assert rows["base"]["time_per_token_ms"] == 1000.0
    assert next(ticks) == 3 * (1 + 1 + 5)
