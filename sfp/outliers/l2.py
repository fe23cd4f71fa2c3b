"""L2: tokens of large norm.

"Vision Transformers Need Registers" (Darcet et al., 2024); SFP's released code takes the 10
largest.
"""

from __future__ import annotations

from torch import Tensor

from sfp.clip.trunk import LayerState
from sfp.errors import SFPError
from sfp.options import Count, Share
from sfp.outliers._detector import DETECTORS, Detector, top_k_mask


@DETECTORS.register("L2")
class L2(Detector):
    """The score is ||X_i||_2 of the layer's output.

    Args:
        topk: how many to take.
        ratio: take this share of the tokens instead, rounded up.
        threshold: take all norms above it instead.
    """

    topk: Count = 10
    ratio: Share | None = None
    threshold: float | None = None

    def __post_init__(self):
        if self.ratio is not None and self.threshold is not None:
            raise SFPError("The L2 detector has both ratio and threshold; give one of them.")

    def __call__(self, state: LayerState) -> tuple[Tensor, Tensor]:
        norms = state.patches.float().norm(dim=-1)
        if self.threshold is not None:
            return norms > self.threshold, norms
        count = self.topk if self.ratio is None else -int(-self.ratio * norms.shape[1] // 1)
        return top_k_mask(norms, count), norms
