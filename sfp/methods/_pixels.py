"""Black pixels around normalised windows."""

from __future__ import annotations

import torch
from torch import Tensor

from sfp.clip.clip import FrozenCLIP


def pad_black(clip: FrozenCLIP, images: Tensor, down: int, right: int) -> Tensor:
    """Normalised images (..., 3, H, W) with so many rows and columns of black pixels below and at
    the right.
    """
    if not down and not right:
        return images
    mean, std = (
        torch.tensor(v, device=images.device).view(3, 1, 1)
        for v in (clip.pixel_mean, clip.pixel_std)
    )
    height, width = images.shape[-2:]
    size = (*images.shape[:-2], height + down, width + right)
    padded = (-mean / std).to(images).expand(size).clone()
    padded[..., :height, :width] = images
    return padded


def pad_to_patches(clip: FrozenCLIP, images: Tensor, patch: int) -> Tensor:
    """``pad_black`` up to multiples of a patch."""
    height, width = images.shape[-2:]
    return pad_black(clip, images, -height % patch, -width % patch)
