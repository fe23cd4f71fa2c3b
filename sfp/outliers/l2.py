"""L2: tokens of large norm ("Vision transformers need registers"; SFP's released code takes the 10 largest)."""

from __future__ import annotations

from torch import Tensor

from sfp.clip.trunk import LayerState
from sfp.errors import SFPError
from sfp.outliers._detector import DETECTORS, Detector, top_k_mask


@DETECTORS.register("L2")
class LargeNorm(Detector):
    """The score is ||X_i||_2 of the layer's output.

    Args:
        topk: how many to take.
        ratio: take this share of the tokens instead, rounded up.
        threshold: take all norms above it instead.
    """

    def __init__(
        self, *, topk: int = 10, ratio: float | None = None, threshold: float | None = None
    ):
        if ratio is not None and threshold is not None:
            raise SFPError("The L2 detector has both ratio and threshold; give one of them.")
        if topk < 0 or (ratio is not None and not 0 <= ratio <= 1):
            raise SFPError(
                f"The L2 detector needs topk >= 0 and ratio in [0, 1], got topk={topk}, ratio={ratio}."
            )
        self.topk, self.ratio, self.threshold = topk, ratio, threshold

    def __call__(self, state: LayerState) -> tuple[Tensor, Tensor]:
        norms = state.patches.float().norm(dim=-1)
        if self.threshold is not None:
            return norms > self.threshold, norms
        count = self.topk if self.ratio is None else -int(-self.ratio * norms.shape[1] // 1)
        return top_k_mask(norms, count), norms
