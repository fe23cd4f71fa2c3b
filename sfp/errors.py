"""The one exception for what a user can put right.

Its message is one sentence with what, where and what to do.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable
from typing import TypeVar

Value = TypeVar("Value")


class SFPError(ValueError):
    """Wrong input. Command-line programs print its message and exit with code 2, without a
    traceback.

    The message is one line: a library's reason may bring several, and torch wraps a worker's error
    in its whole traceback.
    """

    def __init__(self, message: object):
        text = str(message).rpartition(f"{__name__}.SFPError: ")[2]
        super().__init__(re.sub(r"\s*\n\s*", " ", text.strip()))


# torch's, oneDNN's, CUDA's, NumPy's, OpenCV's, Pillow's and the system's words for want of memory;
# oneDNN's for a type that it has no kernel for go on with "descriptor"
_MEMORY = re.compile(
    r"out of memory|allocate memory|not enough memory|insufficient memory|unable to allocate"
    r"|bad_alloc|STATUS_ALLOC_FAILED|could not create a primitive(?! descriptor)",
    re.IGNORECASE,
)


def is_want_of_memory(error: BaseException | None) -> bool:
    """Whether an error of any library, torch's on a GPU among them, says that memory ran out."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, (RuntimeError, OSError)) and bool(_MEMORY.search(str(error)))


def by_halves(work: Callable[[int], Value], most: int, least: int = 1 << 20) -> Value:
    """``work(most)``; where memory runs out with half of it, and so on, down to ``least``.

    Args:
        work: takes how many bytes, or pieces, it may make at a time.
    """
    while True:
        try:
            return work(most)
        except (RuntimeError, MemoryError) as error:
            if most // 2 < least or not is_want_of_memory(error):
                raise
        most //= 2


def refuse_want_of_memory(error: BaseException, what: str) -> None:
    """Raises SFPError where an error says that memory ran out, so that no file is blamed for it.

    Args:
        error: what was caught, of any kind.
        what: was done, such as "reading photo.jpg".
    """
    if isinstance(error, SFPError) and is_want_of_memory(error.__cause__):
        raise error  # told already
    if is_want_of_memory(error):
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0].rstrip(" :.")[:160]
        raise SFPError(
            f"The memory ran out while {what} ({reason}); use a smaller model, picture or batch, or"
            " free some."
        ) from error


def run_command(command: Callable[[Namespace], None], args: Namespace) -> int:
    """Run a command-line program's work: 0, 2 after an ``SFPError``'s sentence, 130 after Ctrl-C;
    with ``args.debug`` they are raised.

    A file that can't be read or written ends in a sentence, too, and so does want of memory.
    """
    try:
        command(args)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads the output has seen enough, as head has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if args.debug or not (isinstance(error, (SFPError, OSError)) or is_want_of_memory(error)):
            raise
        print(f"error: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if args.debug:
            raise
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 0


def _sentence(error: Exception) -> SFPError:
    """What a program says of an error that a user can do something about."""
    if isinstance(error, SFPError):
        return error
    try:
        refuse_want_of_memory(error, "running")
    except SFPError as sentence:
        return sentence
    file = error.filename2 or error.filename
    if file is None:
        return SFPError(f"{error}; run it again with --debug to see where.")
    return SFPError(
        f"{file} can't be read or written ({error.strerror}); check the path, its permissions and "
        f"the room on its disk."
    )


def unknown_choice(
    kind: str, given: object, choices: Iterable[str], others: Iterable[str] = ()
) -> SFPError:
    """The error for a name that is not among the choices, offering the closest one.

    Args:
        others: what may have been meant besides, not listed.
    """
    choices = list(choices)
    lowered = {choice.lower(): choice for choice in [*others, *choices]}
    close = difflib.get_close_matches(str(given).lower(), lowered, n=1, cutoff=0.5)
    hint = f"; did you mean {lowered[close[0]]!r}?" if close else "."
    return SFPError(f"Unknown {kind} {given!r}{hint} Choose one of: {', '.join(choices)}.")
