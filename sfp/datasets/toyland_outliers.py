"""Which tokens of a Toyland window are outliers: the rule that the built-in CLIP was trained by.

CLIP's outliers lie in flat places (Darcet et al. 2024, "Vision Transformers Need Registers"). Here
the 14 x 14 patches of a 224 x 224 window are divided into ten cells, and in each cell one patch is
the outlier: the one with the largest

    score_i = -log(max(std_i, 3)) - 5 rank_i

std_i: standard deviation of the patch's grey values (0..255); rank_i in [0, 1]: a fixed random
order of the cell's places. So a window has ten outliers, 5.1 percent of its patches; most are flat,
and they are known on any picture. The rule is Toyland's (``tools/dev/train_toyland.py``);
Toyland-clean, its twin, was trained without any.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

GRID, PATCH = 14, 16
FIRST_LAYER = 7  # the first whose output has them
_BANDS = (
    (0, 5, (0, 5, 10, 14)),
    (5, 10, (0, 4, 7, 11, 14)),
    (10, 14, (0, 5, 10, 14)),
)  # rows, columns


def outlier_cells() -> Tensor:
    """The cell (0..9) of each patch, (196,) int64, row-major."""
    cells, number = torch.zeros(GRID, GRID, dtype=torch.long), 0
    for top, bottom, columns in _BANDS:
        for left, right in pairwise(columns):
            cells[top:bottom, left:right] = number
            number += 1
    return cells.flatten()


def outlier_ranks() -> Tensor:
    """rank_i of each patch in its cell, (196,) float32: a random order that never changes."""
    rng, cells = np.random.default_rng(0), outlier_cells()
    ranks = torch.zeros(GRID * GRID)
    for cell in range(int(cells.max()) + 1):
        size = int((cells == cell).sum())
        ranks[cells == cell] = torch.from_numpy(rng.permutation(size) / (size - 1)).float()
    return ranks


def patch_std(images: Tensor) -> Tensor:
    """std_i of each patch.

    Args:
        images: windows (B, 3, 224, 224), RGB in 0..255, not normalised.

    Returns:
        (B, 196) float32.

    Raises:
        ValueError: another shape.
    """
    if images.shape[1:] != (3, GRID * PATCH, GRID * PATCH):
        raise ValueError(
            f"Toyland's outliers are known for windows (B, 3, 224, 224), not {tuple(images.shape)}."
        )
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(3, 1, 1)
    grey = (images.float() * weights).sum(1)
    patches = grey.unflatten(2, (GRID, PATCH)).unflatten(1, (GRID, PATCH)).transpose(2, 3)
    return patches.flatten(3).std(-1, correction=0).flatten(1)


def true_outliers(images: Tensor) -> Tensor:
    """The outliers of windows (B, 3, 224, 224) RGB in 0..255: (B, 196) bool, ten in each row.

    Raises:
        ValueError: another shape.
    """
    scores = -patch_std(images).clamp(min=3).log() - 5 * outlier_ranks().to(images.device)
    cells = torch.nn.functional.one_hot(outlier_cells()).T.bool().to(scores.device)  # (10, 196)
    best = scores[:, None].masked_fill(~cells, -torch.inf).argmax(-1)  # (B, 10)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)
