"""LaVG: masks without classes first, then a name for each (Kang and Cho, ECCV 2024).

"In Defense of Lazy Visual Grounding for Open-Vocabulary Semantic Segmentation"; dahyun-kang/lavg.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.clip.kernels import linear
from sfp.methods import METHODS, Changes
from sfp.methods._masked import Masked
from sfp.methods.sclip import SCLIP
from sfp.stages import Picture, Text, View


@METHODS.register("LaVG")
class LaVG(Masked, SCLIP):
    """S_p = g_i T at each pixel p of mask i, g_i the mean of F over the window's pixels of it.

    F are SCLIP's unit features, bilinear at the window's pixels and not made unit again, T the
    texts. Of masks that overlap the first counts; one more mask has all that the others leave. The
    authors' masks are those of "cut".

    Args:
        drop_background: whether pixels of the last mask, the rest, get the window's least score for
            all queries but those of the first class; as published on VOC21 alone.
    """

    drop_background: bool = False

    joins_windows: ClassVar[bool] = True
    changes = Changes("Kang and Cho, ECCV 2024", "q-q + k-k; mean over masks")

    def look(self, picture: Picture) -> Tensor:
        """The masks at the size that the windows slide over, (M, H, W) bool, the rest last."""
        regions = self.backbones["masks"](picture).with_rest()
        return regions.stack(tuple(picture.image.shape[1:])).to(picture.image.device)

    def score(self, view: View, text: Text) -> Tensor:
        """The average over windows of scores at pixels, (H, W, Q): one window's at a time."""
        features, device = view["features"], view["features"].device
        masks, vectors = view.looked.to(device), text.vectors
        first = next((i for i, own in enumerate(text.class_of_query) if own), len(text))
        down, across = (
            F.interpolate(torch.eye(cells, device=device)[None], size=length, mode="linear")[0].T
            for cells, length in zip(features.shape[1:3], view.size, strict=True)
        )  # (h', h) and (w', w) of bilinear enlargement
        total = torch.zeros(*view.image.shape[1:], len(text), device=device)
        visits = torch.zeros(*view.image.shape[1:], 1, device=device)
        for maps, (top, left, bottom, right) in zip(features, view.boxes.tolist(), strict=True):
            own = masks[:, top:bottom, left:right]
            shares = down.T @ own.float() @ across  # what each patch gives to each mask, (M, h, w)
            pixels = own.sum((1, 2)).clamp(min=1)
            means = torch.einsum("mhw,hwd->md", shares, maps) / pixels[:, None]  # g
            scores = linear(means, vectors)[own.int().argmax(0)]  # the first mask's, (h', w', Q)
            if self.drop_background and first < len(text):
                scores[own[-1]] = torch.where(
                    torch.arange(len(text), device=device) < first, scores[own[-1]], scores.min()
                )
            total[top:bottom, left:right] += scores
            visits[top:bottom, left:right] += 1
        return total / visits
