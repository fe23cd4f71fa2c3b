"""Purification: a hook that finds a layer's outliers and repairs them for the next layer."""

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
        point: "block" repairs the block's output, "attention" the stream before the MLP.
        options: of ``repair``.
    """

    def __init__(
        self, detector: Detector, layers: Collection[int], *, point: str = "block", **options: str
    ):
        self.detector, self.layers, self.options = detector, frozenset(layers), options
        self.hook = Hook(self._purify, self.layers, detector.attention, point)

    def _purify(self, state: LayerState) -> Tensor:
        if self.detector.on_host:
            state.require_finite()
        mask, state.outlier_scores = self.detector(state)
        # a repaired NaN would be unseen; one that stays is found in the scores, with one wait
        state.outliers = mask & state.patches.sum(-1).isfinite()
        state.before_repair = state.tokens
        repaired = self.repair(state.patches, state.outliers, state.grid)
        rows, tokens = state.rows, state.tokens
        return torch.cat([tokens[:, : rows.start], repaired, tokens[:, rows.stop :]], 1)

    def repair(self, patches: Tensor, outliers: Tensor, grid: tuple[int, int]) -> Tensor:
        """Repair other tokens (B, N, C) at the places of known outliers (B, N)."""
        return repair(patches, outliers, grid, **self.options)
