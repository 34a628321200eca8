"""`prosemill generate` writes what the model says, as it comes, and ends a mistake in one line."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from prosemill.cli import app
from prosemill.families import family_of
from prosemill.generation import native
from prosemill.generation.writer import choose_precision, device_for
from prosemill.pretrained import added_text, load_model, load_tokenizer
from prosemill.workspace import METRICS, TRAINED_MODEL

PROMPT = "The history of"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Runs the command; what it prints and what it complains of."""

    def run(*arguments: object) -> tuple[str, str]:
        with suppress(SystemExit):
            app(["generate", *map(str, arguments)], standalone_mode=False)
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


def test_the_likeliest_text_is_what_transformers_generates(run: Callable[..., tuple[str, str]], tiny_model: Path) -> None:
    tokenizer, model = load_tokenizer(tiny_model), load_model(tiny_model)
    prompt = tokenizer.encode(PROMPT, add_special_tokens=False)
    batch = family_of(tiny_model).prompt([prompt], 0)
    output: Any = model.generate(**batch, max_new_tokens=20, do_sample=False, pad_token_id=0)  # type: ignore[operator]
    new = [token for token in output[0, batch["input_ids"].shape[1] :].tolist() if token]
    settings = ("--model", tiny_model, "--max-new-tokens", 20, "--temperature", 0, "--precision", "fp32")
    assert run(PROMPT, *settings)[0] == f"{PROMPT}{added_text(tokenizer, prompt, new)}\n"
    assert run(PROMPT, *settings)[1] == "", "nothing but the text"


def test_a_seed_gives_the_same_text_and_another_seed_another(run: Callable[..., tuple[str, str]], tiny_model: Path) -> None:
    first, again, other = (run(PROMPT, "--model", tiny_model, "--temperature", 2, "--seed", seed)[0] for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["", "--model", "{}"], "the prompt is empty"),
        (["a", "--model", "{}", "--max-new-tokens", "0"], "--max-new-tokens must be at least 1, not 0"),
        (["a", "--model", "{}", "--top-p", "nan"], "--top-p must be above 0 and at most 1, not nan"),
        (["a", "--model", "{}", "--stop", ""], "--stop must be texts of at least one character"),
        (["a", "--model", "{}", "--max-new-tokens", "1000"], "1002 tokens, and the model sees 256 at most"),
        (["a", "--model", "{}", "--precision", "int3"], "--precision must be auto, fp32, bf16, int8, int4, not int3"),
        (["a", "--model", "nowhere"], "nowhere is no folder"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(run: Callable[..., tuple[str, str]], tiny_model: Path, arguments: list[str], words: str) -> None:
    printed, complaint = run(*(each.format(tiny_model) for each in arguments))
    assert words in complaint
    assert (printed, complaint.count("\n")) == ("", 1)


@pytest.mark.parametrize(("library", "fastest"), [(object(), "int8"), (None, "int4")], ids=["with native kernels", "without"])
def test_auto_is_the_fastest_of_what_the_evaluation_found_good_enough(
    monkeypatch: pytest.MonkeyPatch, library: object, fastest: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(native, "load", lambda: library)
    assert choose_precision({"bf16": 0.0, "int8": 0.004, "int4": 0.005}) == fastest
    assert choose_precision({"bf16": 0.0, "int8": 0.004, "int4": 0.006}) == "int8"
    assert choose_precision({"bf16": 0.0, "int8": 0.006, "int4": 0.005}) == "int4"
    assert choose_precision({"bf16": 0.005, "int8": 0.01, "int4": 0.01}) == "bf16"
    assert choose_precision({"bf16": 0.01, "int8": 0.01, "int4": 0.01}) == "fp32"
    assert choose_precision({}) in ("bf16", "fp32")


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16")])
def test_a_gpu_holds_bf16_whatever_fewer_bits_cost_and_those_stay_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_precision({"bf16": 0.01, "int8": 0.0, "int4": 0.0}) == expected
    assert [device_for(each).type for each in ("fp32", "bf16", "int8", "int4")] == ["cuda", "cuda", "cpu", "cpu"]


def test_auto_reads_the_evaluation_of_the_trained_model_alone(
    run: Callable[..., tuple[str, str]], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    METRICS.mkdir()
    (METRICS / "evaluation.json").write_text(json.dumps({"serving": {"cost_int4": 0.0, "num_tokens": 1}}), encoding="utf-8")
    TRAINED_MODEL.parent.mkdir()
    TRAINED_MODEL.symlink_to(tiny_model)
    settings = (PROMPT, "--temperature", 0, "--max-new-tokens", 60)
    auto, int4, other = (
        run(*settings)[0],
        run(*settings, "--precision", "int4")[0],
        run(*settings, "--model", tiny_model)[0],
    )
    assert auto == int4 != other
