"""Boxes of what stands out in a map, as CaR and FreeCP take them from OpenCV's contours."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

Box = tuple[int, int, int, int]  # left, top, right, bottom in patches, the latter two exclusive


def boxes_of(heat: np.ndarray, share: float = 0.4) -> list[Box]:
    """Boxes of the regions of a map (h, w) in [0, 1] above a share of its maximum, in 255 steps.

    One for each outline that cv2.findContours traces: of each 8-connected region, and of each of
    its holes. Where a box touches the right or bottom border it lacks its last column or row, as in
    the authors' code.
    """
    levels = np.floor(255 * heat).astype(np.uint8)
    binary = levels > int(share * int(levels.max()))
    regions = ndimage.find_objects(ndimage.label(binary, np.ones((3, 3)))[0])
    around = ndimage.label(np.pad(~binary, 1, constant_values=True))[0]  # 1 is what lies outside
    holes = ndimage.find_objects(np.where(around == 1, 0, around)[1:-1, 1:-1])
    height, width = heat.shape
    found = []
    for regions_of, grown in ((regions, 0), (holes, 1)):  # a hole's outline runs around it
        for region in regions_of:
            if region is not None:
                rows, columns = region
                right, bottom = columns.stop + grown, rows.stop + grown
                left, top = columns.start - grown, rows.start - grown
                found.append((left, top, min(right, width - 1), min(bottom, height - 1)))
    return found


def mask_of(heat: np.ndarray, share: float = 0.4) -> np.ndarray:
    """The union of ``boxes_of``, (h, w) bool."""
    mask = np.zeros(heat.shape, bool)
    for left, top, right, bottom in boxes_of(heat, share):
        mask[top:bottom, left:right] = True
    return mask
