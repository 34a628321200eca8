"""BLEU and ROUGE equal values worked out by hand, in any script, from any folder, without a network."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prosemill.evaluation.overlap import load_module, overlap, resample_weights

REFERENCES = ["the cat sat on the mat", "a dog ran in the park today"]


def scores(predictions: list[str], references: list[str]) -> dict[str, float]:
    row = overlap([predictions], references, resamples=10, seed=0)
    return {name: row[name] for name in ("bleu", "rouge1", "rouge2", "rougeL")}


def test_the_same_text_scores_one_and_nothing_scores_zero() -> None:
    assert scores(REFERENCES, REFERENCES) == pytest.approx({"bleu": 1, "rouge1": 1, "rouge2": 1, "rougeL": 1})
    assert scores(["", ""], REFERENCES) == {"bleu": 0, "rouge1": 0, "rouge2": 0, "rougeL": 0}


def test_bleu_by_hand() -> None:
    # Matches / n-grams of "the cat sat on a mat": 5/6, 3/5, 2/4, 1/3; as long as the reference.
    expected = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert scores(["the cat sat on a mat"], REFERENCES[:1])["bleu"] == pytest.approx(expected)


def test_bleu_smooths_missing_matches_and_punishes_brevity() -> None:
    # "the cat": 2/2, 1/1, and of the longer n-grams there are none: method 1 puts 0.1 for the matches, nltk 1 for the n-grams.
    expected = math.exp(1 - 6 / 2) * (1 * 1 * 0.1 * 0.1) ** 0.25
    assert scores(["the cat"], REFERENCES[:1])["bleu"] == pytest.approx(expected)


def test_rouge_by_hand() -> None:
    # "on the mat the cat sat": all 6 words, 4 of 5 bigrams ("the cat", "cat sat", "on the", "the mat"), longest common subsequence 3.
    row = scores(["on the mat the cat sat"], REFERENCES[:1])
    assert row["rouge1"] == pytest.approx(1)
    assert row["rouge2"] == pytest.approx(4 / 5)
    assert row["rougeL"] == pytest.approx(3 / 6)


def test_rouge_is_the_mean_of_f_measures_of_unequal_lengths() -> None:
    # Precision 2/2, recall 2/6; and precision and recall 0.
    assert scores(["the cat", "x"], REFERENCES)["rouge1"] == pytest.approx((2 * 1 * (2 / 6) / (1 + 2 / 6) + 0) / 2)


@pytest.mark.parametrize("text", ["Москва является столицей России и городом", "中文维基百科条目的内容", "हिन्दी भाषा भारत की राजभाषा है"])
def test_other_scripts_score(text: str) -> None:
    assert min(scores([text], [text]).values()) == pytest.approx(1)


def test_sums_of_counts_give_what_the_module_gives() -> None:
    predictions = ["the cat sat on a mat", "the dog ran in a park"]
    module = load_module("bleu").compute(predictions=predictions, references=REFERENCES)
    assert scores(predictions, REFERENCES)["bleu"] == pytest.approx(module["bleu"])
    module = load_module("rouge").compute(predictions=predictions, references=REFERENCES)
    assert scores(predictions, REFERENCES)["rougeL"] == pytest.approx(module["rougeL"])


def test_several_sets_give_their_mean() -> None:
    one, other = ["the cat sat on a mat", "x"], ["the cat", "a dog ran"]
    both = overlap([one, other], REFERENCES, resamples=10, seed=0)
    assert both["bleu"] == pytest.approx((scores(one, REFERENCES)["bleu"] + scores(other, REFERENCES)["bleu"]) / 2)


def test_intervals_hold_their_point_and_depend_on_the_seed_alone() -> None:
    references = [f"{word} one two three four five six" for word in "abcdefghij"]
    predictions = [f"{word} one two three {'x ' * index}" for index, word in enumerate("abcdefghij")]
    first, again = (overlap([predictions], references, resamples=200, seed=3) for _ in range(2))
    assert first == again
    assert first != overlap([predictions], references, resamples=200, seed=4)
    for name in ("bleu", "rouge1", "rouge2", "rougeL"):
        low, high = first[f"{name}_ci95"]
        assert low < first[name] < high


def test_an_interval_is_what_resampling_the_texts_gives() -> None:
    references = ["a b c d e f", "g h i j k l", "m n o p q r"]
    predictions = ["a b c d e x", "g h x x k l", "x x x x x x"]
    points = []
    for weights in resample_weights(3, 50, seed=1).astype(int):
        rows = [index for index, times in enumerate(weights) for _ in range(times)]
        chosen = {"predictions": [predictions[row] for row in rows], "references": [references[row] for row in rows]}
        points.append(load_module("bleu").compute(**chosen)["bleu"])
    expected = np.quantile(points, [0.025, 0.975])
    assert overlap([predictions], references, resamples=50, seed=1)["bleu_ci95"] == pytest.approx(list(expected))


LOAD = """
import multiprocessing, socket, sys
from pathlib import Path
def refuse(*arguments, **options): raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
import evaluate
from prosemill.evaluation.overlap import overlap
def load(folder):
    evaluate.config.HF_MODULES_CACHE = folder
    assert overlap([["a b c d e"]], ["a b c d e"], resamples=3, seed=0)["bleu"] == 1.0
unwritable = evaluate.config.HF_MODULES_CACHE
start = multiprocessing.get_context("fork").Process
workers = [start(target=load, args=(folder,)) for folder in [Path("shared").absolute()] * 3 + [unwritable]]
for worker in workers: worker.start()
for worker in workers: worker.join()
sys.exit(str([worker.exitcode for worker in workers]))
"""


def test_modules_load_from_any_folder_without_network_in_parallel_and_with_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("a file, so that no folder can be made below it, not even by root")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    environment |= {"HOME": str(home), "HF_HOME": str(home / "huggingface"), "TMPDIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", LOAD], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.stderr.strip() == "[0, 0, 0, 0]"
    assert (tmp_path / "shared" / "evaluate_modules").is_dir()
