"""The experiments side by side: `prosemill compare`.

    experiments = read_experiments()
    print_comparison(experiments)

An experiment is what one command makes, such as `dvc exp run -S model=gpt2-mini`. Those compared are the workspace's own, DVC's (its
experiments are commits below `refs/exps`) and those kept in reports/comparison.json; of two with one command the later counts. Numbers of
models that predict in different directions, on different text or in windows of different size do not compare: each such group has a
table of its own.
"""

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from prosemill.errors import ProsemillError, first_line
from prosemill.evaluation.table import number_text
from prosemill.metrics import write_metrics
from prosemill.shards import write_durably
from prosemill.workspace import COMPARISON, EXPERIMENTS, LOCK, METRICS, PARAMS

FILES = (LOCK, METRICS / "download.json", METRICS / "train.json", METRICS / "evaluation.json")
KEPT = COMPARISON.with_suffix(".json")
NAMED_GROUPS = ("model", "corpus")

HEADER = [
    "model",
    "parameters",
    "trained",
    "bits per byte",
    "trigram",
    "token perplexity",
    "BLEU",
    "ROUGE-L",
    "ms/token",
    "training",
    "memory",
]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One row; pairs are of the base and of the trained model."""

    command: str
    """What makes it."""
    model: str
    corpus: str
    data_digest: str
    """Digest of the split that was scored."""
    scored: str
    """How much of it, and in which windows."""
    direction: str
    """What is predicted from what."""
    num_parameters: int
    num_trained_parameters: int
    bits_per_byte: tuple[float, float]
    trigram_bits_per_byte: float | None
    token_perplexity: tuple[float | None, float | None]
    bleu: tuple[float, float]
    rouge_l: tuple[float, float]
    time_per_token_ms: float
    """Of the trained model, on `device`."""
    train_seconds: float
    peak_memory_bytes: int
    device: str


def read_experiments() -> list[Experiment]:
    """All experiments that this workspace knows, the best of each group first.

    Raises:
        ProsemillError: there is none, or a file is broken.
    """
    found: dict[str, Experiment] = {}
    for experiment in (*kept_experiments(), *_of_dvc(), *_of_workspace()):
        found[experiment.command] = experiment
    if not found:
        raise ProsemillError("there is no evaluated experiment here: run `make run` or `dvc exp run -S model=gpt2-mini` first")
    return _ranked(found.values())


def print_comparison(experiments: Sequence[Experiment]) -> None:
    """Print a table for each group: drawn on a terminal, aligned plain lines otherwise."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160)
    for title, rows in _tables(experiments):
        table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False, box=None if not sys.stdout.isatty() else _box())
        for name in HEADER:
            table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
        for experiment in rows:
            table.add_row(*_cells(experiment))
        console.print(table, markup=False)
        console.print()
    for experiment in experiments:
        console.print(f"{experiment.model}: {experiment.command}", markup=False, highlight=False)


def write_comparison(experiments: Sequence[Experiment]) -> None:
    """Keep the experiments in reports/comparison.json, and show them in reports/comparison.md."""
    write_metrics(KEPT, {experiment.command: asdict(experiment) for experiment in experiments})
    write_durably(COMPARISON, "# Experiments side by side\n\n" + comparison_text(experiments) + "\n")


