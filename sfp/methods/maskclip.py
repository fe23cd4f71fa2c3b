"""MaskCLIP: each patch keeps its own last value, no mixing (Zhou et al., ECCV 2022; methods.md 1.2)."""

from __future__ import annotations

from torch import Tensor

from sfp.clip.clip import FrozenCLIP
from sfp.errors import unknown_choice
from sfp.methods.method import METHODS, Method


@METHODS.register("MaskCLIP")
class MaskCLIP(Method):
    """M = W_o V + b_o token by token.

    Args:
        clip: the frozen CLIP.
        variant: "official" keeps residual and FFN (U = X^{L-1} + M, Y = U + MLP(LN2(U)), the port in wysoczanska/clip_dinoiser);
            "bare" is Y = M (the option in mc-lan/ClearCLIP).
    """

    def __init__(self, clip: FrozenCLIP, *, variant: str = "official", **options):
        super().__init__(clip, **options)
        if variant not in ("official", "bare"):
            raise unknown_choice("variant of MaskCLIP", variant, ("official", "bare"))
        self.variant = variant

    def tokens(self, windows: Tensor) -> Tensor:
        stream, block = self.trunk.run(windows, self.hooks(), last=self.trunk.layers - 1), self.trunk.last_block
        mixed = block.project(block.values(block.normed(stream)))
        if self.variant == "official":
            stream = stream + mixed
            mixed = stream + block.mlp(stream)
        return mixed[:, 1:]
