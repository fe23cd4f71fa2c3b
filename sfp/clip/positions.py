"""Positional embeddings for other patch grids."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.options import check_type

Resize = Literal["scale", "size", "antialias", "bilinear", "bilinear-half"]


def resize_positions(
    positions: Tensor,
    native: tuple[int, int],
    grid: tuple[int, int],
    resize: str = "scale",
    prefix: int = 1,
) -> Tensor:
    """Positional embedding (P + N, C) float32 of a native grid, for another grid: (P + h * w, C).

    The P positions before the patches and a native grid stay as they are. ``scale`` is DINO's way,
    which SCLIP, NACLIP, ClearCLIP, ProxyCLIP, CLIPtrase, SC-CLIP and SFP use: bicubic with the
    scale factors ((h + 0.1) / g, (w + 0.1) / g), which also place the samples. The others go to the
    exact size: ``size`` bicubic, ``antialias`` bicubic with antialiasing (GEM), ``bilinear``
    (CLIP-Surgery), ``bilinear-half`` with values rounded to half precision besides (CaR).
    """
    check_type("The positional resize", resize, Resize)
    if grid == native:
        return positions
    patches = positions[prefix:].float().reshape(1, *native, -1).permute(0, 3, 1, 2)
    if resize == "scale":
        # +0.1 keeps floor(native * factor) at the wanted count where the division rounds down
        factors = tuple((new + 0.1) / old for new, old in zip(grid, native, strict=True))
        patches = F.interpolate(patches, scale_factor=factors, mode="bicubic", align_corners=False)
    else:
        mode = "bilinear" if resize.startswith("bilinear") else "bicubic"
        patches = F.interpolate(
            patches, size=grid, mode=mode, align_corners=False, antialias=resize == "antialias"
        )
    if resize == "bilinear-half":
        patches = patches.half().float()
    assert patches.shape[-2:] == grid
    return torch.cat([positions[:prefix].float(), patches.flatten(2)[0].T])
