"""Pictures that point at a region: what lies outside blurred, grey or black, red marks around it.

As CaR draws them with OpenCV; here by Pillow and SciPy, so that single pixels of a mark may differ.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

VisualPrompt = Literal["blur", "gray", "black", "circle", "rectangle", "contour"]
_RED = (255, 0, 0)
_SIDE = 15
_SIGMA = 0.3 * ((_SIDE - 1) * 0.5 - 1) + 0.8  # OpenCV's of a kernel of that side


def prompted(
    pixels: np.ndarray, heats: np.ndarray, threshold: float, prompts: Collection[VisualPrompt]
) -> list[np.ndarray]:
    """A picture (H, W, 3) uint8 for each map in [0, 1] (K, H, W), pointing at where it is high.

    Prompts are applied in the order of ``VisualPrompt``, whatever theirs is. Where a map sums to no
    more than 1 the picture stays as it is.

    Args:
        threshold: what a map is above inside the region.
    """
    outside, found = _outside(pixels, prompts), []
    for heat in heats:
        if heat.sum() <= 1:
            found.append(pixels)
            continue
        mask = heat > threshold
        picture = np.where(mask[..., None], pixels, outside)
        found.append(_marked(picture, mask, prompts) if mask.any() else picture)
    return found


def _outside(pixels: np.ndarray, prompts: Collection[VisualPrompt]) -> np.ndarray:
    """The picture as it looks outside of every region."""
    if "blur" in prompts:
        steps = np.arange(_SIDE) - _SIDE // 2
        kernel = np.exp(-(steps**2) / (2 * _SIGMA**2))
        kernel, values = kernel / kernel.sum(), pixels.astype(np.float64)
        for axis in (0, 1):
            values = ndimage.correlate1d(values, kernel, axis, mode="mirror")
        pixels = np.rint(values).astype(np.uint8)
    if "gray" in prompts:
        grey = pixels @ np.array([0.114, 0.587, 0.299])  # weights of BGR on RGB, as coded
        pixels = np.rint(grey).astype(np.uint8)[..., None].repeat(3, 2)
    return np.zeros_like(pixels) if "black" in prompts else pixels


def _marked(picture: np.ndarray, mask: np.ndarray, prompts: Collection[VisualPrompt]) -> np.ndarray:
    """The picture with red marks of one pixel around a mask (H, W)."""
    rows, columns = mask.nonzero()
    top, bottom, left, right = (int(v) for v in (rows.min(), rows.max(), columns.min(),
                                                 columns.max()))  # fmt: skip
    if {"circle", "rectangle"} & set(prompts):
        image = Image.fromarray(picture)
        draw = ImageDraw.Draw(image)
        if "circle" in prompts:
            y, x = int(rows.mean()), int(columns.mean())
            half_y, half_x = (bottom - top) // 2, (right - left) // 2
            draw.ellipse((x - half_x, y - half_y, x + half_x, y + half_y), outline=_RED, width=1)
        if "rectangle" in prompts:
            draw.rectangle((left, top, right, bottom), outline=_RED, width=1)
        picture = np.array(image)
    if "contour" in prompts:
        edge = mask & ~ndimage.binary_erosion(mask)
        picture = np.where(edge[..., None], np.array(_RED, np.uint8), picture)
    return picture
