"""ClearCLIP: q-q attention in the last block, no residual, no FFN (Lan et al., ECCV 2024)."""

from __future__ import annotations

from torch import Tensor

from sfp.methods import METHODS, Changes, Method
from sfp.methods._parts import self_attend


@METHODS.register("ClearCLIP")
class ClearCLIP(Method):
    """Y = W_o concat(softmax(Q Q^T / sqrt(d_h)) V) + b_o."""

    changes = Changes("Lan et al., ECCV 2024", attention="q-q", residual=False, ffn=False)

    def tokens(self, windows: Tensor) -> Tensor:
        stream, block = self.stream(windows), self.last_block
        q, v = block.qkv(block.normed(stream), "qv")
        return block.project(self_attend(q, v))[:, self.patch_rows(windows)]
