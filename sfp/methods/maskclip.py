"""MaskCLIP: each patch keeps its own last value, no mixing (Zhou et al., ECCV 2022; methods.md 1.2)."""

from __future__ import annotations

from torch import Tensor

from sfp.methods import METHODS, Card, Method


@METHODS.register("MaskCLIP")
class MaskCLIP(Method):
    """M = W_o V + b_o token by token."""

    # "official" keeps residual and FFN: U = X^{L-1} + M, Y = U + MLP(LN2(U)), the port in wysoczanska/clip_dinoiser;
    # "bare" is Y = M, the option in mc-lan/ClearCLIP
    variant: str = "official"

    card = Card("Zhou et al., ECCV 2022", attention="identity")
    choices = {"variant": ("official", "bare")}

    def tokens(self, windows: Tensor) -> Tensor:
        stream, block = self.stream(windows), self.last_block
        mixed = block.project(block.values(block.normed(stream)))
        if self.variant == "official":
            stream = stream + mixed
            mixed = stream + block.mlp(stream)
        return mixed[:, 1:]
