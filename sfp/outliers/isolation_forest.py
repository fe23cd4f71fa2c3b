"""Isolation forest: tokens that few random splits set apart (Liu et al., ICDM 2008; scikit-learn's)."""

from __future__ import annotations

import torch
from sklearn.ensemble import IsolationForest
from torch import Tensor

from sfp.clip.trunk import LayerState
from sfp.errors import SFPError
from sfp.outliers._detector import DETECTORS, Detector


@DETECTORS.register("IsolationForest")
class RandomSplits(Detector):
    """The score is scikit-learn's anomaly score in [0, 1]; outliers lie strictly above its (1 - contamination) quantile.

    Args:
        trees: number of trees.
        contamination: share of outliers.
        seed: of the splits, the same for each image.
    """

    def __init__(self, *, trees: int = 100, contamination: float = 0.05, seed: int = 0):
        if trees < 1 or not 0 <= contamination <= 1 or not 0 <= seed < 2**32:
            raise SFPError(
                f"IsolationForest needs trees >= 1, contamination in [0, 1] and 0 <= seed < 2^32, got {trees}, {contamination} and {seed}."
            )
        self.trees, self.contamination, self.seed = trees, contamination, seed

    def __call__(self, state: LayerState) -> tuple[Tensor, Tensor]:
        images = state.patches.float().cpu().numpy()
        forests = (IsolationForest(n_estimators=self.trees, random_state=self.seed) for _ in images)
        scores = torch.stack(
            [
                torch.from_numpy(-forest.fit(points).score_samples(points))
                for forest, points in zip(forests, images, strict=True)
            ]
        )
        scores = scores.float().to(state.tokens.device)
        return scores > torch.quantile(scores, 1 - self.contamination, dim=1, keepdim=True), scores
