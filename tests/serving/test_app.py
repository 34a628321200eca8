"""The routes, asked over real HTTP, with a tiny model behind them."""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
import torch
from prometheus_client import generate_latest

from prosemill.evaluation.scoring import score_documents
from prosemill.families import families, family_of
from prosemill.generation.sampling import Settings
from prosemill.pretrained import added_text, load_model, load_tokenizer
from prosemill.registry.answers import version_of
from prosemill.serving.messages import CompletionAnswer
from tests.campaigns import repeats
from tests.models import write_model
from tests.serving.asking import GREEDY, LONG, PROMPT, ask, events, hold_steps, is_empty, leave, many_leave, slow_down
from tests.serving.conftest import VERSION, Served, serving
from tests.waiting import LIMIT, until

DRAWN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "seed": 1}
LONG_TEXT = {"text": "word " * 70}  # some pieces, as the engine reads it


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module", params=sorted(families()))
def of_family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[tuple[Served, Path]]:
    """A service of each family, and its model's folder."""
    folder = tmp_path_factory.mktemp(request.param)
    write_model(folder, request.param, tiny_model, context_size=64)
    with serving(folder) as served:
        yield served, folder


def test_greedy_text_is_what_transformers_generates(of_family: tuple[Served, Path]) -> None:
    served, folder = of_family
    tokenizer, model, family = load_tokenizer(folder), load_model(folder), family_of(folder)
    prompt = tokenizer.encode(PROMPT, add_special_tokens=False)
    batch = family.prompt([prompt], 0)
    output = model.generate(**batch, max_new_tokens=12, do_sample=False, pad_token_id=0)[0].tolist()  # type: ignore[operator]
    new = output[family.num_given(batch) :]
    answer = ask(served, GREEDY).json()
    assert answer["generated_text"] == added_text(tokenizer, prompt, [token for token in new if token])
    assert answer["usage"] == {
        "prompt_tokens": batch["input_ids"].shape[1],
        "completion_tokens": len(new),
        "total_tokens": batch["input_ids"].shape[1] + len(new),
    }


def test_a_texts_score_is_the_evaluations(of_family: tuple[Served, Path]) -> None:
    served, folder = of_family
    tokenizer, text = load_tokenizer(folder), "The history of the città begins, as it ends, with a river."
    tokens = tokenizer.encode(text, add_special_tokens=False)
    settings = {"end_of_text_id": 0, "context": 60, "stride": 60, "batch_size": 1, "device": torch.device("cpu")}
    expected = score_documents(load_model(folder), [tokens], **settings, arithmetic="fp32")  # type: ignore[arg-type]
    assert len(tokens) < 60
    answer = ask(served, {"text": text}, "/score").json()
    assert answer["num_tokens"] == expected.num_tokens
    assert answer["log_likelihood"] == pytest.approx(-expected.nll_sum, rel=1e-5)
    assert answer["bits_per_byte"] == pytest.approx(expected.nll_sum / math.log(2) / answer["num_bytes"], rel=1e-5)
    assert text.encode().endswith(text.encode()[-answer["num_bytes"] :])
    assert (answer["num_bytes"] == len(text.encode())) == (expected.num_tokens == len(tokens))
    assert version_of(answer["id"]) == VERSION


def test_a_score_does_not_disturb_what_is_being_written(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ask(served, LONG | {"seed": 3}).json()["generated_text"]
    slow_down(served, monkeypatch)
    with requests.post(f"{served.url}/generate/stream", json=LONG | {"seed": 3}, stream=True, timeout=LIMIT) as waiting:
        scores = [ask(served, {"text": "word " * number}, "/score").json()["log_likelihood"] for number in (1, 20, 60)]
        assert served.engine.num_running == 1
        *texts, _ = events(waiting)
    assert "".join(data["text"] for _, data in texts) == expected
    assert 0 > scores[0] > scores[1] > scores[2]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"text": "word " * 500}, "tokens, and the model sees 256 at most"),
        ({"text": ""}, "text: String should have at least 1 character"),
        ({"prompt": "a"}, "text: Field required"),
    ],
    ids=str,
)
def test_a_text_that_cannot_be_scored_is_a_mistake_in_one_line(served: Served, body: Any, words: str) -> None:
    answer = ask(served, body, "/score")
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_an_answer_says_where_it_is_from_and_what_it_took(served: Served) -> None:
    answer = ask(served, LONG | {"seed": 3}).json()
    assert set(answer) == {"id", "generated_text", "finish_reason", "model_version", "usage", "timings", "alternatives"}
    assert version_of(answer["id"]) == answer["model_version"] == VERSION
    assert answer["finish_reason"] in ("stop", "length")
    timings = answer["timings"]
    assert 0 <= timings["queue_seconds"] <= timings["first_token_seconds"] <= timings["seconds"]
    again = ask(served, LONG | {"seed": 3}).json()
    assert (again["generated_text"], again["usage"]) == (answer["generated_text"], answer["usage"])
    assert again["id"] != answer["id"]
    assert ask(served, LONG | {"seed": 4}).json()["generated_text"] != answer["generated_text"]


