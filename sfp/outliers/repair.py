"""Repair.

An outlier token is filled from its clean neighbours, by default by their mean (SFP Eq. 5).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.options import check_type

Empty = Literal["keep", "zero", "iterate", "nearest"]
Divisor = Literal["valid", "eight"]
Filling = Literal["mean", "bilinear", "weighted", "median", "nearest"]
# weights of the neighbours at an edge and at a corner: none; a triangle's two tokens wide; one
# over the distance
_WEIGHTS = {"mean": (1.0, 1.0), "bilinear": (0.5, 0.25), "weighted": (1.0, 0.5**0.5)}


def repair(
    patches: Tensor,
    outliers: Tensor,
    grid: tuple[int, int],
    *,
    empty: str = "keep",
    divisor: str = "valid",
    filling: str = "mean",
) -> Tensor:
    """Patch tokens with every outlier filled from its clean 8-neighbours, all from old values.

    Args:
        patches: (B, N, C), N = h * w row-major.
        outliers: mask (B, N).
        grid: (h, w).
        empty: what becomes of an outlier without a clean neighbour: "keep" it (SC-CLIP's code),
            "zero" (SFP's released code), "iterate" the repair from the rim inwards, or copy the
            "nearest" clean token.
        divisor: "valid" divides by the clean neighbours' weights, "eight" by those of all 8 as
            Eq. 5 is printed; it changes the first three fillings alone.
        filling: the neighbours' "mean"; their mean with "bilinear" weights, which fall to zero two
            tokens away in each direction, or "weighted" by one over the distance; their "median"
            in each channel; or the "nearest" one, the first in row order among equals. SC-CLIP
            compares these names (Table 6) without their formulas.

    Returns:
        (B, N, C) in the dtype of ``patches``; computed in float32.
    """
    for what, given, hint in (
        ("empty", empty, Empty),
        ("divisor", divisor, Divisor),
        ("filling", filling, Filling),
    ):
        check_type(f"{what} of the repair", given, hint)
    filled, reached = _fill_once(patches.float(), outliers, grid, divisor, filling)
    left = outliers & ~reached
    if empty == "zero":
        filled = filled.masked_fill(left[..., None], 0.0)
    elif empty == "iterate":
        while bool(reached.any()) and bool(left.any()):
            again, reached = _fill_once(filled, left, grid, divisor, filling)
            filled, left = again, left & ~reached
    elif empty == "nearest" and bool(left.any()):
        filled = torch.where(
            left[..., None], _nearest_clean(patches.float(), outliers, grid), filled
        )
    return filled.to(patches.dtype).contiguous()  # in any layout sums would round in another order


def _fill_once(
    patches: Tensor, outliers: Tensor, grid: tuple[int, int], divisor: str, filling: str
) -> tuple[Tensor, Tensor]:
    """One round; also the mask of outliers that had a clean neighbour."""
    clean = (~outliers).float().unflatten(1, grid)[:, None]
    weights = _WEIGHTS.get(filling, (1.0, 1.0))
    count = _around(clean, weights).flatten(1)
    reached = outliers & (count > 0.1)
    if filling == "median":
        return torch.where(reached[..., None], _median(patches, outliers, grid), patches), reached
    if filling == "nearest":
        return torch.where(
            reached[..., None], _nearest_clean(patches, outliers, grid), patches
        ), reached
    maps = patches.masked_fill(outliers[..., None], 0.0).transpose(1, 2).unflatten(2, grid)
    total = _around(maps, weights).flatten(2).transpose(1, 2)
    divide_by = (
        count.masked_fill(~reached, 1.0)
        if divisor == "valid"
        else torch.full_like(count, 4 * sum(weights))
    )
    return torch.where(reached[..., None], total / divide_by[..., None], patches), reached


def _around(maps: Tensor, weights: tuple[float, float]) -> Tensor:
    """Weighted sum over the 8 neighbours, zero padding, (B, C, h, w), where the centre is zero.

    An outlier that is masked.
    """
    edge, corner = weights
    total = _box(maps, (3, 3))
    if edge == corner == 1.0:
        return total
    return corner * total + (edge - corner) * (_box(maps, (1, 3)) + _box(maps, (3, 1)))


def _box(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Sum over a box around each place, zero padding, (B, C, h, w)."""
    return F.avg_pool2d(
        maps, size, stride=1, padding=(size[0] // 2, size[1] // 2), divisor_override=1
    )


def _median(patches: Tensor, outliers: Tensor, grid: tuple[int, int]) -> Tensor:
    """Each token's median over its clean 8-neighbours, channel by channel.

    Of an even number the mean of the two in the middle.
    """
    maps = patches.masked_fill(outliers[..., None], torch.nan).transpose(1, 2).unflatten(2, grid)
    around = (
        F.pad(maps, (1, 1, 1, 1), value=torch.nan).unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)
    )  # B, C, h, w, 9
    others = torch.cat([around[..., :4], around[..., 5:]], -1)
    return others.nanquantile(0.5, dim=-1).flatten(2).transpose(1, 2)


def _nearest_clean(patches: Tensor, outliers: Tensor, grid: tuple[int, int]) -> Tensor:
    """Each token's nearest clean token in the grid, the first in row order among equals.

    Itself where none is clean.
    """
    rows, columns = torch.meshgrid(
        *(torch.arange(side, device=patches.device) for side in grid), indexing="ij"
    )
    places = torch.stack([rows.flatten(), columns.flatten()], 1).float()
    distance = torch.cdist(places, places)[None].masked_fill(outliers[:, None, :], torch.inf)
    nearest = distance.argmin(-1)
    own = torch.arange(len(places), device=patches.device)
    nearest = torch.where(outliers.all(1, keepdim=True), own, nearest)
    return patches.gather(1, nearest[..., None].expand_as(patches))
