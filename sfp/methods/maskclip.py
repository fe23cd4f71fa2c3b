"""MaskCLIP: each patch keeps its own last value, no mixing (Zhou et al., ECCV 2022)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from sfp.methods import METHODS, Changes, Method


@METHODS.register("MaskCLIP")
class MaskCLIP(Method):
    """M = W_o V + b_o token by token.

    Args:
        variant: "official" keeps residual and FFN, U = X^{L-1} + M, Y = U + MLP(LN2(U)), as the
            port in wysoczanska/clip_dinoiser; "bare" is Y = M, the option in mc-lan/ClearCLIP;
            "ffn" is Y = M + MLP(LN2(M)), that in chenqi1126/FreeCP.
    """

    variant: Literal["official", "bare", "ffn"] = "official"

    changes = Changes("Zhou et al., ECCV 2022", attention="identity")

    def tokens(self, windows: Tensor) -> Tensor:
        return self.unmixed(self.stream(windows))[:, self.patch_rows(windows)]

    def unmixed(self, stream: Tensor) -> Tensor:
        """Y of all tokens of X^{L-1}, (B, T, C)."""
        block = self.last_block
        mixed = block.project(block.values(block.normed(stream)))
        if self.variant == "official":
            mixed = stream + mixed
        if self.variant != "bare":
            mixed = mixed + block.mlp(mixed)
        return mixed