def test_n_answers_have_the_seeds_that_follow_each_other(served: Served) -> None:
    alone = [ask(served, LONG | {"seed": 3 + number}).json() for number in range(3)]
    answer = ask(served, LONG | {"seed": 3, "n": 3}).json()
    assert answer["generated_text"] == alone[0]["generated_text"]
    assert [each["generated_text"] for each in answer["alternatives"]] == [each["generated_text"] for each in alone[1:]]
    assert [each["finish_reason"] for each in answer["alternatives"]] == [each["finish_reason"] for each in alone[1:]]
    assert answer["usage"]["prompt_tokens"] == alone[0]["usage"]["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == sum(each["usage"]["completion_tokens"] for each in alone)
    found = events(ask(served, LONG | {"seed": 3, "n": 3}, "/generate/stream"))
    for index, each in enumerate(alone):
        *texts, (last, end) = [(name, data) for name, data in found if data["index"] == index]
        assert "".join(data["text"] for _, data in texts) == each["generated_text"]
        assert (last, end["usage"], end["finish_reason"]) == ("end", each["usage"], each["finish_reason"])
    assert len({end["id"] for name, end in found if name == "end"}) == 1
    assert alone[0]["alternatives"] == []


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", 0), ("top_k", 2), ("top_p", 0.2), ("repetition_penalty", 100), ("seed", 2), ("stop", ["e", "a"])],
    ids=str,
)
def test_each_setting_is_the_engines(served: Served, path: str, field: str, value: Any) -> None:
    def expected(**settings: Any) -> str:
        return "".join(served.desk.champion.writer.answer(PROMPT, Settings(max_new_tokens=24, **DRAWN | settings)))

    wanted = expected(**{field: tuple(value) if isinstance(value, list) else value})
    assert wanted != expected(), "it makes a difference"
    length = {"model": "prosemill", "max_tokens": 24} if path.startswith("/v1") else {"max_new_tokens": 24}
    answer = ask(served, DRAWN | {"prompt": PROMPT, field: value} | length, path).json()
    assert (answer["generated_text"] if path == "/generate" else answer["choices"][0]["text"]) == wanted


def test_openais_client_may_give_one_stop_text_by_itself(served: Served, client: openai.OpenAI) -> None:
    whole = ask(served, GREEDY).json()["generated_text"]
    answer = client.completions.create(model="prosemill", prompt=PROMPT, max_tokens=12, temperature=0, stop=whole[-4:])
    assert answer.choices[0].text == whole[: whole.index(whole[-4:])]


def test_what_is_not_asked_for_is_as_the_document_says(served: Served) -> None:
    default: dict[str, Any] = {"temperature": 0.8, "top_k": 0, "top_p": 0.9, "repetition_penalty": 1.0, "stop": [], "seed": 0, "n": 1}
    fields = served.app.openapi()["components"]["schemas"]["GenerateRequest"]["properties"]
    assert {name: fields[name]["default"] for name in default} == default
    assert "100 if neither is given" in fields["max_length"]["description"]
    texts = [ask(served, {"prompt": PROMPT} | given).json()["generated_text"] for given in ({}, default | {"max_length": 100})]
    assert texts[0] == texts[1]


def test_max_length_counts_the_prompt_too(served: Served) -> None:
    given = ask(served, GREEDY).json()["usage"]["prompt_tokens"]
    usage = ask(served, {"prompt": PROMPT, "max_length": given + 5, "temperature": 0}).json()["usage"]
    assert usage["total_tokens"] == given + 5
    assert ask(served, {"prompt": PROMPT, "temperature": 0}).json()["usage"]["total_tokens"] == 100


