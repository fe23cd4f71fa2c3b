"""LOF as SC-CLIP computes it: a simplified local outlier factor on squared distances."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from sfp.clip.trunk import LayerState
from sfp.options import Range, Share
from sfp.outliers._detector import DETECTORS, Detector, above_quantile


@DETECTORS.register("LOF")
class LOF(Detector):
    """LOF_i = kd_i * mean over the k nearest o of 1 / kd_o, kd the k-th neighbour's squared
    distance.

    Outliers lie strictly above the score's (1 - contamination) quantile: 3, 10, 13, 29 of 49, 196,
    256, 576 tokens.

    Args:
        k: neighbours; at most N - 1 are used.
        contamination: share of outliers.
    """

    k: Annotated[int, Range(1)] = 30
    contamination: Share = 0.05

    def __call__(self, state: LayerState) -> tuple[Tensor, Tensor]:
        patches = state.patches.float()  # half precision loses the distances
        scores = local_outlier_factor(patches, self.k)
        return above_quantile(scores, self.contamination), scores


def local_outlier_factor(points: Tensor, k: int) -> Tensor:
    """Scores (B, N) of points (B, N, C) float32; a point among k copies of itself has 1."""
    k = min(k, points.shape[1] - 1)
    if k < 1:
        return torch.ones_like(points[..., 0])
    rows = points.double()  # so that tokens of large norm keep their small distances
    lengths = rows.square().sum(-1)
    sums = lengths[:, :, None] + lengths[:, None]
    squared = sums - 2 * rows @ rows.transpose(1, 2)
    squared = squared.masked_fill(squared < 1e-14 * sums, 0.0).float()  # a copy's rounding
    distances, neighbours = squared.topk(k + 1, dim=-1, largest=False)
    k_distance = distances[..., k].clamp_min(1e-12)  # the first of the k + 1 is the point itself
    inverse = (1 / k_distance).unsqueeze(1).expand(-1, points.shape[1], -1)
    return k_distance * inverse.gather(2, neighbours[..., 1:]).mean(-1)
