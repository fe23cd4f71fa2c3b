"""Attention column: tokens that draw much attention, as in SFP's Fig. 1. No published detector."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from sfp.clip.trunk import Attention, LayerState
from sfp.options import Count
from sfp.outliers._detector import DETECTORS, Detector, top_k_mask


@DETECTORS.register("AttentionColumn")
class AttentionColumn(Detector):
    """The score is c_j = mean over patches i of a_{i,j}, a the attention averaged over heads.

    Args:
        topk: how many to take.
        z: take all whose score lies more than so many standard deviations above the image's mean
            instead.
        cls_row: the attention of the class token, and of trained registers, is averaged in.
        own: a token's attention to itself is averaged in.
    """

    topk: Count = 10
    z: float | None = None
    cls_row: bool = False
    own: bool = True

    attention: ClassVar = Attention.MAP

    def __post_init__(self):
        self.needs_class_token = self.cls_row

    def __call__(self, state: LayerState) -> tuple[Tensor, Tensor]:
        before = state.prefix
        first = 0 if self.cls_row else before
        received = state.attention[:, first:, before:].float()  # (B, N or P + N, N)
        total, rows = received.sum(1), received.shape[1]
        if not self.own:
            total = total - state.patch_attention.float().diagonal(dim1=1, dim2=2)
            rows -= 1
        scores = total / max(rows, 1)
        if self.z is None:
            return top_k_mask(scores, self.topk), scores
        spread = scores.std(1, keepdim=True, correction=0)
        above = scores - scores.mean(1, keepdim=True) > self.z * spread
        return above & (spread > torch.finfo(torch.float32).eps), scores