def test_what_is_streamed_is_what_is_answered_at_once(served: Served) -> None:
    whole = ask(served, LONG | {"seed": 3}).json()
    answer = ask(served, LONG | {"seed": 3}, "/generate/stream")
    assert answer.headers["content-type"].startswith("text/event-stream")
    *texts, (last, end) = events(answer)
    assert {name for name, _ in texts} == {"text"}
    assert len(texts) > 10
    assert "".join(data["text"] for _, data in texts) == whole["generated_text"]
    assert last == "end"
    assert (end["usage"], end["finish_reason"]) == (whole["usage"], whole["finish_reason"])


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(served: Served) -> None:
    whole = ask(served, GREEDY).json()["generated_text"]
    stop = whole[4:6]
    answer = ask(served, GREEDY | {"stop": [stop]}).json()
    assert answer["generated_text"] == whole[: whole.index(stop)]
    assert answer["finish_reason"] == "stop"


def test_openais_client_gets_texts_and_their_usage(served: Served, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["prosemill"]
    answer = client.completions.create(model="prosemill", prompt=PROMPT, max_tokens=12, temperature=0, n=2)
    expected = ask(served, GREEDY).json()
    assert [choice.text for choice in answer.choices] == [expected["generated_text"]] * 2
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].finish_reason == expected["finish_reason"]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2 * expected["usage"]["completion_tokens"]
    assert version_of(answer.id) == VERSION


