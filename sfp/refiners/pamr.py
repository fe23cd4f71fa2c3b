"""PAMR: pixel-adaptive mask refinement (Araslanov and Roth, CVPR 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.errors import SFPError, by_halves, is_want_of_memory
from sfp.options import Count, Range
from sfp.refiners._refiner import REFINERS, Refiner
from sfp.stages import Text, View
from sfp.transfer import to_device

_OFFSETS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))
_CHUNK_BYTES = 256 << 20


@REFINERS.register("PAMR")
class PAMR(Refiner):
    """Each pixel's scores become means of its neighbours', weighted by likeness of colour.

    Args:
        iterations: how often.
        dilations: distances of the 8 neighbours in pixels.
    """

    iterations: Count = 10
    dilations: tuple[Annotated[int, Range(1)], ...] = (8, 16)

    def __post_init__(self):
        if not len(self.dilations):
            raise SFPError("dilations of PAMR are none; give distances in pixels, such as (8, 16).")
        self.dilations = tuple(self.dilations)

    def __call__(self, scores: Tensor, view: View, text: Text) -> Tensor:
        image = to_device(view.image[None], scores.device)
        try:
            return pamr(image, scores[None], self.iterations, self.dilations)[0]
        except (MemoryError, RuntimeError) as error:
            if not is_want_of_memory(error):
                raise
            height, width = scores.shape[-2:]
            raise SFPError(
                f"PAMR needs more memory than there is for {width}x{height} pixels with"
                f" {len(self.dilations)} dilations; leave it out, or make the picture smaller."
            ) from error


def pamr(
    image: Tensor, scores: Tensor, iterations: int, dilations: Sequence[int] = (8, 16)
) -> Tensor:
    """Score maps refined by the colours around each pixel.

    Args:
        image: normalised, (B, 3, H', W'); resized to the maps' size.
        scores: (B, Q, H, W).
        iterations: T; 0 returns the scores.
        dilations: D, distances of the 8 neighbours in pixels.

    Returns:
        (B, Q, H, W) float32.
    """
    scores = scores.float()
    if iterations == 0:
        return scores
    image = F.interpolate(
        image.float(), size=scores.shape[-2:], mode="bilinear", align_corners=True
    )
    weights = _affinities(image, dilations)  # (B, 8 |D|, H, W)
    one = weights.shape[1] * scores[0, 0].numel() * 4
    at_once = min(scores.shape[1], max(1, _CHUNK_BYTES // one))
    return by_halves(partial(_refined, scores, weights, iterations, dilations), at_once, 1)


def _refined(
    scores: Tensor, weights: Tensor, iterations: int, dilations: Sequence[int], maps_at_once: int
) -> Tensor:
    refined = torch.empty_like(scores)
    for b in range(len(scores)):
        for start in range(0, scores.shape[1], maps_at_once):
            maps = scores[b, start : start + maps_at_once]
            for _ in range(iterations):
                maps = _weighted_neighbours(maps, weights[b], dilations)
            refined[b, start : start + maps_at_once] = maps
    return refined


def _neighbours(maps: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """The maps (..., H, W) shifted to each neighbour, replicate padding, one at a time."""
    height, width = maps.shape[-2:]
    for dilation in dilations:
        reach = min(dilation, max(height, width))  # beyond that all lies on the edge
        padded = F.pad(maps, (reach,) * 4, mode="replicate")
        for dy, dx in _OFFSETS:
            yield padded[..., reach * (1 + dy) :, reach * (1 + dx) :][..., :height, :width]


def _affinities(image: Tensor, dilations: Sequence[int]) -> Tensor:
    around = torch.stack(list(_neighbours(image, dilations)), 2)  # (B, 3, 8 |D|, H, W)
    # the centre belongs to each dilation's 3x3 patch, so it counts |D| times
    centre = image.unsqueeze(2)
    with_centre = torch.cat([around, centre.expand(-1, -1, len(dilations), -1, -1)], 2)
    deviation = with_centre.std(2, keepdim=True)
    affinity = -(around - centre).abs() / (1e-8 + 0.1 * deviation)
    return affinity.mean(1).softmax(1)


def _weighted_neighbours(maps: Tensor, weights: Tensor, dilations: Sequence[int]) -> Tensor:
    total = torch.zeros_like(maps)
    for weight, shifted in zip(weights, _neighbours(maps[None], dilations), strict=True):
        total.addcmul_(weight, shifted[0])
    return total
