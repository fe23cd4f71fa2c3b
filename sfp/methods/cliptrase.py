"""CLIPtrase: summed self-self attention, and a vote of patch clusters (Shao et al., ECCV 2024).

Official repository: leaves162/CLIPtrase.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.clip.clip import l2_normalise
from sfp.clip.kernels import linear
from sfp.methods import METHODS, Changes, Method
from sfp.methods._cluster_vote import cluster_map, cluster_patches, vote
from sfp.methods._parts import self_attend
from sfp.options import Positive, Range
from sfp.stages import Text, View


@METHODS.register("CLIPtrase")
class CLIPtrase(Method):
    """A = softmax(Q Q^T / s) + softmax(K K^T / s) + softmax(V V^T / s), s = sqrt(d_h).

    Rows sum to 3; residual and FFN are as trained. The affinity of the vote is D_ij = max(0, C_ij -
    C_cls,j), C block L-1's mean over heads of [cos(Q, Q) + cos(K, K) + cos(V, V)] / 3. DBSCAN on
    its rows groups the patches of each window. The authors vote on whole images: window=0 and a
    short side of 224 or 336.

    Args:
        cluster_vote: None for plain scores; "majority" gives a cluster's pixels to the text
            that most of them prefer (scores become 0 and 1; in overlapping windows the share of
            votes); "mean" averages the scores in a cluster, as the detectron2 port. A vote needs a
            class token.
        cluster_eps: of DBSCAN; as published 0.7 up to 14x14 patches, 1.1 above.
        cluster_min_samples: of DBSCAN; as published 3 up to 14x14 patches, 7 above.
        class_scores: multiply the scores by 100 <f_cls, t_c>, as the authors do on VOC20.
    """

    cluster_vote: Literal["majority", "mean"] | None = None
    cluster_eps: Positive | None = None
    cluster_min_samples: Annotated[int, Range(1)] | None = None
    class_scores: bool = False

    changes = Changes("Shao et al., ECCV 2024", attention="q-q + k-k + v-v; cluster vote")

    def prepare(self) -> None:
        self.needs_class_token = self.cluster_vote is not None

    def tokens(self, windows: Tensor) -> Tensor:
        return self._last(self.stream(windows))[:, self.patch_rows(windows)]

    def _last(self, stream: Tensor) -> Tensor:
        """Block L with the summed attention, (B, T, C)."""
        block = self.last_block
        q, k, v = block.qkv(block.normed(stream))
        stream = stream + block.project(self_attend(q, v) + self_attend(k, v) + self_attend(v, v))
        return stream + block.mlp(stream)

    def affinity(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Block L's output (B, T, C) and D (B, N, N) float32."""
        layer = self.trunk.layers - 1
        stream, cache = self.run_with_cache(windows, q=[layer], k=[layer], v=[layer])
        patches = self.patch_rows(windows)
        first = patches.start
        parts = [cache[name, layer][:, :, : patches.stop] for name in "qkv"]
        rows = [F.normalize(part.float(), dim=-1) for part in parts]
        cosines = sum((u @ u.transpose(-2, -1)).mean(1) for u in rows) / 3  # C
        affinity = cosines[:, first:, first:] - cosines[:, :1, first:]
        return self._last(stream), affinity.clamp_min(0)

    def encode(self, windows: Tensor) -> dict[str, Tensor]:
        """Unit patch "features"; for class scores and vote also "cls" (B, D), the window's
        embedding, and "clusters".

        The clusters are those of the windows' pixels, (B, H, W) int64, -1 without any.
        """
        if self.cluster_vote is None and not self.class_scores:
            return super().encode(windows)
        grid = self.grid(windows)
        tokens, affinity = self.affinity(windows)
        features = l2_normalise(self.trunk.readout(tokens))
        encoded = {
            "features": features[:, self.patch_rows(windows)].unflatten(1, grid),
            "cls": l2_normalise(self.trunk.pooled(tokens, grid)),
        }
        if self.cluster_vote:
            few = affinity.shape[1] <= 14 * 14
            eps = self.cluster_eps or (0.7 if few else 1.1)
            least = self.cluster_min_samples or (3 if few else 7)
            clusters = [
                cluster_map(own, cluster_patches(own, eps, least), grid, windows.shape[-2:])
                for own in affinity
            ]
            encoded["clusters"] = torch.stack(clusters)
        return encoded

    def score(self, view: View, text: Text) -> Tensor:
        """Cosines (n, h, w, Q); with the vote at the windows' pixels, (n, H, W, Q)."""
        scores = super().score(view, text)
        if self.class_scores:
            scores = scores * linear(100 * view["cls"][:, None, None], text.vectors)
        if self.cluster_vote is None:
            return scores
        pixels = F.interpolate(
            scores.permute(0, 3, 1, 2), size=view.size, mode="bilinear", align_corners=False
        )
        voted = [
            vote(maps, own, self.cluster_vote)
            for maps, own in zip(pixels, view["clusters"], strict=True)
        ]
        return torch.stack(voted).permute(0, 2, 3, 1)
