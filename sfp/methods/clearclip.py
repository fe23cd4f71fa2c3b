"""ClearCLIP: q-q attention in the last block, neither residual nor FFN (Lan et al., ECCV 2024; methods.md 1.6)."""

from __future__ import annotations

from torch import Tensor

from sfp.methods.method import METHODS, Method
from sfp.methods.parts import self_attend


@METHODS.register("ClearCLIP")
class ClearCLIP(Method):
    """Y = W_o concat(softmax(Q Q^T / sqrt(d_h)) V) + b_o."""

    def tokens(self, windows: Tensor) -> Tensor:
        stream, block = self.trunk.run(windows, self.hooks(), last=self.trunk.layers - 1), self.trunk.last_block
        q, _, v = block.qkv(block.normed(stream))
        return block.project(self_attend(q, v))[:, 1:]