def comparison_text(experiments: Sequence[Experiment]) -> str:
    """The tables in Markdown, each row with its command."""
    parts = []
    for title, rows in _tables(experiments):
        header = [*HEADER, "command"]
        lines = [header, ["---" if name in ("model", "command") else "---:" for name in header]]
        lines += [[*_cells(experiment), f"`{experiment.command}`"] for experiment in rows]
        parts.append(f"{title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts)


def _tables(experiments: Iterable[Experiment]) -> Iterator[tuple[str, list[Experiment]]]:
    for (corpus, direction, scored, device, _), rows in groupby(_ranked(experiments), key=_group):
        yield f"{corpus}, {scored}, {direction}, base → trained, on {device}", list(rows)


def _ranked(experiments: Iterable[Experiment]) -> list[Experiment]:
    """Group by group, the best of each first."""
    return sorted(experiments, key=lambda experiment: (*_group(experiment), experiment.bits_per_byte[1]))


def _group(experiment: Experiment) -> tuple[str, str, str, str, str]:
    return experiment.corpus, experiment.direction, experiment.scored, experiment.device, experiment.data_digest


def _cells(experiment: Experiment) -> list[str]:
    all_trained = experiment.num_trained_parameters == experiment.num_parameters
    return [
        experiment.model,
        _count(experiment.num_parameters),
        "all" if all_trained else _count(experiment.num_trained_parameters),
        _pair(experiment.bits_per_byte, 4),
        number_text(experiment.trigram_bits_per_byte, 4),
        _pair(experiment.token_perplexity, 2),
        _pair(experiment.bleu, 4),
        _pair(experiment.rouge_l, 3),
        f"{experiment.time_per_token_ms:.1f}",
        f"{experiment.train_seconds / 60:.1f} min",
        f"{experiment.peak_memory_bytes / 1e9:.1f} GB",
    ]


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number < 1e9 else f"{number / 1e9:.2f} B"


def _pair(values: tuple[float | None, float | None], digits: int) -> str:
    return " → ".join(number_text(value, digits) for value in values)


def _box() -> Any:
    from rich import box

    return box.SIMPLE_HEAD


def kept_experiments() -> list[Experiment]:
    """Those of reports/comparison.json."""
    if not KEPT.is_file():
        return []
    rows = _parse(KEPT.read_text(encoding="utf-8", errors="replace"), KEPT, "the workspace").values()
    names = {field.name for field in fields(Experiment)}
    return [_from_plain(row) for row in rows if isinstance(row, dict) and set(row) == names]  # others are of another version's format


def _from_plain(row: dict[str, Any]) -> Experiment:
    pairs: dict[str, Any] = {name: tuple(value) for name, value in row.items() if isinstance(value, list)}
    return Experiment(**(row | pairs))


def _of_workspace() -> list[Experiment]:
    if not all(path.is_file() for path in FILES):
        return []
    return _experiment([path.read_text(encoding="utf-8", errors="replace") for path in FILES], "the workspace")


def _of_dvc() -> list[Experiment]:
    """DVC's experiments in the order in which they were made."""
    refs = _git("for-each-ref", "--sort=committerdate", "--format=%(objectname) %(refname)", "refs/exps")
    experiments: list[Experiment] = []
    for line in (refs or "").splitlines():
        commit, name = line.split(" ", 1)
        texts = [_git("show", f"{commit}:{path}") for path in FILES]
        if name.count("/") == 4 and all(texts):  # refs/exps/<first two digits>/<the rest>/<name>
            experiments += _experiment([text or "" for text in texts], name)
    return experiments


def _git(*arguments: str) -> str | None:
    try:
        finished = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return finished.stdout if finished.returncode == 0 else None


def _parse(text: str, path: Path, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ProsemillError(f"{path} of {where} is broken ({first_line(error)}): make it again") from None
    if not isinstance(values, dict):
        raise ProsemillError(f"{path} of {where} is broken (no names and values in it): make it again")
    return values


def _experiment(texts: Sequence[str], where: str) -> list[Experiment]:
    """The experiment of a state's dvc.lock and metrics; none if they are of an older format."""
    lock, download, train, evaluation = (_parse(text, path, where) for text, path in zip(texts, FILES, strict=True))

    def pair(name: str) -> tuple[Any, Any]:
        return evaluation["base"][name], evaluation["trained"][name]

    try:
        return [
            Experiment(
                command=command_of(_params_of(lock)),
                model=download["model"]["name"],
                corpus=download["corpus"]["name"],
                data_digest=evaluation["data"]["digest"],
                scored=_scored(evaluation),
                direction=evaluation["protocol"]["direction"],
                num_parameters=train["num_parameters"],
                num_trained_parameters=train["num_trained_parameters"],
                bits_per_byte=pair("bits_per_byte"),
                trigram_bits_per_byte=evaluation.get("trigram", {}).get("bits_per_byte"),
                token_perplexity=pair("token_perplexity"),
                bleu=pair("bleu"),
                rouge_l=pair("rougeL"),
                time_per_token_ms=evaluation["trained"]["time_per_token_ms"],
                train_seconds=train["train_seconds"],
                peak_memory_bytes=train["peak_memory_bytes"],
                device=evaluation["protocol"]["device"],
            )
        ]
    except KeyError:
        return []


def _params_of(lock: dict[str, Any]) -> dict[str, Any]:
    """The params that the stages last ran with: params.yaml may have been edited since."""
    return {name: section for stage in lock["stages"].values() for name, section in stage["params"][PARAMS.name].items()}


def _scored(evaluation: dict[str, Any]) -> str:
    data, protocol = evaluation["data"], evaluation["protocol"]
    detokenized = ", detokenised" if protocol["detokenize"] else ""
    return f"{data['num_documents']:,} {data['split']} documents{detokenized}, context {protocol['context']}"


def command_of(params: dict[str, Any]) -> str:
    """The command whose experiment has these params: the files of the groups that come nearest, and every value that still differs."""
    default = yaml.safe_load((EXPERIMENTS / "default.yaml").read_text(encoding="utf-8"))["defaults"]
    usual = {group: choice for entry in default if isinstance(entry, dict) for group, choice in entry.items()}
    named = {group: _file_named(group, params["download"][group].get("name")) for group in NAMED_GROUPS}
    chosen = [f"{group}={choice}" for group, choice in named.items() if choice is not None and choice != usual[group]]
    methods = sorted((path.stem for path in (EXPERIMENTS / "method").glob("*.yaml")), key=lambda method: method != usual["method"])
    candidates = [chosen + ([f"method={method}"] if method != usual["method"] else []) for method in methods]
    complete = [groups + _differences(_compose(groups), params) for groups in candidates]
    overrides = min(complete, key=lambda overrides: (len(overrides), sum(map(len, overrides))))
    return " ".join(["dvc exp run", *(f"-S {shlex.quote(override)}" for override in overrides)]) if overrides else "make run"


def _file_named(group: str, name: str | None) -> str | None:
    """The file of a group whose model or corpus has this name."""
    for path in sorted((EXPERIMENTS / group).glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if name is not None and content.get("download", {}).get(group, {}).get("name") == name:
            return path.stem
    return None


def _compose(overrides: list[str]) -> dict[str, Any]:
    """What `dvc exp run` with these overrides would write into params.yaml."""
    from dvc.utils.hydra import compose_and_dump

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PARAMS.name
        compose_and_dump(path, str(EXPERIMENTS.absolute()), None, "default", folder, overrides)
        values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values


def _differences(composed: dict[str, Any], params: dict[str, Any], prefix: str = "") -> list[str]:
    """What is to be overridden, in Hydra's words, for `composed` to become `params`."""
    overrides = []
    for key, value in params.items():
        before = composed.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            overrides += _differences(before, value, f"{prefix}{key}.")
        elif key not in composed:
            overrides.append(f"+{prefix}{key}={_in_hydra(value)}")
        elif before != value:
            overrides.append(f"{prefix}{key}={_in_hydra(value)}")
    return overrides


def _in_hydra(value: Any) -> str:
    """JSON, but that Hydra's keys are bare."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_in_hydra(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_in_hydra, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
