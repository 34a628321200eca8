"""The routes, asked over HTTP's own types, with a tiny model behind them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from starlette.testclient import TestClient

from prosemill.packaged import PackagedModel
from prosemill.serving.app import make_app
from prosemill.serving.champion import Champion


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> PackagedModel:
    model = PackagedModel()
    model.open(tiny_model)
    return model


@pytest.fixture(scope="module")
def client(model: PackagedModel) -> Iterator[TestClient]:
    app = make_app()
    app.state.champion = Champion(7, model)
    with TestClient(app) as client:
        yield client


def test_an_answer_is_the_packages_and_names_its_version(client: TestClient, model: PackagedModel) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.7, "top_p": 0.8, "seed": 3}
    answer = client.post("/generate", json={"prompt": "The history of"} | settings)
    assert answer.status_code == 200
    expected = model.predict(None, pd.DataFrame({"prompt": ["The history of"]}), settings)["generated_text"][0]
    assert answer.json() == {"generated_text": expected, "model_version": 7}


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({}, "prompt", "required"),
        ({"prompt": 3}, "prompt", "valid string"),
        ({"prompt": "a", "max_lenght": 3}, "max_lenght", "not permitted"),
        ({"prompt": "a", "max_new_tokens": -1}, "max_new_tokens", "greater than or equal to 1"),
        ({"prompt": "a", "max_new_tokens": "3"}, "max_new_tokens", "valid integer"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature", "finite"),
        ({"prompt": "a", "top_p": 0}, "top_p", "greater than 0"),
        ({"prompt": "a", "seed": 2**70}, "seed", "less than"),
        ({"prompt": "a", "max_new_tokens": 300}, None, "the model sees 256 at most"),
        ([], None, "body: "),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_that_names_the_field(client: TestClient, body: Any, param: str | None, words: str) -> None:
    answer = client.post("/generate", content=json.dumps(body), headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == 400, answer.text
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert words in error["message"]
    assert "\n" not in error["message"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"prompt": "\xff"}', b'{"prompt": "a\x00"}'], ids=repr)
def test_what_is_no_json_is_refused(client: TestClient, content: bytes) -> None:
    answer = client.post("/generate", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_another_path_or_method_has_the_same_shape(client: TestClient) -> None:
    for answer in (client.get("/nowhere"), client.get("/generate")):
        assert answer.status_code in (404, 405)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
