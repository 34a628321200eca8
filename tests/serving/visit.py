"""Somebody who has opened the page, without a browser."""

import itertools
import json
from collections.abc import Mapping
from typing import Any

import requests

from prosemill.serving.page import PATH
from tests.waiting import LIMIT

numbers = itertools.count()


class Visit:
    """What a browser that has opened the page says to it."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        """Open the page of the service at an address, with headers that all that is asked for has."""
        self.url, self.session, self._headers = f"{url}{PATH}/gradio_api", f"session{next(numbers)}", headers
        config = requests.get(f"{url}{PATH}/config", headers=self._headers, timeout=LIMIT).json()
        parts = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
        outputs = [[parts[output] for output in each["outputs"]] for each in config["dependencies"]]
        self.function = outputs.index(["note", "answers"])

    def join(self, *data: Any, **fields: Any) -> requests.Response:
        """Have the function that writes called with values, or what the fields say instead."""
        body: dict[str, Any] = {"data": data, "fn_index": self.function, "session_hash": self.session} | fields
        return requests.post(f"{self.url}/queue/join", json=body, headers=self._headers, timeout=LIMIT)

    def generate(self, prompt: Any, *, new: Any = 12, temperature: Any = 0, seed: Any = "1", beside: bool = False) -> "Visit":
        """Click on *Generate*."""
        answer = self.join(beside, prompt, new, temperature, 0.9, 50, 1.0, seed)
        assert answer.status_code == 200, answer.text
        return self

    def listen(self) -> requests.Response:
        """What is sent then."""
        return requests.get(
            f"{self.url}/queue/data", params={"session_hash": self.session}, stream=True, headers=self._headers, timeout=LIMIT
        )

    def note(self) -> str:
        """What the line below the buttons says at the end."""
        shown = ""
        with self.listen() as told:
            for line in told.iter_lines():
                message = json.loads(line.removeprefix(b"data: ")) if line else {}
                if message.get("msg") == "process_completed":
                    assert message["success"], message
                    shown = message["output"]["data"][0]
        return shown
