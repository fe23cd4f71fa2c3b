"""Purification: the hook that finds a layer's outliers and repairs them, so that clean tokens feed the next layer."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from sfp.clip.trunk import Hook, LayerState
from sfp.outliers._detector import Detector
from sfp.outliers.repair import repair


class Purifier:
    """Detector and repair for chosen layers.

    Args:
        detector: finds the outliers of a layer.
        layers: 1-based block numbers at which it acts.
        empty, divisor, filling: see ``repair``.
        point: "block" repairs the block's output, "attention" the stream before the MLP.
    """

    def __init__(
        self,
        detector: Detector,
        layers: Collection[int],
        *,
        empty: str = "keep",
        divisor: str = "valid",
        filling: str = "mean",
        point: str = "block",
    ):
        self.detector, self.layers = detector, frozenset(layers)
        self.empty, self.divisor, self.filling = empty, divisor, filling
        self.hook = Hook(self._purify, self.layers, detector.attention, point)

    def _purify(self, state: LayerState) -> Tensor:
        state.outliers, state.outlier_scores = self.detector(state)
        return torch.cat(
            [state.tokens[:, :1], self.repair(state.patches, state.outliers, state.grid)], 1
        )

    def repair(self, patches: Tensor, outliers: Tensor, grid: tuple[int, int]) -> Tensor:
        """Repair other tokens (B, N, C) at the places of known outliers (B, N)."""
        return repair(
            patches, outliers, grid, empty=self.empty, divisor=self.divisor, filling=self.filling
        )
