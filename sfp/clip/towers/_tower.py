"""What an image trunk needs of a family of image towers."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from sfp.clip.block import Block
from sfp.clip.kernels import linear
from sfp.clip.rotary import Rotary


def embed_patches(windows: Tensor, convolution: nn.Conv2d) -> Tensor:
    """Patch embeddings (B, N, C) float32 of windows (B, 3, H, W), row-major, by the convolution's
    weights; remainders smaller than a patch are dropped.

    As a linear map of each patch's pixels: of float32 it is one in float32 on every device, where
    cuDNN's convolution would be one in TF32.
    """
    weight, patch = convolution.weight, convolution.kernel_size[0]
    height, width = (side // patch for side in windows.shape[-2:])
    windows = windows[..., : height * patch, : width * patch].to(weight.dtype)
    pixels = windows.unflatten(3, (width, patch)).unflatten(2, (height, patch))
    rows = pixels.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    return linear(rows, weight.flatten(1), convolution.bias).float()


class Tower(ABC):
    """One image tower, its weights read from the module that open_clip built.

    A new family is one file in this folder, named in ``FAMILIES``.

    Attributes:
        visual: the module.
        blocks: its transformer blocks.
        width: C. patch: patch size in pixels. embed_dim: D.
        native_grid: (g, g) that it was trained at.
        prefix: P, how many tokens come before the patches.
        class_token: whether the first of them is a class token.
        pooling: what the image's embedding is made of: "token", the class token; "average", the
            patches' mean; "attention", a pool that attends to tokens.
        prefix_tokens: they themselves, (P, C) float32; None without any.
        positions: positional embedding, (P + N, C) float32; None without one.
        norm_pre: layer norm before the blocks; None without one.
        rotary: rotary positions inside the blocks; None without any.
        dtype, device: of the weights.
    """

    blocks: list[Block]
    width: int
    patch: int
    embed_dim: int
    native_grid: tuple[int, int]
    prefix: int
    class_token: bool
    pooling: str
    norm_pre: nn.LayerNorm | None = None
    rotary: Rotary | None = None
    dtype: torch.dtype

    def __init__(self, visual: nn.Module):
        self.visual = visual

    @property
    def prefix_tokens(self) -> Tensor | None:
        """Where the weights lie now, which may have been moved."""
        return None

    @property
    def positions(self) -> Tensor | None:
        """Likewise."""
        return None

    @staticmethod
    @abstractmethod
    def takes(visual: nn.Module) -> bool:
        """Whether a module is of this family."""

    @staticmethod
    @abstractmethod
    def round_weights(visual: nn.Module, dtype: torch.dtype) -> None:
        """Convolutions and linear maps to ``dtype``; norms, embeddings and layer scales stay.

        Called before anything of the module is read.
        """

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights lie."""

    @abstractmethod
    def patches(self, windows: Tensor) -> Tensor:
        """Patch embeddings of windows (B, 3, H, W), (B, N, C) float32, row-major."""

    @abstractmethod
    def readout(self, tokens: Tensor) -> Tensor:
        """Single tokens into the joint space: (..., C) to (..., D), not normalised.

        Where a pool attends to tokens it is what the pool makes of a token alone: its value, past
        output projection and MLP, as MaskCLIP (Zhou et al., ECCV 2022, Sec. 3.2) reads the
        attention pool of CLIP's ResNets.
        """

    @abstractmethod
    def pooled(self, tokens: Tensor, patches: slice) -> Tensor:
        """The image's embedding of the last block's tokens (B, T, C), as open_clip's
        ``encode_image`` makes it: (B, D), not normalised.
        """
