"""CLIPtrase: summed self-self attention, and a vote of patch clusters (Shao et al., ECCV 2024; leaves162/CLIPtrase; methods.md 1.8)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.clip.clip import unit
from sfp.clip.kernels import product
from sfp.clip.trunk import Hook, LayerState
from sfp.errors import SFPError
from sfp.methods import METHODS, Card, Method
from sfp.methods._cluster_vote import cluster_map, cluster_patches, vote
from sfp.methods._parts import self_attend


@METHODS.register("CLIPtrase")
class CLIPtrase(Method):
    """A = softmax(Q Q^T / s) + softmax(K K^T / s) + softmax(V V^T / s), s = sqrt(d_h), rows sum to 3; residual and FFN as trained.

    The affinity of the vote is D_ij = max(0, C_ij - C_cls,j), C block L-1's mean over heads of
    [cos(Q, Q) + cos(K, K) + cos(V, V)] / 3. DBSCAN on its rows groups the patches of each window.

    The authors vote on whole images: window=0 and a short side of 224 or 336.
    """

    # None for plain scores; "majority" gives a cluster's pixels to the text that most of them prefer (scores become 0 and 1;
    # in overlapping windows the share of votes), "mean" averages the scores in a cluster, as the detectron2 port
    cluster_vote: str | None = None
    cluster_eps: float | None = None  # of DBSCAN; as published 0.7 up to 14x14 patches, 1.1 above
    cluster_min_samples: int | None = None  # of DBSCAN; as published 3 up to 14x14 patches, 7 above
    class_scores: bool = (
        False  # multiply the scores by 100 <f_cls, t_c>, as the authors do on VOC20
    )

    card = Card("Shao et al., ECCV 2024", attention="q-q + k-k + v-v; cluster vote")
    choices = {"cluster_vote": (None, "majority", "mean")}

    def prepare(self) -> None:
        for option, least in (("cluster_eps", 1e-9), ("cluster_min_samples", 1)):
            value = getattr(self, option)
            if value is not None and not value >= least:
                raise SFPError(f"{option} of CLIPtrase is {value}; give a number above 0.")

    def tokens(self, windows: Tensor) -> Tensor:
        return self._last(self.stream(windows))[:, 1:]

    def _last(self, stream: Tensor) -> Tensor:
        """Block L with the summed attention, (B, 1 + N, C)."""
        block = self.last_block
        q, k, v = block.qkv(block.normed(stream))
        stream = stream + block.project(self_attend(q, v) + self_attend(k, v) + self_attend(v, v))
        return stream + block.mlp(stream)

    def affinity(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Block L's output (B, 1 + N, C) and D (B, N, N) float32."""
        found: list[Tensor] = []

        def cosines(state: LayerState) -> None:
            rows = [F.normalize(u.float(), dim=-1) for u in (state.q, state.k, state.v)]
            found.append(sum(product(u, u.transpose(-2, -1)).mean(1) for u in rows) / 3)  # C

        tokens = self._last(self.stream(windows, Hook(cosines, [self.trunk.layers - 1])))
        return tokens, (found[0][:, 1:, 1:] - found[0][:, :1, 1:]).clamp_min(0)

    def see(self, windows: Tensor) -> Any:
        """Unit patch features; with the vote or class scores those of the class token, too, the windows' size and their clusters."""
        if self.cluster_vote is None and not self.class_scores:
            return super().see(windows)
        size, grid = windows.shape[-2:], self.trunk.grid_of(*windows.shape[-2:])
        tokens, affinity = self.affinity(windows)
        few = affinity.shape[1] <= 14 * 14
        eps = self.cluster_eps or (0.7 if few else 1.1)
        min_samples = self.cluster_min_samples or (3 if few else 7)
        clusters = []
        for matrix in affinity if self.cluster_vote else ():
            clusters.append(
                cluster_map(matrix, cluster_patches(matrix, eps, min_samples), grid, size)
            )
        features = unit(self.trunk.readout(tokens))
        return features[:, 1:].unflatten(1, grid), features[:, 0], size, clusters

    def compare(self, seen: Any, text: Tensor) -> Tensor:
        """Cosines (B, h, w, Q); with the vote at the windows' pixels, (B, H, W, Q)."""
        if self.cluster_vote is None and not self.class_scores:
            return super().compare(seen, text)
        patches, cls, size, clusters = seen
        scores = product(patches, text.T)
        if self.class_scores:
            scores = scores * product(100 * cls[:, None, None], text.T)
        if self.cluster_vote is None:
            return scores
        pixels = F.interpolate(
            scores.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False
        )
        voted = [
            vote(maps, own, self.cluster_vote) for maps, own in zip(pixels, clusters, strict=True)
        ]
        return torch.stack(voted).permute(0, 2, 3, 1)
