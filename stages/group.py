"""Stage 3: token ids as blocks. Run by DVC, or by hand: `python -m stages.group`."""

from prosemill.errors import run_main
from prosemill.metrics import write_metrics
from prosemill.params import Group, read_section
from prosemill.tokens import group_tokens
from prosemill.workspace import BASE_MODEL, BLOCKS, METRICS, TOKENS


def main() -> None:
    """Cut the tokens into blocks."""
    section = read_section("group", Group)
    write_metrics(METRICS / "group.json", group_tokens(section, TOKENS, BASE_MODEL, BLOCKS))


if __name__ == "__main__":
    run_main(main)
