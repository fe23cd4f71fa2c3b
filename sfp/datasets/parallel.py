"""A function over many files in several processes, with a progress bar."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from sfp.progress import progress

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, description: str
) -> Iterator[Result]:
    """``function(item)`` for each item, in order; with one worker or few items in this process.

    The first exception ends it; what had not been started is left undone.
    """
    bar = functools.partial(progress, total=len(items), desc=description, unit="file")
    if workers < 2 or len(items) < 32:
        yield from bar(map(function, items))
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from bar(pool.map(function, items, chunksize=8))
