"""Coherence of a layer: how well the similarity of two patches predicts that they share a class.

CLIPSeg chooses its attention layer by this AUROC (its Fig. 3), SC-CLIP its middle layers (0.66 in
the last, 0.76 in a middle layer of ViT-B/16 on ADE20K, 0.77 for DINO).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from sfp.clip.clip import l2_normalise

FEATURES = ("q", "k", "v", "tokens")


def patch_labels(labels: Tensor, grid: tuple[int, int], patch: int, ignore: int = 255) -> Tensor:
    """The commonest label of each patch's pixels, the least among equals: (B, H, W) int to (B, N).

    ``ignore`` where all pixels are ignored. Remainders smaller than a patch are dropped, as the
    trunk drops them.
    """
    h, w = grid
    cells = labels.long()[:, : h * patch, : w * patch].unfold(1, patch, patch)
    cells = cells.unfold(2, patch, patch).flatten(3).flatten(1, 2)
    kept = cells != ignore
    known = cells.masked_select(kept).unique()
    if not len(known):
        return torch.full(cells.shape[:2], ignore)
    counts = torch.stack([(cells == label).sum(-1) for label in known], -1)
    return known[counts.argmax(-1)].masked_fill(~kept.any(-1), ignore)


def coherence(features: Tensor, labels: Tensor, ignore: int = 255) -> float | None:
    """AUROC in [0, 1] of the cosine similarity of patch pairs as a classifier of "same label".

    Args:
        features: (N, C).
        labels: (N,) int; patches with ``ignore`` are left out.

    Returns:
        None where all pairs are of one kind.
    """
    kept = labels != ignore
    rows, labels = l2_normalise(features[kept]), labels[kept]
    upper = torch.triu(torch.ones(len(labels), len(labels), dtype=torch.bool), diagonal=1)
    same = (labels[:, None] == labels[None, :])[upper]
    if bool(same.all()) or not bool(same.any()):
        return None
    return float(roc_auc_score(same.numpy(), (rows @ rows.T).cpu()[upper].numpy()))


def joined_heads(u: Tensor, patches: slice) -> Tensor:
    """Queries, keys or values of the patches, heads joined: (B, heads, T, d_h) to (B, N, C)."""
    return u[:, :, patches].transpose(1, 2).flatten(2)


def nearest_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (H, W) at another size, nearest."""
    found = F.interpolate(labels[None, None].float(), size=size, mode="nearest-exact")
    return found[0, 0].to(labels.dtype)
