"""SOM: tokens that the class token attends to more than they attend to themselves.

SFP, ICCV 2025, Eq. 4.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from torch import Tensor

from sfp.clip.trunk import Attention, LayerState
from sfp.options import Count, Range
from sfp.outliers._detector import DETECTORS, Detector, top_k_mask


@DETECTORS.register("SOM")
class SOM(Detector):
    """S^l = { i : a^l_{i,i} < kappa a^l_{cls,i} }, a^l the layer's attention averaged over heads.

    Args:
        cls_factor: kappa; 1 in the paper, 1.5 in the released code.
        max_outliers: keep those with the largest class attention; no cap if None (paper), 10 in
            the released code.
        heads: average the heads ("mean", paper and code), or compare their largest values ("max").
        direction: a_{cls,i} is the class token's attention to i ("row", paper's Fig. 1c and code)
            or i's attention to the class token ("column").
    """

    cls_factor: Annotated[float, Range(0)] = 1.0
    max_outliers: Count | None = None
    heads: Literal["mean", "max"] = "mean"
    direction: Literal["row", "column"] = "row"

    attention: ClassVar = Attention.ROWS
    needs_class_token: ClassVar = True

    def __call__(self, state: LayerState) -> tuple[Tensor, Tensor]:
        to_cls = state.cls_row if self.direction == "row" else state.cls_column
        if self.heads == "mean":
            a_cls, a_self = to_cls.mean(1), state.diagonal.mean(1)
        else:
            a_cls, a_self = to_cls.amax(1), state.diagonal.amax(1)
        a_cls = self.cls_factor * a_cls
        mask = a_self < a_cls
        if self.max_outliers is not None:  # ranked by class attention, as released
            mask = mask & top_k_mask(a_cls.masked_fill(~mask, -1.0), self.max_outliers)
        return mask, a_cls - a_self
