"""One row of JSON Lines, Parquet or a JSON object: its text, label and id, checked.

text = text_of(row, "text", where="a.jsonl line 3")
"""

from collections.abc import Iterable, Mapping
from typing import Any

from prosemill.corpus.document import encode, refuse_long
from prosemill.errors import ProsemillError

ID_KEYS = ("document_id", "id")
"""Keys of a row's own id, the first one present counts."""


def text_of(row: Mapping[str, Any], key: str, where: str) -> bytes:
    """A row's text as UTF-8 bytes; null is no text. Raises `ProsemillError` if the key is missing or its value is not text."""
    require_keys(row, [key], where)
    value = row[key]
    if not isinstance(value, str | None):
        raise ProsemillError(f"{where}: `{key}` is {kind_of(value)}, not text; name the text with `text_key` or mend the row")
    text = encode(value or "", f"{where}, `{key}`")
    refuse_long(len(text), where)
    return text


def label_of(row: Mapping[str, Any], key: str | None, where: str) -> str | None:
    """A row's label as text; numbers and truth values are written as in JSON. None if the key or the value is null."""
    if key is None:
        return None
    require_keys(row, [key], where)
    value = row[key]
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float | None):
        raise ProsemillError(f"{where}: label `{key}` is {kind_of(value)}; a label is a text or a number: choose another `label_key`")
    return None if value is None else encode(str(value), f"{where}, `{key}`").decode()


def id_of(row: Mapping[str, Any], fallback: str, where: str) -> str:
    """A row's own id (`document_id`, else `id`), or the fallback where it has none."""
    key = next((key for key in ID_KEYS if row.get(key) is not None), None)
    if key is None:
        return fallback
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ProsemillError(f"{where}: `{key}` is {kind_of(value)}; an id is a text or a whole number: mend or rename it")
    return encode(str(value), f"{where}, `{key}`").decode()


def require_keys(row: Iterable[str], keys: Iterable[str | None], where: str) -> None:
    """Raise `ProsemillError` naming the keys that exist if one of `keys` is missing; None is no key."""
    names = list(row)
    for key in keys:
        if key is not None and key not in names:
            known = ", ".join(f"`{name}`" for name in names[:20]) or "none"
            raise ProsemillError(f"{where} has no `{key}`, only {known}: set `text_key` and `label_key` to what exists")


def kind_of(value: object) -> str:
    """A JSON value's kind, as a person would say it."""
    kinds = {"NoneType": "null", "bool": "true or false", "dict": "an object", "list": "a list", "str": "a text"}
    return kinds.get(type(value).__name__, "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
