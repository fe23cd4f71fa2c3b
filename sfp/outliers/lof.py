"""LOF as SC-CLIP computes it: a simplified local outlier factor on squared distances (methods.md 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from sfp.clip.kernels import product
from sfp.clip.trunk import LayerState
from sfp.errors import SFPError
from sfp.outliers._detector import DETECTORS, Detector


@DETECTORS.register("LOF")
class LocalOutlierFactor(Detector):
    """LOF_i = kd_i * mean over the k nearest o of 1 / kd_o, kd the squared distance to the k-th neighbour.

    Outliers lie strictly above the score's (1 - contamination) quantile: 3, 10, 13, 29 of 49, 196, 256, 576 tokens.

    Args:
        k: neighbours; at most N - 1 are used.
        contamination: share of outliers.
    """

    def __init__(self, *, k: int = 30, contamination: float = 0.05):
        if k < 1 or not 0 <= contamination <= 1:
            raise SFPError(
                f"The LOF detector needs k >= 1 and contamination in [0, 1], got k={k}, contamination={contamination}."
            )
        self.k, self.contamination = k, contamination

    def __call__(self, state: LayerState) -> tuple[Tensor, Tensor]:
        patches = state.patches.float()  # half precision loses the distances
        scores = local_outlier_factor(patches, self.k)
        cut = torch.quantile(scores, 1 - self.contamination, dim=1, keepdim=True)
        return scores > cut, scores


def local_outlier_factor(points: Tensor, k: int) -> Tensor:
    """Scores (B, N) of points (B, N, C) float32; a point among k copies of itself counts as no outlier (1)."""
    k = min(k, points.shape[1] - 1)
    if k < 1:
        return torch.ones_like(points[..., 0])
    rows = (
        points.double()
    )  # a product of matrices needs the digits where tokens of large norm lie close together
    lengths = rows.square().sum(-1)
    sums = lengths[:, :, None] + lengths[:, None]
    squared = sums - product(2 * rows, rows.transpose(1, 2))
    squared = squared.masked_fill(
        squared < 1e-14 * sums, 0.0
    ).float()  # what rounding leaves of a copy's distance
    distances, neighbours = squared.topk(k + 1, dim=-1, largest=False)
    k_distance = distances[..., k].clamp_min(1e-12)  # the first of the k + 1 is the point itself
    inverse = (1 / k_distance).unsqueeze(1).expand(-1, points.shape[1], -1)
    return k_distance * inverse.gather(2, neighbours[..., 1:]).mean(-1)
