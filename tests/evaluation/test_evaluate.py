"""The whole evaluation on tiny models: the numbers that must be there, the same twice, and a report a person can read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from transformers import AutoModelForCausalLM

import stages.evaluate
from prosemill.errors import ProsemillError
from prosemill.evaluation import Evaluation, evaluate_models, print_table, write_evaluation
from prosemill.evaluation.diversity import diversity
from prosemill.evaluation.overlap import overlap
from prosemill.evaluation.report import as_markdown, report_text
from prosemill.evaluation.table import headline
from prosemill.params import Evaluate
from tests.evaluation.corpus import SOURCE, write_corpus, write_tokens

SECTION = Evaluate(
    context=32,
    num_prompts=6,
    prompt_words=6,
    continuation_words=8,
    num_samples=2,
    num_shown=2,
    bootstrap_resamples=50,
    latency_prompt_tokens=8,
    latency_new_tokens=3,
    latency_repeats=2,
    precision="fp32",
)
TEXT_NAMES = {
    "bits_per_byte",
    "bits_per_byte_half_stride",
    "token_perplexity",
    "token_perplexity_half_stride",
    "word_perplexity",
    "nll_sum",
    "num_tokens",
    "num_bytes",
    "num_words",
    "num_documents",
}
MODEL_NAMES = {
    *TEXT_NAMES,
    *(
        f"{prefix}{name}{suffix}"
        for name in ("bleu", "rouge1", "rouge2", "rougeL")
        for prefix in ("", "sampled_")
        for suffix in ("", "_ci95")
    ),
    *(
        f"{prefix}{name}"
        for name in ("distinct_1", "distinct_2", "distinct_3", "repetition_rate", "loop_rate")
        for prefix in ("", "sampled_")
    ),
    *(f"{name}{suffix}" for name in ("time_to_first_token_ms", "time_per_token_ms") for suffix in ("", "_p95")),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, prose: list[str]) -> dict[str, Path]:
    """A corpus of short texts, the base model, and a model that was moved away from it."""
    root = tmp_path_factory.mktemp("evaluation")
    texts = ["Too short.", *(" ".join(text.split()[:40]) for text in prose[:8]), "A | table\n<b>bold</b> " + "and so on " * 6]
    corpus = write_corpus(root / "corpus", {"test": [texts[:5], [], texts[5:]]})
    tokens = write_tokens(root / "tokens", tiny_model, prose[20:])
    base, trained = root / "base", root / "trained"
    shutil.copytree(tiny_model, base)
    (base / "SOURCE.json").write_text(json.dumps(SOURCE | {"license": "Apache-2.0"}))
    shutil.copytree(tiny_model, trained)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    model.save_pretrained(trained)
    return {"corpus": corpus, "tokens": tokens, "base": base, "trained": trained}


@pytest.fixture(scope="module")
def evaluation(folders: dict[str, Path]) -> Evaluation:
    return evaluate_models(SECTION, **folders)


def without_times(metrics: dict[str, Any]) -> dict[str, Any]:
    return {row: {name: value for name, value in values.items() if not name.startswith("time_")} for row, values in metrics.items()}


def test_the_numbers_have_their_plain_names(evaluation: Evaluation) -> None:
    metrics = evaluation.metrics
    assert set(metrics) == {"protocol", "data", "base", "trained", "trigram", "human", "unrelated", "serving"}
    assert set(metrics["trigram"]) == TEXT_NAMES
    assert set(metrics["base"]) == set(metrics["trained"]) == MODEL_NAMES
    assert set(metrics["human"]) == {"distinct_1", "distinct_2", "distinct_3", "repetition_rate", "loop_rate"}
    assert set(metrics["unrelated"]) == {f"{name}{end}" for name in ("bleu", "rouge1", "rouge2", "rougeL") for end in ("", "_ci95")}
    assert set(metrics["serving"]) == {"num_tokens", "cost_bf16", "cost_int8", "cost_int4"}
    assert metrics["serving"]["num_tokens"] == metrics["trained"]["num_tokens"], "there are fewer than are asked for"
    assert metrics["protocol"]["num_prompts"] == 6
    assert metrics["protocol"]["num_documents_too_short"] == 1
    assert metrics["data"]["num_documents"] == 10
    assert metrics["base"]["nll_sum"] != metrics["trained"]["nll_sum"]


def test_the_data_is_counted_in_full(evaluation: Evaluation, prose: list[str]) -> None:
    texts = ["Too short.", *(" ".join(text.split()[:40]) for text in prose[:8]), "A | table\n<b>bold</b> " + "and so on " * 6]
    base = evaluation.metrics["base"]
    assert base["num_bytes"] == len("".join(texts).encode())
    assert base["num_words"] == sum(len(text.split()) for text in texts)
    assert base["bits_per_byte"] == pytest.approx(base["nll_sum"] / 0.6931471805599453 / base["num_bytes"], rel=1e-5)


def test_twice_gives_the_same_apart_from_times(evaluation: Evaluation, folders: dict[str, Path]) -> None:
    again = evaluate_models(SECTION, **folders)
    assert without_times(again.metrics) == without_times(evaluation.metrics)
    assert again.samples == evaluation.samples


def test_the_calibrating_rows_are_human_text(evaluation: Evaluation) -> None:
    references = [row["reference"] for row in evaluation.samples]
    shifted = overlap([[*references[1:], references[0]]], references, resamples=50, seed=0)
    assert evaluation.metrics["unrelated"]["rouge1"] == pytest.approx(shifted["rouge1"], rel=1e-5)
    assert evaluation.metrics["unrelated"]["rouge1"] < 1
    assert evaluation.metrics["human"]["distinct_1"] == pytest.approx(diversity(references)["distinct_1"], rel=1e-5)


def test_the_base_model_against_itself_is_equal(folders: dict[str, Path]) -> None:
    metrics = without_times(evaluate_models(SECTION, **folders | {"trained": folders["base"]}).metrics)
    assert metrics["base"] == metrics["trained"]


def test_samples_hold_what_was_compared(evaluation: Evaluation) -> None:
    row = evaluation.samples[0]
    assert set(row) == {
        "document_id",
        "prompt",
        "reference",
        "base",
        "trained",
        *(f"{name}_sample_{number}" for name in ("base", "trained") for number in (1, 2)),
    }
    assert len(evaluation.samples) == 6
    assert len(row["prompt"].split()) == 6
    assert len(row["reference"].split()) == 8
    assert all(len(row[name].split()) <= 8 for name in ("base", "trained", "base_sample_1"))


def test_the_files_are_whole_and_the_report_tells_the_story(evaluation: Evaluation, workspace: Path) -> None:
    Path("reports").mkdir()
    report_path, *figures = write_evaluation(evaluation, metrics=Path("metrics/evaluation.json"), reports=Path("reports"))
    assert json.loads(Path("metrics/evaluation.json").read_text()) == evaluation.metrics
    assert json.loads(Path("reports/samples.json").read_text()) == evaluation.samples
    for figure in figures:
        assert 5_000 < figure.stat().st_size < 200_000
        assert min(matplotlib.image.imread(figure).shape[:2]) > 300
    assert report_path == Path("reports/evaluation.md")
    report = report_path.read_text()
    assert headline(evaluation.metrics) in report
    assert all(f"({figure.name})" in report for figure in figures)
    assert all(as_markdown(text[name]) in report for text in evaluation.samples[:2] for name in ("prompt", "reference", "base", "trained"))
    assert as_markdown(SOURCE["attribution"]) in report
    assert "CC0" in report
    assert "Apache" in report
    assert "smoothing method1" in report
    assert f"| int4 | {100 * evaluation.metrics['serving']['cost_int4']:+.2f} % |" in report
    assert "loss_curve.png" not in report
    Path("reports/loss_curve.png").touch()
    write_evaluation(evaluation, metrics=Path("metrics/evaluation.json"), reports=Path("reports"))
    assert "(loss_curve.png)" in Path("reports/evaluation.md").read_text()
    assert sorted(path.name for path in workspace.rglob("*.*")) == [
        "before_and_after.png",
        "continuations.png",
        "evaluation.json",
        "evaluation.md",
        "loss_curve.png",
        "samples.json",
    ]


def test_the_report_and_pictures_are_the_same_bytes_for_the_same_numbers(evaluation: Evaluation, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_evaluation(evaluation, metrics=tmp_path / name / "evaluation.json", reports=tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_nothing_a_model_writes_becomes_markup(evaluation: Evaluation) -> None:
    nasty = "a | b\n\n# head <img src=x onerror=y> `code` [link](http://evil) **x** \\| $x$ \x1b[31m \u202e &amp;"
    shown = as_markdown(nasty)
    assert "\n" not in shown
    assert "<" not in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert shown.startswith("a \\| b # head \\&lt;img src=x")
    assert "\\\\\\|" in shown
    assert "http:" not in shown
    assert [as_markdown(text) for text in ("# a", "- a", "1. a", "a - 1.5")] == ["\\# a", "\\- a", "1\\. a", "a - 1.5"]
    row = evaluation.samples[0] | {"base": nasty}
    report = report_text(Evaluation(metrics=evaluation.metrics, samples=[row], sources={}, num_shown=1), has_loss_curve=False)
    (line,) = [line for line in report.splitlines() if "evil" in line]
    assert line.replace("\\|", "").count("|") == 4


def test_the_table_is_plain_where_there_is_no_terminal(evaluation: Evaluation, capsys: pytest.CaptureFixture[str]) -> None:
    print_table(evaluation.metrics)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["metric", "base", "trained", "change"]
    assert lines[1].startswith("bits per byte")
    assert f"{evaluation.metrics['base']['bits_per_byte']:.4f}" in lines[1]


def test_fewer_documents_than_prompts_are_used_and_counted(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_corpus(tmp_path / "corpus", {"test": [["one two three four five six seven eight nine ten", "short"]]})
    section = Evaluate(
        context=32,
        num_prompts=3,
        prompt_words=4,
        continuation_words=4,
        num_samples=1,
        num_shown=3,
        latency_prompt_tokens=100,
        latency_new_tokens=2,
        latency_repeats=1,
        precision="fp32",
    )
    evaluation = evaluate_models(section, **folders | {"corpus": corpus})
    assert evaluation.metrics["protocol"]["num_prompts"] == 1
    assert evaluation.metrics["protocol"]["num_prompts_asked"] == 3
    assert evaluation.metrics["unrelated"] == {}
    assert evaluation.num_shown == 1
    assert "only 1 of 2" in capsys.readouterr().err
    write_evaluation(evaluation, metrics=tmp_path / "evaluation.json", reports=tmp_path)


def test_what_cannot_be_evaluated_is_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    def evaluate(**changes: Any) -> None:
        values: dict[str, Any] = {"num_prompts": 1, "num_shown": 1, "precision": "fp32"} | changes
        places = {name: values.pop(name, folder) for name, folder in folders.items()}
        evaluate_models(Evaluate(**values), **places)

    with pytest.raises(ProsemillError, match=r"`evaluate.context`: 257 tokens are needed but .* sees 256"):
        evaluate(context=257, prompt_words=2, continuation_words=2)
    corpus = write_corpus(tmp_path / "long", {"test": [["word " * 600]]})
    with pytest.raises(ProsemillError, match=r"`evaluate.prompt_words`"):
        evaluate(context=8, corpus=corpus, prompt_words=400, continuation_words=100)
    with pytest.raises(ProsemillError, match=r"`evaluate.latency_prompt_tokens`"):
        evaluate(context=8, prompt_words=2, continuation_words=2, latency_prompt_tokens=250)
    with pytest.raises(ProsemillError, match=r"has no tokenizer\.json"):
        evaluate(prompt_words=2, continuation_words=2, trained=tmp_path)
    for number, change in enumerate([_fewer_merges, _swapped_ids]):
        other = _with_another_tokenizer(folders["base"], tmp_path / f"other {number}", change)
        with pytest.raises(ProsemillError, match=r"the tokenizers of .* differ"):
            evaluate(prompt_words=2, continuation_words=2, trained=other)


def test_the_stage_reads_its_section_and_writes_its_files(
    folders: dict[str, Path], workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folders["corpus"], "data/corpus")
    shutil.copytree(folders["tokens"], "data/tokens")
    Path("models").mkdir()
    for name in ("base", "trained"):
        (workspace / "models" / name).symlink_to(folders[name])
    Path("params.yaml").write_text(
        "evaluate: {context: 16, max_documents: 3, num_prompts: 2, prompt_words: 4, continuation_words: 4, num_samples: 1, "
        "num_shown: 1, latency_prompt_tokens: 4, latency_new_tokens: 2, latency_repeats: 1, precision: fp32}"
    )
    tracked: list[Any] = []
    monkeypatch.setattr(stages.evaluate, "track_evaluation", lambda *arguments, **_: tracked.append(arguments))
    stages.evaluate.main()
    metrics = json.loads(Path("metrics/evaluation.json").read_text())
    assert metrics["data"]["num_documents"] == 3
    assert "bits per byte" in capsys.readouterr().out
    ((tracked_metrics, samples, files),) = tracked
    assert tracked_metrics == metrics
    assert len(samples) == 2
    assert all(file.is_file() for file in files)


def _with_another_tokenizer(model: Path, folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    shutil.copytree(model, folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"model": change(content["model"])}))
    return folder


def _fewer_merges(model: dict[str, Any]) -> dict[str, Any]:
    return model | {"merges": model["merges"][:-50]}


def _swapped_ids(model: dict[str, Any]) -> dict[str, Any]:
    """Swap bytes that no UTF-8 text has: the texts' ids stay the same, but not what the ids mean."""
    vocabulary = model["vocab"]
    return model | {"vocab": vocabulary | {"þ": vocabulary["ÿ"], "ÿ": vocabulary["þ"]}}
