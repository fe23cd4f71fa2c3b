"""HDBSCAN: tokens in no cluster of a density hierarchy (this definition is ours, methods.md 2.4)."""

from __future__ import annotations

import torch
from sklearn.cluster import HDBSCAN
from torch import Tensor

from sfp.clip.clip import unit
from sfp.clip.trunk import LayerState
from sfp.errors import SFPError
from sfp.outliers._detector import DETECTORS, Detector, clustered_mask


@DETECTORS.register("HDBSCAN")
class DensityHierarchy(Detector):
    """HDBSCAN on tokens of length one: noise is an outlier; none where there is no cluster, or fewer tokens than one needs.

    The score is 1 less the token's probability of belonging to its cluster.

    Args:
        min_cluster_size: least tokens of a cluster.
        min_samples: neighbours that measure density; min_cluster_size if None.
    """

    def __init__(self, *, min_cluster_size: int = 5, min_samples: int | None = None):
        if min_cluster_size < 2 or (min_samples is not None and min_samples < 1):
            raise SFPError(
                f"HDBSCAN needs min_cluster_size >= 2 and min_samples >= 1, got {min_cluster_size} and {min_samples}."
            )
        self.min_cluster_size, self.min_samples = min_cluster_size, min_samples

    def __call__(self, state: LayerState) -> tuple[Tensor, Tensor]:
        rows = unit(state.patches)
        scores = torch.zeros(rows.shape[:2])
        if rows.shape[1] <= max(self.min_cluster_size, self.min_samples or 0):
            return torch.zeros_like(scores, dtype=torch.bool).to(rows.device), scores.to(
                rows.device
            )
        clusters = []
        for i, points in enumerate(rows.cpu().numpy()):
            found = HDBSCAN(
                min_cluster_size=self.min_cluster_size,
                min_samples=self.min_samples,
                allow_single_cluster=True,
                copy=True,
            ).fit(points)
            clusters.append(found.labels_)
            scores[i] = 1 - torch.from_numpy(found.probabilities_)
        return clustered_mask(clusters).to(rows.device), scores.to(rows.device)
