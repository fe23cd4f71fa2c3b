"""SC-CLIP: self-calibrated CLIP (Bai et al., 2024; SuleBai/SC-CLIP; methods.md 1.9).

LOF finds outliers after block L-1; two patch similarities of middle layers, G_pre and G_post, aggregate tokens before
and after the last attention, and a second stream M sums the middle layers. The code's order and constants are followed:

    Y1 = rn(thr(G_post)) Dec(rn(thr(G_pre)) Xr, c), Y2 = rn(thr(G_post)) Dec(M_pat, M_cls), Y = Y1 + Y2
    Dec(Z, c) = W_o concat(1/2 [softmax(B) + softmax(K K^T / sqrt(d_h))] V) + b_o + rho c, B = 3 (G_pre - mean) above 0

Options leave parts out or replace them, as the paper's Tables 2 to 8 do; what these print no equation for is our reading.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sfp.backbones.proxies import load_proxy
from sfp.clip.trunk import Hook, LayerState
from sfp.errors import SFPError
from sfp.methods import METHODS, Card, Method
from sfp.methods._parts import (
    aggregate,
    correlate,
    cosine_similarity,
    cut_below,
    masked_similarity_attention,
    self_attend,
)

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

    pre_layer: int | None = (
        None  # layer of G_pre, whose tokens are repaired with the outliers of block L-1
    )
    post_layer: int | None = None  # layer of G_post, not repaired
    # first and last layer of M, both inclusive; several such pairs; or none, [], without M
    fuse_layers: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None
    fusion: str = "pass"  # M through Dec; "sum": M itself is Y2; "dual_path": Y2 sums W_o concat(softmax(V V^T / s) V) + b_o of its blocks
    res_cls: float | None = None  # weight rho of the class token in the output
    beta: float = 0.4  # similarities below it are cut
    correlation: str = (
        "k"  # Dec's U U^T: one softmax for each letter of q, k, v; all have equal weights
    )
    enhance: bool = True  # Dec has softmax(B), too
    aggregation: str = "both"  # "before" Dec by G_pre, "after" it by G_post, or "none"
    similarity: str = "layers"  # G_pre and G_post of these, or both of another model's features, a name for ``load_proxy``

    card = Card(
        "Bai et al., 2024",
        "k-k + similarity of a middle layer",
        "last block's, of two streams",
        "L; reads 4..10",
        False,
        False,
    )
    own_purify = True
    own_pm = "LOF"
    of_twelve = PUBLISHED[12, 16]
    choices = {
        "fusion": ("pass", "sum", "dual_path"),
        "aggregation": ("both", "before", "after", "none"),
    }

    def prepare(self) -> None:
        given = {name: getattr(self, name) for name in self.of_twelve}
        found = self.constants(self.published_constants(), self.of_twelve, **given)
        for name, value in found.items():
            setattr(self, name, value)
            if name in ("pre_layer", "post_layer"):
                self.check_layers(name, value)
        pairs = (
            self.fuse_layers if isinstance(self.fuse_layers, (tuple, list)) else [self.fuse_layers]
        )
        pairs = [pairs] if any(isinstance(layer, int) for layer in pairs) else pairs
        ends = [self.check_layers("fuse_layers", pair) for pair in pairs]
        if any(len(pair) != 2 or pair[0] > pair[1] for pair in ends):
            raise SFPError(
                f"fuse_layers of {self.name} is {self.fuse_layers}; give (first, last), both inclusive, first <= last."
            )
        self.fused = {layer for first, last in ends for layer in range(first, last + 1)}
        if not set(self.correlation) <= set("qkv") or not (self.correlation or self.enhance):
            raise SFPError(
                f"correlation of {self.name} is {self.correlation!r}; give letters of q, k and v, one at least without enhance."
            )
        own = self.similarity in (None, "layers")
        self.eye = (
            None if own else load_proxy(self.similarity, None, self.clip.device, self.trunk.dtype)
        )

    def published_constants(self) -> dict | None:
        """What the source gives for this backbone."""
        return PUBLISHED.get((self.trunk.layers, self.trunk.patch))

    def own_purify_layers(self) -> tuple[int, ...]:
        return (self.trunk.layers - 1,)

    def tokens(self, windows: Tensor) -> Tensor:
        kept: dict[int | str, Tensor] = {}
        fused: list[Tensor] = []
        last = self.trunk.layers - 1

        def keep(state: LayerState) -> None:
            if state.layer in (self.pre_layer, self.post_layer):
                kept[state.layer] = state.patches
            if state.layer in self.fused:
                block = self.trunk.blocks[state.layer - 1]
                term = (
                    block.project(self_attend(state.v, state.v))
                    if self.fusion == "dual_path"
                    else state.tokens
                )
                fused.append(term if not fused else fused.pop() + term)
            if (
                state.layer == last
                and state.outliers is not None
                and self.pre_layer not in self.purifier.layers
            ):
                kept["repaired"] = self.purifier.repair(
                    kept[self.pre_layer], state.outliers, state.grid
                )

        stream = self.stream(windows, Hook(keep, range(1, last + 1)))
        pre, post = kept.get("repaired", kept[self.pre_layer]), kept[self.post_layer]
        if self.eye:
            seen = F.adaptive_avg_pool2d(
                self.eye(windows.float()), self.trunk.grid_of(*windows.shape[-2:])
            )
            pre = post = seen.flatten(2).transpose(1, 2)
        g_pre, found = cosine_similarity(pre), stream[:, 1:]
        similarity = self.similarity_attention(g_pre) if self.enhance else None
        if self.aggregation in ("both", "before"):
            found = aggregate(cut_below(g_pre, self.beta), found)  # Xr
        found = self.decode(found, similarity) + self.res_cls * stream[:, :1]  # Dec(Xr, c)
        if fused and self.fusion == "pass":
            found = found + (
                self.decode_mid(fused[0][:, 1:], similarity) + self.res_cls * fused[0][:, :1]
            )
        if self.aggregation in ("both", "after"):
            found = aggregate(cut_below(cosine_similarity(post), self.beta), found)
        return found + fused[0][:, 1:] if fused and self.fusion != "pass" else found

    def similarity_attention(self, g_pre: Tensor) -> Tensor:
        """softmax(B) of the similarity before the cut, one map for all heads, (B, N, N)."""
        return masked_similarity_attention(g_pre)

    def decode(self, tokens: Tensor, similarity: Tensor | None) -> Tensor:
        """Dec without the class term: patches (B, N, C) through block L's attention."""
        return correlate(self.last_block, tokens, self.correlation, similarity)

    decode_mid = decode
