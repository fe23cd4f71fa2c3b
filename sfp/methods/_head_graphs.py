"""Graphs of patches per attention head: spectra, which heads meet, low rank (CASS, Eqs. 3 to 7).

Everything is batched over images and heads. Spectra and eigenvectors are float64. A graph is
X X^T / s of keys X (N, d), so that its eigenvalues are those of the small matrix X^T X / s, and its
eigenvectors X v.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Pairing = Literal["official", "consistent"]
EIGENVALUES = 20  # that spectra are compared by
RANK = 10


def match_range(values: Tensor, target: Tensor, dims: Sequence[int]) -> Tensor:
    """Values scaled and shifted to the target's smallest and largest one over ``dims``.

    Equal values become the target's smallest.
    """
    low, high = values.amin(dims, keepdim=True), values.amax(dims, keepdim=True)
    least, most = target.amin(dims, keepdim=True), target.amax(dims, keepdim=True)
    span = high - low
    return (values - low) / span.where(span > 0, 1) * (most - least) + least


def graphs(keys: Tensor, scale: float) -> Tensor:
    """X X^T / s of keys (B, heads, N, d): (B, heads, N, N) float32."""
    keys = keys.float()
    return keys * scale @ keys.mT


def spectra(keys: Tensor, scale: float) -> Tensor:
    """The largest eigenvalues of each graph, descending and of sum 1, (B, heads, 20) float64.

    The authors make them unit first, which the sum undoes. A graph of fewer patches has zeros at
    the end, one of equal zeros nothing else.
    """
    values = torch.linalg.eigvalsh(_small(keys, scale))
    return _shares(values)


def _small(keys: Tensor, scale: float) -> Tensor:
    """X^T X / s, (B, heads, d, d) float64.

    Numbers that aren't finite become 0 here: solvers refuse them, and the graphs keep them, so that
    the pipeline finds the layer that they come from.
    """
    keys = keys.double().nan_to_num(0, 0, 0)
    return keys.mT * scale @ keys


def _shares(ascending: Tensor) -> Tensor:
    leading = ascending.flip(-1)[..., :EIGENVALUES].clamp(min=0)
    leading = F.pad(leading, (0, EIGENVALUES - leading.shape[-1]))
    total = leading.sum(-1, keepdim=True)
    return leading / total.where(total > 0, 1)


def distances(second: Tensor, own: Tensor) -> Tensor:
    """omega, (B, heads of the second model, heads of CLIP): sums of spectra's differences."""
    return (second[:, :, None] - own[:, None]).abs().sum(-1)


def assign(omega: Tensor) -> Tensor:
    """pi (B, heads): the assignment of rows to columns of the largest total distance.

    By the Hungarian method on the CPU, with one copy for the batch. Where sorted spectra of both
    models don't cross, omega_{ij} is a sum a_i + b_j and all assignments are equally good, which is
    common; rounding would then decide. So rows and columns of near numbers are preferred by a part
    that is far below real differences and far above rounding.
    """
    heads = np.arange(omega.shape[-1])
    tables = omega.double().cpu().numpy() - 1e-9 * (heads[:, None] - heads) ** 2
    found = np.stack([linear_sum_assignment(table, maximize=True)[1] for table in tables])
    return torch.from_numpy(found).to(omega.device)


def meet(omega: Tensor, pi: Tensor, pairing: Pairing) -> tuple[Tensor, Tensor]:
    """Which head of the second model each head of CLIP meets (B, heads), and w (B, heads).

    omega's rows are heads of the second model. The authors' code takes row i for CLIP's head i,
    which then meets pi(i) with omega_{i, pi(i)}; a "consistent" pairing gives row i to CLIP's head
    pi(i).
    """
    weights = omega.gather(2, pi[..., None])[..., 0]
    if pairing == "official":
        return pi, weights
    order = pi.argsort(1)
    return order, weights.gather(1, order)


def low_rank(keys: Tensor, scale: float, rescale: bool) -> tuple[Tensor, Tensor]:
    """Factors f (B, heads, N, 10) float32 of B = f f^T, and ``spectra`` of the graphs.

    B = sum sigma' u u^T over the 10 leading eigenvectors, where sigma' are the eigenvalues, or, if
    rescaled, spread from half the smallest of the 10 to 1.5 times the largest.
    """
    values, vectors = torch.linalg.eigh(_small(keys, scale))
    rank = min(RANK, values.shape[-1])
    sigma = values.flip(-1)[..., :rank].clamp(min=0)
    directions = keys.double() @ vectors.flip(-1)[..., :rank]  # length sqrt(sigma / scale)
    weights = sigma
    if rescale:
        # the 10 of a graph of N patches; it has zeros where keys have fewer channels
        places = min(RANK, keys.shape[-2])
        top, last = sigma[..., :1], F.pad(sigma, (0, RANK - rank))[..., places - 1, None]
        span = top - last
        weights = (sigma - last) / span.where(span > 0, 1) * (1.5 * top - 0.5 * last) + 0.5 * last
        weights = weights.clamp(min=0)
    real = sigma > 1e-12 * sigma[..., :1]
    factor = torch.where(real, weights * scale / sigma.where(real, 1), 0).sqrt()
    return (directions * factor[..., None, :]).float(), _shares(values)


def blend(factors: Tensor, graph: Tensor, weights: Tensor) -> Tensor:
    """C = (10 w B + G) / (10 w + 1), (B, heads, N, N): B without diagonal, in G's range.

    Args:
        factors: f (B, heads, N, 10) of B = f f^T.
        graph: G (B, heads, N, N).
        weights: 10 w, (B, heads).
    """
    low = factors @ factors.mT
    low.diagonal(dim1=-2, dim2=-1).zero_()
    weights = weights[..., None, None].to(low)
    return (weights * match_range(low, graph, (-2, -1)) + graph) / (weights + 1)
