"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table of cells as they are.

    Columns whose head begins with "#" stand to the right, without that mark.
    """
    rule = ["---:" if cell.startswith("#") else "---" for cell in head]
    lines = [[cell.removeprefix("#") for cell in head], rule, *body]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
