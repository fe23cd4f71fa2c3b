"""Run-length masks as COCO's tools write them: columns first, runs of 0 and 1 in turn, as numbers or packed into a text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def unpack_counts(text: str) -> list[int]:
    """The run lengths in a packed text.

    Each character less 48 has five bits of a number, lowest first, and a sixth that says whether it goes on; the last one's
    fifth bit is the sign. From the fourth number on, each is the difference to the one two before it.

    Raises:
        ValueError: the text ends in the middle of a number.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("it ends in the middle of a number")
    return counts


def decode_mask(counts: str | Sequence[int], height: int, width: int) -> np.ndarray:
    """The mask (height, width), bool.

    Raises:
        ValueError: the runs don't cover it exactly.
    """
    runs = np.asarray(unpack_counts(counts) if isinstance(counts, str) else counts, np.int64)
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"its runs cover {runs.sum()} pixels of {height} x {width}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
