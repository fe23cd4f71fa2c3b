"""CASS: another model's graph of patches in each head of the last attention.

"Distilling Spectral Graph for Object-Context Aware Open-Vocabulary Semantic Segmentation", Kim et
al., CVPR 2025; MICV-yonsei/CASS, whose order and constants are followed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sfp.backbones import load_backbone
from sfp.backbones.timm_vit import Positions
from sfp.clip.clip import FrozenCLIP, l2_normalise
from sfp.clip.kernels import attend
from sfp.errors import SFPError
from sfp.methods import METHODS, Changes
from sfp.methods._adapted_text import AdaptedText
from sfp.methods._head_graphs import (
    Pairing,
    assign,
    blend,
    distances,
    graphs,
    low_rank,
    match_range,
    meet,
    spectra,
)
from sfp.methods.naclip import gaussian
from sfp.options import Count, Positive

# of RGB in [0, 1], which DINO's pictures are normalised with
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@METHODS.register("CASS")
class CASS(AdaptedText):
    """Y = W_o concat(softmax(C + Omega) V) + b_o of the patches alone; no residual, no FFN.

    G = K K^T / sqrt(d_h) of CLIP's keys, D = K' K'^T / sqrt(d_h) of the second model's keys in the
    range of CLIP's; Omega is NACLIP's Gaussian. omega_{ij} is the distance of the spectra of D_i
    and G_j, pi the assignment with the largest total distance. Head i gets
    C_i = (10 w B + G_i) / (10 w + 1) with w = omega_{i,pi(i)} and B the 10 leading eigenvectors of
    D_{pi(i)} without diagonal, in the range of G_i. The truncation is exact, where the authors'
    solver is randomised. Scores are those of ``AdaptedText``, whose groups come by Ward's linkage;
    its b, a and h are chosen by dataset, the defaults are those of Context.

    The second model must have as many heads as CLIP: DINO's ViT-B fits CLIP's B, not its L/14. For
    the authors' DINOv2 give ``dino_side=518`` and ``dino_positions="timm"``; class scores of a
    larger CLIP (their scale_up) are not offered.

    Args:
        dino: the second model: a timm ViT, whose keys of the last block are read; "colour"; or a
            callable from normalised square windows (B, 3, S, S) float32 to a map (B, C, h', w') of
            its heads' keys side by side; see ``load_backbone``.
        dino_weights: a local file instead of timm's download.
        dino_positions: how its positions are resized, see ``TimmViT``.
        dino_side: side of the square picture that it gets; the window's shorter side, if 0.
        dino_picture: "true", or the "official" one: the normalised window taken for one with
            ImageNet's constants and stored as bytes, which shifts colours and wraps around.
        strategy: "spectral" as above; "sequential" pairs head i with head i, without rescaling and
            with C = (B + G) / 2; "vanilla" is softmax(Q K^T / sqrt(d_h)), without Omega.
        pairing: "official" takes pi's row for the head of CLIP, as coded; "consistent" takes its
            column.
        rescale: whether B's eigenvalues are spread from half the smallest to 1.5 times the largest;
            off for VOC20 and Cityscapes.
        sigma: width of Omega in patches.
    """

    dino: str | Callable[[Tensor], Tensor] = "vit_base_patch8_224.dino"
    dino_weights: str | None = None
    dino_positions: Positions = "scale"
    dino_side: Count = 0
    dino_picture: Literal["true", "official"] = "true"
    strategy: Literal["spectral", "sequential", "vanilla"] = "spectral"
    pairing: Pairing = "official"
    rescale: bool = True
    sigma: Positive = 5.0

    changes = Changes(
        "Kim et al., CVPR 2025", "k-k + another model's graphs by head", residual=False, ffn=False
    )
    linkage = "ward"

    def prepare(self) -> None:
        if self.strategy == "vanilla":
            return
        dino = load_backbone(
            self.dino,
            self.clip,
            "dino",
            self.dino_weights,
            reads="keys",
            positions=self.dino_positions,
        )
        if dino.heads is not None and dino.heads != self.trunk.heads:
            raise SFPError(
                f"CASS pairs the heads of two models, but {dino.name} (dino) has {dino.heads} and"
                f" this CLIP {self.trunk.heads}; give a model with {self.trunk.heads} heads."
            )
        self.backbones["dino"] = dino

    def tokens(self, windows: Tensor) -> Tensor:
        return self.last(self.stream(windows), windows)

    def encode(self, windows: Tensor) -> dict[str, Tensor]:
        """Unit patch "features" (B, h, w, D), and "cls" (B, D) where that is of the window."""
        stream = self.stream(windows)
        y = self.last(stream, windows)
        features = l2_normalise(self.trunk.readout(y)).unflatten(1, self.grid(windows))
        if not self.needs_window:
            return {"features": features}
        grid = self.grid(windows)
        tokens = self.trunk.step(self.trunk.layers, stream, grid)
        return {"features": features, "cls": l2_normalise(self.trunk.pooled(tokens, grid))}

    def last(self, stream: Tensor, windows: Tensor) -> Tensor:
        """Y (B, N, C) of X^{L-1} (B, T, C)."""
        block = self.last_block
        normed = block.normed(stream[:, self.patch_rows(windows)])
        if self.strategy == "vanilla":
            return block.project(attend(*block.qkv(normed)))
        k, v = block.qkv(normed, "kv")
        omega = gaussian(self.grid(windows), self.sigma)[1:, 1:].to(k.device)
        weights = (self.context(k.float(), windows) + omega).softmax(-1)
        return block.project(weights.to(v.dtype) @ v)

    def context(self, keys: Tensor, windows: Tensor) -> Tensor:
        """C (B, heads, N, N) of CLIP's keys (B, heads, N, d_h)."""
        scale = keys.shape[-1] ** -0.5
        second = self.second_keys(windows, keys)
        spectral = self.strategy == "spectral"
        factors, shares = low_rank(second, scale, self.rescale and spectral)
        graph = graphs(keys, scale)
        if not spectral:
            return blend(factors, graph, torch.ones_like(graph[:, :, 0, 0]))
        omega = distances(shares, spectra(keys, scale))
        partner, weights = meet(omega, assign(omega), self.pairing)
        factors = factors.gather(1, partner[..., None, None].expand_as(factors))
        return blend(factors, graph, 10 * weights)

    def second_keys(self, windows: Tensor, keys: Tensor) -> Tensor:
        """K' (B, heads, N, d') of windows in the range of CLIP's keys (B, heads, N, d_h).

        Raises:
            SFPError: the second model's channels are no multiple of CLIP's heads.
        """
        dino, heads = self.backbones["dino"], self.trunk.heads
        maps = dino(self.square(windows))
        if maps.shape[1] % heads:
            raise SFPError(
                f"CASS pairs the heads of two models, but the {maps.shape[1]} channels of"
                f" {dino.name} (dino) are not those of {heads} heads; give a model with {heads}."
            )
        maps = F.interpolate(maps, size=self.grid(windows), mode="bilinear", align_corners=False)
        found = maps.flatten(2).unflatten(1, (heads, -1)).mT
        return match_range(found, keys, (1, 2, 3))

    def square(self, windows: Tensor) -> Tensor:
        """The square pictures (B, 3, S, S) that the second model gets."""
        side = self.dino_side or min(windows.shape[-2:])
        if self.dino_picture == "official":
            return official_squares(windows, side, self.clip)
        if tuple(windows.shape[-2:]) == (side, side):
            return windows
        return F.interpolate(
            windows.float(), size=(side, side), mode="bicubic", align_corners=False, antialias=True
        )


def official_squares(windows: Tensor, side: int, clip: FrozenCLIP) -> Tensor:
    """The authors' square pictures of windows, normalised for CLIP: (B, 3, side, side)."""
    mean, std = (
        torch.tensor(v, device=windows.device).view(3, 1, 1)
        for v in (_IMAGENET_MEAN, _IMAGENET_STD)
    )
    values = ((windows.float() * std + mean) * 255).trunc().long() % 256  # a byte wraps around
    squares = [
        np.asarray(Image.fromarray(planes).resize((side, side), Image.Resampling.BICUBIC))
        for planes in values.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    ]
    pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
    return clip.normalise(pixels.to(windows.device))
