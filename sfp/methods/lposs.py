"""LPOSS: scores spread over a graph of patches (Stojnic et al., CVPR 2025).

"LPOSS: Label Propagation Over Patches and Pixels for Open-vocabulary Semantic Segmentation";
vladan-stojnic/LPOSS. The graph joins the patches of all windows of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.backbones import Positions, load_backbone
from sfp.clip.clip import l2_normalise
from sfp.methods import METHODS, Changes
from sfp.methods._pixels import pad_black, pad_to_patches
from sfp.methods._propagation import PatchGraph, exact, solve
from sfp.methods._wrapper import Wrapper
from sfp.options import Positive, Range
from sfp.stages import Text, View


@METHODS.register("LPOSS")
class LPOSS(Wrapper):
    """y of (I - alpha What) y = y0: y0 are the base's scores, What the graph of DINO's patches.

    What = D^-1/2 (w + w^T) D^-1/2, w_ij = max(f_i . f_j, 0)^gamma exp(-sigma |x_i - x_j|^rho) for
    the ``neighbours`` largest f_i . f_j; f are unit values of DINO's last block, x the patches'
    centres in the image. The base's features, or its scores where it makes them in another way, are
    resized to DINO's grid. The solver's few steps are part of the method.

    Windows whose sides are no multiples of a model's patch get black pixels at the right and below.
    Of a background's several words the best is taken before scores are resized to the label map.

    Args:
        base: the method below, a name, ``NAME:OPTION=VALUE`` or ``dict(type=NAME, OPTION=VALUE)``;
            MaskCLIP's positions are resized by size, as the authors'.
        dino: a timm ViT, "colour", or a callable from normalised windows (B, 3, H, W) float32 to a
            map (B, C, h', w'); see ``load_backbone``.
        dino_weights: a local file instead of timm's download.
        dino_positions: how a timm ViT's positions are resized, see ``TimmViT``.
        neighbours: k; all patches where an image has fewer.
        gamma, sigma, rho, alpha: the equation's.
        iterations: of conjugate gradients, at most.
        tolerance: a query ends at a residual of so many times its |y0|.
    """

    base: str | Mapping[str, Any] = "MaskCLIP"
    dino: str | Callable[[Tensor], Tensor] = "vit_base_patch16_224.dino"
    dino_weights: str | None = None
    dino_positions: Positions = "auto"
    neighbours: Annotated[int, Range(1)] = 400
    gamma: Positive = 3.0
    sigma: Annotated[float, Range(0)] = 0.01
    rho: Positive = 1.0
    alpha: Annotated[float, Range(0, 0.999)] = 0.95
    iterations: Annotated[int, Range(1)] = 10
    tolerance: Annotated[float, Range(0)] = 1e-6

    changes = Changes("Stojnic et al., CVPR 2025", "the base's; scores spread by another model")
    of_bases = {"MaskCLIP": dict(positional_resize="size")}

    def prepare(self) -> None:
        super().prepare()
        self._dino = load_backbone(
            self.dino,
            self.clip,
            "dino",
            self.dino_weights,
            reads="values",
            positions=self.dino_positions,
        )
        name = "graph" if "dino" in self.backbones else "dino"  # a base may have one, too
        self.backbones = {**self.backbones, name: self._dino}

    def encode(self, windows: Tensor) -> dict[str, Tensor]:
        """The base's, of windows padded to CLIP's patch; f on DINO's grid, (B, h', w', C)."""
        found = super().encode(pad_to_patches(self.clip, windows, self.trunk.patch))
        maps = self._dino(pad_to_patches(self.clip, windows, self._dino.patch or 1))
        if not self.wrapped.defines("score"):
            features = resized(found["features"], maps.shape[-2:])
            found["features"] = l2_normalise(features)
        return {**found, "dino": l2_normalise(maps.permute(0, 2, 3, 1))}

    def score(self, view: View, text: Text) -> Tensor:
        """y on DINO's grid, (n, h', w', Q)."""
        start = resized(super().score(self._padded(view), text), view["dino"].shape[1:3])  # y0
        rows = start.flatten(0, 2).T.to(exact(start.device))
        spread = solve(self.graph(view).product, rows, self.alpha, self.iterations, self.tolerance)
        return spread.T.float().reshape(start.shape)

    def graph(self, view: View) -> PatchGraph:
        """That of the patches of all windows of an image, in their order."""
        f = view["dino"].flatten(0, 2)
        x = self._places(view, view["dino"].shape[1:3])
        return PatchGraph(f, x, self.neighbours, self.gamma, self.sigma, self.rho)

    def _padded(self, view: View) -> View:
        """The view with windows of the size that CLIP got."""
        height, width = view.size
        down, right = -height % self.trunk.patch, -width % self.trunk.patch
        if not down and not right:
            return view
        image = pad_black(self.clip, view.image, down, right)
        boxes = view.boxes + view.boxes.new_tensor([0, 0, down, right])
        return replace(view, picture=replace(view.picture, image=image), boxes=boxes)

    def _places(self, view: View, grid: tuple[int, int]) -> Tensor:
        """x: centres of all patches in pixels of the image, (n h' w', 2) float32."""
        patch, centres = self._dino.patch, []
        starts = view.boxes[:, :2].to(view["dino"])
        for axis, cells in enumerate(grid):
            step = patch or view.size[axis] / cells
            own = step // 2 + step * torch.arange(cells).to(starts)
            centres.append(starts[:, axis, None] + own)  # (n, cells)
        down, across = centres[0][:, :, None], centres[1][:, None]
        return torch.stack(torch.broadcast_tensors(down, across), -1).flatten(0, 2)

    def refines_pixels(self, text: Text) -> bool:
        return text.class_of_query.count(0) > 1

    def refine_pixels(self, scores: Tensor, view: View, text: Text) -> Tensor:
        """The words of class 0 all have the best one's map."""
        background = text.class_of_query.count(0)  # its words come first
        if background > 1:
            scores[:background] = scores[:background].amax(0)
        return scores


def resized(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps (B, h, w, C) bilinear (align_corners=False) on another grid."""
    if tuple(maps.shape[1:3]) == tuple(grid):
        return maps
    planes = maps.permute(0, 3, 1, 2).float()
    return F.interpolate(planes, size=tuple(grid), mode="bilinear").permute(0, 2, 3, 1)
