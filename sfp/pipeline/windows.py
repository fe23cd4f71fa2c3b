"""Sliding windows: where they lie, cutting them out, and averaging their score maps back (methods.md 4.2-4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """Pixel rows [top, bottom) and columns [left, right) of an image."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Starts along one axis; the last window is moved back to end at the border."""
    count = max(length - crop + stride - 1, 0) // stride + 1
    return [max(min(i * stride + crop, length) - crop, 0) for i in range(count)]


def window_grid(height: int, width: int, crop: int, stride: int) -> list[Window]:
    """Windows of an image, row by row. An axis shorter than ``crop`` has one smaller window; crop 0 is the whole image."""
    if crop == 0:
        return [Window(0, 0, height, width)]
    return [
        Window(top, left, min(top + crop, height), min(left + crop, width))
        for top in window_starts(height, crop, stride)
        for left in window_starts(width, crop, stride)
    ]


def cut(image: Tensor, windows: Sequence[Window]) -> Tensor:
    """Windows of one size out of an image (3, H, W): (n, 3, h, w)."""
    return torch.stack([image[:, w.top : w.bottom, w.left : w.right] for w in windows])


def stitch(maps: Tensor, windows: Sequence[Window], height: int, width: int) -> Tensor:
    """Score maps of the patch grids (n, Q, h, w) to the average over windows (Q, H, W) float32.

    Each map goes bilinear (align_corners=False) to its window's pixel size; overlapping ones are averaged.
    """
    canvas = maps.new_zeros((maps.shape[1], height, width), dtype=torch.float32)
    visits = maps.new_zeros((height, width), dtype=torch.float32)
    for window, scores in zip(windows, maps, strict=True):
        area = (slice(window.top, window.bottom), slice(window.left, window.right))
        canvas[:, *area] += F.interpolate(scores[None].float(), size=window.size, mode="bilinear", align_corners=False)[0]
        visits[area] += 1
    return canvas.div_(visits)
