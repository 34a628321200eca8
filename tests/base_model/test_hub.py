"""A model of the hub or of a local folder: safetensors, known files and known families alone."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from prosemill.base_model import build_base_model
from prosemill.errors import TRY_AGAIN, ProsemillError
from prosemill.families import families
from prosemill.params import HubModel
from prosemill.pretrained import load_model, load_tokenizer
from tests.base_model.conftest import download
from tests.models import write_model
from tests.waiting import LIMIT

OUTPUT = Path("models/base")
REVISION = "0123456789abcdef0123456789abcdef01234567"
PICKLED = b"a pickle"


@pytest.fixture
def folder(workspace: Path, tiny_model: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    return shutil.copytree(tiny_model, workspace / "upstream")


def build(repository: Path | str, revision: str | None = None) -> dict[str, object]:
    model = HubModel(source="hub", name="model", repository=str(repository), revision=revision, license="MIT", attribution="somebody")
    return build_base_model(download(model), Path("data/corpus"), OUTPUT)  # type: ignore[arg-type]


def refused(repository: Path | str, match: str, revision: str | None = None) -> None:
    """Nothing is built, and the reason is one line."""
    with pytest.raises(ProsemillError, match=match) as caught:
        build(repository, revision)
    assert "\n" not in str(caught.value)
    assert not OUTPUT.exists()


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_local_folder_keeps_its_logits_and_its_tokens(folder: Path, prose: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    metrics = build("upstream")
    assert capfd.readouterr().err == "reading the model upstream\n"
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        assert torch.equal(load_model(OUTPUT)(input_ids=ids).logits, load_model(folder)(input_ids=ids).logits)
    text = " ".join(prose[:5])
    assert load_tokenizer(OUTPUT).encode(text) == load_tokenizer(folder).encode(text)
    assert (metrics["family"], metrics["vocabulary_size"], metrics["context_size"]) == ("llama", 1024, 256)
    assert json.loads((OUTPUT / "SOURCE.json").read_text()) == {
        "attribution": "somebody",
        "license": "MIT",
        "name": "model",
        "repository": "upstream",
        "revision": "a local folder",
        "source": "hub",
    }


@pytest.mark.parametrize("family", list(families()))
def test_every_family_comes_from_a_folder_of_the_hubs_format(folder: Path, family: str) -> None:
    model = write_model(folder, family, folder, context_size=64)
    metrics = build(folder)
    assert (metrics["family"], metrics["context_size"]) == (family, None if family == "t5" else 64)
    built = load_model(OUTPUT)
    batch = families()[family].frame([[5, 6, 7, 8]], list(families()[family].windows(0, 4, 8, 8)), model.config, 0)
    del batch["labels"]
    assert torch.equal(built(**batch).logits, model(**batch).logits)


def test_an_encoder_alone_is_refused_as_such(folder: Path) -> None:
    change(folder / "config.json", architectures=["BertForMaskedLM"], model_type="bert")
    refused(folder, f"upstream is an encoder alone, which writes no text: choose a model of {', '.join(families())}")


def test_the_weights_keep_their_dtype(folder: Path) -> None:
    load_model(folder, torch.bfloat16).save_pretrained(folder)
    assert build(folder)["dtype"] == "bfloat16"
    assert json.loads((OUTPUT / "config.json").read_text())["dtype"] == "bfloat16"


def test_sharded_weights_become_one_file(folder: Path) -> None:
    model = load_model(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    build(folder)
    assert [path.name for path in OUTPUT.glob("*.safetensors*")] == ["model.safetensors"]
    assert all(torch.equal(left, right) for left, right in zip(load_model(OUTPUT).parameters(), model.parameters(), strict=True))
    missing = sorted(folder.glob("model-*.safetensors"))[1]
    missing.unlink()
    shutil.rmtree(OUTPUT)
    refused(folder, f"lacks {missing.name}, which model.safetensors.index.json names")
    (folder / "model.safetensors.index.json").unlink()
    refused(folder, r"has weights in several files, but no model\.safetensors\.index\.json: fetch it again, whole$")


def test_what_is_not_known_has_no_say(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (folder / "modeling_tiny.py").write_text(f"open({str(canary)!r}, 'w')")
    (folder / "pytorch_model.bin").write_bytes(PICKLED)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somewhere/else", "peft_type": "LORA"}')
    build(folder)
    assert not canary.exists()
    assert not {"modeling_tiny.py", "pytorch_model.bin", "adapter_config.json"} & {path.name for path in OUTPUT.iterdir()}


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_of_its_own_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    (folder / "tiny.py").write_text(f"open({str(canary)!r}, 'w')")
    auto_map = {"AutoConfig": "tiny.A", "AutoModelForCausalLM": "tiny.B", "AutoTokenizer": ["tiny.C", None]}
    change(folder / name, auto_map=auto_map, model_type="tiny")
    refused(folder, rf"upstream/{name} names code of its own \(auto_map\)")
    assert not canary.exists()


def test_pickled_weights_are_named_and_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(PICKLED)
    refused(folder, "upstream has no model.safetensors, only pytorch_model.bin: convert it")


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, "has no model.safetensors, and no other weights")


def test_a_missing_config_is_named(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, "upstream has no config.json")


@pytest.mark.parametrize("content", ["{", "5", "[1]", "[" * 100_000])
def test_a_broken_config_is_named(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    refused(folder, r"config\.json.*(is not JSON|is not a JSON object)")


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_a_cut_file_is_refused(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    refused(folder, "upstream cannot be loaded")


def test_a_missing_tokenizer_is_refused(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    refused(folder, r"upstream lacks its tokenizer .*tokenizer\.json")


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    change(folder / "config.json", num_hidden_layers=3, layer_types=None)
    refused(folder, r"lacks \d+ of its weights \(model\.layers\.2\.")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"model_type": "bert"}, f"is of the family 'bert', which is not supported: choose a model of {', '.join(families())}"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "is quantised"),
        ({"vocab_size": 512}, "upstream (lacks|cannot be loaded)"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused(folder: Path, values: dict[str, object], match: str) -> None:
    change(folder / "config.json", **values)
    refused(folder, match)


def test_a_tokenizer_larger_than_the_model_is_refused(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(folder)
    refused(folder, "has 1024 embeddings for a vocabulary of 1025")


def test_a_link_that_leads_out_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").rename(tmp_path / "outside.json")
    (folder / "config.json").symlink_to(tmp_path / "outside.json")
    refused(folder, "is a link to .*outside.json, outside")


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(
    ("repository", "match"),
    [
        ("http://169.254.169.254/latest", "is no repository's name"),
        ("owner/../name", "is no repository's name"),
        ("owner/name/more", "is no repository's name"),
        ("./nowhere", "the folder ./nowhere does not exist"),
        ("/nowhere", "the folder /nowhere does not exist"),
    ],
)
def test_an_address_is_no_repository(repository: str, match: str) -> None:
    refused(repository, match, REVISION)


@pytest.mark.usefixtures("workspace")
def test_a_commit_must_be_pinned() -> None:
    refused("owner/name", "`download.model.revision` is missing: pin the model's commit")


@pytest.mark.usefixtures("workspace")
def test_no_network_is_one_line() -> None:
    refused("owner/name", "^no network: HF_HUB_OFFLINE is set, so model owner/name at 0123", REVISION)


class Hub(ThreadingHTTPServer):
    """A hub with one model, which writes down what it is asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = files
        self.asked: list[str] = []


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        prefix = f"/owner/name/resolve/{REVISION}/"
        path = self.path.partition("?")[0]
        if path == f"/api/models/owner/name/revision/{REVISION}":
            siblings = [{"rfilename": name} for name in self.server.files]
            self._send(json.dumps({"id": "owner/name", "sha": REVISION, "siblings": siblings}).encode())
        elif path == f"/api/models/owner/name/tree/{REVISION}":
            files = [{"type": "file", "path": name, "size": len(data), "oid": name} for name, data in self.server.files.items()]
            self._send(json.dumps(files).encode())
        elif path.startswith(prefix) and path.removeprefix(prefix) in self.server.files:
            name = path.removeprefix(prefix)
            self.server.asked.append(name)
            self._send(self.server.files[name], {"ETag": f'"{name}"', "X-Repo-Commit": REVISION})
        else:
            self.send_error(404)

    def _send(self, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    """A running hub that has the tiny model, and what must not be fetched."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with Hub({**files, "pytorch_model.bin": PICKLED, "modeling_tiny.py": b"raise SystemExit", "nested/model.safetensors": b""}) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


PROGRAM = f"""
from prosemill.base_model.hub import fetch_model
from prosemill.errors import run_main
from prosemill.params import HubModel
model = HubModel(source="hub", name="model", repository="owner/name", revision="{REVISION}")
run_main(lambda: print(fetch_model(model)))
"""


def run_online(endpoint: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    """The program in a process of its own, where huggingface_hub may use the network and finds its hub at `endpoint`."""
    here = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(Path.cwd() / "hub"), "HF_HUB_DISABLE_XET": "1"}
    environment = {**os.environ, **here, "PYTHONPATH": str(Path(__file__).parents[2]), "NO_PROXY": "127.0.0.1", **settings}
    return subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False, timeout=LIMIT)


def test_the_hub_is_asked_for_known_files_alone(hub: Hub, folder: Path) -> None:
    known = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    online = run_online(f"http://127.0.0.1:{hub.server_port}")
    assert (online.returncode, online.stderr) == (0, f"fetching owner/name at {REVISION[:8]}\n")
    assert set(hub.asked) == known
    fetched = Path(online.stdout.strip())
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == {name: (folder / name).read_bytes() for name in known}
    num_asked = len(hub.asked)
    offline = run_online(f"http://127.0.0.1:{hub.server_port}", HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stdout) == (0, online.stdout)
    assert len(hub.asked) == num_asked
    build(fetched)  # whose files are links into the cache
    assert load_model(OUTPUT).num_parameters() == load_model(folder).num_parameters()


def test_a_hub_model_without_safetensors_names_what_it_has(hub: Hub) -> None:
    hub.files.pop("model.safetensors")
    done = run_online(f"http://127.0.0.1:{hub.server_port}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "error: owner/name has no model.safetensors, only nested/model.safetensors, pytorch_model.bin"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("workspace")
def test_an_unreachable_hub_is_one_line() -> None:
    done = run_online("http://127.0.0.1:9")
    assert done.returncode == TRY_AGAIN
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: no network: http://127.0.0.1:9 cannot be reached for model owner/name at {REVISION}")
