"""DBSCAN: tokens in no cluster. SFP's README names it as unreleased; this definition is ours."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from sfp.clip.clip import l2_normalise
from sfp.clip.trunk import LayerState
from sfp.options import Count, Positive, Range, Share
from sfp.outliers._detector import DETECTORS, Detector, clustered_mask


@DETECTORS.register("DBSCAN")
class DBSCAN(Detector):
    """DBSCAN by cosine distance: noise, and clusters that are too small, are outliers.

    The score is the cosine distance to the (min_samples - 1)-th neighbour. Where there is no
    cluster nothing is an outlier.

    Args:
        eps: reach; from the image's scores by ``eps_rule``, if None.
        eps_rule: their "quantile", or the "elbow" of the sorted scores, farthest from the line
            between their ends.
        quantile: the quantile.
        min_samples: tokens within eps, itself included, that make a core point.
        min_size: clusters of fewer tokens are outliers, too.
    """

    eps: Positive | None = None
    eps_rule: Literal["quantile", "elbow"] = "quantile"
    quantile: Share = 0.95
    min_samples: Annotated[int, Range(1)] = 5
    min_size: Count = 0

    on_host: ClassVar = True

    def __call__(self, state: LayerState) -> tuple[Tensor, Tensor]:
        from sklearn import cluster  # takes a second to import

        rows = l2_normalise(state.patches)
        distances = (1 - rows @ rows.transpose(1, 2)).clamp_min(0)
        diagonal = torch.eye(rows.shape[1], dtype=torch.bool, device=rows.device)
        distances = distances.masked_fill(diagonal, 0.0)
        neighbour = min(self.min_samples, rows.shape[1])  # the first is the token itself
        scores = distances.kthvalue(neighbour, dim=2).values
        clusters = []
        for matrix, reach in zip(distances, map(self._reach, scores), strict=True):
            found = cluster.DBSCAN(
                eps=max(reach, 1e-6), min_samples=self.min_samples, metric="precomputed"
            )
            clusters.append(found.fit_predict(matrix.cpu().numpy()))
        return clustered_mask(clusters, self.min_size).to(scores.device), scores

    def _reach(self, scores: Tensor) -> float:
        """eps of one image, from its scores (N,)."""
        if self.eps is not None:
            return self.eps
        if self.eps_rule == "quantile":
            return float(torch.quantile(scores, self.quantile))
        curve = scores.sort().values
        line = torch.linspace(0, 1, len(curve), device=curve.device)
        line = curve[0] + line * (curve[-1] - curve[0])
        return float(curve[(line - curve).argmax()])
