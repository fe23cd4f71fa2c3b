"""Attention column: tokens that draw much attention (the picture behind SFP's Fig. 1; no published detector; methods.md 2.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from sfp.clip.trunk import Attention, LayerState
from sfp.errors import SFPError
from sfp.outliers._detector import DETECTORS, Detector, top_k_mask


@DETECTORS.register("AttentionColumn")
class AttentionColumn(Detector):
    """The score is c_j = mean over patches i of a_{i,j}, a the layer's attention averaged over heads.

    Args:
        topk: how many to take.
        z: take all whose score lies more than so many standard deviations above the image's mean instead.
        cls_row: the class token's attention is averaged in.
        own: a token's attention to itself is averaged in.
    """

    attention = Attention.MAP

    def __init__(
        self, *, topk: int = 10, z: float | None = None, cls_row: bool = False, own: bool = True
    ):
        if topk < 0:
            raise SFPError(f"topk of AttentionColumn is {topk}; give a count of at least 0.")
        self.topk, self.z, self.cls_row, self.own = topk, z, cls_row, own

    def __call__(self, state: LayerState) -> tuple[Tensor, Tensor]:
        received = state.attention[:, 0 if self.cls_row else 1 :, 1:].float()  # (B, N or 1 + N, N)
        total, rows = received.sum(1), received.shape[1]
        if not self.own:
            total, rows = (
                total - state.attention[:, 1:, 1:].float().diagonal(dim1=1, dim2=2),
                rows - 1,
            )
        scores = total / max(rows, 1)
        if self.z is None:
            return top_k_mask(scores, self.topk), scores
        spread = scores.std(1, keepdim=True, correction=0)
        return (scores - scores.mean(1, keepdim=True) > self.z * spread) & (
            spread > torch.finfo(torch.float32).eps
        ), scores
