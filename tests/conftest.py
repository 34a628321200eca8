"""What every test may use: tiny random models with their own tokenizer, and real text that is on every machine. No network."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1"}
os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING", "TOKENIZERS_PARALLELISM": "false"}
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # as `prosemill up` has it: seven processes that nothing here needs
# Tiny models gain nothing from a second thread, and two tests side by side lose half their time to threads that wait for a core.
os.environ["OMP_NUM_THREADS"] = "1"

import gc
import json
import pydoc_data.topics
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

from prosemill.end_of_text import END_OF_TEXT
from prosemill.locks import alone
from prosemill.shards import num_workers
from tests.wikitext_files import SAMPLE, WikiText, needs_sample, write_wikitext

# A shell starts what it runs in the background (`make test &`) deaf to Ctrl-C, and every program below would be deaf as well.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARING = {f"tests/registry/test_{name}.py": "the servers" for name in ("gate", "lineage", "packaging", "promotion", "registering")}
"""Files whose tests share what takes long to make, by what they share: one process has to run them."""


class SharingFiles(LoadFileScheduling):  # type: ignore[misc]
    """Gives each process whole files of tests, whose fixtures they share, and what shares more together."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return SHARING.get(file, file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> SharingFiles:
    """How `pytest --numprocesses` shares out the tests."""
    config.option.loadscopereorder = False
    return SharingFiles(config, log)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process more than there are processors: a third of the time goes into waiting for servers and other programs."""
    return num_workers() + 1


LONGEST = ("tests/end_to_end/test_flows", "tests/registry/", "tests/training/test_processes", "tests/end_to_end/")
"""Beginnings of what takes longest: first what makes the finished workspace, then what needs none, so that no process waits for it."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Processes begin with what takes longest, or one would be left with it at the end; one alone begins with what fails soonest."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}

    def rank(item: pytest.Item) -> int:
        return next((rank for name, rank in ranks.items() if item.nodeid.startswith(name)), len(ranks))

    items.sort(key=rank, reverse=not hasattr(config, "workerinput"))


def pytest_collection_finish() -> None:
    """Leave what the imports made out of garbage collections, which would go over a million objects each time."""
    gc.freeze()


def make_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first process of the run to ask for it makes, while the others wait. Everybody reads it, nobody changes it."""
    root = tmp_path_factory.getbasetemp()
    shared = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "once"
    shared.mkdir(exist_ok=True)
    folder, done = shared / name, shared / f"{name}.done"

    with alone(shared / f"{name}.lock", f"making of {name}", wait=True):
        if not done.exists():
            # What a process that failed has left is no beginning for the next one.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()

    return folder


@pytest.fixture(scope="session")
def prose() -> list[str]:
    """Some 80 documents of English prose: the help topics of the Python that runs the tests."""
    return [text.strip() for _, text in sorted(pydoc_data.topics.topics.items())]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, prose: list[str]) -> Path:
    """A model folder: a random LLaMA of two layers with a byte-level BPE tokenizer of 1,024 tokens."""
    return make_once(tmp_path_factory, "tiny-model", lambda folder: write_tiny_model(folder, prose))


def write_tiny_model(folder: Path, prose: list[str]) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1024, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(prose, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="session")
def tracking_store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> dict[str, str]:
    """Environment of one tracking store for all runs: making a new one takes longer than training the tiny model."""
    store = tmp_path_factory.mktemp("tracking") / "mlflow.db"
    shutil.copyfile(empty_store, store)
    address = f"sqlite:///{store}"
    return {"MLFLOW_TRACKING_URI": address, "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false"}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking database with its tables and nothing in them, to be copied: making one takes seconds."""

    def make(folder: Path) -> None:
        import mlflow

        mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()

    return make_once(tmp_path_factory, "empty-store", make) / "mlflow.db"


@pytest.fixture(scope="session", params=[pytest.param("official", marks=needs_sample), "written"])
def wikitext(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, prose: list[str]) -> WikiText:
    """A file in WikiText's format: the official one of sixty articles, and one of eight that is always there."""
    if request.param == "official":
        return WikiText(SAMPLE, 60)
    return write_wikitext(tmp_path_factory.mktemp("wikitext") / "wiki.valid.tokens", [text[:1500] for text in prose[:8]])


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables of the environment for a while."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one while the test runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_json_lines(path: Path, rows: list[dict[str, object]]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
