"""DBSCAN: tokens in no cluster (SFP's README names it as unreleased; this definition is ours, methods.md 2.4)."""

from __future__ import annotations

import torch
from sklearn.cluster import DBSCAN
from torch import Tensor

from sfp.clip.clip import unit
from sfp.clip.kernels import product
from sfp.clip.trunk import LayerState
from sfp.errors import SFPError, unknown_choice
from sfp.outliers._detector import DETECTORS, Detector, clustered_mask


@DETECTORS.register("DBSCAN")
class DensityClusters(Detector):
    """DBSCAN by cosine distance: noise, and clusters that are too small, are outliers; none where there is no cluster.

    The score is the cosine distance to the (min_samples - 1)-th neighbour.

    Args:
        eps: reach; from the image's scores by ``eps_rule``, if None.
        eps_rule: their "quantile", or the "elbow" of the sorted scores, farthest from the line between their ends.
        quantile: the quantile.
        min_samples: tokens within eps, itself included, that make a core point.
        min_size: clusters of fewer tokens are outliers, too.
    """

    def __init__(
        self,
        *,
        eps: float | None = None,
        eps_rule: str = "quantile",
        quantile: float = 0.95,
        min_samples: int = 5,
        min_size: int = 0,
    ):
        if eps_rule not in ("quantile", "elbow"):
            raise unknown_choice("eps_rule of DBSCAN", eps_rule, ("quantile", "elbow"))
        if (
            min_samples < 1
            or min_size < 0
            or not 0 <= quantile <= 1
            or (eps is not None and not eps > 0)
        ):
            raise SFPError(
                "The DBSCAN detector needs eps > 0, quantile in [0, 1], min_samples >= 1 and min_size >= 0, "
                f"got {eps}, {quantile}, {min_samples}, {min_size}."
            )
        self.eps, self.eps_rule, self.quantile, self.min_samples, self.min_size = (
            eps,
            eps_rule,
            quantile,
            min_samples,
            min_size,
        )

    def __call__(self, state: LayerState) -> tuple[Tensor, Tensor]:
        rows = unit(state.patches)
        distances = (1 - product(rows, rows.transpose(1, 2))).clamp_min(0)
        distances = distances.masked_fill(
            torch.eye(rows.shape[1], dtype=torch.bool, device=rows.device), 0.0
        )
        neighbour = min(self.min_samples, rows.shape[1])  # the first is the token itself
        scores = distances.kthvalue(neighbour, dim=2).values
        clusters = [
            DBSCAN(
                eps=max(self._reach(own), 1e-6), min_samples=self.min_samples, metric="precomputed"
            ).fit_predict(matrix.cpu().numpy())
            for matrix, own in zip(distances, scores, strict=True)
        ]
        return clustered_mask(clusters, self.min_size).to(scores.device), scores

    def _reach(self, scores: Tensor) -> float:
        """eps of one image, from its scores (N,)."""
        if self.eps is not None:
            return self.eps
        if self.eps_rule == "quantile":
            return float(torch.quantile(scores, self.quantile))
        curve = scores.sort().values
        line = (
            torch.linspace(0, 1, len(curve), device=curve.device) * (curve[-1] - curve[0])
            + curve[0]
        )
        return float(curve[(line - curve).argmax()])
