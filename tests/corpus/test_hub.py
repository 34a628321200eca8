"""A dataset of the hub is fetched at its pinned commit from the one endpoint, and whatever goes wrong is one line."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from prosemill.corpus import build_corpus
from prosemill.errors import ProsemillError
from prosemill.hub import refuse_endpoint
from prosemill.params import HubCorpus
from prosemill.workspace import CORPUS
from tests.corpus.corpora import download, read_corpus, write_parquet, write_texts
from tests.waiting import LIMIT

REPOSITORY = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub(repository: str, **settings: Any) -> HubCorpus:
    return HubCorpus(source="hub", name="dataset", repository=repository, **settings)


def fails(corpus: HubCorpus, match: str) -> None:
    with pytest.raises(ProsemillError, match=match) as caught:
        build_corpus(download(corpus), CORPUS)
    assert "\n" not in str(caught.value)
    assert not CORPUS.exists()


def write_dataset(root: Path) -> None:
    write_parquet(root / "plain" / "train-00000-of-00002.parquet", {"text": ["a", "b"], "id": [0, 1], "stars": [1, 2]})
    write_parquet(root / "plain" / "train-00001-of-00002.parquet", {"text": ["c"], "id": [0], "stars": [3]})
    write_parquet(root / "plain" / "test-00000-of-00001.parquet", {"text": ["d"], "id": [0], "stars": [4]})
    write_parquet(root / "plain" / "validation-00000-of-00001.parquet", {"text": ["e"], "id": [0], "stars": [5]})
    write_parquet(root / "other" / "train-00000-of-00001.parquet", {"text": ["not this"]})
    write_texts(root, {"README.md": "a card", "plain/script.py": "print()"})


def check_dataset() -> None:
    found = {name: (built.text, built.label, built.split) for name, built in read_corpus(CORPUS).items()}
    assert found == {
        "plain/train-00000-of-00002.parquet#0": ("a", "1", "train"),
        "plain/train-00000-of-00002.parquet#1": ("b", "2", "train"),
        "plain/train-00001-of-00002.parquet#0": ("c", "3", "train"),
        "plain/test-00000-of-00001.parquet#0": ("d", "4", "test"),
        "plain/validation-00000-of-00001.parquet#0": ("e", "5", "validation"),
    }


def test_a_local_folder_of_the_hubs_layout_is_read_offline(workspace: Path) -> None:
    write_dataset(workspace / "dataset")
    build_corpus(download(hub("dataset", configuration="plain", label_key="stars", license="CC0-1.0")), CORPUS)
    check_dataset()
    source = json.loads((CORPUS / "SOURCE.json").read_text())
    assert (source["repository"], source["license"], source["num_files"]) == ("dataset", "CC0-1.0", 4)


def test_a_configuration_named_like_a_split_means_no_split(workspace: Path) -> None:
    write_parquet(workspace / "dataset" / "test" / "rows.parquet", {"text": [str(number) for number in range(50)]})
    metrics = build_corpus(download(hub("dataset", configuration="test")), CORPUS)
    assert metrics["train"]["num_documents"] > 40


def test_a_configuration_is_a_folder_and_not_a_pattern(workspace: Path) -> None:
    write_dataset(workspace / "dataset")
    remedy = "set `configuration` to one of other, plain"
    fails(hub("dataset", configuration="pl*"), rf"dataset has no Parquet file in its folder pl\*: {remedy}")
    fails(hub("dataset", configuration="../dataset/plain"), remedy)
    fails(hub("dataset"), rf"dataset has no Parquet file in its top folder: {remedy}")


def test_a_folder_without_parquet(workspace: Path) -> None:
    write_texts(workspace / "dataset", {"a.csv": "text"})
    fails(hub("dataset"), "only Parquet is read, choose another dataset")


def test_links_of_the_hubs_own_cache_are_read_and_others_refused(workspace: Path) -> None:
    cache = workspace / "datasets--me--it"
    snapshot = cache / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    write_parquet(cache / "blobs" / "1234", {"text": ["a"]})
    write_parquet(workspace / "secret.parquet", {"text": ["secret"]})
    (snapshot / "a.parquet").symlink_to("../../blobs/1234")
    assert build_corpus(download(hub(str(snapshot))), CORPUS)["num_documents"] == 1
    (snapshot / "b.parquet").symlink_to(workspace / "secret.parquet")
    with pytest.raises(ProsemillError, match=r"b\.parquet is a link to .*secret\.parquet, outside"):
        build_corpus(download(hub(str(snapshot))), CORPUS)


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(
    ("repository", "match"),
    [
        ("http://169.254.169.254/latest/meta-data", "is no repository's name; give owner/name"),
        ("https://example.org/me/it", "is no repository's name"),
        ("//169.254.169.254/x", "does not exist"),
        ("me/it/../../x", "is no repository's name"),
        ("me/..", "is no repository's name"),
        ("me/it?x", "is no repository's name"),
        ("me@host/it", "is no repository's name"),
        ("./nowhere", r"the folder \./nowhere does not exist"),
        ("/nowhere/at/all", "does not exist"),
    ],
)
def test_a_repository_is_a_name_and_never_an_address(repository: str, match: str) -> None:
    fails(hub(repository, revision=COMMIT), match)


@pytest.mark.usefixtures("workspace")
def test_the_commit_must_be_pinned_and_offline_is_said() -> None:
    fails(hub("me/it"), "`download.corpus.revision` is missing: pin the dataset's commit")
    fails(hub("me/it", revision=COMMIT), "no network: HF_HUB_OFFLINE is set")


@pytest.mark.usefixtures("workspace")
def test_a_link_local_endpoint_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://169.254.169.254")
    fails(hub("me/it", revision=COMMIT), "HF_ENDPOINT http://169.254.169.254 is the link-local address")


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://169.254.169.254",
        "https://169.254.1.1:8080/hub",
        "http://[fe80::1]",
        "http://[::ffff:169.254.169.254]",
        "http://2852039166",
        "http://0xa9fea9fe/",
        "file:///etc",
        "ftp://example.org",
        "huggingface.co",
        "http://",
    ],
)
def test_endpoints_that_no_hub_has(endpoint: str) -> None:
    with pytest.raises(ProsemillError, match="HF_ENDPOINT"):
        refuse_endpoint(endpoint)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:8080", "http://10.1.2.3/mirror", "https://no-such-name.invalid"])
def test_endpoints_that_a_mirror_may_have(endpoint: str) -> None:
    refuse_endpoint(endpoint)


@dataclass
class Hub:
    """A hub on the loopback address: what it serves, and which paths it was asked for."""

    files: dict[str, bytes]
    asked: list[str] = field(default_factory=list)
    address: str = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(path)
        repository = path.removeprefix("/api/datasets/").removeprefix("/datasets/").partition("/resolve/")[0].partition("/revision/")[0]
        errors = {"me/gone": (404, "RepoNotFound"), "me/gated": (403, "GatedRepo"), "me/other": (404, "RevisionNotFound")}
        if repository in errors:
            status, code = errors[repository]
            return status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}"
        if repository == "me/down":
            return 418, {}, b"{}"
        if path.startswith("/api/"):
            return 200, {"Content-Type": "application/json"}, self._listing(repository)
        name = path.partition(f"/resolve/{COMMIT}/")[2].partition("?")[0]
        if name not in self.files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        content = self.files[name]
        return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}, content

    def _listing(self, repository: str) -> bytes:
        def entry(name: str, content: bytes) -> dict[str, Any]:
            digest = hashlib.sha256(b"lie" if repository == "me/liar" else content).hexdigest()
            return {
                "rfilename": name,
                "size": len(content),
                "blobId": digest[:40],
                "lfs": {"sha256": digest, "size": len(content), "pointerSize": 130},
            }

        siblings = [entry(name, content) for name, content in self.files.items()]
        if repository == "me/climber":
            siblings.append(entry("plain/../../evil.parquet", b"x"))
        return json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings, "private": False, "downloads": 0, "tags": []}).encode()


@pytest.fixture
def server(workspace: Path) -> Iterator[Hub]:
    write_dataset(workspace / "origin")
    paths = [path for path in sorted((workspace / "origin").rglob("*")) if path.is_file()]
    served = Hub({path.relative_to(workspace / "origin").as_posix(): path.read_bytes() for path in paths})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, content = served.answer(self.path)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        served.address = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield served
        http.shutdown()
        thread.join()


BUILD = """
import sys
from prosemill.corpus import build_corpus
from prosemill.errors import ProsemillError
from prosemill.workspace import CORPUS
from tests.corpus.test_hub import COMMIT, download, hub
if __name__ == "__main__":
    for repository in sys.argv[1:]:
        try:
            build_corpus(download(hub(repository, revision=COMMIT, configuration="plain", label_key="stars")), CORPUS)
            print("built")
        except ProsemillError as error:
            print(error)
