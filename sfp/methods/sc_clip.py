"""SC-CLIP: self-calibrated CLIP (Bai et al., 2024; SuleBai/SC-CLIP).

LOF finds outliers after block L-1; two patch similarities of middle layers, G_pre and G_post,
aggregate tokens before and after the last attention, and a second stream M sums the middle layers.
The code's order and constants are followed:

    Y1 = rn(thr(G_post)) Dec(rn(thr(G_pre)) Xr, c), Y2 = rn(thr(G_post)) Dec(M_pat, M_cls)
    Y = Y1 + Y2
    Dec(Z, c) = W_o concat(1/2 [softmax(B) + softmax(K K^T / sqrt(d_h))] V) + b_o + rho c,
    B = 3 (G_pre - mean) above 0

The variants of the paper's Tables 2 to 8 are in _sc_clip_ablation.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sfp.clip.trunk import Hook
from sfp.errors import SFPError
from sfp.methods import METHODS, Changes, Method
from sfp.methods._parts import (
    aggregate,
    correlate,
    cosine_similarity,
    cut_below,
    masked_similarity_attention,
)

# (blocks, patch): those of L/14 are the authors' answer in SuleBai/SC-CLIP#5, the paper's sum ends
# at layer 20
PUBLISHED = {
    (12, 16): dict(pre_layer=9, post_layer=4, fuse_layers=(4, 10), res_cls=0.3),
    (24, 14): dict(pre_layer=17, post_layer=7, fuse_layers=(9, 19), res_cls=0.1),
}


@METHODS.register("SC-CLIP")
class SCCLIP(Method):
    """G_pre-aggregated tokens through k-k and similarity attention, plus a summed second stream.

    The layers and ``res_cls`` are those published for the backbone, if None.

    Args:
        pre_layer: layer of G_pre, whose tokens are repaired with the outliers of block L-1.
        post_layer: layer of G_post, not repaired.
        fuse_layers: first and last layer of M, both inclusive; several such pairs; or [], no M.
        res_cls: weight rho of the class token in the output; 0 for towers without one.
        beta: similarities below it are cut.
    """

    pre_layer: int | None = None
    post_layer: int | None = None
    fuse_layers: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None
    res_cls: float | None = None
    beta: float = 0.4

    changes = Changes(
        "Bai et al., 2024",
        "k-k + similarity of a middle layer",
        "last block's, of two streams",
        "L; reads 4..10",
        residual=False,
        ffn=False,
    )
    published = dict(purify=True, pm="LOF", purify_layers=[-2])
    needs_class_token = True

    def prepare(self) -> None:
        backbone = self.trunk.layers, self.trunk.patch
        self.use_constants(PUBLISHED[12, 16], PUBLISHED.get(backbone))

    def use_constants(self, of_twelve: Mapping, published: Mapping | None) -> None:
        """Fill in the constants of the backbone and check the layers."""
        self.fill_constants(of_twelve, published)
        for name in {"pre_layer", "post_layer"} & set(of_twelve):
            setattr(self, name, *self.check_layers(name, getattr(self, name)))
        self.fused = self._fused_layers()
        self.needs_class_token = self.res_cls != 0

    def _fused_layers(self) -> set[int]:
        """The layers that M sums."""
        given = (
            self.fuse_layers if isinstance(self.fuse_layers, (tuple, list)) else [self.fuse_layers]
        )
        pairs = [given] if any(isinstance(layer, int) for layer in given) else given
        ends = [self.check_layers("fuse_layers", pair) for pair in pairs]
        if any(len(pair) != 2 or pair[0] > pair[1] for pair in ends):
            raise SFPError(
                f"fuse_layers of {self.name} is {self.fuse_layers};"
                " give (first, last), both inclusive, first <= last."
            )
        return {layer for first, last in ends for layer in range(first, last + 1)}

    def tokens(self, windows: Tensor) -> Tensor:
        stream, pre, post, fused = self.streams(windows)
        rows = self.patch_rows(windows)
        g_pre, g_post = cosine_similarity(pre), cosine_similarity(post)
        attention = self.similarity_attention(g_pre)
        purified = aggregate(cut_below(g_pre, self.beta), stream[:, rows])  # Xr, aggregated
        y = self.decode(purified, attention) + self.class_term(stream)
        if fused is not None:
            y = y + self.decode_fused(fused[:, rows], attention) + self.class_term(fused)
        return aggregate(cut_below(g_post, self.beta), y)

    def class_term(self, tokens: Tensor) -> Tensor | float:
        """rho c of all tokens (B, T, C), (B, 1, C); 0 without a class token."""
        return self.res_cls * tokens[:, :1] if self.trunk.class_token else 0.0

    def streams(self, windows: Tensor, *more: Hook) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """X^{L-1} repaired, (B, T, C).

        The patches of G_pre and G_post, (B, N, C); M or None.
        """
        last = self.trunk.layers - 1
        stream, cache = self.run_with_cache(
            windows,
            *more,
            patches={self.pre_layer, self.post_layer},
            tokens=self.fused - {last},
            unrepaired=self.fused & {last},
            outliers={last},
        )
        pre, post = cache["patches", self.pre_layer], cache["patches", self.post_layer]
        outliers = cache["outliers", last]
        if outliers is not None and self.pre_layer not in self.purifier.layers:
            pre = self.purifier.repair(pre, outliers, self.grid(windows))
        fused = [value for (name, _), value in cache.items() if name in ("tokens", "unrepaired")]
        return stream, pre, post, sum(fused) if fused else None

    def similarity_attention(self, g_pre: Tensor) -> Tensor:
        """softmax(B), one map for all heads, (B, N, N)."""
        return masked_similarity_attention(g_pre)

    def decode(self, tokens: Tensor, attention: Tensor) -> Tensor:
        """Dec without the class term: patches (B, N, C) through block L's attention."""
        return correlate(self.last_block, tokens, "k", attention)

    decode_fused = decode
