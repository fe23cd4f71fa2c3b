"""SC-CLIP: self-calibrated CLIP (Bai et al., 2024; SuleBai/SC-CLIP; methods.md 1.9).

LOF finds outliers after block L-1; two patch similarities of middle layers, G_pre and G_post, aggregate tokens before
and after the last attention, and a second stream M sums the middle layers. The code's order and constants are followed:

    Y1 = rn(thr(G_post)) Dec(rn(thr(G_pre)) Xr, c), Y2 = rn(thr(G_post)) Dec(M_pat, M_cls), Y = Y1 + Y2
    Dec(Z, c) = W_o concat(1/2 [softmax(B) + softmax(K K^T / sqrt(d_h))] V) + b_o + rho c, B = 3 (G_pre - mean) above 0
"""

from __future__ import annotations

from torch import Tensor

from sfp.clip.trunk import Hook, LayerState
from sfp.errors import SFPError
from sfp.methods.method import METHODS, Card, Method
from sfp.methods.parts import aggregate, cosine_similarity, cut_below, masked_similarity_attention, mix, self_attend

# (blocks, patch): those of L/14 are the authors' answer in SuleBai/SC-CLIP#5, the paper's sum ends at layer 20
PUBLISHED = {
    (12, 16): dict(pre_layer=9, post_layer=4, fuse_layers=(4, 10), res_cls=0.3),
    (24, 14): dict(pre_layer=17, post_layer=7, fuse_layers=(9, 19), res_cls=0.1),
}


@METHODS.register("SC-CLIP")
class SCCLIP(Method):
    """G_pre-aggregated tokens through k-k and similarity attention, plus a second stream of summed middle layers.

    The layers and ``res_cls`` are those published for the backbone, if None.
    """

    pre_layer: int | None = None  # layer of G_pre, whose tokens are repaired with the outliers of block L-1
    post_layer: int | None = None  # layer of G_post, not repaired
    fuse_layers: tuple[int, int] | None = None  # first and last layer of the summed stream M, both inclusive
    res_cls: float | None = None  # weight rho of the class token in the output
    beta: float = 0.4  # similarities below it are cut

    card = Card("Bai et al., 2024", "k-k + similarity of a middle layer", "last block's, of two streams", "L; reads 4..10", False, False)
    own_purify = True
    own_pm = "LOF"

    def prepare(self) -> None:
        given = {name: getattr(self, name) for name in PUBLISHED[12, 16]}
        found = self.constants(self.published_constants(), PUBLISHED[12, 16], **given)
        (self.pre_layer,) = self.check_layers("pre_layer", found["pre_layer"])
        (self.post_layer,) = self.check_layers("post_layer", found["post_layer"])
        ends = self.check_layers("fuse_layers", found["fuse_layers"])
        if len(ends) != 2 or ends[0] > ends[1]:
            raise SFPError(f"fuse_layers of {self.name} is {found['fuse_layers']}; give (first, last), both inclusive, first <= last.")
        self.fuse_layers, self.res_cls = ends, found["res_cls"]

    def published_constants(self) -> dict | None:
        """What the source gives for this backbone."""
        return PUBLISHED.get((self.trunk.layers, self.trunk.patch))

    def own_purify_layers(self) -> tuple[int, ...]:
        return (self.trunk.layers - 1,)

    def tokens(self, windows: Tensor) -> Tensor:
        kept: dict[int, Tensor] = {}
        fused: list[Tensor] = []
        outliers: list[Tensor | None] = []
        last = self.trunk.layers - 1

        def keep(state: LayerState) -> None:
            if state.layer in (self.pre_layer, self.post_layer):
                kept[state.layer] = state.patches
            if self.fuse_layers[0] <= state.layer <= self.fuse_layers[1]:
                fused.append(state.tokens if not fused else fused.pop() + state.tokens)
            if state.layer == last:
                outliers.append(state.outliers)

        stream = self.stream(windows, Hook(keep, range(1, last + 1)))
        pre, mid = kept[self.pre_layer], fused[0]  # mid is M
        if self.purifier and outliers[0] is not None and self.pre_layer not in self.purifier.layers:
            pre = self.purifier.repair(pre, outliers[0], self.trunk.grid_of(*windows.shape[-2:]))
        g_pre, g_post = cosine_similarity(pre), cut_below(cosine_similarity(kept[self.post_layer]), self.beta)
        similarity = self.similarity_attention(g_pre)

        repaired = aggregate(cut_below(g_pre, self.beta), stream[:, 1:])  # Xr
        first = self.decode(repaired, similarity) + self.res_cls * stream[:, :1]  # Dec(Xr, c)
        second = self.decode_mid(mid[:, 1:], similarity) + self.res_cls * mid[:, :1]
        return aggregate(g_post, first + second)  # Y1 + Y2

    def similarity_attention(self, g_pre: Tensor) -> Tensor:
        """softmax(B) of the similarity before the cut, one map for all heads, (B, N, N)."""
        return masked_similarity_attention(g_pre)

    def decode(self, tokens: Tensor, similarity: Tensor) -> Tensor:
        """Dec without the class term: patches (B, N, C) through block L's attention."""
        block = self.last_block
        k, v = block.qkv(block.normed(tokens), "kv")
        return block.project((self_attend(k, v) + mix(similarity, v)) / 2)

    decode_mid = decode
