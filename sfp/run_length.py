"""Run-length masks as COCO's tools write them: columns first, runs of 0 and 1 in turn, as numbers or packed into a text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def unpack_counts(text: str) -> list[int]:
    """The run lengths in a packed text.

    Each character less 48 has five bits of a number, lowest first, and a sixth that says whether it goes on; the last one's
    fifth bit is the sign. From the fourth number on, each is the difference to the one two before it.

    Raises:
        ValueError: a character or a number that can't be, or the text ends in the middle of a number.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"it has a number that is none, at {character!r}")
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
    counts = unpack_counts(counts) if isinstance(counts, str) else counts
    if any(not 0 <= count <= height * width for count in counts):
        raise ValueError(f"it has a run that is none of {height} x {width} pixels")
    runs = np.asarray(counts, np.int64)
    if runs.sum() != height * width:
        raise ValueError(f"its runs cover {runs.sum()} pixels of {height} x {width}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def encode_mask(mask: np.ndarray) -> str:
    """The packed text of a mask (height, width) bool; ``decode_mask`` gives the mask back."""
    columns = mask.T.ravel()
    ends = np.flatnonzero(columns[1:] != columns[:-1]) + 1
    starts = [0, 0] if columns[:1].any() else [0]  # the first run is one of 0, maybe empty
    return pack_counts(np.diff(np.concatenate([starts, ends, [columns.size]])))


def pack_counts(counts: Sequence[int] | np.ndarray) -> str:
    """Run lengths as a packed text; ``unpack_counts`` gives them back."""
    counts = np.asarray(counts, np.int64)
    left = counts.copy()
    left[3:] -= counts[1:-2]
    digits: list[np.ndarray] = []  # the n-th character of each number, 0 where it has ended
    going = np.ones(len(left), bool)
    while going.any():
        bits = left & 31
        left >>= 5
        more = going & (left != np.where(bits & 16, -1, 0))
        digits.append(np.where(going, bits + 32 * more + 48, 0))
        going = more
    characters = np.stack(digits, 1).astype(np.uint8)
    return characters[characters > 0].tobytes().decode("ascii")
