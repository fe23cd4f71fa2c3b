"""DIH-CLIP: SC-CLIP with the heads of least entropy (ICCV 2025; duan-song/DiH-CLIP)."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from sfp.clip.block import Block
from sfp.clip.trunk import Hook, LayerState
from sfp.methods import METHODS, Changes
from sfp.methods._parts import attention_map, mix
from sfp.methods.sc_clip import SCCLIP
from sfp.options import Range


@METHODS.register("DIH-CLIP")
class DIHCLIP(SCCLIP):
    """SC-CLIP without repair; the maps of a few chosen heads mix the values of all.

        G_pre from X^9 + D^9, D = W_o [sum over chosen i of softmax(K_i K_i^T / sqrt(d_h)) V] + b_o
        Dec = W_o [sum over chosen i of 1/2 (softmax(B) + softmax(K_i K_i^T / sqrt(d_h))) V / n_h]
            + b_o + rho c

    Chosen are the heads whose maps have the least entropy: the ordinary q-k maps of layer 9, and
    those of Dec in the last block. Dec divides by the number n_h of all heads, as the code does.

    Args:
        kept_heads: how many heads are chosen; 4 for 12 and for 16 heads.
    """

    kept_heads: Annotated[int, Range(1)] = 4

    changes = Changes(
        "Duan et al., ICCV 2025",
        "k-k of few heads + similarity of a middle layer",
        "last block's, of two streams",
        "L; reads 4..10",
        residual=False,
        ffn=False,
    )
    published = dict(purify=False, purify_layers=[-2])

    def streams(self, windows: Tensor, *more: Hook) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        distinct: list[Tensor] = []
        hook = Hook(lambda state: distinct.append(self.distinct(state)), [self.pre_layer])
        stream, pre, post, fused = super().streams(windows, hook, *more)
        return stream, pre + distinct[0], post, fused

    def distinct(self, state: LayerState) -> Tensor:
        """D_pat of a block's state, (B, N, C)."""
        chosen = self.chosen(attention_map(state.q, state.k))
        maps = attention_map(state.k, state.k) * chosen
        return _project(self.trunk.blocks[state.layer - 1], maps.sum(1), state.v)[:, state.rows]

    def decode(self, tokens: Tensor, attention: Tensor) -> Tensor:
        """Dec without the class term: patches (B, N, C) through block L's attention."""
        block = self.last_block
        k, v = block.qkv(block.normed(tokens), "kv")
        maps = (attention[:, None] + attention_map(k, k)) / 2  # A_i
        return _project(block, (maps * self.chosen(maps)).mean(1), v)

    decode_fused = decode

    def chosen(self, maps: Tensor) -> Tensor:
        """1 for the heads of maps (B, heads, T, T) with the least entropy, (B, heads, 1, 1)."""
        entropy = -(maps * (maps + 1e-6).log2()).sum((2, 3))
        count = min(self.kept_heads, maps.shape[1])
        edge = entropy.topk(count, largest=False).values[:, -1:]
        return (entropy <= edge)[:, :, None, None].float()


def _project(block: Block, weights: Tensor, values: Tensor) -> Tensor:
    """W_o (A V) + b_o with one map (B, T, T) for all values."""
    return block.project(mix(weights, values))
