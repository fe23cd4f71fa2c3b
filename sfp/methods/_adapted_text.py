"""Text drawn towards the picture, as CASS and RF-CLIP do: groups of queries, one of each moves."""

from __future__ import annotations

import functools
from typing import ClassVar, Literal

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist
from torch import Tensor

from sfp.clip.clip import l2_normalise
from sfp.methods._method import Method
from sfp.options import Positive, Share
from sfp.stages import Picture, Text, View

Linkage = Literal["complete", "ward"]


class AdaptedText(Method):
    """Base class of methods that move text towards the picture and add the class token's scores.

    Scores: (1 - b) <F_i, T'_q> + b <g, T_q>, g the class token's unit vector. In each group of
    queries the one that is the most like g moves towards the two patches that are the most like it,
    T'_q = unit((1 - a) T_q + a m).

    ``encode`` gives unit "features" (B, h, w, D), and "cls" (B, D) where ``needs_window`` says so.

    Args:
        image_weight: b; 0 leaves g out.
        patch_weight: a; 0 leaves the text as it is.
        cluster_distance: h, where the tree of the queries' cosine distances is cut.
        class_vector: g of the whole "image", or of each "window", as on Cityscapes.

    Attributes:
        linkage: how the tree is built.
    """

    image_weight: Share = 0.25
    patch_weight: Share = 0.04
    cluster_distance: Positive = 0.09
    class_vector: Literal["image", "window"] = "image"

    linkage: ClassVar[Linkage] = "complete"

    @property
    def needs_window(self) -> bool:
        """Whether g of each window is asked for."""
        return self.class_vector == "window" and bool(self.image_weight + self.patch_weight)

    def image_vectors(self, windows: Tensor) -> Tensor:
        """The image embeddings (B, D) of windows (B, 3, H, W), not normalised."""
        tokens = self.stream(windows, last=self.trunk.layers)
        return self.trunk.pooled(tokens, self.grid(windows))

    def look(self, picture: Picture) -> Tensor | None:
        """g of the whole image, (1, D)."""
        if self.class_vector == "window" or not self.image_weight + self.patch_weight:
            return None
        return l2_normalise(self.image_vectors(picture.image[None]))

    def score(self, view: View, text: Text) -> Tensor:
        """(1 - b) <F, T'> + b <g, T>, (n, h, w, Q)."""
        features = view["features"].flatten(1, 2)
        likeness, adapted = self.adapted(view, text)
        scores = features @ adapted.transpose(1, 2)
        if self.image_weight:
            scores = torch.lerp(scores, likeness[:, None], self.image_weight)
        return scores.unflatten(1, view["features"].shape[1:3])

    def adapted(self, view: View, text: Text) -> tuple[Tensor | None, Tensor]:
        """<g, T_q> of each window (n, Q), None where it isn't asked for, and T' (n, Q, D)."""
        features = view["features"].flatten(1, 2)
        same = text.vectors.expand(len(features), -1, -1)
        if not self.image_weight + self.patch_weight:
            return None, same
        cls = view["cls"] if view.looked is None else view.looked.expand(len(features), -1)
        likeness = cls @ text.vectors.T
        if not self.patch_weight:
            return likeness, same
        groups = cluster_queries(text.vectors, self.cluster_distance, self.linkage)
        return likeness, adapt_text(features, text.vectors, likeness, groups, self.patch_weight)


def cluster_queries(vectors: Tensor, distance: float, method: Linkage = "complete") -> Tensor:
    """Group number, from 0, of each unit query vector (Q, D), (Q,) int64; kept per vocabulary.

    The linkage tree of the cosine distances, cut at ``distance``.
    """
    rows = vectors.float().cpu().numpy()
    return _cluster(rows.tobytes(), rows.shape[1], distance, method).to(vectors.device)


@functools.lru_cache(maxsize=16)
def _cluster(rows: bytes, width: int, distance: float, method: Linkage) -> Tensor:
    vectors = np.frombuffer(rows, np.float32).reshape(-1, width)
    if len(vectors) == 1:
        return torch.zeros(1, dtype=torch.long)
    tree = linkage(pdist(vectors.astype(np.float64), "cosine"), method=method)
    return torch.from_numpy(fcluster(tree, distance, criterion="distance") - 1).long()


def adapt_text(
    features: Tensor, vectors: Tensor, likeness: Tensor, clusters: Tensor, weight: float
) -> Tensor:
    """T' of each window, (n, Q, D): in each cluster the query q* of the largest likeness moves.

    T'_q* = unit((1 - weight) T_q* + weight mu), mu the unit mean of the two patches nearest to q*.

    Args:
        features: unit patch features (n, N, D).
        vectors: T, (Q, D).
        likeness: of each window to each query, (n, Q).
        clusters: of each query, (Q,).
        weight: a.
    """
    member = clusters == torch.arange(int(clusters.max()) + 1, device=clusters.device)[:, None]
    outside = likeness[:, None].masked_fill(~member, float("-inf"))  # (n, K, Q)
    best = outside.argmax(-1)  # q*, (n, K)
    chosen = vectors[best]  # (n, K, D)
    nearest = (chosen @ features.transpose(1, 2)).topk(min(2, features.shape[1]), -1).indices
    images = torch.arange(len(features), device=features.device)[:, None, None]
    mu = l2_normalise(features[images, nearest].mean(2))  # (n, K, D)
    moved = l2_normalise((1 - weight) * chosen + weight * mu)
    place = best[..., None].expand_as(moved)
    return vectors.expand(len(features), -1, -1).scatter(1, place, moved)