"""


def build_online(workspace: Path, address: str, *repositories: str) -> list[str]:
    """What each build says, in a process of its own: huggingface_hub reads its endpoint when it is imported."""
    (workspace / "main.py").write_text(BUILD)
    online = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(workspace / "home"), "NO_PROXY": "127.0.0.1"}
    environment = (
        os.environ | online | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    )
    command = [sys.executable, "main.py", *repositories]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_pinned_dataset_is_fetched_from_the_one_endpoint(workspace: Path, server: Hub) -> None:
    assert build_online(workspace, server.address, "me/it") == ["built"]
    check_dataset()
    source = json.loads((CORPUS / "SOURCE.json").read_text())
    assert (source["repository"], source["revision"]) == ("me/it", COMMIT)
    fetched = {path.partition(f"/resolve/{COMMIT}/")[2] for path in server.asked if "/resolve/" in path}
    assert fetched == {name for name in server.files if name.startswith("plain/") and name.endswith(".parquet")}


def test_what_the_hub_refuses_is_one_line(workspace: Path, server: Hub) -> None:
    repositories = ["me/gone", "me/gated", "me/other", "me/down", "me/liar", "me/climber"]
    gone, gated, other, down, liar, climber = build_online(workspace, server.address, *repositories)
    assert gone.startswith(f"dataset me/gone at {COMMIT} is not found at {server.address}")
    assert "me/gated" in gated
    assert "is gated: accept its terms" in gated
    assert "it has no such commit" in other
    assert f"{server.address} answers 418 for dataset me/down" in down
    assert "me/liar/plain/test-00000-of-00001.parquet has the SHA-256" in liar
    assert climber == "built"
    assert not any("evil" in path for path in server.asked)


def test_no_network_is_one_line(workspace: Path) -> None:
    (said,) = build_online(workspace, "http://127.0.0.1:9", "me/it")
    assert said.startswith("no network: http://127.0.0.1:9 cannot be reached for dataset me/it")
    assert "set `repository` to the folder" in said
