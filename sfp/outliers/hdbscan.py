"""HDBSCAN: tokens in no cluster of a density hierarchy. This definition is ours."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from torch import Tensor

from sfp.clip.clip import l2_normalise
from sfp.clip.trunk import LayerState
from sfp.options import Range
from sfp.outliers._detector import DETECTORS, Detector, clustered_mask


@DETECTORS.register("HDBSCAN")
class HDBSCAN(Detector):
    """HDBSCAN on tokens of length one: noise is an outlier.

    The score is 1 less the token's probability of belonging to its cluster. Where there is no
    cluster, or fewer tokens than one needs, nothing is an outlier.

    Args:
        min_cluster_size: least tokens of a cluster.
        min_samples: neighbours that measure density; min_cluster_size if None.
    """

    min_cluster_size: Annotated[int, Range(2)] = 5
    min_samples: Annotated[int, Range(1)] | None = None

    on_host: ClassVar = True

    def __call__(self, state: LayerState) -> tuple[Tensor, Tensor]:
        from sklearn import cluster  # takes a second to import

        rows = l2_normalise(state.patches)
        scores = torch.zeros(rows.shape[:2], device=rows.device)
        if rows.shape[1] <= max(self.min_cluster_size, self.min_samples or 0):
            return scores.bool(), scores
        options = dict(min_cluster_size=self.min_cluster_size, min_samples=self.min_samples)
        clusters = []
        for i, points in enumerate(rows.cpu().numpy()):
            found = cluster.HDBSCAN(**options, allow_single_cluster=True, copy=True).fit(points)
            clusters.append(found.labels_)
            scores[i] = 1 - torch.from_numpy(found.probabilities_)
        return clustered_mask(clusters).to(rows.device), scores
