"""Parts of RF-CLIP: clusters of queries, text drawn towards the picture, attention off sinks."""

from __future__ import annotations

import functools

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from sfp.clip.clip import l2_normalise


def cluster_queries(vectors: Tensor, distance: float) -> Tensor:
    """Cluster number, from 0, of each unit query vector (Q, D), (Q,) int64; kept per vocabulary.

    Complete linkage on the cosine distance, cut at ``distance``.
    """
    rows = vectors.float().cpu().numpy()
    return _cluster(rows.tobytes(), rows.shape[1], distance).to(vectors.device)


@functools.lru_cache(maxsize=16)
def _cluster(rows: bytes, width: int, distance: float) -> Tensor:
    vectors = np.frombuffer(rows, np.float32).reshape(-1, width)
    if len(vectors) == 1:
        return torch.zeros(1, dtype=torch.long)
    tree = linkage(vectors.astype(np.float64), method="complete", metric="cosine")
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


def refocus(maps: Tensor, rows: slice, threshold: float, share: float) -> Tensor:
    """Attention (B, heads, T, T) with less weight of patches, ``rows``, on sinks.

    Sinks are the patches whose column, summed over the patches' rows, is above threshold (1 + N);
    they keep ``share`` of their weight, and the row's other patches get the rest in proportion.
    """
    patches = maps[:, :, rows, rows]
    sinks = patches.sum(2, keepdim=True) / rows.stop > threshold
    taken = patches * sinks
    others = patches * ~sinks
    freed = (1 - share) * taken.sum(-1, keepdim=True)
    given = freed * others / (others.sum(-1, keepdim=True) + 1e-8)
    maps = maps.clone()
    maps[:, :, rows, rows] = share * taken + others + given
    return maps
