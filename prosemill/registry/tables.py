"""What a person sees of the registry at a terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prosemill.console import print_rows
from prosemill.registry.gate import HEADER, Verdict

if TYPE_CHECKING:
    from prosemill.registry.lineage import Link
    from prosemill.registry.store import Version

DIGITS = 12  # shown of a commit


def print_versions(versions: "Sequence[Version]") -> None:
    """One line for each version, the newest first."""
    header = ["version", "aliases", "model", "bits per byte", "corpus", "gate", "fingerprint", "commit"]
    rows = [
        [
            str(version.number),
            ", ".join(version.aliases) or "–",
            version.tags.get("model", "–"),
            _four_digits(version.number_in("bits_per_byte")),
            version.tags.get("corpus", "–"),
            "rolled back" if version.tag("rolled_back") else version.tags.get("gate", "–"),
            version.tags.get("fingerprint", "–"),
            version.tags.get("git_commit", "–")[:DIGITS] + (" + changes" if version.tags.get("git_dirty") == "true" else ""),
        ]
        for version in versions
    ]
    print_rows(header, rows, title="Versions of the model", numeric=[True, False, False, True, False, False, False, False])


def print_verdict(verdict: Verdict) -> None:
    """The gate's rules."""
    against = "its base model" if verdict.champion is None else f"version {verdict.champion}"
    print_rows(HEADER, verdict.rows(), title=f"Version {verdict.version} against {against}")


def print_links(version: "Version", links: "Sequence[Link]") -> None:
    """The steps from a version's weights back."""
    rows = [[link.state, link.name, link.text] for link in links]
    print_rows(["state", "step", "what"], rows, title=f"Lineage of version {version.number}")


def _four_digits(number: float | None) -> str:
    return "–" if number is None else f"{number:.4f}"
