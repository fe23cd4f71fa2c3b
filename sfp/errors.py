"""The one exception for what a user can mend: its message is one sentence with what, where and what to do."""

from __future__ import annotations

import difflib
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable


class SFPError(ValueError):
    """Wrong input. Command-line programs print its message and exit with code 2, without a traceback."""


def run_command(command: Callable[[Namespace], None], args: Namespace) -> int:
    """Run a command-line program's work: 0, 2 after an ``SFPError``'s sentence, 130 after Ctrl-C; with ``args.debug`` they are raised."""
    try:
        command(args)
    except SFPError as error:
        if args.debug:
            raise
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if args.debug:
            raise
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 0


def sentence(error: SFPError) -> str:
    """The message alone, also of an error that a worker process wrapped in its traceback."""
    return str(error).strip().splitlines()[-1].removeprefix(f"{SFPError.__module__}.{SFPError.__name__}: ")


def unknown_choice(kind: str, given: object, choices: Iterable[str]) -> SFPError:
    """The error for a name that is not among the choices, offering the closest one."""
    choices = list(choices)
    lowered = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(str(given).lower(), lowered, n=1, cutoff=0.5)
    hint = f"; did you mean {lowered[close[0]]!r}?" if close else "."
    return SFPError(f"Unknown {kind} {given!r}{hint} Choose one of: {', '.join(choices)}.")
