"""Progress on the standard error: a bar in a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

_SECONDS = 30.0  # between two lines of a log


def progress(items: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """tqdm's bar with its ``options``; in a file or a pipe lines without control characters."""
    if not sys.stderr.isatty():
        options |= dict(
            file=_Lines(sys.stderr),
            ncols=0,
            position=0,
            mininterval=_SECONDS,
            maxinterval=_SECONDS,
        )
    return tqdm(items, **options)


class _Lines:
    """What tqdm writes as lines: it returns to the start of a line, and blanks it, to write anew.

    One that is the same as that before is left out.
    """

    def __init__(self, stream: TextIO):
        self.stream, self.last = stream, ""

    def write(self, text: str) -> None:
        line = text.strip()
        if line and line != self.last:
            self.stream.write(f"{line}\n")
            self.last = line

    def flush(self) -> None:
        self.stream.flush()
