"""LPOSS+: LPOSS, then scores spread over the pixels of the image (Stojnic et al., CVPR 2025).

vladan-stojnic/LPOSS.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from sfp.methods import METHODS, Changes
from sfp.methods._propagation import PixelGraph, solve
from sfp.methods.lposs import LPOSS
from sfp.options import Positive, Range
from sfp.stages import Text, View


@METHODS.register("LPOSS+")
class LPOSSPlus(LPOSS):
    """LPOSS, then the same over the pixels of the resized image: w = exp(-|d|_2 / tau), d the
    difference of (L / 100, a / 128, b / 128) between a pixel and all within ``radius`` rows and
    columns.

    Args:
        tau: tau.
        radius: 6 is a square of 13 pixels.
    """

    tau: Positive = 0.01
    radius: Annotated[int, Range(1)] = 6

    changes = Changes(
        "Stojnic et al., CVPR 2025", "the base's; scores spread by another model and by colours"
    )

    def refines_pixels(self, text: Text) -> bool:
        return True

    def refine_pixels(self, scores: Tensor, view: View, text: Text) -> Tensor:
        """Scores (Q, H, W) at the resized image, spread over its pixels."""
        rgb = self.clip.denormalise(view.image.to(scores.device)).clamp(0, 1)
        graph, spread = PixelGraph(rgb, self.tau, self.radius), torch.empty_like(scores)
        at_once = graph.queries_at_once()
        for some, out in zip(scores.split(at_once), spread.split(at_once), strict=True):
            rows = solve(
                graph.product, graph.flat(some), self.alpha, self.iterations, self.tolerance
            )
            out.copy_(graph.maps(rows))
        return super().refine_pixels(spread, view, text)
