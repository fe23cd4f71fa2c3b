"""CLIPtrase's clusters of patches, and their vote on the classes of pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.ndimage import median_filter
from torch import Tensor


def cluster_patches(affinity: Tensor, eps: float, min_samples: int) -> Tensor:
    """DBSCAN on the rows of an affinity (N, N), Euclidean.

    Cluster of each patch (N,), -1 for noise.
    """
    from sklearn.cluster import DBSCAN  # takes a second to import

    labels = DBSCAN(eps=eps, min_samples=min_samples).fit_predict(affinity.float().cpu().numpy())
    return torch.from_numpy(labels).long()


def cluster_map(
    affinity: Tensor, clusters: Tensor, grid: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """The cluster of each pixel, (H, W) int64: that whose mean affinity is largest there.

    A cluster's mean row of the affinity is enlarged four times, median-filtered 7x7 and enlarged to
    the size, so that noise patches find a cluster, too. -1 everywhere without any cluster.
    """
    count = int(clusters.max()) + 1
    if count == 0:
        return torch.full(size, -1, device=affinity.device)
    member = F.one_hot(clusters.clamp_min(0), count).float() * (clusters >= 0)[:, None]
    member = member.to(affinity.device)
    maps = (member.T @ affinity.float()) / member.sum(0)[:, None]  # each cluster's mean row, (K, N)
    maps = maps.unflatten(1, grid)[None]
    maps = F.interpolate(maps, scale_factor=4, mode="bilinear", align_corners=False)
    smooth = torch.from_numpy(median_filter(maps[0].cpu().numpy(), size=(1, 7, 7)))[None]
    smooth = smooth.to(affinity.device)
    return F.interpolate(smooth, size=size, mode="bilinear", align_corners=False)[0].argmax(0)


def vote(scores: Tensor, clusters: Tensor, rule: str) -> Tensor:
    """Scores (Q, H, W) after the vote of clusters (H, W).

    Args:
        rule: each cluster's "majority" as 0 and 1, or its "mean" score. Without clusters each pixel
            is one of its own.
    """
    ballots = scores
    if rule == "majority":
        ballots = F.one_hot(scores.argmax(0), len(scores)).permute(2, 0, 1).to(scores.dtype)
    index = clusters.flatten()
    if int(index.max()) < 0:
        return ballots
    count = int(index.max()) + 1
    totals = scores.new_zeros(len(scores), count).index_add_(1, index, ballots.flatten(1))
    if rule == "majority":
        winners = F.one_hot(totals.argmax(0), len(scores)).T.to(scores.dtype)
    else:
        winners = totals / torch.bincount(index, minlength=count).clamp_min(1)
    return winners[:, index].unflatten(1, clusters.shape)
