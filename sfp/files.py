"""Writing files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sfp.errors import SFPError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; renamed to it when the block ends without an error."""
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial{path.suffix}")
    yield partial
    partial.replace(path)


def save_figure(figure: Figure, path: Path, option: str, dpi: int = 110) -> None:
    """Write a matplotlib figure whole, in the format that the path's ending names.

    Args:
        option: the command line's option that gave the path, for the error.

    Raises:
        SFPError: an ending that matplotlib doesn't write.
    """
    try:
        with whole_file(path) as partial:
            figure.savefig(partial, dpi=dpi)
    except ValueError as error:
        raise SFPError(f"{path} can't be drawn ({error}); give {option} a file such as {path.stem}.png.") from error
