"""`prosemill params`: every key of params.yaml with its type, its default and the help line that stands under the field in `params`."""

import types
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from prosemill.params import SECTIONS


@dataclass(frozen=True)
class Key:
    """One key: its full name, what it takes, its default as YAML would write it, and its help line."""

    name: str
    kind: str
    default: str
    help: str


def keys_of(section: str) -> Iterator[Key]:
    """All keys of a section in the order of their definition; those of a source's settings follow the source's name in brackets."""
    yield from _keys(section, SECTIONS[section])


def print_help(sections: Sequence[str]) -> None:
    """Print the keys of the sections as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for section in sections:
        table = Table(title=section, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
        table.add_column("key", no_wrap=True)
        table.add_column("takes", max_width=24)
        table.add_column("default", max_width=20, overflow="fold")
        table.add_column("meaning")
        for key in keys_of(section):
            table.add_row(key.name.removeprefix(f"{section}."), key.kind, key.default, key.help)
        console.print(table, markup=False)
        console.print()


def _keys(prefix: str, section: type) -> Iterator[Key]:
    hints = get_type_hints(section, include_extras=True)
    descriptions = {name: field.description or "" for name, field in section.__pydantic_fields__.items()}  # type: ignore[attr-defined]
    for field in fields(section):
        hint, name = hints[field.name], f"{prefix}.{field.name}"
        default = "needed" if field.default is MISSING else _as_yaml(field.default)
        yield Key(name, _kind(hint), default, descriptions[field.name])
        nested = [variant for variant in _variants(hint) if is_dataclass(variant)]
        for variant in nested:
            label = f"{name}[{get_args(get_type_hints(variant)['source'])[0]}]" if len(nested) > 1 else name
            assert isinstance(variant, type)
            yield from _keys(label, variant)


def _variants(hint: Any) -> list[Any]:
    if get_origin(hint) is Annotated:
        return _variants(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [variant for part in get_args(hint) for variant in _variants(part)]
    return [hint]


def _kind(hint: Any) -> str:
    words = []
    for variant in _variants(hint):
        if get_origin(variant) is Literal:
            words.append(" | ".join(map(str, get_args(variant))))
        elif get_origin(variant) is tuple:
            words.append("list of str")
        elif variant is type(None):
            words.append("null")
        elif is_dataclass(variant):
            words.append("section")
        else:
            words.append(variant.__name__)
    return " | ".join(dict.fromkeys(words))


def _as_yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{', '.join(value)}]" if isinstance(value, tuple) else str(value)
