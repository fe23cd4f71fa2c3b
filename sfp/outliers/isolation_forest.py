"""Isolation forest: tokens that few random splits set apart (Liu et al., ICDM 2008)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from torch import Tensor

from sfp.clip.trunk import LayerState
from sfp.options import Range, Share
from sfp.outliers._detector import DETECTORS, Detector, above_quantile


@DETECTORS.register("IsolationForest")
class IsolationForest(Detector):
    """The score is scikit-learn's anomaly score in [0, 1].

    Outliers lie strictly above its (1 - contamination) quantile.

    Args:
        trees: number of trees.
        contamination: share of outliers.
        seed: of the splits, the same for each image.
    """

    trees: Annotated[int, Range(1)] = 100
    contamination: Share = 0.05
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0

    on_host: ClassVar = True

    def __call__(self, state: LayerState) -> tuple[Tensor, Tensor]:
        from sklearn import ensemble  # takes a second to import

        scores = []
        for points in state.patches.float().cpu().numpy():
            forest = ensemble.IsolationForest(n_estimators=self.trees, random_state=self.seed)
            scores.append(torch.from_numpy(-forest.fit(points).score_samples(points)))
        scores = torch.stack(scores).float().to(state.tokens.device)
        return above_quantile(scores, self.contamination), scores
