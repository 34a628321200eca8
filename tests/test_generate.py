"""`prosemill generate` writes what the model says, as it comes, and ends a mistake in one line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from prosemill.cli import app
from prosemill.families import family_of
from prosemill.generation import native
from prosemill.generation.sampling import Settings
from prosemill.generation.writer import Writer, choose_precision, device_for
from prosemill.pretrained import added_text, load_model, load_tokenizer
from prosemill.workspace import METRICS, TRAINED_MODEL
from tests.models import write_model

PROMPT = "The history of"
DEFAULT: dict[str, Any] = {"max_new_tokens": 100, "temperature": 0.8, "top_k": 0, "top_p": 0.9, "repetition_penalty": 1.0, "seed": 0}


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


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (["--max-new-tokens", 9], {"max_new_tokens": 9}),
        (["--temperature", 2], {"temperature": 2.0}),
        (["--top-k", 2], {"top_k": 2}),
        (["--top-p", 0.2], {"top_p": 0.2}),
        (["--repetition-penalty", 100], {"repetition_penalty": 100.0}),
        (["--stop", "e", "--stop", "a"], {"stop": ("e", "a")}),
        (["--seed", 2], {"seed": 2}),
    ],
    ids=str,
)
def test_each_option_is_the_engines(
    run: Callable[..., tuple[str, str]], tiny_model: Path, options: list[object], settings: dict[str, Any]
) -> None:
    with Writer.open(tiny_model, precision="fp32", num_rows=1) as writer:
        usual, other = ("".join(writer.answer(PROMPT, Settings(**DEFAULT | given))) for given in ({}, settings))
    given = (PROMPT, "--model", tiny_model, "--precision", "fp32")
    assert usual != other
    assert [run(*given)[0], run(*given, *options)[0]] == [f"{PROMPT}{usual}\n", f"{PROMPT}{other}\n"]


def test_a_seed_gives_the_same_text_and_another_seed_another(run: Callable[..., tuple[str, str]], tiny_model: Path) -> None:
    first, again, other = (run(PROMPT, "--model", tiny_model, "--temperature", 2, "--seed", seed)[0] for seed in (1, 1, 2))
    assert first == again != other


def test_the_text_comes_while_it_is_written(tiny_model: Path, tmp_path: Path) -> None:
    write_model(tmp_path, "llama", tiny_model, context_size=4096)
    program = Path(sys.executable).with_name("prosemill")
    command: list[str | Path] = [program, "generate", PROMPT, "--model", tmp_path, "--temperature", "0", "--max-new-tokens", "4000"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        parts = [process.stdout.read(100_000) for _ in range(8)]  # each is what there is by then, and nothing after the end
        process.kill()
    assert all(parts)


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
