"""Names of answers, which lead back to the version that gave them: `prosemill lineage ID`."""

import re
import secrets

NAME = re.compile(r"answer-v(\d{1,9})-[0-9a-f]{24}")


def name_answer(version: int) -> str:
    """A new name for an answer of a version."""
    return f"answer-v{version}-{secrets.token_hex(12)}"


def version_of(name: str) -> int | None:
    """The version that gave an answer of this name; None if it is no such name."""
    found = NAME.fullmatch(name)
    return int(found[1]) if found else None
