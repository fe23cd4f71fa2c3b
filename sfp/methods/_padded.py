"""Windows padded with zeros to whole cells of two models' grids."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from sfp.methods._method import Method
from sfp.options import Range
from sfp.stages import Text, View


class Padded(Method):
    """Base class of methods whose scores come from padded windows.

    Args:
        pad_to: for scores, windows are padded with zeros all around to its multiples, the padding
            cut off again.
    """

    pad_to: Annotated[int, Range(1)] = 56

    def score(self, view: View, text: Text) -> Tensor:
        """Cosines on the features' grid; where the windows were padded, at their pixels."""
        return self.cropped(super().score(view, text), view.size)

    def padded(self, windows: Tensor, value: float = 0) -> Tensor:
        """Windows (..., H, W) with a value all around, up to multiples of ``pad_to``."""
        top, left, down, right = self._padding(*windows.shape[-2:])
        return F.pad(windows, (left, right - left, top, down - top), value=value)

    def cropped(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        """Scores (n, h', w', Q) of padded windows at the pixels of windows of a size."""
        height, width = size
        top, left, down, right = self._padding(height, width)
        if not down and not right:
            return scores
        pixels = F.interpolate(
            scores.permute(0, 3, 1, 2),
            size=(height + down, width + right),
            mode="bilinear",
            align_corners=False,
        )
        return pixels[..., top : top + height, left : left + width].permute(0, 2, 3, 1)

    def _padding(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Zeros above, at the left, and in all in each direction."""
        down, right = -height % self.pad_to, -width % self.pad_to
        return down // 2, right // 2, down, right
