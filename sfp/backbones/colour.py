"""Plain colours in place of a second model: needs no weights; Toyland's things have one each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.backbones._backbone import Backbone

CELL = 8  # pixels


class MeanColours(Backbone):
    """Mean normalised colour of each cell of 8x8 pixels, (B, 4, H / 8, W / 8).

    The fourth channel is a small constant, so that grey has a direction, too.
    """

    def encode(self, windows: Tensor) -> Tensor:
        return mean_colours(windows, [max(1, side // CELL) for side in windows.shape[-2:]])


def mean_colours(planes: Tensor, cells: Sequence[int]) -> Tensor:
    """Of planes (B, 3, H, W) in a grid of cells (h, w), and the constant: (B, 4, h, w)."""
    colours = F.adaptive_avg_pool2d(planes, tuple(cells))
    return torch.cat([colours, torch.full_like(colours[:, :1], 0.1)], 1)
