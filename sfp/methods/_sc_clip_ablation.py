"""SC-CLIP with parts left out or replaced, as its Tables 2 to 8 do.

What the tables print no equation for is our reading. Built by name as "SC-CLIP-ablation"; lists of
methods leave it out.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from sfp.backbones import load_backbone
from sfp.errors import SFPError
from sfp.methods import METHODS
from sfp.methods._parts import (
    aggregate,
    correlate,
    cosine_similarity,
    cut_below,
    masked_similarity_attention,
    self_attend,
)
from sfp.methods.sc_clip import SCCLIP


@METHODS.register("SC-CLIP-ablation", listed=False)
class SCCLIPAblation(SCCLIP):
    """SC-CLIP with switches.

    Args:
        fusion: "pass" sends M through Dec; with "sum" M itself is Y2; with "dual_path" Y2 sums
            W_o concat(softmax(V V^T / s) V) + b_o of M's blocks.
        correlation: Dec's U U^T, one softmax for each letter of q, k, v, all of equal weight.
        enhance: Dec has softmax(B), too.
        aggregation: "before" Dec by G_pre, "after" it by G_post, both, or none.
        similarity: G_pre and G_post of the layers, or both of another model's features, a name for
            ``load_backbone``.
        similarity_weights: a local file for it instead of timm's download.
    """

    fusion: Literal["pass", "sum", "dual_path"] = "pass"
    correlation: str = "k"
    enhance: bool = True
    aggregation: Literal["both", "before", "after", "none"] = "both"
    similarity: str = "layers"
    similarity_weights: str | None = None

    def prepare(self) -> None:
        super().prepare()
        letters = set(self.correlation) <= set("qkv")
        if not letters or not (self.correlation or self.enhance):
            raise SFPError(
                f"correlation of {self.name} is {self.correlation!r};"
                " give letters of q, k and v, one at least without enhance."
            )
        if self.similarity != "layers":
            self.backbones["similarity"] = load_backbone(
                self.similarity, self.clip, "similarity", self.similarity_weights
            )

    def tokens(self, windows: Tensor) -> Tensor:
        stream, pre, post, fused = self.streams(windows)
        rows = self.patch_rows(windows)
        if "similarity" in self.backbones:
            maps = self.backbones["similarity"](windows)
            pre = post = F.adaptive_avg_pool2d(maps, self.grid(windows)).flatten(2).transpose(1, 2)
        g_pre, g_post = cosine_similarity(pre), cosine_similarity(post)
        attention = masked_similarity_attention(g_pre) if self.enhance else None
        y = stream[:, rows]
        if self.aggregation in ("both", "before"):
            y = aggregate(cut_below(g_pre, self.beta), y)
        y = self.decode(y, attention) + self.class_term(stream)
        if fused is not None and self.fusion == "pass":
            y = y + self.decode(fused[:, rows], attention) + self.class_term(fused)
        if self.aggregation in ("both", "after"):
            y = aggregate(cut_below(g_post, self.beta), y)
        if fused is None or self.fusion == "pass":
            return y
        return y + (self._dual_path(windows) if self.fusion == "dual_path" else fused[:, rows])

    def decode(self, tokens: Tensor, attention: Tensor | None) -> Tensor:
        return correlate(self.last_block, tokens, self.correlation, attention)

    def _dual_path(self, windows: Tensor) -> Tensor:
        _, cache = self.run_with_cache(windows, v=self.fused)
        terms = []
        for (_, layer), v in cache.items():
            terms.append(self.trunk.blocks[layer - 1].project(self_attend(v, v)))
        return sum(terms)[:, self.patch_rows(windows)]
