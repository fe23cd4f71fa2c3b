"""TLP: text-aware Laplacian propagation, the refinement of PEARL (CVPR 2026; PGSmall/PEARL)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.options import Count, Positive, Range
from sfp.refiners._refiner import REFINERS, Refiner
from sfp.stages import Text, View
from sfp.transfer import to_device


@REFINERS.register("TLP")
class TLP(Refiner):
    """Scores m become the solution X of (diag(c) + Lap) X = c m on a coarse grid.

    The data weight c trusts pixels whose likeliest query is clear; Lap is the Laplacian of the grid
    of 4 neighbours, whose edges are weak where the picture's grey changes and strong where
    neighbours agree on the text. As the authors' code does it: a fixed number of steps of conjugate
    gradients, without convergence.

    Args:
        grid: about so many cells along each axis; 224 on Cityscapes.
        steps: of conjugate gradients.
        affinity: which entries of the text matrix gate trust and edges: its "diagonal", as the code
            does it, or "full", the paper's sum over pairs of queries.
    """

    grid: Annotated[int, Range(1)] = 80
    steps: Count = 25
    affinity: Literal["diagonal", "full"] = "diagonal"

    def __call__(self, scores: Tensor, view: View, text: Text) -> Tensor:
        relation = text_relation(text.vectors)
        if self.affinity == "diagonal":
            relation = relation.diag()
        image = to_device(view.image, scores.device)
        return propagate(image, scores, relation, self.grid, self.steps)


def text_relation(vectors: Tensor, temperature: Positive = 0.5, own: float = 10.0) -> Tensor:
    """softmax of T T^T / temperature + own I, rows divided by their sums, (Q, Q)."""
    relation = (vectors @ vectors.T / temperature).softmax(-1)
    relation = relation + own * torch.eye(len(vectors), device=vectors.device)
    return relation / (relation.sum(-1, keepdim=True) + 1e-6)


def propagate(image: Tensor, scores: Tensor, relation: Tensor, grid: int, steps: int) -> Tensor:
    """Scores (Q, H, W) refined by a normalised image (3, h, w) and a text relation; float32.

    The relation is (Q, Q), or its diagonal (Q,). Cells are of round(H / grid) x round(W / grid)
    pixels; what is left at the lower and right borders belongs to none.
    """
    scores = scores.float()
    size = scores.shape[-2:]
    image = F.interpolate(image.float()[None], size=size, mode="bilinear", align_corners=False)[0]
    cell = tuple(max(1, round(side / grid)) for side in size)
    if cell != (1, 1):
        image, scores = F.avg_pool2d(image, cell), F.avg_pool2d(scores, cell)
    trust, across, down = weigh(image, scores, relation)
    solved = solve(trust, across, down, scores, steps)
    return F.interpolate(solved[None], size=size, mode="bilinear", align_corners=False)[0]


def weigh(image: Tensor, scores: Tensor, relation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The data weight c (h, w), the edges to the right (h, w - 1) and downwards (h - 1, w)."""
    p = scores.softmax(0)  # without the logit scale
    if relation.ndim == 1:
        related = relation[:, None, None] * p
    else:
        related = (relation @ p.flatten(1)).view_as(p)
    agree = (p * related).sum(0).clamp(0, 1)
    trust = p.amax(0).clamp(min=0.05).square() * (1 + agree)
    grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]

    def edges(axis: int) -> Tensor:
        (one, _), (_, other) = _ends(p, axis), _ends(related, axis)
        change = grey.diff(dim=axis - 1).abs()
        alike = torch.exp(-5 * change / (change.mean() + 1e-6))
        return (alike * (1 + (one * other).sum(0).clamp(0, 1))).clamp(0, 1)

    return trust, edges(2), edges(1)


def _ends(maps: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Both ends of each edge along an axis: maps (..., h, w) without their last and their first
    entries.
    """
    count = maps.shape[axis] - 1
    return maps.narrow(axis, 0, count), maps.narrow(axis, 1, count)


def solve(trust: Tensor, across: Tensor, down: Tensor, scores: Tensor, steps: int) -> Tensor:
    """Conjugate gradients from X = m, one step length for all queries and pixels; (Q, h, w)."""

    def system(x: Tensor) -> Tensor:
        """(diag(c) + Lap) x: what flows along each edge enters one end and leaves the other."""
        out = trust * x
        for weights, axis in ((across, 2), (down, 1)):
            one, other = _ends(out, axis)
            flow = x.diff(dim=axis)
            one.addcmul_(weights, flow, value=-1)
            other.addcmul_(weights, flow)
        return out

    x = scores.clone()
    residual = trust * scores - system(x)
    direction, energy = residual.clone(), residual.square().sum()
    for _ in range(steps):
        image = system(direction)
        length = energy / ((direction * image).sum() + 1e-12)
        x.addcmul_(direction, length)
        residual.addcmul_(image, length, value=-1)
        before, energy = energy, residual.square().sum()
        direction.mul_(energy / (before + 1e-12)).add_(residual)
    return x
