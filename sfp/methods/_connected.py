"""Connected components of patch graphs, batched: CLIPSeg's density-reachability."""

from __future__ import annotations

import torch
from torch import Tensor


def components(near: Tensor, min_samples: int = 1) -> Tensor:
    """Component of each node of symmetric graphs (..., N, N) bool with full diagonals: (..., N)
    int64, the least node in it.

    With ``min_samples`` as DBSCAN: a node with fewer neighbours, itself included, is no core point.
    It joins the component of its first core neighbour, or stays alone.
    """
    n = near.shape[-1]
    core = near.sum(-1) >= min_samples
    links = near & core[..., None, :] & core[..., :, None]
    labels = torch.arange(n, device=near.device).expand(near.shape[:-1]).contiguous()
    own = labels
    while True:  # each node takes the least label among its neighbours, then that label's label
        spread = torch.where(links, labels[..., None, :], n).amin(-1)
        spread = torch.minimum(labels, spread)
        spread = spread.gather(-1, spread)
        if torch.equal(spread, labels):
            break
        labels = spread
    if min_samples > 1:
        via = (near & core[..., None, :]).float().argmax(-1)  # the first core neighbour
        reached = (near & core[..., None, :]).any(-1)
        labels = torch.where(core, labels, torch.where(reached, labels.gather(-1, via), own))
    return labels
