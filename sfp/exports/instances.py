"""What annotation tools take of a label map: a mask for each name, or for each of its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

_EIGHT = np.ones((3, 3), int)  # pixels that touch at a corner are of one part


@dataclass(frozen=True)
class Instance:
    """A mask of one name.

    Attributes:
        label: the name's place, as in the label map.
        box: (x, y, width, height) in pixels, the tightest.
        mask: (height, width) bool, inside the box.
        score: mean probability of its pixels; None where it isn't known.
    """

    label: int
    box: tuple[int, int, int, int]
    mask: np.ndarray
    score: float | None = None

    @property
    def area(self) -> int:
        """In pixels."""
        return int(self.mask.sum())

    def whole_mask(self, size: tuple[int, int]) -> np.ndarray:
        """The mask in a picture of that (H, W), bool."""
        whole, (x, y, width, height) = np.zeros(size, bool), self.box
        whole[y : y + height, x : x + width] = self.mask
        return whole

    def runs(self, size: tuple[int, int], order: Literal["C", "F"]) -> np.ndarray:
        """Where its pixels lie among all pixels of a picture of that (H, W), row by row ("C") or
        column by column ("F"): pairs of the first one and the one after the last, (n, 2) int64.
        """
        x, y, _, _ = self.box
        mask, line, first, offset = self.mask, size[1], y, x
        if order == "F":
            mask, line, first, offset = mask.T, size[0], x, y
        steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        rows, starts = np.nonzero(steps == 1)
        ends = np.nonzero(steps == -1)[1]
        places = (rows + first) * line + offset
        runs = np.stack([places + starts, places + ends], 1)
        joined = runs[1:, 0] == runs[:-1, 1]  # over the end of a line
        return np.stack([runs[np.r_[True, ~joined], 0], runs[np.r_[~joined, True], 1]], 1)


@dataclass(frozen=True)
class Annotated:
    """A picture's instances, with what a tool needs to know of it.

    Attributes:
        file_name: of the picture, as the tool looks for it.
        size: (H, W).
        names: of the labels.
        background: whether label 0 is what none of the names fits; it has no instance then.
        palette: a colour for each name, (K, 3) uint8.
    """

    file_name: str
    size: tuple[int, int]
    names: tuple[str, ...]
    background: bool
    palette: np.ndarray
    instances: list[Instance]

    def category(self, label: int) -> int:
        """A label's number among the categories, from 1; 0 is the background."""
        return label if self.background else label + 1


def find_instances(
    labels: np.ndarray,
    confidence: np.ndarray | None = None,
    *,
    background: bool = False,
    parts: bool = False,
) -> list[Instance]:
    """The instances of a label map, by label, and parts from top to bottom.

    Args:
        labels: (H, W) whole numbers of at least 0.
        confidence: (H, W), each pixel's probability, for the scores.
        background: leave label 0 out.
        parts: an instance for each connected part; else one for each label.
    """
    found: list[Instance] = []
    for label, box in enumerate(ndimage.find_objects(np.asarray(labels, np.int64) + 1)):
        if box is None or (background and label == 0):
            continue
        mask = labels[box] == label
        numbered, boxes = mask.astype(int), [(slice(None), slice(None))]
        if parts:
            numbered, _ = ndimage.label(mask, _EIGHT)
            boxes = ndimage.find_objects(numbered)
        for number, inner in enumerate(boxes, 1):
            own = numbered[inner] == number
            top, left = (a.start + (b.start or 0) for a, b in zip(box, inner, strict=True))
            height, width = own.shape
            score = None
            if confidence is not None:
                values = confidence[top : top + height, left : left + width][own]
                score = round(float(values.mean(dtype=np.float64)), 4)
            found.append(Instance(label, (left, top, width, height), own, score))
    return found