def test_openais_client_streams(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {"model": "prosemill", "prompt": PROMPT, "max_tokens": 30, "temperature": 1.5, "seed": 5, "n": 2}
    whole = client.completions.create(**wanted)
    texts, reasons, usage = {0: "", 1: ""}, dict[int, str](), None
    for chunk in client.completions.create(**wanted, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons |= {choice.index: choice.finish_reason} if choice.finish_reason else {}
        usage = chunk.usage
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage == whole.usage


def test_each_event_of_a_completion_is_one_as_the_document_has_it(served: Served) -> None:
    body = {"model": "prosemill", "prompt": PROMPT, "stream": True, "stream_options": {"include_usage": True}}
    *found, (_, last) = events(ask(served, body, "/v1/completions"))
    assert last == "[DONE]"
    for _, data in found:
        fields = CompletionAnswer.model_validate(data, extra="forbid").model_dump(exclude_none=True)
        assert fields["id"] == found[0][1]["id"]
    assert data["choices"] == []


def test_openais_client_understands_a_refusal(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4': the one that is served is 'prosemill'"):
        client.completions.create(model="gpt-4", prompt=PROMPT)
    with pytest.raises(openai.BadRequestError, match=r"the model sees 256 at most"):
        client.completions.create(model="prosemill", prompt=PROMPT, max_tokens=1000)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({}, "prompt", "required"),
        ({"prompt": 3}, "prompt", "valid string"),
        ({"prompt": "a\0b"}, "prompt", "null character"),
        ({"prompt": "a\ud800b"}, "prompt", "unicode"),
        ({"prompt": "a", "max_lenght": 3}, "max_lenght", "not permitted"),
        ({"prompt": "a", "max_new_tokens": -1}, "max_new_tokens", "greater than or equal to 1"),
        ({"prompt": "a", "max_new_tokens": "3"}, "max_new_tokens", "valid integer"),
        ({"prompt": "a", "max_new_tokens": 3, "max_length": 10}, None, "not both"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature", "finite"),
        ({"prompt": "a", "top_p": 0}, "top_p", "greater than 0"),
        ({"prompt": "a", "top_k": -1}, "top_k", "greater than or equal to 0"),
        ({"prompt": "a", "stop": [""]}, "stop.0", "at least 1 character"),
        ({"prompt": "a", "stop": "a"}, "stop", "valid list"),
        ({"prompt": "a", "seed": 2**70}, "seed", "less than"),
        ({"prompt": "a", "seed": -1}, "seed", "greater than or equal to 0"),
        ({"prompt": "a", "seed": 1.5}, "seed", "valid integer"),
        ({"prompt": "a", "temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"prompt": "a", "temperature": "hot"}, "temperature", "valid number"),
        ({"prompt": "a", "temperature": float("inf")}, "temperature", "finite"),
        ({"prompt": "a", "repetition_penalty": 0}, "repetition_penalty", "greater than 0"),
        ({"prompt": "a", "max_length": 0}, "max_length", "greater than or equal to 1"),
        ({"prompt": "a", "max_new_tokens": True}, "max_new_tokens", "valid integer"),
        ({"prompt": "a", "max_new_tokens": 10**6}, "max_new_tokens", "less than or equal to 100000"),
        ({"prompt": "a", "n": 0}, "n", "greater than or equal to 1"),
        ({"prompt": "a", "n": 17}, "n", "less than or equal to 16"),
        ({"prompt": "a", "timeout": 0}, "timeout", "greater than 0"),
        ({"prompt": "a", "stop": ["a"] * 17}, "stop", "at most 16 items"),
        ({"prompt": "a", "stop": ["a" * 65]}, "stop.0", "at most 64 characters"),
        ({"prompt": "a", "a\nb": 3}, "a\nb", "not permitted"),
        ({"prompt": None}, "prompt", "valid string"),
        (
            {"prompt": "a", "max_new_tokens": 300},
            None,
            "a prompt of 2 tokens and 300 new ones are 302 tokens, and the model sees 256 at most",
        ),
        ({"prompt": "word " * 60}, None, "tokens, and max_length is 100: raise it, or give max_new_tokens"),
        ([], None, "body: "),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/generate", "/generate/stream"])
def test_a_mistake_is_one_line_that_names_the_field(served: Served, path: str, body: Any, param: str | None, words: str) -> None:
    answer = requests.post(f"{served.url}{path}", data=json.dumps(body), headers={"Content-Type": "application/json"}, timeout=LIMIT)
    error = answer.json()["error"]
    assert answer.status_code == 400, answer.text
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert words in error["message"]
    assert "\n" not in error["message"]


@pytest.mark.parametrize("path", ["/generate", "/generate/stream", "/v1/completions"])
def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused_with_both_numbers(served: Served, path: str) -> None:
    prompt = "word " * 300
    num_tokens = len(served.desk.champion.writer.read(prompt))
    body = {"prompt": prompt} | ({"model": "prosemill"} if path == "/v1/completions" else {})
    answer = ask(served, body, path)
    assert answer.status_code == 400
    expected = f"the prompt has {num_tokens} tokens, and prompt and answer together may have 256: shorten it"
    assert answer.json()["error"]["message"] == expected


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"prompt": "\xff"}', b'{"prompt": "a\x00"}'], ids=repr)
def test_what_is_no_json_is_refused(served: Served, content: bytes) -> None:
    answer = requests.post(f"{served.url}/generate", data=content, headers={"Content-Type": "application/json"}, timeout=LIMIT)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_another_path_or_method_has_the_same_shape(served: Served) -> None:
    for answer in (
        requests.get(f"{served.url}/nowhere", timeout=LIMIT),
        requests.get(f"{served.url}/generate", timeout=LIMIT),
    ):
        assert answer.status_code in (404, 405)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def slow_down_scores(served: Served, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have each piece of a text that is scored take 300 ms at least; the tokens of those that were."""
    decoder, pieces = served.engine._decoder, list[int]()
    nll = decoder.nll

    def slowly(row: int, tokens: Any, *given: Any, **options: Any) -> float:
        pieces.append(len(tokens))
        time.sleep(0.3)
        return nll(row, tokens, *given, **options)

    monkeypatch.setattr(decoder, "nll", slowly)
    return pieces


def num_tokens_of(served: Served, text: str) -> int:
    """Of a text that is to be scored."""
    return len(served.desk.champion.writer.frame(text).tokens)


@pytest.mark.parametrize("path", ["/generate", "/generate/stream", "/v1/completions"])
def test_a_client_that_goes_frees_its_place_at_once_and_its_row_at_the_next_token(
    serve: Callable[..., Served], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()
    engine, steps = served.engine, hold_steps(served, monkeypatch)
    body: dict[str, Any] = {"prompt": PROMPT, "temperature": 0}
    body |= {"model": "prosemill", "max_tokens": 200} if path.startswith("/v1") else {"max_new_tokens": 200}
    steps.release(5)
    leave(served.url, path, body, lambda: until(lambda: engine.num_steps == 5, "it is not written"))
    until(lambda: served.desk.admission.num_requests == 0, "its place is held")
    assert served.desk.admission.num_tokens == 0
    steps.release(200)
    until(lambda: engine.num_running == 0, "its row is held")
    assert engine.num_steps <= 6, "none is taken but one that was under way"
    until(lambda: served.registry.get_sample_value("prosemill_answers_total", {"outcome": "cancelled"}) == 1, "it is counted")


def test_a_client_that_goes_ends_the_scoring_of_its_text(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve()
    pieces = slow_down_scores(served, monkeypatch)
    leave(served.url, "/score", LONG_TEXT, lambda: until(lambda: bool(pieces), "it is not scored"))
    until(lambda: is_empty(served), "its place is held")
    assert served.desk.admission.num_tokens == 0
    assert served.meter("scores_total", outcome="cancelled") == 1
    until(lambda: not served.engine._waiting, "the engine goes on with it")
    assert sum(pieces) < num_tokens_of(served, LONG_TEXT["text"])


def test_a_text_that_is_not_scored_before_the_deadline_is_given_up(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(deadline=0.4)
    pieces = slow_down_scores(served, monkeypatch)
    answer = ask(served, LONG_TEXT, "/score")
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
    assert answer.json()["error"]["message"] == "the text was not scored in time: send a shorter one, or come back later"
    assert is_empty(served)
    assert served.meter("scores_total", outcome="deadline") == 1
    until(lambda: not served.engine._waiting, "the engine goes on with it")
    assert sum(pieces) < num_tokens_of(served, LONG_TEXT["text"])


def test_prometheus_is_told_of_scores(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve()
    assert ask(served, LONG_TEXT, "/score").ok

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(served.engine._decoder, "nll", fail)
    assert ask(served, LONG_TEXT, "/score").status_code == 500
    assert [served.meter("scores_total", outcome=outcome) for outcome in ("scored", "failed")] == [1, 1]
    assert (served.meter("scored_tokens_total"), served.meter("score_seconds_count")) == (num_tokens_of(served, LONG_TEXT["text"]), 1)
    assert 0 < served.meter("score_seconds_sum") < 10


def test_clients_that_leave_at_random_leave_nothing_behind(served: Served) -> None:
    expected = ask(served, LONG | {"seed": 9}).json()["generated_text"]
    many_leave(served.url, repeats(few=100, many=1000))
    until(lambda: is_empty(served), "a row or a place is held")
    assert served.desk.admission.num_tokens == 0
    assert ask(served, LONG | {"seed": 9}).json()["generated_text"] == expected


@pytest.mark.parametrize("is_asked_for", [False, True])
def test_the_log_holds_what_people_write_if_it_is_asked_for(
    serve: Callable[..., Served], is_asked_for: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    served = serve(log_prompts=is_asked_for)
    written = ["the first\nprompt", "the second", "the third", "the text that is scored"]
    assert ask(served, GREEDY | {"prompt": written[0]}).ok
    assert ask(served, GREEDY | {"prompt": written[1]}, "/generate/stream").ok
    assert ask(served, {"model": "prosemill", "prompt": written[2]}, "/v1/completions").ok
    assert ask(served, {"text": written[3]}, "/score").ok
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert [line["text"] for line in lines if "text" in line] == written * is_asked_for


def test_at_its_deadline_an_answer_ends_with_what_it_has(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(deadline=1.0)
    body = LONG | {"temperature": 0}
    whole = ask(served, body).json()["generated_text"]
    slow_down(served, monkeypatch)
    answer = ask(served, body).json()
    assert answer["finish_reason"] == "deadline"
    assert 0 < answer["usage"]["completion_tokens"] < 100
    assert whole.startswith(answer["generated_text"])
    assert 0 < len(answer["generated_text"]) < len(whole)
    assert ask(served, body | {"timeout": 1e-6}).json()["finish_reason"] == "deadline"


def test_prometheus_is_told_of_tokens_times_and_ends_and_of_no_text(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(max_requests=1)
    usage = ask(served, GREEDY).json()["usage"]
    assert served.meter("model_version") == VERSION
    assert served.meter("prompt_tokens_total") == usage["prompt_tokens"]
    assert served.meter("new_tokens_total") == usage["completion_tokens"]
    for name in ("time_to_first_token_seconds", "time_per_token_seconds", "queue_seconds"):
        assert served.meter(f"{name}_count") == 1
        assert 0 <= served.meter(f"{name}_sum") < 10
    with monkeypatch.context() as patch:
        steps = hold_steps(served, patch)
        with requests.post(f"{served.url}/generate/stream", json=LONG, stream=True, timeout=LIMIT) as waiting:
            assert ask(served, GREEDY).status_code == 429
            assert served.meter("rejections_total") == 1
            steps.release(1000)
            events(waiting)
    until(lambda: is_empty(served), "the one place is free again")
    assert ask(served, GREEDY | {"timeout": 1e-6}).json()["finish_reason"] == "deadline"
    assert served.meter("answers_total", outcome="deadline") >= 1
    leave(served.url, "/generate", LONG | {"temperature": 0}, lambda: until(lambda: not is_empty(served), "it is not written"))
    until(lambda: is_empty(served), "its row is held")
    told = generate_latest(served.registry).decode()
    assert "prosemill_rows_in_use" in told
    assert PROMPT not in told
