"""What people send stays with them: a prompt and a key are in no log, metric or trace of the real service, whatever becomes of the request.

The service runs as users start it, with keys in a file, with traces on, and under the spy that lets nothing in it call anybody outside.
"""

import json
import os
import pickle
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.serving.real import RealService, real_service
from tests.serving.visit import Visit
from tests.test_telemetry import SPY
from tests.waiting import LIMIT, until

PROMPT, KEY = "canaryprompt", "canarykey-of-some-length"
JSON = {"Content-Type": "application/json"}
ALLOWED = {"Authorization": f"Bearer {KEY}"}
TRACING = {"exporter_type": "otlp", "sample_rate": "1.0", "otlp.protocol": "http", "otlp.endpoint": "http://127.0.0.1:{port}/v1/traces"}
OPTIONS = " ".join(f"services.tracing.{name}={value}" for name, value in TRACING.items())


class Collector(ThreadingHTTPServer):
    """Takes traces, as a tracing server does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Taking)
        self.taken: list[bytes] = []


class Taking(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.taken.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@dataclass(frozen=True)
class Watched:
    """The service, and all that it tells others."""

    service: RealService
    collector: Collector
    report: Path
    """Of the spy."""
    answers: list[requests.Response] = field(default_factory=list)

    def ask(self, path: str = "/generate", method: str = "POST", **given: Any) -> int:
        """Send a request with a key, or with the headers that are given; its status."""
        given = {"headers": ALLOWED} | given
        self.answers.append(requests.request(method, self.service.url + path, timeout=LIMIT, **given))
        return self.answers[-1].status_code

    @property
    def told(self) -> str:
        """What it has printed, its numbers, and what its traces say."""
        metrics = requests.get(f"{self.service.url}/metrics", headers=ALLOWED, timeout=LIMIT).text
        return self.service.log.read_text() + metrics + b"".join(self.collector.taken).decode("latin-1")


@pytest.fixture(scope="module")
def watched(champion: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    (folder / "sitecustomize.py").write_text(SPY)
    (folder / "keys").write_text(f"{KEY}\n")
    with Collector() as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        given = {"PYTHONPATH": str(folder), "SPY_REPORT": str(folder / "report"), "OTEL_BSP_SCHEDULE_DELAY": "100"}
        given |= {"GRADIO_TEMP_DIR": str(folder / "gradio")}
        given |= {"PROSEMILL_API_KEYS_FILE": str(folder / "keys"), "BENTOML_CONFIG_OPTIONS": OPTIONS.format(port=collector.server_port)}
        with real_service(champion, folder / "log", **given) as service:
            yield Watched(service, collector, folder / "report")
        collector.shutdown()


def test_a_prompt_and_a_key_are_told_to_nobody(watched: Watched) -> None:
    long = {"prompt": PROMPT, "max_new_tokens": 20}
    for path in ("/generate", "/generate/stream"):
        assert watched.ask(path, json=long | {"stop": [PROMPT]}) == 200
        assert watched.ask(path, json=long | {PROMPT: PROMPT}) == 400
        assert watched.ask(path, json=long | {"temperature": PROMPT}) == 400
        assert watched.ask(path, json={"prompt": PROMPT * 3000}) == 400
        assert watched.ask(path, data=f'{{"prompt": "{PROMPT}', headers=ALLOWED | JSON) == 400
    assert watched.ask(f"/score?key={KEY}&prompt=%20{PROMPT}", json={"text": PROMPT}) == 200
    assert watched.ask("/v1/completions", json={"model": PROMPT, "prompt": PROMPT}) == 404
    assert watched.ask("/v1/completions", json={"model": "prosemill", "prompt": PROMPT, "user": PROMPT}) == 200
    assert watched.ask(json={"prompt": PROMPT + " " * 1_000_000}) == 413
    assert watched.ask(data=PROMPT, headers=ALLOWED | {"Content-Type": "text/plain"}) == 415
    assert watched.ask(json=long, headers={"Authorization": f"Bearer {KEY}x"}) == 401
    assert watched.ask(json=long, headers={"Authorization": f"Basic {KEY}"}) == 401
    visit = Visit(watched.service.url, headers=ALLOWED)
    assert "answer-v" in visit.generate(PROMPT).note()
    assert "temperature: " in visit.generate(PROMPT, temperature=PROMPT).note()
    assert "seed: " in visit.generate(PROMPT, seed=PROMPT).note()
    assert visit.join(PROMPT, fn_index=PROMPT).status_code == 400
    assert watched.ask(f"/ui/gradio_api/queue/data?session_hash={PROMPT}", "GET") == 404
    assert watched.ask(f"/ui?{PROMPT}", "GET") == 200
    assert watched.ask("/the-last", "GET") == 404
    until(lambda: b"/the-last" in b"".join(watched.collector.taken), "all have their traces")
    told = watched.told
    assert "POST /generate/stream" in told
    assert "http send" not in told, "a span of each event"
    assert '"path": "/generate", "status": 200' in told
    assert "prosemill_new_tokens_total" in told
    assert PROMPT not in told
    assert KEY not in told


@pytest.mark.parametrize("path", ["/metrics", "/v1/models", "/openapi.json", "/ui", "/livez"])
def test_every_route_but_health_needs_a_key(watched: Watched, path: str) -> None:
    given: tuple[dict[str, str], ...] = ({}, {"Authorization": f"Bearer {KEY}x"}, ALLOWED)
    statuses = [watched.ask(path, "GET", headers=headers) for headers in given]
    assert statuses == ([200, 200, 200] if path == "/livez" else [401, 401, 200])


def test_a_line_break_in_a_path_makes_no_line_of_its_own(watched: Watched) -> None:
    forged = '{"time": "now", "method": "GET", "path": "/forged", "status": 200, "seconds": 0}'
    assert watched.ask(f"/%0a%0d%e2%80%a8{forged}%0a", "GET") == 404
    assert watched.ask(f"/%0a{forged}%0a", "GET", headers={}) == 401
    until(lambda: watched.service.log.read_text().count("/forged") == 2, "both are in the log, which is written after the answer")
    lines = watched.service.log.read_text().splitlines()
    assert sum("/forged" in line for line in lines) == 2
    assert not [line for line in lines if line.startswith(forged[:20])]
    for line in lines:
        assert not line.startswith("{") or set(json.loads(line)) == {"time", "method", "path", "status", "seconds"}


@pytest.mark.parametrize("place", ["/etc/hostname", "{fifo}", "http://192.0.2.1/x", "http://example.invalid/x"])
@pytest.mark.parametrize("name", ["path", "url"])
def test_a_value_of_the_page_that_looks_like_a_file_is_neither_read_nor_fetched(
    watched: Watched, name: str, place: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")  # who opens it waits for ever
    place = place.format(fifo=tmp_path / "fifo")
    visit = Visit(watched.service.url, headers=ALLOWED)
    looks_like_a_file = {"path": place, name: place, "orig_name": PROMPT, "meta": {"_type": "gradio.FileData"}}
    for value in (looks_like_a_file, [looks_like_a_file], {"value": looks_like_a_file}):
        watched.answers.append(visit.join(False, value, 12, 0, 0.9, 50, 1.0, "1"))
        assert watched.answers[-1].status_code == 400
    watched.answers.append(visit.join(fn_index=0, data=[], event_data=looks_like_a_file, oauth_token=PROMPT, trigger_id=looks_like_a_file))
    assert watched.answers[-1].status_code == 200
    assert requests.get(f"{watched.service.url}/livez", timeout=LIMIT).ok
    assert not [path for path in (watched.report.parent / "gradio").rglob("*") if path.is_file()], "nothing was copied"
    assert not watched.report.exists(), "nobody was called"
    assert PROMPT not in watched.told


class Canary:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (str(self._path),)


@pytest.mark.parametrize("kind", ["application/vnd.bentoml+pickle", "application/octet-stream", "application/json"])
def test_a_pickle_is_not_loaded(watched: Watched, tmp_path: Path, kind: str) -> None:
    data = pickle.dumps(Canary(tmp_path / "canary"))
    for path in ("/generate", "/generate/stream", "/score", "/v1/completions"):
        headers = ALLOWED | {"Content-Type": kind, "Bento-Name": "prosemill", "Payload-Container": "DefaultContainer"}
        assert watched.ask(path, data=data, headers=headers) == (400 if kind == JSON["Content-Type"] else 415)
    assert not (tmp_path / "canary").exists()


def test_a_body_is_counted_whatever_length_it_tells(watched: Watched) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(2000):
            yield b" " * 1000

    with suppress(requests.ConnectionError):  # it answered and hung up before all was sent
        assert watched.ask(data=chunks(), headers=ALLOWED | JSON) == 413
    assert watched.ask(data=b"x", headers=ALLOWED | {"Content-Type": "multipart/form-data"}) == 415
    assert watched.ask(files={"prompt": b"x"}) == 415


@pytest.mark.parametrize("key", [bytes(range(0x80, 0xC0)), bytes(range(0xC0, 0x100)), b"\xc3\xa9" * 10], ids=repr)
def test_no_bytes_of_a_key_make_it_fail(watched: Watched, key: bytes) -> None:
    assert watched.ask("/metrics", "GET", headers={"Authorization": b"Bearer " + key}) == 401


def test_a_host_that_looks_like_a_path_opens_no_route(watched: Watched) -> None:
    for host in ("127.0.0.1/livez?", "x/readyz#", "127.0.0.1:3000/livez"):
        assert watched.ask("/metrics", "GET", headers={"Host": host}) in (400, 401)
        assert watched.ask(json={"prompt": "a"}, headers={"Host": host}) in (400, 401)
    for path in ("/livez/", "//livez", "/livez/../metrics", "/LIVEZ", "/livez%2f..%2fmetrics", "/docs.json", "/schema.json", "/"):
        assert watched.ask(path, "GET", headers={}) == 401


def test_the_rows_are_told_while_they_are_in_use(watched: Watched) -> None:
    body: dict[str, Any] = {"prompt": "a", "max_new_tokens": 4000, "temperature": 0, "n": 2}
    with requests.post(f"{watched.service.url}/generate/stream", json=body, headers=ALLOWED, stream=True, timeout=LIMIT) as stream:
        pieces = stream.iter_content()  # which closes the connection when it is forgotten
        next(pieces)
        until(lambda: "prosemill_rows_in_use 2.0" in watched.told, "two are in use")
    until(lambda: "prosemill_rows_in_use 0.0" in watched.told, "none is in use")


def test_every_refusal_had_the_one_shape_and_nobody_outside_was_called(watched: Watched) -> None:
    assert len(watched.answers) > 40
    for answer in watched.answers:
        if answer.status_code != 200 and answer.text != "Invalid HTTP request received.":  # what uvicorn cannot read at all
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert not re.search("Traceback|Error", watched.service.log.read_text())
    assert not watched.report.exists(), watched.report.read_text()
