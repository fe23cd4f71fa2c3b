"""Sliding windows: where they lie, and cutting them out."""

from __future__ import annotations

from dataclasses import dataclass

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
    """Windows of an image, row by row; crop 0 is the whole image.

    An axis shorter than ``crop`` has one smaller window.
    """
    if crop == 0:
        return [Window(0, 0, height, width)]
    return [
        Window(top, left, min(top + crop, height), min(left + crop, width))
        for top in window_starts(height, crop, stride)
        for left in window_starts(width, crop, stride)
    ]


def cut(image: Tensor, window: Window) -> Tensor:
    """A window out of an image (3, H, W): (3, h, w), a view."""
    return image[:, window.top : window.bottom, window.left : window.right]
