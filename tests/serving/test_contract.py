"""Whatever is sent to the service, valid or not, it keeps to its OpenAPI document, and none of it is a failure of the service.

`make soak CAMPAIGNS=serving/contract` tries a thousand requests on each route that takes anything, where `make test` tries some.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests import campaigns
from tests.campaigns import repeats
from tests.serving.real import RealService, real_service
from tests.waiting import LIMIT

NUM_CASES = repeats(few=60, many=1000)
TAKING = ("/generate", "/generate/stream", "/score", "/v1/completions")
GIVING = ("/v1/models", "/livez", "/readyz", "/metrics")
PAGE = ("/ui", "/ui/config", "/ui/static/x", *(f"/ui/gradio_api/{name}" for name in ("queue/join", "queue/data", "cancel", "reset")))
UNSAID = re.compile(r"prompt has \d+ tokens|prompt of \d+ tokens and \d+ new ones|text is \d+ tokens|not both|makes no tokens")
"""What no schema can say of a body: how many tokens a text is."""
BROKEN_OFF = re.compile(r'^(event: error$|data: \{"error":)', re.MULTILINE)
"""In a stream that began as an answer."""
trying = settings(max_examples=NUM_CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def service(champion: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealService]:
    """The real service, which ends every answer soon."""
    with real_service(champion, tmp_path_factory.mktemp("contract") / "log", PROSEMILL_DEADLINE="0.05") as service:
        yield service


@pytest.fixture(scope="module")
def patient(champion: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealService]:
    """One with the usual deadline, at which a score is refused instead of ended: a machine that pauses must not be what refuses it."""
    with real_service(champion, tmp_path_factory.mktemp("patient") / "log") as service:
        yield service


@pytest.fixture(scope="module")
def document(service: RealService) -> Any:
    load_all_checks()
    return schemathesis.openapi.from_url(f"{service.url}/openapi.json")


def test_the_document_names_every_route_and_nothing_that_is_not_so(document: Any) -> None:
    paths = document.raw_schema["paths"]
    assert {path for path, routes in paths.items() if list(routes) == ["post"]} == set(TAKING)
    assert {path for path, routes in paths.items() if list(routes) == ["get"]} == set(GIVING) == set(paths) - set(TAKING)
    for path in TAKING:
        statuses = set(paths[path]["post"]["responses"])
        assert statuses >= {"200", "400", "401", "403", "413", "415", "429", "500", "503", "4XX"}
        assert "422" not in statuses
    told = json.dumps(document.raw_schema)
    assert "HTTPValidationError" not in told
    assert not re.search(r'"format": "(binary|byte|uri|url)"', told), "no file and no address is asked for"


@pytest.mark.parametrize("path", TAKING)
def test_no_body_makes_it_fail(document: Any, patient: RealService, path: str) -> None:
    operation, session, statuses = document[path]["POST"], requests.Session(), Counter[int]()
    modes = [operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode]

    @seed(campaigns.seed())
    @trying
    @given(case=st.one_of(modes))
    def try_one(case: Any) -> None:
        answer = case.call(session=session, base_url=patient.url if path == "/score" else None)
        statuses[answer.status_code] += 1
        assert answer.status_code < 500, answer.text
        is_unsaid = answer.status_code == 400 and UNSAID.search(answer.text)
        case.validate_response(answer, excluded_checks=[positive_data_acceptance] if is_unsaid else [])
        check_shape(answer)

    try_one()
    assert statuses[200] > NUM_CASES / 20 < statuses[400], statuses


@pytest.mark.parametrize("path", GIVING)
def test_what_takes_nothing_gives_what_the_document_says(document: Any, path: str) -> None:
    case = document[path]["GET"].Case()
    case.call_and_validate()


def check_shape(answer: Any) -> None:
    """What is refused is refused in the one shape, in one line, and not after it was granted."""
    assert not BROKEN_OFF.search(answer.text), answer.text
    if answer.status_code >= 300:
        error = json.loads(answer.content)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == answer.status_code
        assert error["message"]
        assert "\n" not in error["message"]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("prompt", "text", "model", "n", "stop", "seed", "temperature", "top_p", "max_new_tokens", "timeout", "stream", "stream_options")
PAGE_FIELDS = ("data", "fn_index", "session_hash", "event_id")
named = st.sampled_from(FIELDS + PAGE_FIELDS)
bodies = st.one_of(
    st.binary(max_size=200),
    anything.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(named, anything).map(lambda body: json.dumps({"prompt": "a", "model": "prosemill"} | body).encode()),
)


@seed(campaigns.seed())
@trying
@given(
    path=st.sampled_from((*TAKING, *GIVING, *PAGE, "/openapi.json", "/", "/nowhere%00%0a")),
    method=st.sampled_from(("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE")),
    body=bodies,
    kind=st.sampled_from(("application/json",) * 5 + ("application/json; charset=utf-16", "text/plain", "multipart/form-data", "")),
    query=st.text(st.characters(codec="utf-8"), max_size=20),
)
def test_no_bytes_at_all_make_it_fail(service: RealService, path: str, method: str, body: bytes, kind: str, query: str) -> None:
    answer = requests.request(method, service.url + path, params=query, data=body, headers={"Content-Type": kind}, timeout=LIMIT)
    assert answer.status_code < 500, answer.text
    if method != "HEAD":
        check_shape(answer)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", None], ids=str)
@pytest.mark.parametrize("path", [*TAKING, *GIVING, "/openapi.json", "/ui/"])
def test_no_browser_is_told_to_show_an_answer_to_another_page(service: RealService, path: str, origin: str | None) -> None:
    given = {"Origin": origin or service.url, "Content-Type": "application/json"}
    asked = given | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    for method, headers in (("OPTIONS", asked), ("POST", given), ("GET", given)):
        answer = requests.request(method, service.url + path, json={"prompt": "a"}, headers=headers, timeout=LIMIT)
        assert answer.headers.get("Access-Control-Allow-Origin") in (None, service.url)  # which Gradio's page grants itself


BREAKING = (b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}", b'{"prompt": "a", "\\ud800\\n": 1}', b'{"temperature": 1e999}')


@pytest.mark.parametrize("path", TAKING)
@pytest.mark.parametrize("body", BREAKING, ids=("deep", "long", "half", "infinite"))
def test_json_that_breaks_parsers_is_refused(service: RealService, path: str, body: bytes) -> None:
    answer = requests.post(service.url + path, data=body, headers={"Content-Type": "application/json"}, timeout=LIMIT)
    assert answer.status_code == 400
    check_shape(answer)
