"""SFP-release: what SFP's released code computes (Kimsure/SFP, snapshot 2026-04; methods.md 1.12).

It differs from the paper: outliers are repaired after block L-1 alone, and HAI is absent; instead it brings in the
similarity aggregation of SC-CLIP.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfp.clip.clip import FrozenCLIP
from sfp.clip.trunk import Hook, LayerState
from sfp.errors import SFPError
from sfp.methods.method import METHODS, Method
from sfp.methods.parts import aggregate, cosine_similarity, cut_below, masked_similarity_attention, self_attention_logits


@METHODS.register("SFP-release")
class SFPRelease(Method):
    """G_pre-aggregated tokens through k-k, q-q and similarity attention, plus a second stream of summed mid layers.

    Args:
        clip: the frozen CLIP.
        pre_layer: layer of G_pre, whose tokens are repaired with the outliers of block L-1.
        post_layer: layer of G_post, not repaired.
        fuse_layers: first and last layer of the summed stream M, both inclusive.
        res_cls: weight rho of the class token in the output; the SOM factor is 5 times it.
        beta: similarities below it are cut.
    """

    own_purify = True
    own_pm = "SOM"

    def __init__(
        self,
        clip: FrozenCLIP,
        *,
        pre_layer: int = 9,
        post_layer: int = 4,
        fuse_layers: tuple[int, int] = (4, 10),
        res_cls: float = 0.3,
        beta: float = 0.4,
        **options,
    ):
        self.own_detector_options = {
            "SOM": dict(cls_factor=5 * res_cls, max_outliers=10),
            "L2": dict(topk=10),
            "LOF": dict(k=30, contamination=0.05),
        }
        super().__init__(clip, **options)
        (self.pre_layer,) = self.check_layers("pre_layer", pre_layer)
        (self.post_layer,) = self.check_layers("post_layer", post_layer)
        ends = self.check_layers("fuse_layers", fuse_layers)
        if len(ends) != 2 or ends[0] > ends[1]:
            raise SFPError(f"fuse_layers of {self.name} is {fuse_layers}; give (first, last), both inclusive, first <= last.")
        first, last = ends
        self.fuse_layers = range(first, last + 1)
        self.res_cls, self.beta = res_cls, beta

    def own_purify_layers(self) -> tuple[int, ...]:
        return (self.trunk.layers - 1,)

    def tokens(self, windows: Tensor) -> Tensor:
        seen: dict[int, Tensor] = {}
        outliers: list[Tensor | None] = [None]

        def collect(state: LayerState) -> None:
            if state.layer in needed:
                seen[state.layer] = state.tokens
            if state.outliers is not None:
                outliers[0] = state.outliers

        needed = {self.pre_layer, self.post_layer, *self.fuse_layers}
        last = self.trunk.layers - 1
        stream = self.trunk.run(windows, self.hooks(Hook(collect, range(1, last + 1))), last=last)
        grid = self.trunk.grid_of(*windows.shape[-2:])

        repaired, cls = stream[:, 1:], stream[:, 0]  # Xr, c
        pre = seen[self.pre_layer][:, 1:]
        if self.purifier is not None and outliers[0] is not None:
            pre = self.purifier.repair(pre, outliers[0], grid)
        g_pre = cut_below(cosine_similarity(pre), self.beta)
        g_post = cut_below(cosine_similarity(seen[self.post_layer][:, 1:]), self.beta)
        similarity_map = masked_similarity_attention(g_pre).unsqueeze(1)  # softmax(B), one map for all heads

        block = self.trunk.last_block
        q, k, v = block.qkv(block.normed(aggregate(g_pre, repaired).to(stream.dtype)))
        weights = (self_attention_logits(k).softmax(-1) + self_attention_logits(q).softmax(-1) + similarity_map) / 3
        first = block.project(weights.to(v.dtype) @ v) + self.res_cls * cls[:, None]
        first = aggregate(g_post, first)  # Y1

        mid = torch.stack([seen[layer] for layer in self.fuse_layers]).sum(0)  # M = X^4 + ... + X^10
        values = block.values(block.normed(mid[:, 1:]))
        second = block.project(similarity_map.to(values.dtype) @ values) + self.res_cls * mid[:, :1]
        second = aggregate(g_post, second)  # Y2
        return (first + second).to(stream.dtype)
