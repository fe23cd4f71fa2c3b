"""The one exception for what a user can put right.

Its message is one sentence with what, where and what to do.
"""

from __future__ import annotations

import difflib
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable


class SFPError(ValueError):
    """Wrong input. Command-line programs print its message and exit with code 2, without a
    traceback.

    The message is one line: a library's reason may bring several, and torch wraps a worker's error
    in its whole traceback.
    """

    def __init__(self, message: object):
        text = str(message).rpartition(f"{__name__}.SFPError: ")[2]
        super().__init__(re.sub(r"\s*\n\s*", " ", text.strip()))


def run_command(command: Callable[[Namespace], None], args: Namespace) -> int:
    """Run a command-line program's work: 0, 2 after an ``SFPError``'s sentence, 130 after Ctrl-C;
    with ``args.debug`` they are raised.

    A file that can't be read or written ends in a sentence, too.
    """
    try:
        command(args)
    except (SFPError, OSError) as error:
        if args.debug:
            raise
        print(
            f"error: {error if isinstance(error, SFPError) else _of_file(error)}", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        if args.debug:
            raise
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 0


def wants_memory(error: BaseException) -> bool:
    """Whether an error is a want of memory: Python's, NumPy's, or torch's on any device."""
    reasons = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(each in str(error).lower() for each in reasons)


def _of_file(error: OSError) -> SFPError:
    file = error.filename2 or error.filename
    if file is None:
        return SFPError(f"{error}; run it again with --debug to see where.")
    return SFPError(
        f"{file} can't be read or written ({error.strerror}); check the path, its permissions and "
        f"the room on its disk."
    )


def unknown_choice(kind: str, given: object, choices: Iterable[str]) -> SFPError:
    """The error for a name that is not among the choices, offering the closest one."""
    choices = list(choices)
    lowered = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(str(given).lower(), lowered, n=1, cutoff=0.5)
    hint = f"; did you mean {lowered[close[0]]!r}?" if close else "."
    return SFPError(f"Unknown {kind} {given!r}{hint} Choose one of: {', '.join(choices)}.")
