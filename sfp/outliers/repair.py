"""Repair: an outlier token becomes the mean of its clean neighbours (SFP Eq. 5, methods.md 2.6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.errors import unknown_choice

EMPTY = ("keep", "zero", "iterate", "nearest")
DIVISORS = ("valid", "eight")


def repair(patches: Tensor, outliers: Tensor, grid: tuple[int, int], *, empty: str = "keep", divisor: str = "valid") -> Tensor:
    """Patch tokens with every outlier replaced by the mean of its non-outlier 8-neighbours, all at once from old values.

    Args:
        patches: (B, N, C), N = h * w row-major.
        outliers: mask (B, N).
        grid: (h, w).
        empty: what becomes of an outlier without a clean neighbour: "keep" it (SC-CLIP's code), "zero" (SFP's released
            code), "iterate" the repair from the rim inwards, or copy the "nearest" clean token.
        divisor: "valid" divides by the number of clean neighbours, "eight" by 8 as Eq. 5 is printed.

    Returns:
        (B, N, C) in the dtype of ``patches``; computed in float32.
    """
    if empty not in EMPTY:
        raise unknown_choice("treatment of outliers without clean neighbours (empty)", empty, EMPTY)
    if divisor not in DIVISORS:
        raise unknown_choice("divisor of the repair", divisor, DIVISORS)
    filled, reached = _fill_once(patches.float(), outliers, grid, divisor)
    left = outliers & ~reached
    if empty == "zero":
        filled = filled.masked_fill(left[..., None], 0.0)
    elif empty == "iterate":
        while bool(reached.any()) and bool(left.any()):
            again, reached = _fill_once(filled, left, grid, divisor)
            filled, left = again, left & ~reached
    elif empty == "nearest" and bool(left.any()):
        filled = torch.where(left[..., None], _nearest_clean(patches.float(), outliers, grid), filled)
    return filled.to(patches.dtype).contiguous()  # in any layout sums would round in another order


def _fill_once(patches: Tensor, outliers: Tensor, grid: tuple[int, int], divisor: str) -> tuple[Tensor, Tensor]:
    """One round; also the mask of outliers that had a clean neighbour."""
    clean = (~outliers).float().unflatten(1, grid)[:, None]
    # the centre is an outlier, so masked to zero: a plain 3x3 box sums the neighbours only
    count = _box(clean).flatten(1)
    total = _box(patches.masked_fill(outliers[..., None], 0.0).transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)
    reached = outliers & (count > 0.5)
    divide_by = count.clamp(min=1.0) if divisor == "valid" else torch.full_like(count, 8.0)
    return torch.where(reached[..., None], total / divide_by[..., None], patches), reached


def _box(maps: Tensor) -> Tensor:
    """Sum over each 3x3 neighbourhood, zero padding, (B, C, h, w)."""
    return F.avg_pool2d(maps, 3, stride=1, padding=1, divisor_override=1)


def _nearest_clean(patches: Tensor, outliers: Tensor, grid: tuple[int, int]) -> Tensor:
    """Each token's nearest clean token in the grid, the first in row order among equals; itself where none is clean."""
    rows, columns = torch.meshgrid(*(torch.arange(side, device=patches.device) for side in grid), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], 1).float()
    distance = torch.cdist(places, places)[None].masked_fill(outliers[:, None, :], torch.inf)
    nearest = distance.argmin(-1)
    own = torch.arange(len(places), device=patches.device)
    nearest = torch.where(outliers.all(1, keepdim=True), own, nearest)
    return patches.gather(1, nearest[..., None].expand_as(patches))
