"""ResCLIP's semantic feedback: labels of patches to a bias between patches, per image."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def patch_labels(pixels: Tensor, patch: int, queries: int) -> Tensor:
    """The most frequent label of each patch of pixel labels (B, H, W), (B, h, w).

    Of equally frequent ones the smallest; remainders smaller than a patch are dropped.
    """
    tiles = pixels.unfold(1, patch, patch).unfold(2, patch, patch).flatten(3)  # (B, h, w, p^2)
    counts = tiles.new_zeros(*tiles.shape[:3], queries)
    counts.scatter_add_(3, tiles, torch.ones_like(tiles))
    return (counts * queries - torch.arange(queries, device=counts.device)).argmax(-1)


def feedback(labels: Tensor) -> Tensor:
    """B of patch labels (B, h, w): (B, N, N) float32, rows sum to 1.

    Like patches have 1, unlike ones 0; those that no straight line of their label connects decay by
    exp(-c / C), c their Chebyshev distance and C the largest one; each row is smoothed along the
    flattened patches by a Gaussian of 5.
    """
    height, width = labels.shape[1:]
    longest, flat = max(height, width) - 1, labels.flatten(1)
    along = [torch.arange(side, device=labels.device) for side in (height, width)]
    apart = [(places[:, None] - places).abs() for places in along]
    distance = torch.maximum(apart[0][:, None, :, None], apart[1][None, :, None, :])  # (h, w, h, w)
    down, across = (_stops(side, longest).to(labels.device) for side in (height, width))
    own = labels[..., None, None]
    connected = torch.ones((), dtype=torch.bool, device=labels.device)
    for step in range(1, longest + 1):
        # what lies between each two patches after so many steps; near ones have arrived before
        place = down[step][:, None, :, None] * width + across[step][None, :, None, :]
        connected = connected & ((flat[:, place] == own) | (step > distance))
    decay = torch.where(connected, 1.0, torch.exp(-distance / max(longest, 1)))
    like = (decay * (labels[:, None, None] == own)).flatten(1, 2).flatten(2)
    smooth = like @ _smoothing(like.shape[-1]).to(like.device)
    return smooth / (smooth.sum(-1, keepdim=True) + 1e-8)


@functools.lru_cache(maxsize=64)
def _stops(side: int, longest: int) -> Tensor:
    """round(u (1 - k / C) + v k / C) for k = 0..C and places u, v along a side, (C + 1, u, v)."""
    t = torch.linspace(0, 1, longest + 1)[:, None, None]
    places = torch.arange(side).float()
    return torch.round(places[:, None] * (1 - t) + places * t).long()


@functools.lru_cache(maxsize=16)
def _smoothing(count: int, sigma: float = 5.0, taps: int = 31) -> Tensor:
    """A normalised Gaussian around each of ``count`` places, none beyond the ends, (N, N)."""
    reach = min(count, taps) // 2
    offsets = torch.arange(-reach, reach + 1).float()
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    apart = torch.arange(count)[:, None] - torch.arange(count)
    weights = (weights / weights.sum())[(apart + reach).clamp(0, 2 * reach)]
    return weights * (apart.abs() <= reach)
