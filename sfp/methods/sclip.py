"""SCLIP: correlative self-attention in the last block (Wang et al., ECCV 2024)."""

from __future__ import annotations

from torch import Tensor

from sfp.methods import METHODS, Changes, Method
from sfp.methods._parts import self_attend


@METHODS.register("SCLIP")
class SCLIP(Method):
    """A = softmax(Q Q^T / sqrt(d_h)) + softmax(K K^T / sqrt(d_h)), rows sum to 2.

    The FFN is as trained.

    Args:
        residual: whether that around the attention is, too; not in chenqi1126/FreeCP.
    """

    residual: bool = True

    changes = Changes("Wang et al., ECCV 2024", attention="q-q + k-k")

    def tokens(self, windows: Tensor) -> Tensor:
        stream, block = self.stream(windows), self.last_block
        q, k, v = block.qkv(block.normed(stream))
        mixed = block.project(self_attend(q, v) + self_attend(k, v))
        stream = stream + mixed if self.residual else mixed
        return (stream + block.mlp(stream))[:, self.patch_rows(windows)]
